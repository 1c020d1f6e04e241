"""Nothing lost: full, read-only and vanishing disks, readers that leave, two writers at once."""

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import records
import torch
from conftest import QUICK, ended, same_tensors, stripes
from PIL import Image
from records import read_metrics

import dataset
import export
import inference
import train
import utils
from checkpoint import load_checkpoint
from dataset import read_images
from utils import GoesOn, atomic_path

SHORT = [*QUICK, "--train_mode", "dann", "--target_file", "usps", "--val_period", "4", "--run_name", "run"]
PROJECT = Path(inference.__file__).parent
DISK = "nothing was left half written; {} and start again (a training with --resume)."


def hidden(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if file.name.startswith(".")]


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """A limit in bytes for every file that this process writes: what a full disk is like, without a disk to fill."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A disk in memory at `folder`; skips the test where this process may mount none."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount the disk that this test fills")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that holds one checkpoint of a run, but not the next beside it."""
    yield from mounted(tmp_path / "disk", "size=4m")


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "disk", "ro")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of twelve images."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(5)
    for i in range(12):
        Image.fromarray(stripes(i % 10, rng)).save(tmp_path / "images" / f"{i:02d}.png")
    return tmp_path / "images"


# Disks


def test_a_disk_that_fills_up_while_training_leaves_the_last_good_checkpoint_to_go_on_from(
    small_data: Path, small_disk: Path, tmp_path: Path
) -> None:
    whole = train.main(["--data_root", str(small_data), *SHORT, "--save_dir", str(tmp_path)])
    arguments = ["--data_root", small_data, *SHORT, "--save_dir", small_disk]
    code, _, error = ended(train, *arguments)
    last = small_disk / "run" / "last.pt"
    assert code == 2
    assert error.splitlines()[-1] == f"train.py: {last}: No space left on device; {DISK.format('free some space')}", (
        error
    )
    assert load_checkpoint(last)["step"] == 4
    assert hidden(small_disk / "run") == []
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert ended(train, *arguments, "--resume")[0] == 0
    assert same_tensors(load_checkpoint(last)["model"], load_checkpoint(Path(whole["folder"]) / "last.pt")["model"])


def test_a_file_that_may_grow_no_further_leaves_the_last_good_checkpoint(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same without a disk to mount: from the first checkpoint on no file may exceed 100 kB."""
    save_run, limit = train.save_run, contextlib.ExitStack()

    def and_then_no_more(*args: Any, **more: Any) -> None:
        save_run(*args, **more)
        limit.enter_context(no_file_above(100_000))

    monkeypatch.setattr(train, "save_run", and_then_no_more)
    with limit:
        code, _, error = ended(train, "--data_root", small_data, *SHORT, "--save_dir", tmp_path)
    last = tmp_path / "run" / "last.pt"
    remedy = "raise the limit on the size of a file (ulimit -f)"
    assert (code, error.splitlines()[-1]) == (2, f"train.py: {last}: File too large; {DISK.format(remedy)}")
    assert load_checkpoint(last)["step"] == 4
    assert hidden(tmp_path / "run") == []


def test_a_full_disk_while_predicting_leaves_the_old_predictions(dann_run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "pred.csv"
    out.write_text("old")
    with no_file_above(50):
        code, _, error = ended(inference, "--checkpoint", dann_run, "--test_loc", images, "--out_path", out)
    assert (code, out.read_text()) == (2, "old")
    assert error.startswith(f"inference.py: {out}: File too large; nothing was left half written; ")
    assert hidden(tmp_path) == []


def test_a_full_disk_while_exporting_leaves_nothing_half_written(dann_run: Path, tmp_path: Path) -> None:
    with no_file_above(50_000):
        code, _, error = ended(export, "--checkpoint", dann_run, "--out_path", tmp_path / "x.pt2")
    assert code == 2
    assert error.splitlines()[-1].startswith(f"export.py: {tmp_path / 'x.pt2'}: File too large; nothing was left half")
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_cannot_be_written_ends_the_run_in_one_sentence(tmp_path: Path) -> None:
    log = records.RunLog(tmp_path / "metrics.jsonl", 0)
    log.write({"step": 1})
    with no_file_above(20):
        with pytest.raises(OSError, match=r"metrics\.jsonl") as refusal:
            log.write({"step": 2})
        log.close()
    assert refusal.value.errno == errno.EFBIG
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_a_read_only_disk_is_refused_in_one_sentence(
    dann_run: Path, images: Path, small_data: Path, read_only_disk: Path
) -> None:
    said = f"Read-only file system; {DISK.format('choose a folder that can be written')}\n"
    code, _, error = ended(train, "--data_root", small_data, *SHORT, "--save_dir", read_only_disk)
    assert (code, error) == (2, f"train.py: {read_only_disk / 'run'}: {said}")
    code, _, error = ended(inference, "--checkpoint", dann_run, "--test_loc", images, "--out_path", read_only_disk)
    assert (code, error) == (2, f"inference.py: {read_only_disk / 'pred.csv'}: {said}")


def test_a_folder_without_permission_is_refused_and_keeps_what_it_holds(unprivileged: Path) -> None:
    (unprivileged / "x.json").write_text("old")
    unprivileged.chmod(0o555)
    with pytest.raises(PermissionError, match=r"x\.json"), atomic_path(unprivileged / "x.json") as part:
        part.write_text("new")
    unprivileged.chmod(0o755)
    assert [(file.name, file.read_text()) for file in unprivileged.iterdir()] == [("x.json", "old")]


def test_a_save_dir_below_a_file_is_refused_in_one_sentence(small_data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for save_dir in (tmp_path / "file", tmp_path / "file" / "deeper"):
        code, _, error = ended(train, "--data_root", small_data, *SHORT, "--save_dir", save_dir)
        assert (code, error) == (
            2,
            f"train.py: run folder {save_dir / 'run'}: {tmp_path / 'file'} is a file; choose another --save_dir or "
            "--run_name.\n",
        )
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_file_is_on_the_disk_before_it_takes_its_name_and_its_name_before_we_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut leaves is the old file or the new one: fsync of the file, rename, fsync of the folder."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        done.append(f"fsync {os.fstat(descriptor).st_ino}")
        fsync(descriptor)

    def watched_replace(part: Path, path: Path) -> None:
        done.append(f"rename {part}")
        replace(part, path)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    with atomic_path(tmp_path / "x") as part:
        part.write_text("x")
    assert done == [f"fsync {(tmp_path / 'x').stat().st_ino}", f"rename {part}", f"fsync {tmp_path.stat().st_ino}"]


def test_what_a_killed_run_left_half_written_is_removed_by_the_next(
    dann_run: Path, small_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    for name in (".last.pt.abcd_012.pt", ".metrics.jsonl.zzzzzzzz.jsonl", ".keep", "mine.pt"):
        (tmp_path / "run" / name).write_bytes(b"half")
    ended(train, "--data_root", small_data, *SHORT, "--save_dir", tmp_path, "--resume")
    assert hidden(tmp_path / "run") == [".keep"]
    assert (tmp_path / "run" / "mine.pt").read_bytes() == b"half"


def test_a_checkpoint_to_go_on_from_that_is_damaged_is_refused_and_left_as_it_is(
    small_data: Path, tmp_path: Path
) -> None:
    arguments = ["--data_root", small_data, *SHORT, "--save_dir", tmp_path, "--topk", 1]
    assert ended(train, *arguments)[0] == 0
    (tmp_path / "run" / "result.json").unlink()
    last = tmp_path / "run" / "last.pt"
    good = torch.load(last, weights_only=True)
    for key, value in (("resume", {}), ("resume", [1]), ("step", "x"), ("model", {"w": torch.ones(2)})):
        torch.save({**good, key: value}, last)
        before = last.read_bytes()
        code, _, error = ended(train, *arguments, "--resume")
        assert (code, error.splitlines()[-1]) == (
            2,
            f"train.py: {last} is of another network than this run's; use another --run_name.",
        )
        assert last.read_bytes() == before
    elsewhere = {"score": 0, "step": 0, "name": "../../mine"}  # falls out of the top 1 at the next validation
    torch.save({**good, "step": 8, "resume": {**good["resume"], "kept": [elsewhere]}}, last)
    (tmp_path.parent / "mine").touch()
    assert ended(train, *arguments, "--resume")[0] == 0
    assert (tmp_path / "run" / "step0000012.pt").exists()
    assert (tmp_path.parent / "mine").exists()


# Folders and files that change


def test_prediction_holds_three_chunks_of_pixels_however_many_images_there_are(
    dann_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One being predicted, one read ahead, one on its way between them; names and probabilities are what remains."""
    monkeypatch.setattr(inference, "CHUNK", 4)
    (images / "list.txt").write_text("\n".join(f"{'./' * k}{i:02d}.png" for k in range(20) for i in range(12)))
    alive: list[weakref.ref[torch.Tensor]] = []
    counts, read = [], inference.read_images

    def watched(*args: Any) -> Any:
        pixels, unreadable = read(*args)
        alive.append(weakref.ref(pixels))
        counts.append(sum(pixels() is not None for pixels in alive))
        return pixels, unreadable

    monkeypatch.setattr(inference, "read_images", watched)
    arguments = ["--checkpoint", dann_run, "--test_loc", images / "list.txt", "--out_path", tmp_path / "out"]
    assert ended(inference, *arguments)[0] == 0
    assert len(counts) == 60
    assert max(counts) <= 3


def test_a_folder_that_vanishes_while_it_is_predicted_costs_the_images_that_were_not_yet_read(
    dann_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "CHUNK", 3)
    predict = inference.predict

    def and_then_remove(*args: Any) -> Any:
        shutil.rmtree(images, ignore_errors=True)
        return predict(*args)

    monkeypatch.setattr(inference, "predict", and_then_remove)
    arguments = ["--checkpoint", dann_run, "--test_loc", images, "--out_path", tmp_path / "out"]
    code, out, error = ended(inference, *arguments)
    assert (code, error) == (1, "")
    lines = (tmp_path / "out" / "pred.csv").read_text().splitlines()[1:]
    lost = [line for line in out.splitlines() if line.startswith("left out ")]
    assert len(lines) >= 3
    assert len(lines) + len(lost) == 12
    assert lost[-1] == f"left out {images / '11.png'}: no such file"


def test_a_folder_that_cannot_be_listed_is_refused_not_passed_over(dann_run: Path, unprivileged: Path) -> None:
    (unprivileged / "closed").mkdir(mode=0o000)
    Image.new("L", (28, 28)).save(unprivileged / "x.png")
    with pytest.raises(utils.UserError) as refusal:
        dataset.image_names(unprivileged)
    assert str(refusal.value) == (
        f"{unprivileged / 'closed'} cannot be listed (Permission denied); make it readable or move it away."
    )


def test_an_image_that_is_rewritten_while_it_is_read_is_the_old_one_the_new_one_or_named(tmp_path: Path) -> None:
    file, contents = tmp_path / "x.png", []
    for grey in (10, 200):
        Image.fromarray(np.full((28, 28), grey, dtype=np.uint8)).save(file)
        contents.append(file.read_bytes() + bytes(grey))
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            for content in contents:
                file.write_bytes(content)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        pixels, unreadable = read_images([file] * 3000, 28, 2)
    finally:
        stop.set()
        writer.join()
    values = [set(image.flatten().tolist()) for i, image in enumerate(pixels) if i not in unreadable]
    assert set(map(frozenset, values)) <= {frozenset({10}), frozenset({200})}
    assert all(why.startswith(("not a readable image (", "no such file")) for why in unreadable.values())


# Readers and writers


def test_a_reader_that_leaves_ends_neither_prediction_nor_training(
    dann_run: Path, images: Path, small_data: Path, tmp_path: Path
) -> None:
    """`inference.py ... | head -0`; the training writes to a pipe that is closed from the start."""
    command = ["inference.py", "--checkpoint", str(dann_run), "--test_loc", str(images), "--out_path", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, *command], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert len((tmp_path / "pred.csv").read_text().splitlines()) == 13
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stream:
        gone = GoesOn(stream)
        for _ in range(3):
            assert gone.write("x" * 100_000) == 100_000
            gone.flush()

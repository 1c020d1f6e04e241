"""Prediction: whole or not at all, every readable image labelled, the rest named."""

import contextlib
import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK, stripes
from PIL import Image

import inference
import train
from checkpoint import build_network, load_checkpoint
from dataset import image_names, read_images
from metrics import predict
from utils import UserError


def predict_folder(run: Path, folder: Path, out: Path, *more: str) -> pd.DataFrame:
    outcome = inference.main(["--checkpoint", str(run), "--test_loc", str(folder), "--out_path", str(out), *more])
    return pd.read_csv(outcome["out_file"], dtype={"label": str})


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of ten images, two of them in subfolders."""
    rng = np.random.default_rng(5)
    for i in range(10):
        place = tmp_path / "images" / ("" if i < 8 else f"sub{i}")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(stripes(i, rng)).save(place / f"{9 - i}.png")
    return tmp_path / "images"


def test_predictions_are_those_of_the_network_sorted_by_relative_name(
    dann_run: Path, images: Path, tmp_path: Path
) -> None:
    table = predict_folder(dann_run, images, tmp_path / "out")
    assert table.columns.tolist() == ["image_name", "label"]
    assert table["image_name"].tolist() == sorted([*[f"{9 - i}.png" for i in range(8)], "sub8/1.png", "sub9/0.png"])
    net, classes = build_network(dann_run, load_checkpoint(dann_run / "last.pt"), torch.device("cpu"))
    pixels, _ = read_images([images / name for name in image_names(images)], 28)
    assert table["label"].tolist() == [classes[k] for k in predict(net, pixels)[1].argmax(1).tolist()]


@pytest.mark.parametrize(("out", "file"), [("new/folder", "new/folder/pred.csv"), ("new/mine.csv", "new/mine.csv")])
def test_out_path_is_a_folder_or_a_csv_name(out: str, file: str, dann_run: Path, images: Path, tmp_path: Path) -> None:
    predict_folder(dann_run, images, tmp_path / out)
    assert (tmp_path / file).is_file()


def test_an_unreadable_image_is_named_and_the_rest_is_labelled(dann_run: Path, images: Path, tmp_path: Path) -> None:
    (images / "bad.png").write_bytes(b"no image")
    done = subprocess.run(
        [
            sys.executable,
            "inference.py",
            "--checkpoint",
            str(dann_run),
            "--test_loc",
            str(images),
            "--out_path",
            str(tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(inference.__file__).parent,
    )
    assert done.returncode == 1, done.stderr
    assert f"left out {images}/bad.png: not a readable image (UnidentifiedImageError)" in done.stdout
    table = pd.read_csv(tmp_path / "out" / "pred.csv")
    assert len(table) == 10
    assert "bad.png" not in table["image_name"].tolist()


def test_the_answers_do_not_depend_on_batch_size_chunk_or_threads(
    dann_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "bad.png").write_bytes(b"")
    whole = predict_folder(dann_run, images, tmp_path / "a", "--probs")
    monkeypatch.setattr(inference, "CHUNK", 3)
    parts = predict_folder(dann_run, images, tmp_path / "b", "--probs", "--batch_size", "2", "--num_workers", "1")
    pd.testing.assert_frame_equal(whole, parts, atol=2e-6)


def test_probs_add_a_column_per_class_and_the_confidence(dann_run: Path, images: Path, tmp_path: Path) -> None:
    table = predict_folder(dann_run, images, tmp_path, "--probs")
    columns = [f"p_{k}" for k in range(10)]
    assert table.columns.tolist() == ["image_name", "label", *columns, "confidence"]
    assert table[columns].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    assert table["confidence"].tolist() == pytest.approx(table[columns].max(axis=1).tolist())
    assert [f"p_{label}" for label in table["label"]] == table[columns].idxmax(axis=1).tolist()


def test_an_old_file_is_replaced_only_by_a_whole_new_one(
    dann_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pred.csv").write_text("old")

    def fails(self: pd.DataFrame, path: Path, **_: object) -> None:
        Path(path).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fails)
    with pytest.raises(OSError, match="No space"):
        predict_folder(dann_run, images, tmp_path)
    assert (tmp_path / "pred.csv").read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images", "pred.csv"]


def test_refusals_are_one_sentence_and_write_nothing(dann_run: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no image")
    (tmp_path / "file").touch()
    out = str(tmp_path / "out")
    cases = [
        (
            dann_run,
            tmp_path / "absent",
            out,
            f"--test_loc {tmp_path}/absent is neither a folder of images nor a .csv or .txt that lists them; name one.",
        ),
        (dann_run, tmp_path / "empty", out, f"--test_loc {tmp_path}/empty holds no image; name a folder of images."),
        (dann_run, tmp_path / "bad", out, f"none of the 1 images in {tmp_path}/bad is readable; nothing was written."),
        (
            tmp_path / "x.pt",
            images,
            out,
            f"--checkpoint {tmp_path}/x.pt does not exist; name a run folder or a checkpoint file.",
        ),
        (
            dann_run,
            images,
            str(tmp_path / "file"),
            f"--out_path {tmp_path}/file is a file; name a folder or a file that ends in .csv.",
        ),
    ]
    for checkpoint, folder, out_path, sentence in cases:
        with pytest.raises(UserError) as refusal:
            inference.main(["--checkpoint", str(checkpoint), "--test_loc", str(folder), "--out_path", out_path])
        assert str(refusal.value) == sentence
    assert not (tmp_path / "out").exists()


def test_the_published_commands_of_prediction_work_from_another_folder(
    dann_run: Path, images: Path, tmp_path: Path
) -> None:
    home = tmp_path / "usps"
    shutil.copytree(images, home)
    project = Path(inference.__file__).parent
    done = subprocess.run(
        ["bash", str(project / "inference.sh"), "usps", "out"],
        cwd=tmp_path,
        text=True,
        check=False,
        capture_output=True,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "CHECKPOINT": str(dann_run)},
    )
    assert done.returncode == 0, done.stderr
    assert len(pd.read_csv(tmp_path / "out" / "pred.csv")) == 10


def test_classes_with_names_come_back_as_names(tmp_path: Path) -> None:
    """Class-per-folder source of other sizes, unlabelled target in a plain folder: names in, names out."""
    rng = np.random.default_rng(0)
    for i in range(24):
        label = ("ash", "birch", "cherry")[i % 3]
        for place in (f"leaves/train/{label}", f"leaves/val/{label}", "photos"):
            folder = tmp_path / "data" / place
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(stripes(4 * (i % 3), rng)).resize((40, 36)).save(folder / f"{i:02d}.png")
    run = train.main(
        ["--data_root", str(tmp_path / "data"), "--train_mode", "dann", "--source_file", "leaves", "--target_file"]
        + ["photos", "--save_dir", str(tmp_path), *QUICK, "--max_steps", "60"]
    )
    assert run["source_val_accuracy"] > 0.9
    assert run["target_val_accuracy"] is None
    table = predict_folder(Path(run["folder"]), tmp_path / "data" / "photos", tmp_path / "out", "--probs")
    assert {"p_ash", "p_birch", "p_cherry"} <= set(table.columns)
    assert set(table["label"]) <= {"ash", "birch", "cherry"}
    wanted = [("ash", "birch", "cherry")[i % 3] for i in range(24)]
    assert np.mean([a == b for a, b in zip(table["label"], wanted, strict=True)]) > 0.9


def test_a_list_of_files_and_a_csv_are_predicted_like_their_folder(
    dann_run: Path, images: Path, tmp_path: Path
) -> None:
    whole = predict_folder(dann_run, images, tmp_path / "whole")
    names = whole["image_name"].tolist()
    (images / "list.txt").write_text("\n".join([*names[::-1], ""]))
    (images / "list.csv").write_text("image_name,note\n" + "\n".join(f"{name},x" for name in names) + "\n")
    for file in ("list.txt", "list.csv"):
        assert predict_folder(dann_run, images / file, tmp_path / file.replace(".", "_")).equals(whole)
    (images / "list.txt").write_text(f"{images / names[0]}\nabsent.png\n")
    outcome = inference.main(
        ["--checkpoint", str(dann_run), "--test_loc", str(images / "list.txt"), "--out_path", str(tmp_path / "part")]
    )
    assert outcome["count"] == 1
    assert outcome["left_out"] == {"absent.png": "no such file"}


def test_what_is_no_list_of_images_is_refused(dann_run: Path, images: Path, tmp_path: Path) -> None:
    for place in (images / "0.png", images / "nowhere", images / "nowhere.csv"):
        with pytest.raises(UserError, match=r"is neither a folder of images nor a \.csv or \.txt that lists them"):
            predict_folder(dann_run, place, tmp_path / "out")
    (images / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match="holds no image"):
        predict_folder(dann_run, images / "empty.txt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_predictions_are_scored_against_labels_by_class(
    dann_run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = predict_folder(dann_run, images, tmp_path / "out")
    wanted = table.copy()
    wrong = str((int(str(wanted.loc[0, "label"])) + 1) % 10)
    wanted.loc[0, "label"] = wrong
    wanted.iloc[:8].to_csv(tmp_path / "labels.csv", index=False)  # two images without a label
    outcome = inference.main(
        ["--checkpoint", str(dann_run), "--test_loc", str(images), "--out_path", str(tmp_path / "again")]
        + ["--labels", str(tmp_path / "labels.csv")]
    )
    assert outcome["score"]["accuracy"] == 7 / 8
    assert outcome["score"]["scored"] == 8
    same = sum(wanted.iloc[:8]["label"] == wrong)
    assert outcome["score"]["per_class"][wrong] == pytest.approx((same - 1) / same)
    printed = capsys.readouterr().out
    assert "accuracy 0.8750 of 8 labelled images; rows: label, columns: answer" in printed
    assert "mean confidence" in printed


def test_labels_that_fit_nothing_are_refused_and_nothing_is_written(
    dann_run: Path, images: Path, tmp_path: Path
) -> None:
    cases = {
        "image_name,label\nother.png,3\n": "--labels names none of the predicted images",
        "image_name,label\n0.png,33\n": "label '33' is not among the classes",
        "image_name\n0.png\n": "has no labels",
    }
    for content, sentence in cases.items():
        (tmp_path / "labels.csv").write_text(content)
        with pytest.raises(UserError, match=sentence):
            predict_folder(dann_run, images, tmp_path / "out", "--labels", str(tmp_path / "labels.csv"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spread", [None, 1e-4])
def test_labels_are_those_of_float32_though_bfloat16_goes_first(
    spread: float | None, dann_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trained network, and one whose classes differ by `spread` alone: bfloat16 takes the wrong one."""
    monkeypatch.setattr(inference, "choose_precision", lambda name, device: torch.bfloat16)
    net, _ = build_network(dann_run, load_checkpoint(dann_run / "last.pt"), torch.device("cpu"))
    last = net.label_classifier[-1]
    assert isinstance(last, torch.nn.Linear)
    if spread:
        torch.manual_seed(0)
        last.weight.data = last.weight.data[:1] + spread * torch.randn(last.weight.shape)
        last.bias.data = torch.zeros(10)
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(np.stack([stripes(i % 10, rng) for i in range(300)]))
    wanted = predict(net, pixels)[1]
    found = inference.predict_labels(net, pixels)
    assert torch.equal(found.argmax(1), wanted.argmax(1))
    torch.testing.assert_close(found, wanted, atol=0.05, rtol=0)
    if spread:
        assert not torch.equal(predict(net, pixels, None, None, torch.bfloat16)[1].argmax(1), wanted.argmax(1))


def test_what_is_no_number_in_bfloat16_is_computed_in_float32(dann_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_numbers(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        features, probabilities = predict(*args)
        return features, probabilities if len(args) < 5 else probabilities * torch.nan

    monkeypatch.setattr(inference, "choose_precision", lambda name, device: torch.bfloat16)
    monkeypatch.setattr(inference, "predict", without_numbers)
    net, _ = build_network(dann_run, load_checkpoint(dann_run / "last.pt"), torch.device("cpu"))
    pixels = torch.randint(0, 256, (100, 28, 28, 3), dtype=torch.uint8)
    torch.testing.assert_close(inference.predict_labels(net, pixels), predict(net, pixels)[1])


def test_probs_are_of_float32_alone(
    dann_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precisions: list[torch.dtype] = []

    def watched(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        precisions.append(args[4] if len(args) > 4 else torch.float32)
        return predict(*args)

    monkeypatch.setattr(inference, "choose_precision", lambda name, device: torch.bfloat16)
    monkeypatch.setattr(inference, "predict", watched)
    labels = predict_folder(dann_run, images, tmp_path / "a", "--device", "cpu")["label"].tolist()
    assert torch.bfloat16 in precisions
    precisions.clear()
    assert predict_folder(dann_run, images, tmp_path / "b", "--probs", "--device", "cpu")["label"].tolist() == labels
    assert set(precisions) == {torch.float32}


def test_images_unlike_the_training_target_give_a_warning() -> None:
    unsure = torch.full((5, 10), 0.1)
    sure = torch.eye(10)[:5] * 0.99 + 0.001
    classes = [str(k) for k in range(10)]
    assert "warning: the answers are far less sure" in inference.summary(unsure, classes, {"entropy": 0.1})
    assert "warning" not in inference.summary(sure, classes, {"entropy": 0.1})
    assert "warning" not in inference.summary(unsure, classes, {})  # a published checkpoint does not say
    assert "answers: 0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 5: 0" in inference.summary(sure, classes, {})


SLOWLY = """
import functools, sys, time
import inference
predict = inference.predict
inference.CHUNK = 4
inference.Progress = functools.partial(inference.Progress, every=0.0)
inference.predict = lambda *given: (time.sleep(0.3), predict(*given))[1]
inference.main(sys.argv[1:])
"""


def slow_prediction(run: Path, images: Path, out: Path, stderr: int) -> subprocess.Popen[str]:
    """A process that predicts ten images, four at a time, slowly enough to be watched."""
    flags = ["--checkpoint", str(run), "--test_loc", str(images), "--out_path", str(out)]
    command = [sys.executable, "-c", SLOWLY, *flags]
    home = Path(inference.__file__).parent
    return subprocess.Popen(command, cwd=home, stdout=subprocess.DEVNULL, stderr=stderr, text=True)


def test_a_terminal_shows_a_bar_with_rate_and_time_left_and_keeps_none_of_it(
    dann_run: Path, images: Path, tmp_path: Path
) -> None:
    terminal, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process, shown = slow_prediction(dann_run, images, tmp_path, theirs), b""
    os.close(theirs)
    with contextlib.suppress(OSError):  # Linux's way to say that the other side is closed
        while more := os.read(terminal, 1 << 16):
            shown += more
    os.close(terminal)
    assert process.wait() == 0, shown
    bars = shown.decode().split("\r")
    assert re.fullmatch(r"predict: +0%\| +\| 0/10 \[00:00<\?, \?images/s\]", bars[1]), bars
    middle = r"predict: +80%\|█+.? +\| 8/10 \[\d\d:\d\d<\d\d:\d\d, +\d+\.\d\d(images/s|s/images)\]"
    assert any(re.fullmatch(middle, bar) for bar in bars), bars
    assert bars[-2].strip() == bars[-1] == ""  # wiped out at the end
    assert "\n" not in shown.decode()


def test_without_a_terminal_progress_is_plain_lines(dann_run: Path, images: Path, tmp_path: Path) -> None:
    process = slow_prediction(dann_run, images, tmp_path, subprocess.PIPE)
    _, shown = process.communicate()
    assert process.returncode == 0, shown
    lines = [re.fullmatch(r"predict: (\d+)/10 images, \d+\.\d images/s, \d+ s left", x) for x in shown.split("\n")[:-1]]
    assert [line and line[1] for line in lines] == ["4", "8", "10"], shown
    assert "\r" not in shown

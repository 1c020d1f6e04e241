"""A run on disk: nothing is lost, files are read without running their code, and what is damaged is named."""

import contextlib
import errno
import io
import os
import pickle
import re
import shutil
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import QUICK, ctrl_c_in_step, ended, same_state, same_tensors
from PIL import Image
from torch import nn

import export
import inference
import runs
import train
from model import ARCHITECTURES, DANN
from runs import (
    NUMBER,
    RunLog,
    build_network,
    load_checkpoint,
    read_json,
    read_metrics,
    resolve_checkpoint,
    save_checkpoint,
    with_error,
)
from utils import UserError, atomic_path, run_script

SHORT = ["--train_mode", "dann", "--target_file", "usps", *QUICK, "--val_period", "4", "--topk", "1"]
SHORT += ["--run_name", "run"]
CPU = torch.device("cpu")


def test_an_accuracy_has_its_standard_error_but_where_all_or_nothing_is_right() -> None:
    assert [with_error(right, 50) for right in (0.8, 1.0)] == ["0.8000 ± 0.057 (n = 50)", "1.0000 (n = 50)"]


@pytest.fixture(scope="module")
def whole(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """last.pt of a run of 12 steps in one piece."""
    save_dir = tmp_path_factory.mktemp("whole")
    assert ended(train, "--data_root", small_data, *SHORT, "--save_dir", save_dir)[0] == 0
    return load_checkpoint(save_dir / "run" / "last.pt")


@pytest.fixture(scope="module")
def stopped_run(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the same run, stopped at step 8. Read only."""
    save_dir = tmp_path_factory.mktemp("stopped")
    with ctrl_c_in_step(8):
        assert ended(train, "--data_root", small_data, *SHORT, "--save_dir", save_dir)[0] == 130
    return save_dir / "run"


@pytest.fixture
def run(stopped_run: Path, tmp_path: Path, no_figures: None) -> Path:
    """A copy of the stopped run."""
    return Path(shutil.copytree(stopped_run, tmp_path / "run"))


def resumed(run: Path, root: Path) -> tuple[int, str, str]:
    return ended(train, "--data_root", root, *SHORT, "--save_dir", run.parent, "--resume")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def hidden(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if file.name.startswith(".")]


# JSON files and the log


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("", ""),
        ("[1]", ""),
        ("{", ""),
        ("\0", ""),
        ("[" * 100_000, ""),
        ("{}", "steps"),
        ('{"step": 3}', "steps"),
        ('{"steps": "3"}', "steps"),
        ('{"steps": null}', "steps"),
        ('{"steps": true}', "steps"),
        ('{"steps": NaN}', "steps"),
        ('{"steps": 1e400}', "steps"),
    ],
)
def test_json_that_is_none_lacks_a_key_or_has_another_kind_of_value_is_refused_by_file_and_key(
    content: str, key: str, tmp_path: Path
) -> None:
    file = tmp_path / "result.json"
    file.write_text(content)
    with pytest.raises(UserError, match=rf"result\.json.*{key}"):
        read_json(file, steps=NUMBER)
    file.write_text('{"steps": 3, "more": []}')
    assert read_json(file, steps=NUMBER) == {"steps": 3, "more": []}


def test_a_log_that_cannot_be_written_is_named_and_keeps_its_whole_lines(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "metrics.jsonl", 0)
    log.write({"step": 1})
    with no_file_above(20):
        with pytest.raises(OSError, match=r"metrics\.jsonl") as refusal:
            log.write({"step": 2})
        log.close()
    assert refusal.value.errno == errno.EFBIG
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_tensorboard_shows_the_numbers_of_the_log_also_after_a_resume(dann_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = read_metrics(dann_run / "metrics.jsonl")
    for step, new in ((0, lines), (lines[0]["step"], lines[1:])):  # resumed, it writes the second line again
        with contextlib.closing(RunLog(tmp_path / "metrics.jsonl", step, tensorboard=True)) as log:
            for line in new:
                log.write(line)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name in ("L_y", "L_d", "lambda", "target_val_accuracy"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(line["step"], pytest.approx(line[name])) for line in lines]


# Checkpoints: the published ones


class Published(nn.Module):
    """The published class as DESIGN states it, rebuilt to write files like the published ones."""

    def __init__(self) -> None:
        super().__init__()
        norm, relu = nn.BatchNorm1d, partial(nn.ReLU, True)
        self.feature = nn.Sequential(nn.Conv2d(3, 64, 5), nn.BatchNorm2d(64), nn.MaxPool2d(2), relu())
        self.feature.extend([nn.Conv2d(64, 50, 5), nn.BatchNorm2d(50), nn.Dropout2d(), nn.MaxPool2d(2), relu()])
        self.class_classifier = named(
            {"c_fc1": nn.Linear(800, 100), "c_bn1": norm(100), "c_relu1": relu(), "c_drop1": nn.Dropout()}
            | {"c_fc2": nn.Linear(100, 100), "c_bn2": norm(100), "c_relu2": relu(), "c_fc3": nn.Linear(100, 10)}
        )
        self.domain_classifier = named(
            {"d_fc1": nn.Linear(800, 100), "d_bn1": norm(100), "d_relu1": relu(), "d_fc2": nn.Linear(100, 2)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.class_classifier(self.feature(x).flatten(1))


def named(layers: dict[str, nn.Module]) -> nn.Sequential:
    part = nn.Sequential()
    for name, layer in layers.items():
        part.add_module(name, layer)
    return part


def save_as_published(path: Path, module: nn.Module, name: str = "CNNModel") -> None:
    """Pickle a whole module under the name `src.dann.<name>`, and forget that module again."""
    package, home = types.ModuleType("src"), types.ModuleType("src.dann")
    kind = type(name, (type(module),), {"__module__": "src.dann"})
    setattr(home, name, kind)
    module.__class__ = kind
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "src", package)
        patch.setitem(sys.modules, "src.dann", home)
        torch.save(module, path)


def test_a_published_file_predicts_what_the_pickled_module_predicts(tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = Published()
    for _ in range(3):  # BatchNorm statistics that are not the initial ones
        module(torch.rand(8, 3, 28, 28) * 2 - 1)
    save_as_published(tmp_path / "ep1_svhn_acc=0.5.pt", module.eval())
    images = torch.randint(0, 256, (16, 3, 28, 28), dtype=torch.uint8)
    net, classes = build_network(tmp_path, load_checkpoint(tmp_path / "ep1_svhn_acc=0.5.pt"), CPU)
    with torch.no_grad():
        torch.testing.assert_close(net(images), module(images.float() / 127.5 - 1))
    assert classes == [str(k) for k in range(10)]


def test_reading_a_published_file_runs_none_of_its_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_as_published(tmp_path / "x.pt", Published())
    monkeypatch.setattr(nn.Module, "__setstate__", lambda *_: pytest.fail("ran code of a module"))
    monkeypatch.setattr(nn.Conv2d, "__init__", lambda *_: pytest.fail("ran code of a module"))
    assert load_checkpoint(tmp_path / "x.pt")["model_args"]["arch"] == "published"
    assert "src.dann" not in sys.modules


@pytest.mark.parametrize("name", ["OtherModel", "CNNModel"])
def test_a_pickled_module_of_another_class_or_architecture_is_refused(name: str, tmp_path: Path) -> None:
    module = Published()
    module.feature = nn.Sequential(nn.Linear(2, 2))
    del module.class_classifier
    save_as_published(tmp_path / "x.pt", module, name)
    with pytest.raises(UserError, match=r"x\.pt.*(src\.dann\.OtherModel|another architecture)"):
        load_checkpoint(tmp_path / "x.pt")


# Checkpoints: ours


def test_a_checkpoint_holds_tensors_and_plain_values_only(dann_run: Path) -> None:
    content = torch.load(dann_run / "last.pt", weights_only=True)
    assert set(content) == {"model", "model_args", "args", "step", "metrics", "versions", "resume"}
    assert content["args"]["classes"] == [str(k) for k in range(10)]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_checkpoint_of_recipe_paper_predicts_the_same_with_its_one_batchnorm(
    arch: str, dann_run: Path, tmp_path: Path
) -> None:
    good, net = load_checkpoint(dann_run / "last.pt"), DANN(10, arch, norm="shared").train()
    images = torch.randint(0, 256, (8, 3, 28, 28), dtype=torch.uint8)
    net.features_of_both(images, images // 2)  # statistics that are not the initial ones
    save_checkpoint(
        tmp_path / "x.pt",
        {**good, "model": net.state_dict(), "model_args": net.arguments, "args": {**good["args"], "recipe": "paper"}},
    )
    found = load_checkpoint(tmp_path / "x.pt")
    assert found["args"] == {**good["args"], "recipe": "paper"}
    again, _ = build_network(tmp_path, found, CPU)
    for domain in (0, 1):
        assert torch.equal(again(images, domain), net.eval()(images))


def saved(content: Any) -> bytes:
    box = io.BytesIO()
    torch.save(content, box)
    return box.getvalue()


def repacked(content: bytes, ending: str, replaced_by: bytes) -> bytes:
    """The archive with other bytes in the entry that ends so, compressed."""
    box = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(box, "w", compression=zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, replaced_by if entry.filename.endswith(ending) else old.read(entry))
    return box.getvalue()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (Path("evil-was-here"), "x"))


# kind: (the parts of a good checkpoint that are changed, or the content of the file; what the refusal names)
Made = Callable[[dict[str, Any]], dict[str, Any] | bytes]
CHECKPOINTS: dict[str, tuple[Made, str]] = {
    "a pickle that runs code": (lambda good: {"model": Evil()}, "more than tensors"),
    "one that runs code in a list": (lambda good: {"resume": [Evil()]}, "more than tensors"),
    "an old pickle that runs code": (lambda good: pickle.dumps(Evil(), protocol=2), "more than tensors"),
    "empty": (lambda good: b"", "empty"),
    "a page": (lambda good: b"<html>" * 99, ""),
    "truncated": (lambda good: saved(good)[:99_999], ""),
    "overwritten": (lambda good: saved(good)[:400] + bytes(200) + saved(good)[600:], ""),
    "a pickle cut in a number": (lambda good: repacked(saved(good), "data.pkl", b"\x80\x02X\x05"), ""),
    "an archive that would fill the memory": (
        lambda good: repacked(saved(good), "data/0", bytes(30 << 20)),
        r"20,971,520",
    ),
    "tensors of another program": (lambda good: saved({"weight": torch.ones(3)}), "not a checkpoint of this program"),
    "one tensor": (lambda good: saved(torch.ones(3)), "not a checkpoint of this program"),
    "another model's keys": (lambda good: {"model": {"fc.weight": torch.ones(3)}}, "names of weights"),
    "wrong shapes": (
        lambda good: {"model": {**good["model"], "label_classifier.0.weight": torch.ones(3, 3)}},
        r"label_classifier\.0\.weight is \[3, 3\]",
    ),
    "weights that are not finite": (
        lambda good: {"model": {**good["model"], "label_classifier.0.bias": torch.full((10,), torch.nan)}},
        r"label_classifier\.0\.bias",
    ),
    "a variance below 0": (
        lambda good: {"model": {name: value - 9 * ("_var" in name) for name, value in good["model"].items()}},
        "running_var",
    ),
    "words for weights": (lambda good: {"model": dict.fromkeys(good["model"], "x")}, "no tensor"),
    "another network": (lambda good: {"model_args": {**good["model_args"], "arch": "published"}}, "names of weights"),
    "an unknown network": (lambda good: {"model_args": {**good["model_args"], "arch": "x"}}, "'x'"),
    "an unknown argument": (lambda good: {"model_args": {**good["model_args"], "depth": 3}}, "depth"),
    "a size that is no whole number": (lambda good: {"model_args": {**good["model_args"], "size": 28.0}}, "size"),
    "images that would fill the memory": (lambda good: {"model_args": {**good["model_args"], "size": 10**6}}, "size"),
    "another BatchNorm": (lambda good: {"model_args": {**good["model_args"], "norm": "shared"}}, "names of weights"),
    "an unknown BatchNorm": (lambda good: {"model_args": {**good["model_args"], "norm": ["x"]}}, "'x'"),
    "predicts as no domain": (lambda good: {"model_args": {**good["model_args"], "predict_as": 2}}, "domain"),
    "a network that would fill the memory": (
        lambda good: {"model_args": {**good["model_args"], "num_classes": 10**9}},
        "1000000000",
    ),
    "class names that are none": (lambda good: {"args": {"classes": [[]] * 10}}, "class names"),
    "too few class names": (lambda good: {"args": {"classes": ["1"]}}, "1 class names for 10"),
    "no arguments": (lambda good: {"args": torch.ones(2)}, "class names"),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_each_kind_of_bad_checkpoint_is_refused_by_name_and_runs_nothing(
    kind: str, dann_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "MAX_BYTES", 20 << 20)
    make, names = CHECKPOINTS[kind]
    good = load_checkpoint(dann_run / "last.pt")
    content, file = make(good), tmp_path / "x.pt"
    file.write_bytes(content if isinstance(content, bytes) else saved({**good, **content}))
    with pytest.raises(UserError, match=rf"^{re.escape(str(file))}.*{names}"):
        build_network(file, load_checkpoint(file), CPU)
    assert list(contents(tmp_path)) == ["x.pt"]


def test_a_file_of_any_size_is_read_that_unpacks_to_no_more_than_it_has(
    dann_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "MAX_BYTES", 1000)
    assert load_checkpoint(dann_run / "last.pt")["step"] == 12
    (tmp_path / "x.pt").write_bytes(repacked((dann_run / "last.pt").read_bytes(), "data/0", bytes(1 << 20)))
    with pytest.raises(UserError, match=r"x\.pt unpacks to"):
        load_checkpoint(tmp_path / "x.pt")


def test_a_run_folder_stands_for_the_checkpoint_that_its_result_selected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent"):
        resolve_checkpoint(tmp_path / "absent")
    with pytest.raises(UserError, match=r"last\.pt"):
        resolve_checkpoint(tmp_path)
    for name in ("last.pt", "step0000003.pt"):
        (tmp_path / name).touch()
    assert resolve_checkpoint(tmp_path).name == "last.pt"
    (tmp_path / "result.json").write_text('{"checkpoint": "../step0000003.pt"}')
    assert resolve_checkpoint(tmp_path) == tmp_path / "step0000003.pt"
    (tmp_path / "result.json").write_text('{"args": 3}')
    with pytest.raises(UserError, match=r"result\.json.*checkpoint"):
        resolve_checkpoint(tmp_path)


# Disks


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """A limit in bytes for every file that this process writes: what a full disk is like, without a disk to fill."""
    resource = pytest.importorskip("resource")  # Windows has none
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def after_saving(act: Callable[[], object]) -> Iterator[None]:
    """Let `act` happen whenever a run has written its checkpoints."""
    save_run = train.save_run

    def acting(*given: Any, **more: Any) -> None:
        save_run(*given, **more)
        act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "save_run", acting)
        yield


def test_a_disk_that_is_full_from_the_first_checkpoint_on_leaves_that_one_to_resume(
    small_data: Path, tmp_path: Path, whole: dict[str, Any], no_figures: None
) -> None:
    with contextlib.ExitStack() as limit, after_saving(lambda: limit.enter_context(no_file_above(100_000))):
        code, _, error = ended(train, "--data_root", small_data, *SHORT, "--save_dir", tmp_path)
    assert code == 2
    assert str(tmp_path / "run" / "step0000008.pt") in error.splitlines()[-1]
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 4
    assert hidden(tmp_path / "run") == []
    assert resumed(tmp_path / "run", small_data)[0] == 0
    assert same_tensors(load_checkpoint(tmp_path / "run" / "last.pt")["model"], whole["model"])


def test_a_full_disk_leaves_old_predictions_and_no_part_of_a_new_file(
    dann_run: Path, small_data: Path, tmp_path: Path
) -> None:
    """On a disk that takes 50 bytes a file."""
    flags = ["--checkpoint", dann_run, "--test_loc", small_data / "usps" / "val.csv", "--out_path", tmp_path / "x.csv"]
    (tmp_path / "x.csv").write_text("old")
    with no_file_above(50):
        for script, given in ((inference, flags), (export, [*flags[:2], "--out_path", tmp_path / "x.pt2"])):
            code, _, error = ended(script, *given)
            assert code == 2
            assert str(given[-1]) in error.splitlines()[-1]
    assert contents(tmp_path) == {"x.csv": b"old"}


def test_a_read_only_disk_is_refused_by_name(dann_run: Path, small_data: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a disk")
    try:
        trained = ended(train, "--data_root", small_data, *SHORT, "--save_dir", disk)
        flags = ["--checkpoint", dann_run, "--test_loc", small_data / "usps" / "val.csv", "--out_path", disk]
        predicted = ended(inference, *flags)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    for (code, _, error), place in ((trained, disk / "run"), (predicted, disk / "pred.csv")):
        assert code == 2
        assert error.count("\n") == 1
        assert f"{place}: Read-only file system" in error


def test_a_folder_without_permission_is_refused_and_keeps_what_it_holds(unprivileged: Path) -> None:
    (unprivileged / "x.json").write_text("old")
    unprivileged.chmod(0o555)
    with pytest.raises(PermissionError, match=r"x\.json"), atomic_path(unprivileged / "x.json") as part:
        part.write_text("new")
    unprivileged.chmod(0o755)
    assert contents(unprivileged) == {"x.json": b"old"}


def test_a_save_dir_below_a_file_is_refused_by_name(small_data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for save_dir in (tmp_path / "file", tmp_path / "file" / "deeper"):
        code, _, error = ended(train, "--data_root", small_data, *SHORT, "--save_dir", save_dir)
        assert code == 2
        assert str(tmp_path / "file") in error
    assert contents(tmp_path) == {"file": b"x"}


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


# Resuming


def test_a_resumed_run_ends_as_one_in_one_piece_and_removes_what_a_killed_one_left(
    run: Path, small_data: Path, whole: dict[str, Any]
) -> None:
    """Half-written files, and a kept checkpoint that fell out as the run was killed; not what others put there."""
    for name in (".last.pt.abcd_012.pt", ".metrics.jsonl.zzzzzzzz.jsonl", ".keep", "step0000004.pt", "step_mine.pt"):
        (run / name).write_bytes(b"half")
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 12, "lam')
    assert resumed(run, small_data)[0] == 0
    last = load_checkpoint(run / "last.pt")
    assert same_tensors(last["model"], whole["model"])
    assert same_state(last["resume"], whole["resume"])
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [4, 8, 12]
    assert hidden(run) == [".keep"]
    assert sorted(file.name for file in run.glob("*.pt")) == ["last.pt", "step0000012.pt", "step_mine.pt"]


@pytest.mark.parametrize(
    "damage", [{"resume": {}}, {"resume": [1]}, {"resume": None}, {"step": "x"}, {"model": {"w": torch.ones(2)}}]
)
def test_a_damaged_checkpoint_is_not_resumed_and_is_left_as_it_is(
    damage: dict[str, Any], run: Path, small_data: Path
) -> None:
    torch.save({**torch.load(run / "last.pt", weights_only=True), **damage}, run / "last.pt")
    before = contents(run)
    code, _, error = resumed(run, small_data)
    assert code == 2
    assert str(run / "last.pt") in error.splitlines()[-1]
    assert contents(run) == before


def test_a_checkpoint_that_lists_a_file_elsewhere_does_not_delete_it(run: Path, small_data: Path) -> None:
    good = torch.load(run / "last.pt", weights_only=True)
    good["resume"]["kept"] = [{"score": 0, "step": 0, "name": "../mine"}]  # falls out of the top 1 at the next
    torch.save(good, run / "last.pt")
    (run.parent / "mine").touch()
    assert resumed(run, small_data)[0] == 0
    assert (run / "step0000012.pt").exists()
    assert (run.parent / "mine").exists()


def test_a_resume_on_other_data_is_refused(run: Path, small_data: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(small_data, tmp_path / "data"))
    csv = root / "mnistm" / "train.csv"
    csv.write_text("\n".join(csv.read_text().splitlines()[:-1]) + "\n")
    code, _, error = resumed(run, root)
    assert code == 2
    assert re.search(r"last\.pt.*images or labels", error)


def test_a_resume_on_a_copy_of_the_data_with_other_times_goes_on(
    run: Path, small_data: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    root = Path(shutil.copytree(small_data, tmp_path / "data", copy_function=shutil.copyfile))
    assert resumed(run, root)[0] == 0
    assert same_tensors(load_checkpoint(run / "last.pt")["model"], whole["model"])


def test_a_resume_on_another_pixel_is_refused(run: Path, small_data: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(small_data, tmp_path / "data"))
    file = root / "usps" / "data" / "0007.png"
    with Image.open(file) as image:
        image.putpixel((5, 5), (1, 2, 3))
        image.save(file)
    code, _, error = resumed(run, root)
    assert code == 2
    assert re.search(r"last\.pt.*images or labels", error)


def test_a_resume_on_a_log_of_words_is_refused_and_leaves_the_run_as_it_is(run: Path, small_data: Path) -> None:
    log = run / "metrics.jsonl"
    log.write_text(re.sub(r'"lambda": [^,]+', '"lambda": "low"', log.read_text()))
    before = contents(run)
    code, _, error = resumed(run, small_data)
    assert code == 2
    assert re.search(r"metrics\.jsonl line 1.*lambda.*low", error)
    assert contents(run) == before


def test_a_reader_that_leaves_ends_a_run_quietly_and_resume_goes_on(
    small_data: Path, tmp_path: Path, whole: dict[str, Any], capfd: pytest.CaptureFixture[str], no_figures: None
) -> None:
    """`train.py ... | head -1`: the reader goes once the first checkpoint is written."""
    reader, writer = os.pipe()
    flags = ["--data_root", str(small_data), *SHORT, "--save_dir", str(tmp_path)]
    with (
        open(writer, "w") as stream,
        contextlib.redirect_stdout(stream),
        after_saving(lambda: os.close(reader)),
        pytest.raises(SystemExit) as end,
    ):
        run_script(partial(train.main, flags))
    assert end.value.code == 141
    assert capfd.readouterr().err == ""
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 4
    assert resumed(tmp_path / "run", small_data)[0] == 0
    assert same_tensors(load_checkpoint(tmp_path / "run" / "last.pt")["model"], whole["model"])

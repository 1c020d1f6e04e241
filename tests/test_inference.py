"""Prediction: whole or not at all, every readable image labelled, the rest named, nothing else touched."""

import contextlib
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ended, quick_run, stripes
from PIL import Image

import inference
from dataset import read_images
from listing import image_names
from metrics import predict
from runs import build_network, load_checkpoint, save_checkpoint
from utils import UserError


def predict_folder(run: Path, folder: Path, out: Path, *more: str) -> pd.DataFrame:
    outcome = inference.main(["--checkpoint", str(run), "--test_loc", str(folder), "--out_path", str(out), *more])
    return pd.read_csv(outcome["out_file"], dtype={"label": str})


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of ten images, two of them in subfolders, which links to itself and to the folder above."""
    rng = np.random.default_rng(5)
    for i in range(10):
        place = tmp_path / "images" / ("" if i < 8 else f"sub{i}")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(stripes(i, rng)).save(place / f"{9 - i}.png")
    (tmp_path / "images" / "round").symlink_to(".")
    (tmp_path / "images" / "again").symlink_to("..")
    return tmp_path / "images"


# What is written


def test_predictions_are_those_of_the_network_sorted_by_relative_name(
    dann_run: Path, images: Path, tmp_path: Path
) -> None:
    table = predict_folder(dann_run, images, tmp_path / "out")
    assert table.columns.tolist() == ["image_name", "label"]
    assert table["image_name"].tolist() == sorted([*[f"{9 - i}.png" for i in range(8)], "sub8/1.png", "sub9/0.png"])
    net, classes = build_network(dann_run, load_checkpoint(dann_run / "last.pt"), torch.device("cpu"))
    pixels, _ = read_images([images / name for name in image_names(images)], 28)
    assert table["label"].tolist() == [classes[k] for k in predict(net, pixels)[1].argmax(1).tolist()]


def test_the_answers_do_not_depend_on_batch_size_chunk_or_threads(
    dann_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "bad.png").write_bytes(b"")
    whole = predict_folder(dann_run, images, tmp_path / "a", "--probs")
    monkeypatch.setattr(inference, "CHUNK", 3)
    parts = predict_folder(dann_run, images, tmp_path / "b", "--probs", "--batch_size", "2", "--num_workers", "1")
    pd.testing.assert_frame_equal(whole, parts, atol=2e-6)


def test_it_computes_in_float32_and_in_bf16_where_that_is_asked_for_and_says_so(
    dann_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = []

    def watched(layer: torch.nn.Module, given: Any, answer: torch.Tensor) -> None:
        kinds.append(answer.dtype)

    build = inference.build_network

    def and_watch(*given: Any) -> Any:
        net, classes = build(*given)
        net.label_classifier[-1].register_forward_hook(watched)
        return net, classes

    monkeypatch.setattr(inference, "build_network", and_watch)
    exact = predict_folder(dann_run, images, tmp_path / "a", "--probs")
    assert kinds == [torch.float32]
    assert "bf16" not in capsys.readouterr().out
    rough = predict_folder(dann_run, images, tmp_path / "b", "--probs", "--precision", "bf16")
    assert kinds == [torch.float32, torch.bfloat16]
    assert "bf16" in capsys.readouterr().out
    pd.testing.assert_frame_equal(exact.filter(like="p_"), rough.filter(like="p_"), atol=0.05)


def test_probs_add_a_column_per_class_and_the_confidence(dann_run: Path, images: Path, tmp_path: Path) -> None:
    table = predict_folder(dann_run, images, tmp_path, "--probs")
    columns = [f"p_{k}" for k in range(10)]
    assert table.columns.tolist() == ["image_name", "label", *columns, "confidence"]
    assert table[columns].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    assert table["confidence"].tolist() == pytest.approx(table[columns].max(axis=1).tolist())
    assert [f"p_{label}" for label in table["label"]] == table[columns].idxmax(axis=1).tolist()


@pytest.mark.parametrize(("out", "file"), [("new/folder", "new/folder/pred.csv"), ("new/mine.csv", "new/mine.csv")])
def test_out_path_is_a_folder_or_a_csv_name(out: str, file: str, dann_run: Path, images: Path, tmp_path: Path) -> None:
    predict_folder(dann_run, images, tmp_path / out)
    assert (tmp_path / file).is_file()


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
    flags = ["--checkpoint", str(dann_run), "--test_loc", str(images / "list.txt"), "--out_path", str(tmp_path / "x")]
    outcome = inference.main(flags)
    assert outcome["count"] == 1
    assert list(outcome["left_out"]) == ["absent.png"]


def test_classes_with_names_come_back_as_names(tmp_path: Path, no_figures: None) -> None:
    """Class-per-folder source of other sizes, unlabelled target in a plain folder: names in, names out."""
    rng, trees = np.random.default_rng(0), ("ash", "birch", "cherry")
    for i in range(24):
        for place in (f"leaves/train/{trees[i % 3]}", f"leaves/val/{trees[i % 3]}", "photos"):
            folder = tmp_path / "data" / place
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(stripes(4 * (i % 3), rng)).resize((40, 36)).save(folder / f"{i:02d}.png")
    more = ["--source_file", "leaves", "--max_steps", "60", "--val_period", "60"]
    run = quick_run(tmp_path / "data", tmp_path, "dann", "photos", *more)
    assert run["target_val_accuracy"] is None
    table = predict_folder(Path(run["folder"]), tmp_path / "data" / "photos", tmp_path / "out", "--probs")
    assert {f"p_{name}" for name in trees} <= set(table.columns)
    assert np.mean([answer == trees[i % 3] for i, answer in enumerate(table["label"])]) > 0.9


# What is said


def test_an_unreadable_image_and_one_whose_name_is_no_text_are_named_and_the_rest_is_labelled(
    dann_run: Path, images: Path, tmp_path: Path
) -> None:
    good = (images / "2.png").read_bytes()
    for name, content in ((b"/\xff.png", good), (b"/bad.png", b"no image"), (b"/\xfe.png", b"no image")):
        with open(os.fsencode(images) + name, "wb") as file:
            file.write(content)
    code, out, error = ended(inference, "--checkpoint", dann_run, "--test_loc", images, "--out_path", tmp_path / "out")
    assert (code, error) == (1, "")
    assert f"{images}/bad.png" in out
    assert out.count("left out ") == 2
    written = (tmp_path / "out" / "pred.csv").read_bytes()
    assert len(written.splitlines()) == 1 + 10 + 1
    assert b"\n\xff.png," in written
    assert b"bad.png" not in written


def test_predictions_are_scored_against_labels_by_class(
    dann_run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = predict_folder(dann_run, images, tmp_path / "out")
    wrong = str((int(str(wanted.loc[0, "label"])) + 1) % 10)
    wanted.loc[0, "label"] = wrong
    wanted.iloc[:8].to_csv(tmp_path / "labels.csv", index=False)  # two images without a label
    flags = ["--checkpoint", str(dann_run), "--test_loc", str(images), "--out_path", str(tmp_path / "again")]
    found = inference.main([*flags, "--labels", str(tmp_path / "labels.csv")])["score"]
    assert (found["accuracy"], found["scored"]) == (7 / 8, 8)
    same = sum(wanted.iloc[:8]["label"] == wrong)
    assert found["per_class"][wrong] == pytest.approx((same - 1) / same)
    assert "0.8750 ± 0.117 (n = 8" in capsys.readouterr().out


def test_images_unlike_the_training_target_give_a_warning() -> None:
    unsure = torch.full((5, 10), 0.1)
    sure = torch.eye(10)[:5] * 0.99 + 0.001
    classes = [str(k) for k in range(10)]
    assert "warning" in inference.summary(unsure, classes, {"entropy": 0.1})
    assert "warning" not in inference.summary(sure, classes, {"entropy": 0.1})
    assert "warning" not in inference.summary(unsure, classes, {})  # a published checkpoint does not say
    assert "0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 5: 0" in inference.summary(sure, classes, {})


def test_a_terminal_shows_a_bar_with_rate_and_time_left_and_keeps_none_of_it(
    dann_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))  # Windows has none
    monkeypatch.setattr(inference, "CHUNK", 4)

    def slowly(*given: Any, **more: Any) -> Any:
        time.sleep(0.3)
        return predict(*given, **more)

    monkeypatch.setattr(inference, "predict", slowly)
    terminal, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with open(theirs, "w") as stream:
        with contextlib.redirect_stderr(stream):
            predict_folder(dann_run, images, tmp_path)
        stream.flush()
        shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    bars = shown.split("\r")
    four = r"80%.* 8/10 images, +[\d.]+images/s, \d\d:\d\d left(, mean confidence 0\.\d+)?"
    assert any(re.search(four, bar) for bar in bars), bars
    assert bars[-2].strip() == bars[-1] == ""  # wiped out at the end
    assert "\n" not in shown


# What is refused


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"--test_loc": "absent"}, "--test_loc .*absent"),
        ({"--test_loc": "absent.csv"}, r"--test_loc .*absent\.csv"),
        ({"--test_loc": "images/0.png"}, r"--test_loc .*0\.png"),
        ({"--test_loc": "empty"}, "--test_loc .*empty"),
        ({"--test_loc": "empty.txt"}, r"--test_loc .*empty\.txt"),
        ({"--test_loc": "bad"}, "none of the 1 images in .*bad"),
        ({"--checkpoint": "x.pt"}, r"--checkpoint .*x\.pt"),
        ({"--checkpoint": "overflow.pt"}, r"overflow\.pt .*not finite"),
        ({"--out_path": "file"}, "--out_path .*file"),
        ({"--out_path": "folder.csv"}, r"--out_path .*folder\.csv"),
        ({"--batch_size": "0"}, "--batch_size"),
        ({"--labels": "absent.csv"}, r"--labels .*absent\.csv"),
        ({"--labels": "others.csv"}, "--labels names none"),
        ({"--labels": "foreign.csv"}, r"foreign\.csv row 2 .*'33'"),
        ({"--labels": "names.csv"}, r"--labels .*names\.csv"),
        ({"--labels": "labels.csv", "--out_path": "labels.csv"}, r"--out_path .*labels\.csv is an input"),
        ({"--test_loc": "labels.csv", "--out_path": "labels.csv"}, r"--out_path .*labels\.csv is an input"),
    ],
)
def test_a_refusal_names_the_flag_or_file_and_changes_nothing(
    change: dict[str, str], names: str, dann_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("empty", "bad", "folder.csv"):
        (tmp_path / folder).mkdir()
    for name, content in (
        ("bad/x.png", "no image"),
        ("file", ""),
        ("empty.txt", "\n"),
        ("others.csv", "image_name,label\nother.png,3\n"),
        ("foreign.csv", "image_name,label\n2.png,33\n"),
        ("names.csv", "image_name\n2.png\n"),
        ("labels.csv", "image_name,label\nimages/2.png,3\n2.png,3\n"),
    ):
        (tmp_path / name).write_text(content)
    good = load_checkpoint(dann_run / "last.pt")
    large = {
        name: torch.full_like(value, 3e38 if value.is_floating_point() else 1) for name, value in good["model"].items()
    }
    save_checkpoint(tmp_path / "overflow.pt", {**good, "model": large})
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.chdir(tmp_path)
    flags = {"--checkpoint": str(dann_run), "--test_loc": "images", "--out_path": "out", **change}
    code, _, error = ended(inference, *[word for pair in flags.items() for word in pair])
    assert code == 2
    assert error.count("\n") == 1
    assert re.search(names, error)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_old_file_is_replaced_only_by_a_whole_new_one(
    dann_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pred.csv").write_text("old")

    def fails(self: pd.DataFrame, path: Path, **_: object) -> None:
        Path(path).write_text("half")
        raise UserError("stop")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fails)
    with pytest.raises(UserError, match="stop"):
        predict_folder(dann_run, images, tmp_path)
    assert (tmp_path / "pred.csv").read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images", "pred.csv"]


# Many images, and folders that change


def test_prediction_holds_three_chunks_of_pixels_however_many_images_there_are(
    dann_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One being predicted, one read ahead, one on its way between them; names and probabilities are what remains."""
    monkeypatch.setattr(inference, "CHUNK", 4)
    (images / "list.txt").write_text("\n".join(f"{'./' * k}{i}.png" for k in range(20) for i in range(2, 10)))
    alive: list[weakref.ref[torch.Tensor]] = []
    counts, read = [], inference.read_images

    def watched(*given: Any) -> Any:
        pixels, unreadable = read(*given)
        alive.append(weakref.ref(pixels))
        counts.append(sum(pixels() is not None for pixels in alive))
        return pixels, unreadable

    monkeypatch.setattr(inference, "read_images", watched)
    assert len(predict_folder(dann_run, images / "list.txt", tmp_path / "out")) == 160
    assert len(counts) == 40
    assert max(counts) <= 3


def test_a_folder_that_vanishes_while_it_is_predicted_costs_the_images_that_were_not_yet_read(
    dann_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "CHUNK", 3)

    def and_then_remove(*given: Any, **more: Any) -> Any:
        shutil.rmtree(images, ignore_errors=True)
        return predict(*given, **more)

    monkeypatch.setattr(inference, "predict", and_then_remove)
    flags = ["--checkpoint", dann_run, "--test_loc", images, "--out_path", tmp_path / "out"]
    code, out, error = ended(inference, *flags)
    assert (code, error) == (1, "")
    lines = (tmp_path / "out" / "pred.csv").read_text().splitlines()[1:]
    assert len(lines) >= 3
    assert len(lines) + out.count("left out ") == 10
    assert f"left out {images}/sub9/0.png" in out


@pytest.mark.slow
def test_the_published_command_of_prediction_works_from_another_folder(
    dann_run: Path, images: Path, tmp_path: Path
) -> None:
    shutil.copytree(images, tmp_path / "usps", symlinks=True)
    script = Path(inference.__file__).with_name("inference.sh")
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "CHECKPOINT": str(dann_run)}
    subprocess.run(["bash", script, "usps", "out"], cwd=tmp_path, check=True, env=environment)
    assert len(pd.read_csv(tmp_path / "out" / "pred.csv")) == 10

"""Nothing let in: each kind of hostile image, CSV, checkpoint and argument, with what exactly becomes of it."""

import io
import os
import pickle
import re
import shlex
import shutil
import struct
import subprocess
import sys
import threading
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import benchmark
import numpy as np
import pytest
import torch
from conftest import QUICK, ended, write_domain
from PIL import Image

import dataset
import export
import inference
import prepare_data
import report
import train
import tsne
from checkpoint import build_network, load_checkpoint
from dataset import class_names, encode_labels, list_split, read_domain, read_image, read_images
from utils import UserError

# Images

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    box = io.BytesIO()
    image.save(box, form, **options)
    return box.getvalue()


def header_alone(width: int, height: int) -> bytes:
    """A PNG of some bytes that says it has width x height pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(99)))]
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in [*chunks, (b"IEND", b"")]:
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return content


def red(mode: str = "RGB", size: tuple[int, int] = (28, 28)) -> Image.Image:
    return Image.new("RGB", size, RED).convert(mode)


def turned() -> bytes:
    """A JPEG whose left half is black, and whose EXIF says: turn it by half."""
    image, exif = Image.new("L", (64, 64), 255), Image.Exif()
    image.paste(0, (0, 0, 32, 64))
    exif[0x0112] = 3
    return encoded(image, "JPEG", exif=exif, quality=95)


# kind: (file name, content, its colour at the left, or why it is left out)
IMAGES: dict[str, tuple[str, bytes, tuple[int, int, int] | str]] = {
    "as it should be": ("x.png", encoded(red()), RED),
    "truncated": ("x.png", encoded(red())[:60], "not a readable image (OSError)"),
    "zero bytes": ("x.png", b"", "not a readable image (UnidentifiedImageError)"),
    "a text": ("x.png", b"<html>", "not a readable image (UnidentifiedImageError)"),
    "a JPEG called .png": ("x.png", encoded(red(), "JPEG", quality=100), (254, 0, 0)),
    "a PNG called .jpg": ("x.jpg", encoded(red()), RED),
    "PostScript called .png": (
        "x.png",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n%%EndComments\n%%EOF\n",
        "not a readable image (UnidentifiedImageError)",
    ),
    "a bomb": ("x.png", header_alone(60_000, 60_000), "60000x60000 pixels are more than 50000000"),
    "a small bomb": ("x.png", header_alone(9_000, 9_000), "9000x9000 pixels are more than 50000000"),
    "large in pixels, small as a file": ("x.png", encoded(red(size=(3000, 3000))), RED),
    "1x1": ("x.png", encoded(red(size=(1, 1))), RED),
    "20,000 pixels wide": ("x.png", encoded(red(size=(20_000, 2))), RED),
    "animated GIF": (
        "x.gif",
        encoded(red(), "GIF", save_all=True, append_images=[Image.new("RGB", (28, 28), "blue")]),
        RED,
    ),
    "animated PNG": ("x.png", encoded(red(), save_all=True, append_images=[Image.new("RGB", (28, 28), "blue")]), RED),
    "16 bits": ("x.png", encoded(Image.fromarray(np.full((28, 28), 65535, dtype=np.uint16))), WHITE),
    "floats to 1": ("x.tif", encoded(Image.new("F", (28, 28), 1.0), "TIFF"), WHITE),
    "floats to 255": ("x.tif", encoded(Image.new("F", (28, 28), 255.0), "TIFF"), WHITE),
    "floats that are no numbers": (
        "x.tif",
        encoded(Image.new("F", (28, 28), float("nan")), "TIFF"),
        "not a readable image (ValueError)",
    ),
    "CMYK": ("x.tif", encoded(red("CMYK"), "TIFF"), RED),
    "palette": ("x.png", encoded(red("P")), RED),
    "turned by EXIF": ("x.jpg", turned(), WHITE),
    "alpha, opaque": ("x.png", encoded(red("RGBA")), RED),
    "alpha, transparent": ("x.png", encoded(Image.new("RGBA", (28, 28), (255, 0, 0, 0))), WHITE),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_each_kind_of_image_is_read_as_it_looks_or_left_out_for_a_stated_reason(kind: str, tmp_path: Path) -> None:
    name, content, wanted = IMAGES[kind]
    (tmp_path / name).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels, unreadable = read_images([tmp_path / name], 28)
    assert unreadable == ({0: wanted} if isinstance(wanted, str) else {})
    if not isinstance(wanted, str):
        assert tuple(pixels[0, 14, 0].tolist()) == wanted


def link(place: Path, to: str) -> None:
    place.symlink_to(to)


# kind: (how it is made, why it is left out)
NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda place: None, "no such file"),
    "a link to nothing": (lambda place: link(place, "nothing.png"), "no such file"),
    "a link to itself": (lambda place: link(place, place.name), "not readable (Too many levels of symbolic links)"),
    "a folder": (Path.mkdir, "no regular file"),
    "a pipe": (os.mkfifo, "no regular file"),
    "a device": (lambda place: link(place, "/dev/zero"), "no regular file"),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_left_out_and_nothing_waits_for_it(kind: str, tmp_path: Path) -> None:
    make, why = NO_FILES[kind]
    make(tmp_path / "x.png")
    assert read_images([tmp_path / "x.png"], 28)[1] == {0: why}


def test_an_image_without_permission_is_left_out(unprivileged: Path) -> None:
    red().save(unprivileged / "x.png")
    (unprivileged / "x.png").chmod(0)
    assert read_image(unprivileged / "x.png", 28) == "no permission to read it"


def test_a_link_to_a_folder_above_is_not_followed(dann_run: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    red().save(tmp_path / "images" / "x.png")
    link(tmp_path / "images" / "again", "..")
    link(tmp_path / "images" / "round", ".")
    code, out, error = ended(
        inference, "--checkpoint", dann_run, "--test_loc", tmp_path / "images", "--out_path", tmp_path / "out"
    )
    assert (code, error) == (0, "")
    assert out.endswith(f"1 images labelled, 0 left out: {tmp_path / 'out' / 'pred.csv'}\n")


def test_a_name_that_is_no_text_is_predicted_and_named(dann_run: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in (b"\xff.png", b"\xfe.png"):
        with open(os.path.join(os.fsencode(tmp_path / "images"), name), "wb") as file:
            file.write(encoded(red()) if name == b"\xff.png" else b"")
    code, out, error = ended(
        inference, "--checkpoint", dann_run, "--test_loc", tmp_path / "images", "--out_path", tmp_path / "out"
    )
    assert (code, error) == (1, "")
    assert "not a readable image (UnidentifiedImageError)" in out
    assert b"\n\xff.png," in (tmp_path / "out" / "pred.csv").read_bytes()


def test_large_images_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a thread for each of 64 cores would hold one."""
    monkeypatch.setattr(dataset, "LARGE_PIXELS", 100)
    monkeypatch.setattr(dataset, "read_rows", lambda path, size, modes: None)
    for i in range(8):
        red(size=(40, 40)).save(tmp_path / f"{i}.png")
    at_once, most, to_rgb = threading.Semaphore(1), [], dataset.to_rgb

    def watched(image: Image.Image) -> Image.Image:
        most.append(at_once.acquire(blocking=False))
        try:
            time.sleep(0.0005)  # others could come in
            return to_rgb(image)
        finally:
            at_once.release()

    monkeypatch.setattr(dataset, "to_rgb", watched)
    paths = [tmp_path / f"{i}.png" for i in range(8)] * 140
    assert read_images(paths, 28, 4)[1] == {}
    assert all(most)
    assert len(most) == len(paths)


# CSVs: kind: (content, names and labels that it lists, or the sentence that refuses it)

HEAD = "image_name,label\n"
CSVS: dict[str, tuple[str | bytes, tuple[list[str], list[str] | None] | str]] = {
    "byte order mark": ("\ufeffimage_name,label\na.png,1\n", (["a.png"], ["1"])),
    "CRLF": ("image_name,label\r\na.png,1\r\nb.png,2\r\n", (["a.png", "b.png"], ["1", "2"])),
    "extra columns, another order": ("x,label,image_name\n9,1,a.png\n", (["a.png"], ["1"])),
    "spaces": (" image_name , label\n a.png , 1 \n", (["a.png"], ["1"])),
    "quoted": ('"image_name","label"\n"a, b.png","1"\n', (["a, b.png"], ["1"])),
    "float labels": (HEAD + "a.png,1.0\nb.png,2.0\n", (["a.png", "b.png"], ["1.0", "2.0"])),
    "text labels": (HEAD + "a.png,cat\nb.png,nan\n", (["a.png", "b.png"], ["cat", "nan"])),
    "labels not given": ("image_name\na.png\n", (["a.png"], None)),
    "one row": (HEAD + "a.png,1\n", (["a.png"], ["1"])),
    "listed twice alike": (HEAD + "a.png,1\n./a.png,1.0\nb.png,2\n", (["a.png", "b.png"], ["1", "2"])),
    "too many cells": (HEAD + "a.png,1,2,3\n", (["a.png"], ["1"])),
    "listed twice otherwise": (
        HEAD + "a.png,1\nb.png,2\na.png,2\n",
        "{csv} rows 2 and 4: a.png has the labels '1' and '2'; remove the wrong row.",
    ),
    "renamed column": (
        "name,label\na.png,1\n",
        "{csv} has no column image_name; its first line must be image_name,label.",
    ),
    "semicolons": (
        "image_name;label\na.png;1\n",
        "{csv} has no column image_name; its first line must be image_name,label.",
    ),
    "two columns label": ("image_name,label,label\na.png,1,2\n", "{csv} has two columns label; remove one."),
    "two columns label, a space apart": (
        "image_name,label,label \na.png,1,2\n",
        "{csv} has two columns label; remove one.",
    ),
    "two columns of names": ("image_name,image_name\na.png,b.png\n", "{csv} has two columns image_name; remove one."),
    "columns without end": (
        "x," * 20_000 + "\n",
        "{csv} is not readable as CSV (it has 20001 columns); its first line must be image_name,label.",
    ),
    "a number that is no number": (
        HEAD + f"a.png,{'1' * 5000}\n",
        "{csv} row 2 (a.png): label '" + "1" * 5000 + "' is not among the classes of the labelled domain (1, 2, cat, "
        "nan); mend the label or leave the image out.",
    ),
    "missing label": (HEAD + "a.png,1\nb.png,\n", "{csv} row 3: no label for b.png; fill it in or remove the row."),
    "missing name": (HEAD + ",1\n", "{csv} row 2: image_name '' must be a path inside {home}."),
    "no row": (HEAD, "{csv} lists no image; add rows or remove the file."),
    "blank rows": (HEAD + "\n , \n", "{csv} lists no image; add rows or remove the file."),
    "climbs out": (HEAD + "a/../../x.png,1\n", "{csv} row 2: image_name 'a/../../x.png' must be a path inside {home}."),
    "absolute": (HEAD + "/etc/x.png,1\n", "{csv} row 2: image_name '/etc/x.png' must be a path inside {home}."),
    "a zero in a name": (HEAD + "a\0.png,1\n", "{csv} row 2: image_name 'a\\x00.png' must be a path inside {home}."),
    "empty": (
        "",
        "{csv} is not readable as CSV (No columns to parse from file); its first line must be image_name,label.",
    ),
    "an open quote": (
        HEAD + '"a.png,1\n',
        "{csv} is not readable as CSV (Error tokenizing data. C error: EOF inside string starting at row 1); its first "
        "line must be image_name,label.",
    ),
    "UTF-16": (
        (HEAD + "a.png,1\n").encode("utf-16"),
        "{csv} is not readable as CSV ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte); its "
        "first line must be image_name,label.",
    ),
    "absent image": (
        HEAD + "a.png,1\nc.png,2\nd.png,2\n",
        "{csv} row 3: {home}/c.png: no such file (2 such images in all); restore the image or remove the row.",
    ),
    "unreadable image": (
        HEAD + "a.png,1\nbad.png,2\n",
        "{csv} row 3: {home}/bad.png: not a readable image (UnidentifiedImageError); restore the image or remove the "
        "row.",
    ),
    "a foreign label": (
        HEAD + "a.png,1\nb.png,3\n",
        "{csv} row 3 (b.png): label '3' is not among the classes of the labelled domain (1, 2, cat, nan); mend the "
        "label or leave the image out.",
    ),
}


@pytest.mark.parametrize("kind", CSVS)
def test_each_kind_of_csv_is_read_or_refused_in_its_sentence(kind: str, tmp_path: Path) -> None:
    """An image that no row lists is not read: bad.png stands beside the others."""
    content, wanted = CSVS[kind]
    csv, home = tmp_path / "d" / "train.csv", tmp_path / "d" / "data"
    home.mkdir(parents=True)
    csv.write_bytes(content if isinstance(content, bytes) else content.encode())
    for name in ("a.png", "b.png", "a, b.png"):
        red().save(home / name)
    (home / "bad.png").write_bytes(b"")
    try:
        listing = list_split(tmp_path, "d", "train", True)
        assert listing is not None
        encode_labels(listing, ["1", "2", "cat", "nan"])
        found: Any = (read_domain(listing, None, 28, 1).names, listing.labels)
    except UserError as error:
        found = str(error)
    assert found == (wanted.format(csv=csv, home=home) if isinstance(wanted, str) else wanted)


def test_one_row_is_too_little_to_train_on_but_enough_as_a_target(small_data: Path, tmp_path: Path) -> None:
    write_domain(tmp_path / "one", {"train": 1, "val": 1})
    (tmp_path / "mnistm").symlink_to(small_data / "mnistm")
    common = ["--data_root", tmp_path, "--save_dir", tmp_path / "runs", *QUICK]
    code, _, error = ended(train, *common, "--train_mode", "target", "--target_file", "one")
    csv = tmp_path / "one" / "train.csv"
    assert (code, error) == (2, f"train.py: {csv} has the single class '0'; a classifier needs two or more.\n")
    assert not (tmp_path / "runs").exists()
    assert ended(train, *common, "--train_mode", "dann", "--target_file", "one")[0] == 0


# Checkpoints


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (Path("evil-was-here"), "x"))


def saved(content: Any) -> bytes:
    box = io.BytesIO()
    torch.save(content, box)
    return box.getvalue()


def changed(good: dict[str, Any], **change: Any) -> bytes:
    return saved({**good, **change})


NOT_OURS = "{file} is not a checkpoint of this program; use one of train.py or of download.sh."
PICKLED = (
    "{file} holds more than tensors and plain values and was not read ({why}); use a checkpoint of train.py or of "
    "download.sh."
)
DAMAGED = "{file} is not a readable checkpoint ({why}); fetch or train it again."
UNFIT = "{file}: the weights do not fit the network that the file states ({why}); train or fetch it again."


def cut_pickle(content: bytes) -> bytes:
    """A whole archive whose pickle ends in the middle of a number."""
    box = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(box, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, b"\x80\x02X\x05" if entry.filename.endswith("data.pkl") else data)
    return box.getvalue()


# kind: (the content, made of a good checkpoint; the sentence; the reason that it names)
CHECKPOINTS: dict[str, tuple[Callable[[dict[str, Any]], bytes], str, str]] = {
    "a pickle that runs code": (
        lambda good: changed(good, model=Evil()),
        PICKLED,
        "Unsupported global: GLOBAL getattr was not an allowed global by default",
    ),
    "an old pickle that runs code": (
        lambda good: pickle.dumps(Evil(), protocol=2),
        PICKLED,
        "Unsupported global: GLOBAL getattr was not an allowed global by default",
    ),
    "empty": (lambda good: b"", "{file} is empty; fetch or train it again.", ""),
    "truncated": (
        lambda good: saved(good)[:99_999],
        DAMAGED,
        "PytorchStreamReader failed reading zip archive: failed finding central directory",
    ),
    "tensors of another program": (lambda good: saved({"weight": torch.ones(3)}), NOT_OURS, ""),
    "one tensor": (lambda good: saved(torch.ones(3)), NOT_OURS, ""),
    "another model's keys": (
        lambda good: changed(good, model={"fc.weight": torch.ones(3)}),
        UNFIT,
        "{count} names of weights differ, such as 'domain_classifier.0.bias'",
    ),
    "wrong shapes": (
        lambda good: changed(good, model={**good["model"], "label_classifier.0.weight": torch.ones(3, 3)}),
        UNFIT,
        "label_classifier.0.weight is [3, 3], not [10, 96]",
    ),
    "no numbers": (
        lambda good: changed(good, model={**good["model"], "label_classifier.0.bias": torch.full((10,), torch.nan)}),
        UNFIT,
        "label_classifier.0.bias holds a number that is not finite, or a variance below 0",
    ),
    "a variance below 0": (
        lambda good: changed(good, model={name: -value.abs() for name, value in good["model"].items()}),
        UNFIT,
        "feature_extractor.1.1.running_var_s holds a number that is not finite, or a variance below 0",
    ),
    "a size that is no whole number": (
        lambda good: changed(good, model_args={**good["model_args"], "size": 28.0}),
        UNFIT,
        "its size is not 8 to 256",
    ),
    "predicts as no domain": (
        lambda good: changed(good, model_args={**good["model_args"], "predict_as": 2}),
        UNFIT,
        "it predicts as no domain",
    ),
    "a pickle cut in a number": (lambda good: cut_pickle(saved(good)), DAMAGED, "unpack requires a buffer of 4 bytes"),
    "words for weights": (
        lambda good: changed(good, model={name: "x" for name in good["model"]}),
        UNFIT,
        "{first} is no tensor, not {shape}",
    ),
    "a network that would fill the memory": (
        lambda good: changed(good, model_args={**good["model_args"], "num_classes": 10**9}),
        UNFIT,
        "label_classifier.0.weight is [10, 96], not [1000000000, 96]",
    ),
    "images that would fill the memory": (
        lambda good: changed(good, model_args={**good["model_args"], "size": 10**6}),
        UNFIT,
        "its size is not 8 to 256",
    ),
    "class names that are none": (
        lambda good: changed(good, args={"classes": [[]] * 10}),
        UNFIT,
        "the class names are no list of words",
    ),
    "too few class names": (lambda good: changed(good, args={"classes": ["1"]}), UNFIT, "1 class names for 10 classes"),
    "no arguments": (
        lambda good: changed(good, args=torch.ones(2)),
        UNFIT,
        "the class names are no list of words",
    ),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_each_kind_of_checkpoint_is_refused_in_its_sentence_and_runs_nothing(
    kind: str, dann_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, sentence, why = CHECKPOINTS[kind]
    good = load_checkpoint(dann_run / "last.pt")
    file = tmp_path / "x.pt"
    file.write_bytes(make(good))
    with pytest.raises(UserError) as refusal:
        build_network(file, load_checkpoint(file), torch.device("cpu"))
    first = next(iter(good["model"]))
    why = why.format(count=len(good["model"]) + 1, first=first, shape=list(good["model"][first].shape))
    assert str(refusal.value) == sentence.format(file=file, why=why)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.parametrize("content", ["[1]", "{", '{"args": 3}', "\0", "[" * 100_000])
def test_a_result_that_is_none_is_refused_by_what_reads_it(content: str, dann_run: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text(content)
    for script, flags in ((report, [tmp_path / "run"]), (report, ["--ship", tmp_path / "run"]), (export, EXPORT)):
        code, _, error = ended(script, *[str(word).replace("RUN", str(tmp_path / "run")) for word in flags])
        assert code == 2
        assert error.startswith(f"{script.__name__}.py: {tmp_path / 'run' / 'result.json'}: not readable as JSON (")
        assert error.endswith("; restore it or choose another run folder.\n")
        assert error.count("\n") == 1


EXPORT = ["--checkpoint", "RUN", "--out_path", "x.pt2"]


# Arguments

TRAIN = "--data_root d --train_mode dann --target_file usps"
PREDICT = "--checkpoint c --test_loc t --out_path o"
MAP = "--checkpoint c --data_root d --out_path o"
WHOLE, NUMBER = "is not a whole number of at least", "is not a number above 0 and at most"

ARGUMENTS: list[tuple[ModuleType, str, str]] = [
    (train, f"{TRAIN} -bs 0", f"argument -bs/--batch_size: '0' {WHOLE} 2 and at most 65,536"),
    (train, f"{TRAIN} -bs -3", f"argument -bs/--batch_size: '-3' {WHOLE} 2 and at most 65,536"),
    (train, f"{TRAIN} -bs 65537", f"argument -bs/--batch_size: '65537' {WHOLE} 2 and at most 65,536"),
    (train, f"{TRAIN} -bs 1.5", f"argument -bs/--batch_size: '1.5' {WHOLE} 2 and at most 65,536"),
    (train, f"{TRAIN} -lr 0", f"argument -lr/--learning_rate: '0' {NUMBER} 10"),
    (train, f"{TRAIN} -lr nan", f"argument -lr/--learning_rate: 'nan' {NUMBER} 10"),
    (train, f"{TRAIN} -lr inf", f"argument -lr/--learning_rate: 'inf' {NUMBER} 10"),
    (train, f"{TRAIN} -lr 11", f"argument -lr/--learning_rate: '11' {NUMBER} 10"),
    (train, f"{TRAIN} -ep 0", f"argument -ep/--epochs: '0' {NUMBER} 1,000,000"),
    (train, f"{TRAIN} -ep 1e400", f"argument -ep/--epochs: '1e400' {NUMBER} 1,000,000"),
    (train, f"{TRAIN} --max_steps 0", f"argument --max_steps: '0' {WHOLE} 1 and at most 1,000,000,000"),
    (train, f"{TRAIN} --val_period -1", f"argument --val_period: '-1' {WHOLE} 1 and at most 1,000,000,000"),
    (train, f"{TRAIN} --size 7", f"argument --size: '7' {WHOLE} 8 and at most 256"),
    (train, f"{TRAIN} --size 20000", f"argument --size: '20000' {WHOLE} 8 and at most 256"),
    (train, f"{TRAIN} --seed -1", f"argument --seed: '-1' {WHOLE} 0 and at most 2,147,483,647"),
    (train, f"{TRAIN} --seed 99999999999", f"argument --seed: '99999999999' {WHOLE} 0 and at most 2,147,483,647"),
    (train, f"{TRAIN} --num_workers nan", f"argument --num_workers: 'nan' {WHOLE} 0 and at most 256"),
    (train, f"{TRAIN} --topk -1", f"argument --topk: '-1' {WHOLE} 0 and at most 1,000"),
    (inference, f"{PREDICT} --batch_size 0", f"argument --batch_size: '0' {WHOLE} 1 and at most 65,536"),
    (inference, f"{PREDICT} --num_workers 257", f"argument --num_workers: '257' {WHOLE} 0 and at most 256"),
    (tsne, f"{MAP} --limit nan", f"argument --limit: 'nan' {WHOLE} 10 and at most 20,000"),
    (benchmark, "--data_root d --repeats 0", f"argument --repeats: '0' {WHOLE} 1 and at most 1,000"),
    (benchmark, "--data_root d --steps 1", f"argument --steps: '1' {WHOLE} 2 and at most 1,000,000"),
    (export, "--checkpoint c", "the following arguments are required: --out_path"),
    (prepare_data, "demo", "the following arguments are required: --out"),
]
CONTRADICTIONS: list[tuple[ModuleType, str, str]] = [
    (
        train,
        "--data_root d --train_mode dann",
        "--train_mode dann needs --target_file, the name of the target's folder.",
    ),
    (
        train,
        f"{TRAIN} --source_file usps",
        "--source_file and --target_file are both usps; dann needs two domains.",
    ),
    (
        train,
        f"{TRAIN} --arch published --size 32",
        "--arch published takes images of 28x28, not --size 32; use --arch small.",
    ),
    (
        train,
        "--data_root d --train_mode target --target_file usps --select source_val",
        "--select source_val needs a source, which --train_mode target does not read; use last.",
    ),
    (
        train,
        f"{TRAIN} --select source_val --topk 0",
        "--topk 0 keeps no checkpoint for --select source_val to choose; use --topk 1 or more.",
    ),
    (
        train,
        f"{TRAIN} --run_name a/b",
        "--run_name 'a/b' must be a plain folder name; --save_dir says where it goes.",
    ),
    (
        train,
        f"{TRAIN} --without teacher",
        "--without leaves parts out of --recipe strong; --recipe paper has none of them.",
    ),
    (
        train,
        f"{TRAIN} --recipe strong --arch published",
        "--recipe strong is for --arch small; the classifiers of published would mix the domains' statistics.",
    ),
    (
        train,
        "--data_root d --train_mode target --target_file usps --recipe strong --without teacher",
        "--without teacher: --train_mode target has no such part to leave out.",
    ),
    (
        train,
        "--data_root d --train_mode source --lambda_max 1",
        "--lambda_max weighs the domain gradient, which this mode and recipe do without; leave it out.",
    ),
    (prepare_data, "digits --out o --sample --seed 3", "--sample has a split of its own; leave out --seed."),
    (report, "--check", "nothing to report; name run folders, --readme FILE, --add RUN, --ship RUN or --signs PNG."),
    (report, "run --check", "--check checks a README; name it with --readme FILE."),
    (report, "--readme r --out_path x.png", "--out_path draws the curves of runs; name run folders."),
    (export, "--checkpoint c --out_path x.bin", "--out_path x.bin must be a file that ends in .pt2 or .onnx."),
]


@pytest.mark.parametrize(
    ("script", "words", "sentence"),
    [(script, words, f"{said}; see {script.__name__}.py --help.") for script, words, said in ARGUMENTS]
    + CONTRADICTIONS,
)
def test_each_kind_of_argument_is_refused_in_its_sentence_before_anything_is_done(
    script: ModuleType, words: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, error = ended(script, *words.split())
    assert (code, out) == (2, "")
    assert (
        error.replace("prepare_data.py demo --help", "prepare_data.py --help") == f"{script.__name__}.py: {sentence}\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_readme_that_is_no_text_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_bytes(b"\xff")
    code, _, error = ended(report, "--readme", tmp_path / "x.md")
    said = f"report.py: --readme {tmp_path / 'x.md'} is no text; name a README with the results markers.\n"
    assert (code, error, (tmp_path / "x.md").read_bytes()) == (2, said, b"\xff")


def test_a_memory_that_is_used_up_is_said_in_one_sentence() -> None:
    class Script(ModuleType):
        @staticmethod
        def main(argv: list[str]) -> dict[str, Any]:
            return {"x": torch.empty(1 << 60, dtype=torch.uint8)}

    code, _, error = ended(Script("train"))
    said = "train.py: the memory is used up; use a smaller --batch_size or another --device.\n"
    assert (code, error) == (2, said)


def test_class_names_that_are_numbers_beyond_any_are_words() -> None:
    assert class_names(["1" * 5000, "2"]) == ["1" * 5000, "2"]


def test_predictions_never_replace_what_they_are_made_from(dann_run: Path, small_data: Path, tmp_path: Path) -> None:
    shutil.copytree(small_data / "usps", tmp_path / "usps")
    csv = tmp_path / "usps" / "val.csv"
    before = csv.read_bytes()
    arguments = ["--checkpoint", str(dann_run), "--test_loc", str(csv), "--out_path", str(csv)]
    with pytest.raises(UserError, match=f"^--out_path {re.escape(str(csv))} is an input of this command; choose"):
        inference.main(arguments)
    arguments[3] = str(tmp_path / "usps" / "data")
    with pytest.raises(UserError, match="is an input of this command"):
        inference.main([*arguments, "--labels", str(csv)])
    assert csv.read_bytes() == before


def test_a_figure_never_replaces_a_checkpoint(dann_run: Path) -> None:
    last = dann_run / "last.pt"
    before = last.read_bytes()
    with pytest.raises(UserError, match=r"last\.pt is no name of a picture; let it end in \.png\.$"):
        report.main([str(dann_run), "--out_path", str(last)])
    assert last.read_bytes() == before


def test_probabilities_that_are_no_numbers_are_not_written(dann_run: Path, small_data: Path, tmp_path: Path) -> None:
    good = load_checkpoint(dann_run / "last.pt")
    good["model"] = {name: torch.full_like(value, 3e38) for name, value in good["model"].items()}
    file = tmp_path / "x.pt"
    file.write_bytes(saved(good))
    with pytest.raises(UserError, match="gives probabilities that are no finite numbers; nothing was written"):
        inference.main(
            ["--checkpoint", str(file), "--test_loc", str(small_data / "usps" / "data"), "--out_path", str(tmp_path)]
        )
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pt"]


def test_a_closed_output_ends_nothing(dann_run: Path, small_data: Path, tmp_path: Path) -> None:
    script = Path(inference.__file__)
    words = [script, "--checkpoint", dann_run, "--test_loc", small_data / "usps" / "data", "--out_path", tmp_path]
    line = f"{shlex.join([sys.executable, *map(str, words)])} >&- 2>&-"
    assert subprocess.run(["bash", "-c", line], check=False).returncode == 0
    assert len((tmp_path / "pred.csv").read_text().splitlines()) == 61


def test_a_resume_on_other_data_is_refused(small_data: Path, tmp_path: Path) -> None:
    shutil.copytree(small_data, tmp_path / "data")
    flags = ["--data_root", str(tmp_path / "data"), "--train_mode", "dann", "--target_file", "usps", *QUICK]
    flags += ["--save_dir", str(tmp_path), "--run_name", "run"]
    train.main(flags)
    (tmp_path / "run" / "result.json").unlink()
    csv = tmp_path / "data" / "mnistm" / "train.csv"
    csv.write_text("\n".join(csv.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(UserError, match="images or labels that it was trained on have changed; restore them or use"):
        train.main([*flags, "--resume"])


def test_a_resume_on_a_log_of_words_is_refused_and_leaves_the_run_as_it_is(small_data: Path, tmp_path: Path) -> None:
    flags = ["--data_root", small_data, "--train_mode", "dann", "--target_file", "usps", *QUICK]
    flags += ["--save_dir", tmp_path, "--run_name", "run"]
    assert ended(train, *flags)[0] == 0
    (tmp_path / "run" / "result.json").unlink()
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text(re.sub(r'"lambda": [^,]+', '"lambda": "low"', log.read_text()))
    before = {file.name: file.read_bytes() for file in log.parent.iterdir()}
    code, _, error = ended(train, *flags, "--resume")
    said = f'train.py: {log} line 1: lambda is "low", not a number from -1e+15 to 1e+15; restore the file.\n'
    assert (code, error) == (2, said)
    assert {file.name: file.read_bytes() for file in log.parent.iterdir()} == before


def test_a_checkpoint_that_fell_out_as_the_run_was_killed_is_removed_later(small_data: Path, tmp_path: Path) -> None:
    flags = ["--data_root", str(small_data), "--train_mode", "dann", "--target_file", "usps", *QUICK, "--topk", "1"]
    flags += ["--save_dir", str(tmp_path), "--run_name", "run"]
    train.main(flags)
    run = tmp_path / "run"
    (run / "result.json").unlink()
    shutil.copy(run / "step0000012.pt", run / "step0000006.pt")
    shutil.copy(run / "step0000012.pt", run / "step_mine.pt")
    train.main([*flags, "--resume"])
    assert sorted(file.name for file in run.glob("*.pt")) == ["last.pt", "step0000012.pt", "step_mine.pt"]


@pytest.mark.parametrize("name", ["", ".", "./", "usps/.."])
def test_a_domain_that_names_the_data_root_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="names no domain; name its folder in --data_root"):
        train.parse_args(["--data_root", "d", "--train_mode", "dann", "--target_file", name])


def test_one_domain_by_two_names_is_one_domain() -> None:
    with pytest.raises(UserError, match="dann needs two domains"):
        train.parse_args(["--data_root", "d", "--train_mode", "dann", "--target_file", "./mnistm"])

"""Reading domains: every layout, every kind of image and CSV, and by name what is not usable; batches."""

import io
import os
import re
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ended, quick_run, write_domain
from PIL import Image

import dataset
import train
from dataset import Batches, Domain, read_domain, read_image, read_images
from listing import Listing, class_names, encode_labels, image_names, list_split
from utils import UserError


def listed(root: Path, with_labels: bool = True, split: str = "train") -> Listing:
    listing = list_split(root, "d", split, with_labels)
    assert listing is not None
    return listing


def draw(*files: Path) -> None:
    """Write an image of 8 x 8 to each place."""
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(file, format="png")


def test_a_domain_is_read_into_one_contiguous_uint8_tensor_with_any_number_of_threads(small_data: Path) -> None:
    listing = list_split(small_data, "mnistm", "train", True)
    assert listing is not None
    domain = read_domain(listing, [str(k) for k in range(10)], 28, 2)
    assert isinstance(domain.images, torch.Tensor)
    assert domain.images.dtype == torch.uint8
    assert domain.images.shape == (40, 28, 28, 3)
    assert domain.images.is_contiguous()
    with Image.open(small_data / "mnistm" / "data" / domain.names[7]) as image:
        assert np.array_equal(domain.images[7].numpy(), np.asarray(image))
    assert domain.labels is not None
    assert domain.labels.tolist() == [i % 10 for i in range(40)]
    assert torch.equal(read_images(listing.paths, 28, 1)[0], domain.images)


def test_a_run_decodes_each_image_once(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_figures: None
) -> None:
    opened: list[Path] = []

    def counting(path: Path, *how: Any) -> np.ndarray | str:
        opened.append(path)
        return read_image(path, *how)

    monkeypatch.setattr(dataset, "read_image", counting)
    quick_run(small_data, tmp_path, "dann", "usps", "--cache", "none")
    assert len(opened) == len(set(opened)) == 40 + 20 + 40 + 20


# Images


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    box = io.BytesIO()
    image.save(box, form, **options)
    return box.getvalue()


def red(mode: str = "RGB", size: tuple[int, int] = (28, 28)) -> Image.Image:
    return Image.new("RGB", size, RED).convert(mode)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def header_alone(side: int) -> bytes:
    """A PNG of some bytes that says it has side x side pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def turned() -> bytes:
    """A JPEG whose left half is black, and whose EXIF says: turn it by half."""
    image, exif = Image.new("L", (64, 64), 255), Image.Exif()
    image.paste(0, (0, 0, 32, 64))
    exif[0x0112] = 3
    return encoded(image, "JPEG", exif=exif, quality=95)


RED, WHITE = (255, 0, 0), (255, 255, 255)
TWO_FRAMES: dict[str, Any] = {"save_all": True, "append_images": [Image.new("RGB", (28, 28), "blue")]}
# kind: (file name, content, its colour at the left, or what the reason to leave it out names)
IMAGES: dict[str, tuple[str, bytes, tuple[int, int, int] | str]] = {
    "as it should be": ("x.png", encoded(red()), RED),
    "truncated": ("x.png", encoded(red())[:60], "OSError"),
    "zero bytes": ("x.png", b"", "Unidentified"),
    "a text": ("x.png", b"<html>", "Unidentified"),
    "a JPEG called .png": ("x.png", encoded(red(), "JPEG", quality=100), (254, 0, 0)),
    "a PNG called .jpg": ("x.jpg", encoded(red()), RED),
    "PostScript called .png": ("x.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n%%EOF\n", "Unidentified"),
    "a bomb": ("x.png", header_alone(60_000), "60000x60000"),
    "a small bomb": ("x.png", header_alone(19_000), "19000x19000"),
    "large in pixels, small as a file": ("x.png", encoded(red(size=(3000, 3000))), RED),
    "1x1": ("x.png", encoded(red(size=(1, 1))), RED),
    "20,000 pixels wide": ("x.png", encoded(red(size=(20_000, 2))), RED),
    "animated GIF": ("x.gif", encoded(red(), "GIF", **TWO_FRAMES), RED),
    "animated PNG": ("x.png", encoded(red(), **TWO_FRAMES), RED),
    "16 bits": ("x.png", encoded(Image.fromarray(np.full((28, 28), 65535, dtype=np.uint16))), WHITE),
    "16 bits that hold 8": ("x.png", encoded(Image.fromarray(np.full((28, 28), 200, dtype=np.uint16))), (200,) * 3),
    "16 bits that hold 10": ("x.png", encoded(Image.fromarray(np.full((28, 28), 1023, dtype=np.uint16))), WHITE),
    "16 bits that hold 12": ("x.png", encoded(Image.fromarray(np.full((28, 28), 4095, dtype=np.uint16))), WHITE),
    "16 bits, grey": ("x.png", encoded(Image.fromarray(np.full((28, 28), 32768, dtype=np.uint16))), (128,) * 3),
    "32 bits that hold 12": ("x.tif", encoded(Image.fromarray(np.full((28, 28), 4095, dtype=np.int32)), "TIFF"), WHITE),
    "32 bits": ("x.tif", encoded(Image.fromarray(np.full((28, 28), 10**6, dtype=np.int32)), "TIFF"), WHITE),
    "floats from -1": ("x.tif", encoded(Image.new("F", (28, 28), -0.5), "TIFF"), (64,) * 3),
    "floats to 1023": ("x.tif", encoded(Image.new("F", (28, 28), 1023.0), "TIFF"), WHITE),
    "floats to 1": ("x.tif", encoded(Image.new("F", (28, 28), 1.0), "TIFF"), WHITE),
    "floats to 255": ("x.tif", encoded(Image.new("F", (28, 28), 255.0), "TIFF"), WHITE),
    "floats that are no numbers": ("x.tif", encoded(Image.new("F", (28, 28), float("nan")), "TIFF"), "ValueError"),
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
    if isinstance(wanted, str):
        assert wanted in unreadable[0]
    else:
        assert unreadable == {}
        assert tuple(pixels[0, 14, 0].tolist()) == wanted


# kind: (how it is made, what the reason to leave it out names)
NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda place: None, "no such file"),
    "a link to nothing": (lambda place: place.symlink_to("nothing.png"), "no such file"),
    "a link to itself": (lambda place: place.symlink_to(place.name), "symbolic links"),
    "a folder": (Path.mkdir, "no regular file"),
}
if hasattr(os, "mkfifo"):  # Windows has none
    NO_FILES["a pipe"] = (os.mkfifo, "no regular file")
    NO_FILES["a device"] = (lambda place: place.symlink_to("/dev/zero"), "no regular file")


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_left_out_and_nothing_waits_for_it(kind: str, tmp_path: Path) -> None:
    make, why = NO_FILES[kind]
    make(tmp_path / "x.png")
    draw(tmp_path / "good.png")
    _, unreadable = read_images([tmp_path / "good.png", tmp_path / "x.png"], 28)
    assert list(unreadable) == [1]
    assert why in unreadable[1]


def test_an_image_without_permission_is_left_out(unprivileged: Path) -> None:
    draw(unprivileged / "x.png")
    (unprivileged / "x.png").chmod(0)
    assert "permission" in str(read_image(unprivileged / "x.png", 28))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "I;16", "I"])
def test_every_mode_arrives_as_the_same_rgb(mode: str, tmp_path: Path) -> None:
    row = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    image = Image.fromarray(row.astype(np.uint16) * 257 if mode == "I;16" else row)
    name = "x.tif" if mode == "I" else "x.png"  # PNG has no 32-bit integers
    (image if mode == "I;16" else image.convert(mode)).save(tmp_path / name)
    pixels = read_image(tmp_path / name, 256)
    assert isinstance(pixels, np.ndarray)
    assert np.array_equal(pixels, np.repeat(row[..., None], 3, axis=2))


def test_large_images_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a thread for each of 64 cores would hold one."""
    monkeypatch.setattr(dataset, "LARGE_PIXELS", 100)
    red(size=(40, 40)).save(tmp_path / "x.png")
    alone, found, to_rgb = threading.Semaphore(1), [], dataset.to_rgb

    def watched(image: Image.Image) -> Image.Image:
        found.append(alone.acquire(blocking=False))
        try:
            time.sleep(0.0005)  # others could come in
            return to_rgb(image)
        finally:
            alone.release()

    monkeypatch.setattr(dataset, "to_rgb", watched)
    assert read_images([tmp_path / "x.png"] * 400, 28, 4)[1] == {}
    assert len(found) == 400
    assert all(found)


def test_an_image_that_is_rewritten_while_it_is_read_is_the_old_one_the_new_one_or_named(tmp_path: Path) -> None:
    file, stop = tmp_path / "x.png", threading.Event()
    contents = [encoded(Image.new("L", (28, 28), grey)) + bytes(grey) for grey in (10, 200)]
    file.write_bytes(contents[0])

    def rewrite() -> None:
        while not stop.is_set():
            for content in contents:
                file.write_bytes(content)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        pixels, unreadable = read_images([file] * 2000, 28, 2)
    finally:
        stop.set()
        writer.join()
    values = {frozenset(image.flatten().tolist()) for i, image in enumerate(pixels) if i not in unreadable}
    assert values <= {frozenset({10}), frozenset({200})}


# CSVs: kind: (content, names and labels that it lists, or what the refusal names behind the CSV)

HEAD = "image_name,label\n"
CSVS: dict[str, tuple[str | bytes, tuple[list[str], list[str] | None] | str]] = {
    "byte order mark": ("\ufeffimage_name,label\na.png,1\n", (["a.png"], ["1"])),
    "CRLF": ("image_name,label\r\na.png,1\r\nb.png,2\r\n", (["a.png", "b.png"], ["1", "2"])),
    "extra columns, another order": ("x,label,image_name\n9,1,a.png\n", (["a.png"], ["1"])),
    "spaces": (" image_name , label\n a.png , 1 \n", (["a.png"], ["1"])),
    "quoted": ('"image_name","label"\n"a, b.png","1"\n', (["a, b.png"], ["1"])),
    "float labels": (HEAD + "a.png,1.0\nb.png,2.0\n", (["a.png", "b.png"], ["1", "2"])),
    "text labels": (HEAD + "a.png,cat\nb.png,NA\n", (["a.png", "b.png"], ["cat", "NA"])),
    "no labels of programs": (HEAD + "a.png,cat\nb.png,nan\n", r"row 3: 'nan' .*b\.png"),
    "no labels of spreadsheets": (HEAD + "a.png,#N/A\nb.png,cat\n", r"row 2: '#N/A' .*a\.png"),
    "a spreadsheet's error": (HEAD + "a.png,cat\nb.png,#REF!\n", r"row 3: '#REF!' .*b\.png"),
    "a spreadsheet's text": (HEAD + 'a.png,="cat"\n"=""b.png""","=""1"""\n', (["a.png", "b.png"], ["cat", "1"])),
    "thousands": (HEAD + "a.png,1\nb.png,1.000\n", r"row 3 \(b\.png\): label '1\.000'"),
    "labels not given": ("image_name\na.png\n", (["a.png"], None)),
    "empty labels": (HEAD + "a.png,\nb.png,\n", (["a.png", "b.png"], None)),
    "one row": (HEAD + "a.png,1\n", (["a.png"], ["1"])),
    "listed twice alike": (HEAD + "a.png,1\na.png,1.0\nb.png,2\n", (["a.png", "b.png"], ["1", "2"])),
    "listed twice, written otherwise": (HEAD + "a.png,1\n./a.png,1\n", r"rows 2 and 3: a\.png .*\./a\.png"),
    "listed twice, once by a near miss": (HEAD + "A,1\nb.png,2\na.png,1\n", r"rows 2 and 4: A .*a\.png"),
    "too many cells": (HEAD + "a.png,1,2,3\n", "row 2 .*cells"),
    "a comma in a label": (HEAD + "b.png,1\na.png,ash, common\n", "row 3 .*cells"),
    "empty cells too many": (HEAD + "a.png,1,, ,\n", (["a.png"], ["1"])),
    "empty columns too many": ("image_name,label,,\na.png,1,,\n", (["a.png"], ["1"])),
    "a line break in a cell": (HEAD + 'a.png,1\nb.png,"2\n3"\n', "row 3: .*line break"),
    "a stray quote": (HEAD + 'a.png,"1\nb.png,"2\n', "row 2: .*line break"),
    "a stray quote in another column": ('image_name,label,x\na.png,1,"\nb.png,2,"\n', "row 2: .*line break"),
    "line breaks of old Macs": ("image_name,label\ra.png,1\rb.png,2\r", (["a.png", "b.png"], ["1", "2"])),
    "listed twice otherwise": (HEAD + "a.png,1\nb.png,2\na.png,2\n", "rows 2 and 4: a.png .*'1'.*'2'"),
    "renamed column": ("name,label\na.png,1\n", "image_name"),
    "semicolons": ("image_name;label\na.png;1\n", (["a.png"], ["1"])),
    "two columns label": ("image_name,label,label\na.png,1,2\n", "two columns label"),
    "two columns label, a space apart": ("image_name,label,label \na.png,1,2\n", "two columns label"),
    "two columns of names": ("image_name,image_name\na.png,b.png\n", "two columns image_name"),
    "columns without end": ("x," * 20_000 + "\n", "image_name"),
    "a number that is no number": (HEAD + f"a.png,{'1' * 5000}\n", r"row 2 \(a\.png\): label '1+'"),
    "missing label": (HEAD + "a.png,1\nb.png,\n", r"row 3: .*b\.png"),
    "missing label after blank rows": (HEAD + "\na.png,1,\n\nb.png,\n\n", r"row 5: .*b\.png"),
    "missing name": (HEAD + ",1\n", "row 2: image_name ''"),
    "no row": (HEAD, "no image"),
    "blank rows": (HEAD + "\n , \n", "no image"),
    "climbs out": (HEAD + "a/../../x.png,1\n", r"row 2: image_name 'a/\.\./\.\./x\.png'"),
    "absolute": (HEAD + "a.png,1\n/etc/x.png,1\n", r"row 3: image_name '/etc/x\.png'"),
    "a zero in a name": (HEAD + "a\0.png,1\n", "row 2: image_name"),
    "empty": ("", "CSV"),
    "an open quote": (HEAD + '"a.png,1', "row 2: .*quote"),
    "UTF-16": ((HEAD + "a.png,1\n").encode("utf-16"), (["a.png"], ["1"])),
    "absent image": (HEAD + "a.png,1\nc.png,2\nd.png,2\n", r"row 3: .*c\.png: no such file .*2 such"),
    "unreadable image": (HEAD + "a.png,1\nbad.png,2\n", r"row 3: .*bad\.png: .*Unidentified"),
    "a foreign label": (HEAD + "a.png,1\nb.png,3\n", r"row 3 \(b\.png\): label '3' .*1, 2, cat, NA"),
}


@pytest.mark.parametrize("kind", CSVS)
def test_each_kind_of_csv_is_read_or_refused_by_name_and_row(kind: str, tmp_path: Path) -> None:
    """An image that no row lists is not read: bad.png stands beside the others."""
    content, wanted = CSVS[kind]
    csv, home = tmp_path / "d" / "train.csv", tmp_path / "d" / "data"
    draw(*(home / name for name in ("a.png", "b.png", "a, b.png")))
    csv.write_bytes(content if isinstance(content, bytes) else content.encode())
    (home / "bad.png").write_bytes(b"")
    try:
        listing = listed(tmp_path)
        encode_labels(listing, ["1", "2", "cat", "NA"])
        found: Any = (read_domain(listing, None, 28, 1).names, listing.labels)
    except UserError as error:
        found = str(error)
    if isinstance(wanted, str):
        assert re.match(rf"{re.escape(str(csv))} .*{wanted}", found)
    else:
        assert found == wanted


def test_without_labels_the_label_column_is_not_read(small_data: Path) -> None:
    listing = list_split(small_data, "mnistm", "train", False)
    assert listing is not None
    assert listing.labels is None


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "2", "2"], ["2", "9", "10"]),
        (["b", "a", "b"], ["a", "b"]),
        (["1" * 5000, "2"], ["1" * 5000, "2"]),  # a number beyond any is a word
    ],
)
def test_classes_sort_as_words_or_as_numbers(labels: list[str], classes: list[str]) -> None:
    assert class_names(Listing(Path(), labels, [], labels)) == classes


def test_one_row_is_too_little_to_train_on_but_enough_as_a_target(
    small_data: Path, tmp_path: Path, no_figures: None
) -> None:
    write_domain(tmp_path / "one", {"train": 1, "val": 1})
    (tmp_path / "mnistm").symlink_to(small_data / "mnistm")
    common = ["--data_root", tmp_path, "--save_dir", tmp_path / "runs", "--target_file", "one", "--max_steps", 2]
    common += ["-bs", 8, "--precision", "fp32", "--device", "cpu", "--train_mode"]
    code, _, error = ended(train, *common, "target")
    assert code == 2
    assert re.search(r"one/train\.csv .*'0'", error)
    assert not (tmp_path / "runs").exists()
    assert ended(train, *common, "dann")[0] == 0


# Folders


def test_a_missing_domain_is_refused_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "usps").mkdir()
    with pytest.raises(UserError, match=r"svhn .*: usps"):
        list_split(tmp_path, "svhn", "train", True)


@pytest.mark.parametrize("place", ["d", "d/train", "d/data"])
def test_a_plain_folder_of_images_is_found(place: str, tmp_path: Path) -> None:
    draw(*(tmp_path / place / name for name in ("b.png", "a.jpg", "notes.txt")))
    assert listed(tmp_path).names == ["a.jpg", "b.png"]
    assert listed(tmp_path).labels is None


@pytest.mark.parametrize("place", ["d", "d/train"])
def test_one_folder_per_class_gives_the_labels_and_hidden_folders_are_passed_over(place: str, tmp_path: Path) -> None:
    draw(*(tmp_path / place / folder / "x.png" for folder in ("cat", ".ipynb_checkpoints", "dog")))
    assert listed(tmp_path).labels == ["cat", "dog"]
    draw(tmp_path / place / "stray.png")
    with pytest.raises(UserError, match=r"stray\.png"):
        listed(tmp_path)


def test_images_that_val_lists_are_not_trained_on(tmp_path: Path) -> None:
    draw(tmp_path / "d" / "data" / "a.png", tmp_path / "d" / "data" / "b.png")
    (tmp_path / "d" / "val.csv").write_text("image_name,label\nb.png,1\n")
    assert listed(tmp_path, False).names == ["a.png"]


def test_without_labels_the_class_folder_does_not_change_the_order(tmp_path: Path) -> None:
    for root, folders in (("one", "ab"), ("two", "ba")):
        draw(*(tmp_path / root / "d" / folder / name for folder, name in zip(folders, ("x.png", "y.png"), strict=True)))
        assert [path.name for path in listed(tmp_path / root, False).paths] == ["x.png", "y.png"]


def test_a_folder_that_cannot_be_listed_is_refused_not_passed_over(unprivileged: Path) -> None:
    (unprivileged / "closed").mkdir(mode=0o000)
    draw(unprivileged / "x.png")
    with pytest.raises(UserError, match="closed"):
        image_names(unprivileged)


# Batches


def numbered(count: int) -> Domain:
    """A domain whose images and labels are their own row numbers."""
    rows = torch.arange(count)
    images = rows.to(torch.uint8).view(-1, 1, 1, 1).expand(count, 2, 2, 3).contiguous()
    return Domain(images, rows, [str(i) for i in range(count)])


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (7, 7), (3, 8), (100, 33)])
def test_every_image_is_drawn_exactly_once_a_pass_and_no_batch_is_short(count: int, batch_size: int) -> None:
    batches = Batches(numbered(count), batch_size, 0, 0, torch.device("cpu"))
    drawn = torch.cat([batches.indices(step) for step in range(3 * count)])
    assert len(drawn) == 3 * count * batch_size
    for number in range(3):
        assert sorted(drawn[number * count : (number + 1) * count].tolist()) == list(range(count))


def test_a_batch_is_a_function_of_seed_stream_and_step_alone() -> None:
    def indices(seed: int, stream: int, steps: list[int]) -> list[list[int]]:
        batches = Batches(numbered(50), 8, seed, stream, torch.device("cpu"))
        return [batches.indices(step).tolist() for step in steps]

    assert indices(0, 0, list(range(20)))[13:] == indices(0, 0, list(range(13, 20)))
    assert indices(0, 0, [0, 1]) != indices(1, 0, [0, 1])
    assert indices(0, 0, [0, 1]) != indices(0, 1, [0, 1])


def test_images_and_labels_of_a_batch_belong_together() -> None:
    x, y = Batches(numbered(50), 8, 0, 0, torch.device("cpu"))(5)
    assert y is not None
    assert x.shape == (8, 3, 2, 2)
    assert torch.equal(x[:, 0, 0, 0].long(), y)
    assert x.is_contiguous(memory_format=torch.channels_last)

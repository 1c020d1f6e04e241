"""Reading domains: every layout, every image mode, one sentence for what is not usable."""

import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ImageOps import mirror
from png import headers, read_rows, unfilter

import dataset
from dataset import Batches, Domain, class_names, list_split, read_domain, read_image, read_images
from utils import UserError


def folder_with(root: Path, csv: str | bytes, names: tuple[str, ...] = ("a.png", "b.png")) -> Path:
    (root / "d" / "data").mkdir(parents=True)
    for i, name in enumerate(names):
        Image.new("RGB", (28, 28), (i, i, i)).save(root / "d" / "data" / name)
    (root / "d" / "train.csv").write_bytes(csv if isinstance(csv, bytes) else csv.encode())
    return root


def labels_of(root: Path) -> list[str] | None:
    listing = list_split(root, "d", "train", True)
    assert listing is not None
    return listing.labels


def test_a_domain_is_read_into_one_contiguous_uint8_tensor(small_data: Path) -> None:
    listing = list_split(small_data, "mnistm", "train", True)
    assert listing is not None
    domain = read_domain(listing, [str(k) for k in range(10)], 28, 2)
    assert domain.images.dtype == torch.uint8
    assert domain.images.shape == (40, 28, 28, 3)
    assert domain.images.is_contiguous()
    with Image.open(small_data / "mnistm" / "data" / domain.names[7]) as image:
        assert np.array_equal(domain.images[7].numpy(), np.asarray(image))
    assert domain.labels is not None
    assert domain.labels.tolist() == [i % 10 for i in range(40)]


def test_each_image_is_decoded_once(small_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    original = dataset.read_rows

    def counting(path: Path, size: int, modes: dict[bytes, str]) -> tuple[str, bytes] | None:
        opened.append(path)
        return original(path, size, modes)

    monkeypatch.setattr(dataset, "read_rows", counting)
    listing = list_split(small_data, "usps", "train", True)
    assert listing is not None
    domain = read_domain(listing, None, 28, 2)
    batches = Batches(domain, 16, 0, 0, torch.device("cpu"))
    for step in range(10):
        batches(step)
    assert sorted(opened) == sorted(listing.paths)


def test_thread_count_does_not_change_what_is_read(small_data: Path) -> None:
    listing = list_split(small_data, "mnistm", "train", True)
    assert listing is not None
    assert torch.equal(read_images(listing.paths, 28, 1)[0], read_images(listing.paths, 28, 4)[0])


def ramp(mode: str) -> Image.Image:
    """A horizontal ramp 0..255, 256 pixels wide, in `mode`; the value it must read as is its column."""
    row = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    if mode == "I;16":
        return Image.fromarray(row.astype(np.uint16) * 257)
    if mode == "P":
        return Image.fromarray(row).convert("P")
    if mode == "RGBA":
        return Image.fromarray(np.dstack([row, row, row, np.full_like(row, 255)]))
    if mode == "LA":
        return Image.fromarray(row).convert("LA")
    return Image.fromarray(row).convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "I;16", "I"])
def test_every_mode_arrives_as_the_same_rgb(mode: str, tmp_path: Path) -> None:
    name = "x.tif" if mode == "I" else "x.png"  # PNG has no 32-bit integers
    ramp(mode).save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        pixels = np.asarray(dataset.to_rgb(image))
    assert pixels.shape == (4, 256, 3)
    assert np.array_equal(pixels[..., 0], np.tile(np.arange(256), (4, 1)))
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (28, 28), (0, 0, 0, 0)).save(tmp_path / "x.png")
    pixels = read_image(tmp_path / "x.png", 28)
    assert isinstance(pixels, np.ndarray)
    assert pixels.min() == 255


def test_exif_rotation_is_undone(tmp_path: Path) -> None:
    upright = Image.fromarray(np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (64, 1))).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 2  # mirrored
    mirror(upright).save(tmp_path / "x.jpg", exif=exif, quality=95)
    pixels = read_image(tmp_path / "x.jpg", 64)
    assert isinstance(pixels, np.ndarray)
    assert pixels[:, 0].mean() < 10
    assert pixels[:, -1].mean() > 245


def test_other_sizes_are_resized(tmp_path: Path) -> None:
    Image.new("RGB", (100, 37), (9, 9, 9)).save(tmp_path / "x.png")
    pixels = read_image(tmp_path / "x.png", 28)
    assert isinstance(pixels, np.ndarray)
    assert pixels.shape == (28, 28, 3)
    assert (pixels == 9).all()


def test_an_unreadable_image_is_said_why_and_the_rest_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (28, 28), (7, 7, 7)).save(tmp_path / "good.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    paths = [tmp_path / name for name in ("empty.png", "good.png", "cut.png", "absent.png")]
    pixels, unreadable = read_images(paths, 28)
    assert (pixels[1] == 7).all()
    assert set(unreadable) == {0, 2, 3}
    assert unreadable[0] == "not a readable image (UnidentifiedImageError)"
    assert unreadable[3] == "no such file"


def test_a_huge_image_is_taken_for_a_bomb_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (20000, 3000)).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", 28) == "20000x3000 pixels are more than 50000000"


@pytest.mark.parametrize(
    "csv",
    [
        "image_name,label\na.png,1\nb.png,2\n",
        "\ufeffimage_name,label\r\na.png,1\r\nb.png,2\r\n",
        "label,other,image_name\n1,x,a.png\n2,y,b.png\n",
        "image_name, label\na.png, 1\nb.png, 2\n",
        '"image_name","label"\n"a.png","1"\n"b.png","2"\n',
    ],
)
def test_a_csv_is_read_however_it_was_written(csv: str, tmp_path: Path) -> None:
    assert labels_of(folder_with(tmp_path, csv)) == ["1", "2"]


@pytest.mark.parametrize(
    ("csv", "sentence"),
    [
        ("name,label\na.png,1\n", "{csv} has no column image_name; its first line must be image_name,label."),
        ("image_name,label\n", "{csv} lists no image; add rows or remove the file."),
        ("image_name,label\na.png,1\nb.png,\n", "{csv} row 3: no label for b.png; fill it in or remove the row."),
        ("image_name,label\n../x.png,1\n", "{csv} row 2: image_name '../x.png' must be a path inside {home}."),
        (
            "image_name,label\na.png,1\n/etc/x.png,1\n",
            "{csv} row 3: image_name '/etc/x.png' must be a path inside {home}.",
        ),
    ],
)
def test_a_csv_that_is_not_usable_is_refused_in_one_sentence(csv: str, sentence: str, tmp_path: Path) -> None:
    root = folder_with(tmp_path, csv)
    with pytest.raises(UserError) as refusal:
        list_split(root, "d", "train", True)
    assert str(refusal.value) == sentence.format(csv=root / "d" / "train.csv", home=root / "d" / "data")


def test_an_empty_file_is_no_csv(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not readable as CSV"):
        list_split(folder_with(tmp_path, ""), "d", "train", True)


def test_a_listed_image_that_is_absent_is_refused_with_its_row(tmp_path: Path) -> None:
    root = folder_with(tmp_path, "image_name,label\na.png,1\nabsent.png,2\n")
    listing = list_split(root, "d", "train", True)
    assert listing is not None
    with pytest.raises(UserError) as refusal:
        read_domain(listing, ["1", "2"], 28, 1)
    assert str(refusal.value) == (
        f"{root / 'd' / 'train.csv'} row 3: {root / 'd' / 'data' / 'absent.png'}: no such "
        "file; restore the image or remove the row."
    )


def test_a_label_outside_the_classes_is_refused_with_its_row(tmp_path: Path) -> None:
    listing = list_split(folder_with(tmp_path, "image_name,label\na.png,1\nb.png,7\n"), "d", "train", True)
    assert listing is not None
    with pytest.raises(UserError, match=r"row 3 \(b.png\): label '7' is not among the classes .*\(1, 2\)"):
        dataset.encode_labels(listing, ["1", "2"])


def test_a_missing_domain_is_refused_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "usps").mkdir()
    with pytest.raises(UserError) as refusal:
        list_split(tmp_path, "svhn", "train", True)
    assert str(refusal.value) == (
        f"domain folder {tmp_path / 'svhn'} does not exist; --data_root {tmp_path} holds: usps."
    )


def test_without_labels_the_label_column_is_not_read(tmp_path: Path) -> None:
    listing = list_split(folder_with(tmp_path, "image_name,label\na.png,1\nb.png,2\n"), "d", "train", False)
    assert listing is not None
    assert listing.labels is None


def test_whole_numbers_are_one_class_however_written_and_sort_numerically() -> None:
    assert class_names(["10", "9.0", "2", "09", "2.0"]) == ["2", "9", "10"]
    assert class_names(["b", "a", "b"]) == ["a", "b"]


@pytest.mark.parametrize("place", ["d", "d/train", "d/data"])
def test_a_plain_folder_of_images_is_found(place: str, tmp_path: Path) -> None:
    (tmp_path / place).mkdir(parents=True)
    for name in ("b.png", "a.jpg", "notes.txt"):
        Image.new("RGB", (8, 8)).save(tmp_path / place / name, format="png")
    listing = list_split(tmp_path, "d", "train", True)
    assert listing is not None
    assert listing.names == ["a.jpg", "b.png"]
    assert listing.labels is None


@pytest.mark.parametrize("place", ["d", "d/train"])
def test_one_folder_per_class_gives_the_labels(place: str, tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / place / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / place / label / "x.png")
    listing = list_split(tmp_path, "d", "train", True)
    assert listing is not None
    assert listing.labels == ["cat", "dog"]


def test_images_that_val_lists_are_not_trained_on(small_data: Path, tmp_path: Path) -> None:
    root = folder_with(tmp_path, "")
    (root / "d" / "train.csv").unlink()
    (root / "d" / "val.csv").write_text("image_name,label\nb.png,1\n")
    listing = list_split(root, "d", "train", False)
    assert listing is not None
    assert listing.names == ["a.png"]


def numbered(count: int) -> Domain:
    """A domain whose images and labels are their own row numbers."""
    rows = torch.arange(count)
    return Domain(
        rows.to(torch.uint8).view(-1, 1, 1, 1).expand(count, 2, 2, 3).contiguous(), rows, [str(i) for i in range(count)]
    )


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (7, 7), (3, 8), (100, 33)])
def test_every_image_is_drawn_exactly_once_a_pass_and_no_batch_is_short(count: int, batch_size: int) -> None:
    batches = Batches(numbered(count), batch_size, 0, 0, torch.device("cpu"))
    drawn = torch.cat([batches.indices(step) for step in range(3 * count)])
    assert len(drawn) == 3 * count * batch_size
    for number in range(3):
        assert sorted(drawn[number * count : (number + 1) * count].tolist()) == list(range(count))


def test_a_batch_is_a_function_of_seed_and_step_alone() -> None:
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


def test_rows_keep_their_line_numbers_past_blank_lines_and_trailing_commas(tmp_path: Path) -> None:
    root = folder_with(tmp_path, "image_name,label\n\na.png,1,\n\nb.png,\n\n")
    with pytest.raises(UserError, match=r"train.csv row 5: no label for b.png"):
        list_split(root, "d", "train", True)


def test_an_empty_label_column_is_no_labels(tmp_path: Path) -> None:
    assert labels_of(folder_with(tmp_path, "image_name,label\na.png,\nb.png,\n")) is None


def test_hidden_folders_are_passed_over(tmp_path: Path) -> None:
    for name in ("d/cat/x.png", "d/.ipynb_checkpoints/x.png", "d/dog/x.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert labels_of(tmp_path) == ["cat", "dog"]


def test_an_image_beside_class_folders_is_named(tmp_path: Path) -> None:
    for name in ("d/cat/x.png", "d/stray.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    with pytest.raises(UserError, match=r"holds class folders and, beside them, stray.png; move it into the folder"):
        list_split(tmp_path, "d", "train", True)


def test_without_labels_the_class_folder_does_not_change_the_order(tmp_path: Path) -> None:
    for root, folders in (("one", "ab"), ("two", "ba")):
        for name, folder in zip(("x.png", "y.png"), folders, strict=True):
            (tmp_path / root / "d" / folder).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / root / "d" / folder / name)
    orders = []
    for root in ("one", "two"):
        listing = list_split(tmp_path / root, "d", "train", False)
        assert listing is not None
        orders.append([path.name for path in listing.paths])
    assert orders[0] == orders[1] == ["x.png", "y.png"]


def test_a_dark_16_bit_image_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 200, dtype=np.uint16)).save(tmp_path / "x.png")
    pixels = read_image(tmp_path / "x.png", 4)
    assert isinstance(pixels, np.ndarray)
    assert pixels.max() == 1  # 200 of 65535 is 0.78 of 255


def test_the_plain_png_reader_reads_what_pillow_reads_and_leaves_the_rest_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    rgb, grey = rng.integers(0, 256, (28, 28, 3), dtype=np.uint8), rng.integers(0, 256, (28, 28), dtype=np.uint8)
    alpha = rng.integers(0, 256, (28, 28, 4), dtype=np.uint8)
    images = {
        "rgb": Image.fromarray(rgb),
        "grey": Image.fromarray(grey),
        "alpha": Image.fromarray(alpha),
        "palette": Image.fromarray(rgb).quantize(16),
        "wide": Image.fromarray(grey.astype(np.uint16) * 257),
        "large": Image.fromarray(rgb).resize((40, 30)),
    }
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
    Image.fromarray(grey).save(tmp_path / "see_through.png", transparency=int(grey[0, 0]))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    Image.fromarray(rgb).save(tmp_path / "turned.png", exif=rotated)
    (tmp_path / "cut.png").write_bytes((tmp_path / "rgb.png").read_bytes()[:900])
    (tmp_path / "torn.png").write_bytes((tmp_path / "rgb.png").read_bytes()[:-300] + bytes(300))
    Image.fromarray(rgb).save(tmp_path / "jpeg.png", format="jpeg")
    paths = sorted(tmp_path.iterdir())

    plain = [path.stem for path in paths if read_rows(path, 28, headers(28)) is not None]
    assert plain == ["grey", "rgb"]
    fast = read_images(paths, 28)
    monkeypatch.setattr(dataset, "read_rows", lambda path, size, modes: None)
    slow = read_images(paths, 28)
    assert torch.equal(slow[0], fast[0])
    assert slow[1] == fast[1]
    assert sorted(paths[i].stem for i in slow[1]) == ["cut", "torn"]


def chunk(name: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


def filtered_png(pixels: np.ndarray, filters: list[int], parts: int = 1) -> bytes:
    """PNG of uint8 [H, W, C] whose row y is filtered by filters[y] as PNG's specification says, in `parts` IDATs."""
    height, width, channels = pixels.shape
    lines, above = [], np.zeros(width * channels, dtype=np.int64)
    for kind, row in zip(filters, pixels.reshape(height, -1).astype(np.int64), strict=True):
        left = np.concatenate([np.zeros(channels, dtype=np.int64), row[:-channels]])
        corner = np.concatenate([np.zeros(channels, dtype=np.int64), above[:-channels]])
        guess = left + above - corner
        away = [abs(guess - other) for other in (left, above, corner)]
        next_best = np.where(away[1] <= away[2], above, corner)
        nearest = np.where((away[0] <= away[1]) & (away[0] <= away[2]), left, next_best)
        predicted = [np.zeros_like(row), left, above, (left + above) // 2, nearest][kind]
        lines.append(bytes([kind]) + ((row - predicted) % 256).astype(np.uint8).tobytes())
        above = row
    packed = zlib.compress(b"".join(lines))
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0 if channels == 1 else 2, 0, 0, 0])
    cuts = [len(packed) * k // parts for k in range(parts + 1)]
    data = b"".join(chunk(b"IDAT", packed[a:b]) for a, b in pairwise(cuts))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 9, 28])
def test_plain_pngs_of_every_row_filter_are_read_many_at_a_time(tmp_path: Path, channels: int, size: int) -> None:
    rng = np.random.default_rng(size)
    wanted = [rng.integers(0, 256, (size, size, channels), dtype=np.uint8) for _ in range(12)]
    for i, pixels in enumerate(wanted):  # five of one filter, the others mixed: the first row's too
        filters = [i] * size if i < 5 else rng.integers(0, 5, size).tolist()
        (tmp_path / f"{i:02d}.png").write_bytes(filtered_png(pixels, filters, parts=1 + i % 3))
    paths = sorted(tmp_path.iterdir())
    found = [read_rows(path, size, headers(size)) for path in paths]
    assert all(found)
    pixels = unfilter("L" if channels == 1 else "RGB", [rows for each in found if each for rows in each[1:]], size)
    assert np.array_equal(pixels, np.broadcast_to(np.stack(wanted), (12, size, size, 3)))
    read, unreadable = read_images(paths, size)
    assert not unreadable
    assert np.array_equal(read.numpy(), pixels)
    for path, image in zip(paths, pixels, strict=True):
        assert np.array_equal(read_image(path, size), image)  # Pillow alone


def test_a_png_that_is_not_what_it_says_is_left_to_pillow(tmp_path: Path) -> None:
    pixels = np.arange(28 * 28 * 3, dtype=np.uint8).reshape(28, 28, 3)
    good = filtered_png(pixels, [4] * 28)
    at = good.index(b"IDAT") - 4
    packed = zlib.compress(bytes(28 * 85))
    spoilt = {
        "too few rows": zlib.compress(bytes(27 * 85)),
        "too many rows": zlib.compress(bytes(29 * 85)),
        "far too many": zlib.compress(bytes(10**6)),
        "no end": packed[:-5],
        "more after the end": packed + b"x",
        "no such filter": zlib.compress(b"\x05" + bytes(28 * 85 - 1)),
        "no zlib": b"x" * 40,
    }
    files = {name: good[:at] + chunk(b"IDAT", data) + chunk(b"IEND", b"") for name, data in spoilt.items()}
    files["a chunk between"] = good[:at] + chunk(b"gAMA", bytes(4)) + good[at:]
    files["a wrong checksum"] = good[:-20] + bytes([good[-20] ^ 1]) + good[-19:]
    files["nothing"] = b""
    for name, content in files.items():
        (tmp_path / "x.png").write_bytes(content)
        assert read_rows(tmp_path / "x.png", 28, headers(28)) is None, name
    (tmp_path / "x.png").write_bytes(good)
    assert read_rows(tmp_path / "x.png", 28, headers(28)) is not None
    assert read_rows(tmp_path / "x.png", 27, headers(27)) is None
    assert read_rows(tmp_path, 28, headers(28)) is None

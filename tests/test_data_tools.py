"""prepare_data.py: the demo, the public archives (small files in their formats), the rows behind the README's table."""

import base64
import bz2
import gzip
import hashlib
import io
import os
import shutil
import tarfile
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

import prepare_data
from data_tools import archives, demo, sample
from data_tools.archives import Archive, download, split_rows
from utils import UserError

DOMAINS = ("mnistm", "svhn", "usps")
GREY = ("mnist", "usps")
COUNT = 30  # images in each archive of these tests


def make(*argv: object) -> dict:
    """Run prepare_data.py; the images of each split of each domain."""
    made: dict = prepare_data.main([str(word) for word in argv])["domains"]
    return made


def refusal(*argv: object) -> str:
    """The sentence that prepare_data.py refuses a call with."""
    with pytest.raises(UserError) as refused:
        make(*argv)
    return str(refused.value)


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def tables(domain: Path) -> dict[str, pd.DataFrame]:
    """The CSVs of a domain by split; every image that they list is there, and no other."""
    found = {path.stem: pd.read_csv(path) for path in sorted(domain.glob("*.csv"))}
    listed = [name for table in found.values() for name in table.image_name]
    assert sorted(listed) == sorted(os.listdir(domain / "data"))
    assert all(list(table.columns) == ["image_name", "label"] for table in found.values())
    return found


# The demo


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A demo of a few images a class."""
    make("demo", "--out", tmp_path / "tiny", "--scale", 0.02)
    return tmp_path / "tiny"


def test_the_demo_has_the_layout_every_class_and_the_counts_that_help_states(demo_data: Path) -> None:
    for domain in DOMAINS:
        stated = next(line.split() for line in (prepare_data.__doc__ or "").splitlines() if f"  {domain} " in line)
        found = tables(demo_data / domain)
        for split in ("train", "val"):
            assert str(len(found[split])) == stated[stated.index(split) - 1]
            assert set(found[split].label) == set(range(10))
            assert not found[split].label.is_monotonic_increasing
        with Image.open(demo_data / domain / "data" / found["val"].image_name[0]) as image:
            assert (image.format, image.size, image.mode) == ("PNG", (28, 28), "L" if domain == "usps" else "RGB")


def test_no_demo_image_occurs_twice_whatever_the_split_and_domain(demo_data: Path) -> None:
    pixels = [Image.open(path).convert("RGB").tobytes() for path in demo_data.rglob("*.png")]
    assert len(set(pixels)) == len(pixels) > 8000


def test_no_handwritten_sample_is_dealt_twice_and_the_seed_deals_them() -> None:
    labels = load_digits().target
    deals = [demo.split_digits(labels, seed) for seed in (0, 1)]
    for deal in deals:
        assert sorted(np.concatenate(list(deal.values()))) == list(range(len(labels)))
    assert not np.array_equal(deals[0]["usps", "val"], deals[1]["usps", "val"])


def test_patches_of_train_and_val_come_from_regions_that_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = Image.new("RGB", (640, 427), "white")  # white where val cuts, black where train does
    photo.paste((0, 0, 0), (demo.PHOTO_BANDS["val"][1], 0, *photo.size))
    monkeypatch.setattr(demo, "load_photos", lambda: (photo,))
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert demo.cut_patch(rng, "train").max() < 0.5 < demo.cut_patch(rng, "val").min()


def test_every_font_draws_ten_different_digits() -> None:
    for name in demo.FONTS:
        masks = [demo.load_font(name).getmask(str(digit)) for digit in range(10)]
        assert len({(mask.size, bytes(mask)) for mask in masks if mask.getbbox()}) == 10, name


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_images(tiny: Path, tmp_path: Path) -> None:
    for name, seed in (("again", 0), ("other", 1)):
        make("demo", "--out", tmp_path / name, "--scale", 0.02, "--seed", seed)
    first, again, other = (contents(root) for root in (tiny, tmp_path / "again", tmp_path / "other"))
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first if name.endswith(".png"))


def test_a_demo_that_is_there_is_kept_and_what_is_missing_is_made(tiny: Path) -> None:
    before = contents(tiny)
    times = {path: path.stat().st_mtime_ns for path in (tiny / "svhn").rglob("*")}
    shutil.rmtree(tiny / "usps")
    assert make("demo", "--out", tiny, "--scale", 0.02)["svhn"] == {"train": 40, "val": 10}
    assert contents(tiny) == before
    assert times == {path: path.stat().st_mtime_ns for path in (tiny / "svhn").rglob("*")}


def test_a_folder_that_is_not_what_this_call_would_make_is_refused(tiny: Path) -> None:
    assert "seed 0" in refusal("demo", "--out", tiny, "--seed", 5, "--scale", 0.02)
    assert "scale 0.02" in refusal("demo", "--out", tiny, "--scale", 0.03)
    png, more = tiny / "svhn" / "data" / "00003.png", tiny / "svhn" / "data" / "more.png"
    content = png.read_bytes()
    for damage in (png.unlink, lambda: png.write_bytes(b""), lambda: more.write_bytes(b"")):
        damage()
        assert f"{tiny / 'svhn'} " in refusal("demo", "--out", tiny, "--scale", 0.02)
        png.write_bytes(content)
    for marker in ("", "[]", "{}", "null", '{"version": 1}'):
        (tiny / "usps" / demo.MARKER).write_text(marker)
        assert f"{tiny / 'usps'} " in refusal("demo", "--out", tiny, "--scale", 0.02)


def test_a_folder_of_another_origin_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "svhn").mkdir()
    (tmp_path / "svhn" / "train.csv").write_text("image_name,label\n")
    for command in ("demo", "digits"):
        assert str(tmp_path / "svhn") in refusal(command, "--out", tmp_path)
    assert list(contents(tmp_path)) == ["svhn/train.csv"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_demo_leaves_no_half_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    def interrupted(*_: object) -> str:
        raise interruption

    monkeypatch.setattr(demo, "digest", interrupted)  # the images are written, the domain is not complete
    with pytest.raises((KeyboardInterrupt, UserError)):
        make("demo", "--out", tmp_path, "--scale", 0.02)
    assert os.listdir(tmp_path) == []


def test_a_wrong_argument_is_refused_by_its_name(tmp_path: Path) -> None:
    for flag, value in (("--seed", -1), ("--seed", "x"), ("--scale", 0), ("--scale", 1.5), ("--scale", "nan")):
        assert flag in refusal("demo", "--out", tmp_path, flag, value)
    assert "--out" in refusal("demo")
    assert "COMMAND" in refusal()
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refusal("demo", "--out", tmp_path / "file")
    assert "--raw" in refusal("digits", "--out", tmp_path / "out", "--raw", tmp_path / "absent")


# The public archives


def idx(array: np.ndarray) -> bytes:
    """MNIST's format: kind and number of the dimensions, the dimensions, the bytes."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape) + array.tobytes()


def released_mnistm(count: int) -> tuple[bytes, np.ndarray]:
    """An archive in the form of the released MNIST-M and its images [count, 32, 32, 3]; labels: row % 10."""
    images = np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    files = {"mnist_m_train_labels.txt": "".join(f"{i:08d}.png {i % 10}\n" for i in reversed(range(count))).encode()}
    for i in reversed(range(count)):  # the order within the archive does not matter
        png = io.BytesIO()
        Image.fromarray(images[i]).save(png, "png")
        files |= {f"mnist_m_{split}/{i:08d}.png": png.getvalue() for split in ("train", "test")}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"mnist_m/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue(), images


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of small archives, known by their own checksums: 30 images each, label row % 10, three photographs."""
    rng = np.random.default_rng(0)
    root = tmp_path / "raw"
    (root / "photos" / "train").mkdir(parents=True)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(root / f"photos/train/{i}.jpg")

    def written(archive: Archive, content: bytes, known: bytes | None = None) -> Archive:
        (root / archive.name).write_bytes(content)
        return replace(archive, md5=hashlib.md5(known or content).hexdigest())

    mnist, svhn, usps = [], [], []
    labels = np.arange(COUNT) % 10
    for archive in archives.MNIST:
        images = rng.integers(0, 256, (COUNT, 28, 28), dtype=np.uint8)
        content = idx(images if "images" in archive.name else labels.astype(np.uint8))
        mnist.append(written(archive, gzip.compress(content), content))
    for archive in archives.SVHN:
        images, file = rng.integers(0, 256, (32, 32, 3, COUNT), dtype=np.uint8), io.BytesIO()
        scipy.io.savemat(file, {"X": images, "y": np.where(labels == 0, 10, labels)[:, None]})  # 10 is the digit 0
        svhn.append(written(archive, file.getvalue()))
    for archive in archives.USPS:
        pixels = [" ".join(f"{k + 1}:{v:.3f}" for k, v in enumerate(rng.uniform(-1, 1, 256))) for _ in range(COUNT)]
        lines = (f"{label + 1} {row}" for label, row in zip(labels, pixels, strict=True))
        usps.append(written(archive, bz2.compress("\n".join(lines).encode())))
    for module in (archives, sample):
        monkeypatch.setattr(module, "SVHN", svhn)
        monkeypatch.setattr(module, "USPS", usps)
    monkeypatch.setattr(archives, "MNIST_TRAIN", COUNT)
    monkeypatch.setattr(
        archives, "NEEDED", {"mnist": mnist, "mnistm": [*mnist, archives.BSDS500], "svhn": svhn, "usps": usps}
    )
    split_list = {known.name.split("_")[0]: [known.address, known.name, known.md5] for known in svhn}
    monkeypatch.setattr(datasets.SVHN, "split_list", split_list)
    monkeypatch.setattr(sample, "MNISTM", written(sample.MNISTM, released_mnistm(2 * COUNT)[0]))
    return root


def test_every_archive_becomes_a_domain_of_the_layout_with_the_labels_of_its_images(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "digits"
    made = make("digits", "--out", out, "--raw", raw)
    pools = {domain: {"train": 38, "val": 10, "test": 12} for domain in DOMAINS}
    assert made == {"mnist": {"train": COUNT, "test": COUNT}, **pools}
    assert sorted(os.listdir(out)) == sorted(made)
    for domain in made:
        rows = pd.concat(tables(out / domain).values()).sort_values("image_name")
        assert rows.label.tolist() == [i % 10 for i in range(COUNT)] * 2
        with Image.open(out / domain / "data" / rows.image_name.iloc[0]) as image:
            assert (image.size, image.mode) == ((28, 28), "L" if domain in GREY else "RGB")
    assert make("digits", "--out", out, "--raw", raw) == {}  # all of it is there already


@pytest.mark.parametrize("sampled", [("--sample",), ("--seed", 3)])
def test_mnist_keeps_its_own_split_whatever_the_seed_and_with_sample_too(
    sampled: tuple[object, ...], raw: Path, tmp_path: Path
) -> None:
    flags = ("digits", "--out", tmp_path / "out", "--raw", raw, "--only", "mnist")
    assert make(*flags, *sampled) == {"mnist": {"train": COUNT, "test": COUNT}}
    assert make(*flags) == {}  # the same domain
    found = tables(tmp_path / "out" / "mnist")
    assert set(found) == {"train", "test"}
    for split, name in (("train", "train"), ("test", "t10k")):
        wanted = archives.read_idx(raw / f"{name}-images-idx3-ubyte.gz")
        images = [Image.open(tmp_path / "out" / "mnist" / "data" / png) for png in found[split].image_name]
        assert np.array_equal(np.stack([np.asarray(image) for image in images]), wanted)
        assert found[split].label.tolist() == [i % 10 for i in range(COUNT)]


def test_the_pools_are_split_as_the_published_numbers_were_and_mnist_as_it_was_published() -> None:
    mnist = archives.mnist().split(np.zeros(70_000, np.int64))
    assert {split: (rows[0], rows[-1] + 1) for split, rows in mnist.items()} == {
        "train": (0, 60_000),
        "test": (60_000, 70_000),
    }
    assert [len(split_rows(count, 0)["val"]) for count in (99_289, 9_298)] == [15_887, 1_488]
    assert sorted(np.concatenate(list(split_rows(500, 0).values())).tolist()) == list(range(500))
    assert not np.array_equal(split_rows(500, 3)["val"], split_rows(500, 4)["val"])


def test_mnistm_is_the_difference_of_digit_and_patch_in_archive_and_demo() -> None:
    photo = np.full((28, 28, 3), (10, 100, 250), np.uint8)  # one place for a patch
    digits = np.stack([np.zeros((28, 28), np.uint8), np.full((28, 28), 200, np.uint8)])
    wanted = np.broadcast_to(np.array([[[[10, 100, 250]]], [[[190, 100, 50]]]]), (2, 28, 28, 3))
    assert np.array_equal(archives.blend(digits, [photo], 0), wanted)
    assert np.array_equal([demo.blend(photo / 255, digit / 255) for digit in digits], wanted)


def test_patches_are_drawn_by_the_seed_from_every_photograph() -> None:
    photos = [np.full((60, 80, 3), value, np.uint8) + np.arange(80, dtype=np.uint8)[:, None] for value in (0, 100)]
    first, again, other = (archives.blend(np.zeros((40, 28, 28), np.uint8), photos, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert {bool(patch.min() >= 100) for patch in first} == {True, False}
    assert len({patch.tobytes() for patch in first}) > 15


def test_what_lacks_or_is_damaged_in_raw_is_named_with_its_address(raw: Path, tmp_path: Path) -> None:
    (raw / "usps.t.bz2").unlink()
    sentence = refusal("digits", "--out", tmp_path / "out", "--raw", raw)
    assert "usps.t.bz2" in sentence
    assert "https://www.csie.ntu" in sentence
    for name, domain in (("train_32x32.mat", "svhn"), ("train-images-idx3-ubyte.gz", "mnistm")):
        (raw / name).write_bytes(b"something else")
        sentence = refusal("digits", "--out", tmp_path / "out", "--raw", raw, "--only", domain)
        assert str(raw / name) in sentence
        assert "http" in sentence
    assert not (tmp_path / "out").exists()


def test_an_unpacked_bsds500_gives_its_training_photographs_alone(tmp_path: Path) -> None:
    for split in ("test", "train", "val"):
        (tmp_path / "BSDS500" / split).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "BSDS500" / split / "1.jpg")
    assert archives.find(tmp_path, archives.BSDS500) == tmp_path / "BSDS500" / "train"
    shutil.copytree(tmp_path / "BSDS500", tmp_path / "other")
    with pytest.raises(UserError, match=r"BSDS500/train.*other/train"):
        archives.find(tmp_path, archives.BSDS500)


def test_a_domain_of_another_making_is_not_taken_for_the_real_one(raw: Path, tmp_path: Path) -> None:
    flags = ("digits", "--out", tmp_path / "out", "--raw", raw, "--only", "usps")
    make(*flags)
    assert "seed 0" in refusal(*flags, "--seed", 1)
    assert "--sample" in refusal(*flags, "--sample")
    (tmp_path / "out" / "usps" / archives.MARKER).unlink()
    assert str(tmp_path / "out" / "usps") in refusal(*flags)


# Downloads


class Server(ThreadingHTTPServer):
    """A server of `files` that sends `cut` bytes at most in answer to a request without a range."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None
        self.asked: list[str | None] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def archive(self, name: str, content: bytes) -> Archive:
        self.files[f"/{name}"] = content
        return Archive(name, f"http://127.0.0.1:{self.server_port}/{name}", hashlib.md5(content).hexdigest())


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content, wanted = self.server.files[self.path], self.headers.get("Range")
        self.server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(416 if start >= len(content) else 206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : None if wanted else self.server.cut])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as started:
        yield started
        started.shutdown()


def test_a_download_that_is_cut_goes_on_there_and_is_checked(server: Server, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4000
    archive = server.archive("file.bin", content)
    server.cut = 500_000
    with pytest.raises(UserError, match=r"file\.bin.*500,000 of 1,024,000"):
        download(archive, tmp_path)
    assert download(archive, tmp_path).read_bytes() == content
    assert os.listdir(tmp_path) == ["file.bin"]
    (tmp_path / "file.bin").rename(tmp_path / "file.bin.part")  # killed between the last byte and the name
    assert download(archive, tmp_path).read_bytes() == content
    assert server.asked == [None, "bytes=500000-", "bytes=1024000-"]


def test_a_download_that_is_not_what_it_should_be_leaves_nothing(server: Server, tmp_path: Path) -> None:
    archive = server.archive("file.bin", b"a page that says sorry")
    with pytest.raises(UserError, match=archive.address):
        download(replace(archive, md5="0" * 32), tmp_path)
    assert not list(tmp_path.iterdir())


def test_archives_are_fetched_once_and_an_absent_server_is_named(
    server: Server, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = [server.archive(known.name, (raw / known.name).read_bytes()) for known in archives.NEEDED["usps"]]
    monkeypatch.setitem(archives.NEEDED, "usps", served)
    flags = ("digits", "--only", "usps", "--out", tmp_path)
    assert make(*flags) == {"usps": {"train": 38, "val": 10, "test": 12}}
    first = contents(tmp_path / "usps")
    shutil.rmtree(tmp_path / "usps")
    make(*flags)
    assert contents(tmp_path / "usps") == first
    assert len(server.asked) == 2
    nowhere = Archive("file.bin", "http://127.0.0.1:9/file.bin", None)
    monkeypatch.setitem(archives.NEEDED, "svhn", [nowhere])
    assert nowhere.address in refusal("digits", "--only", "svhn", "--out", tmp_path)


# The rows behind the README's table

# Images of train and val, and sha256 of the rows of val (int64, little endian), taken from the data that was measured.
SPLITS = {
    "mnistm": (47_200, 11_801, "27dcd1413eb3a02fc9051dfbbfddcfbdd749aab393e3d006b9a99ce6102591c7"),
    "svhn": (4_712, 2_014, "c0548f317e00cc36bc8dfcc043039a3cb502a1029f6b638d4eac870e738f131a"),
    "usps": (5_832, 1_459, "7d91a49e930b4378bb3f4aa54c99b04458285e24637ac875983cc2f7cbdb71a5"),
}


@pytest.mark.parametrize("domain", SPLITS)
def test_the_split_of_the_sample_is_the_one_that_was_measured(domain: str) -> None:
    train, val, digest = SPLITS[domain]
    rows = sample.sample_rows(domain, train + val)
    assert (len(rows["train"]), len(rows["val"])) == (train, val)
    assert hashlib.sha256(rows["val"].astype("<i8").tobytes()).hexdigest() == digest
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(train + val))


def test_no_photograph_of_svhn_stands_on_both_sides_of_the_sample() -> None:
    photo = sample.photo_of_digit()
    assert len(photo) == sum(end - first for _, first, end in sample.SVHN_ROWS)
    rows = sample.sample_rows("svhn", len(photo))
    assert not set(photo[rows["train"]]) & set(photo[rows["val"]])


def test_the_released_mnistm_gives_the_middle_of_its_training_images_in_their_order(tmp_path: Path) -> None:
    content, images = released_mnistm(12)
    (tmp_path / "mnist_m.tar.gz").write_bytes(content)
    found, labels = sample.read_released(tmp_path / "mnist_m.tar.gz")
    assert np.array_equal(found, images[:, 2:30, 2:30])
    assert labels.tolist() == [i % 10 for i in range(12)]
    (tmp_path / "empty.tar.gz").write_bytes(released_mnistm(0)[0])
    with pytest.raises(UserError, match=r"empty\.tar\.gz"):
        sample.read_released(tmp_path / "empty.tar.gz")


def test_usps_is_enlarged_without_moving_it() -> None:
    image = np.zeros((1, 16, 16), np.uint8)
    image[0, 4:12, 4:12] = 200
    wide = sample.enlarged(image)
    assert wide.shape == (1, 28, 28)
    assert np.array_equal(wide, wide[:, ::-1, ::-1])
    assert (wide[0, 9:19, 9:19] == 200).all()


def test_the_sample_is_made_of_its_archives_and_no_other_labels_are_taken_for_it(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sample, "PHOTO_DIGITS", base64.b64encode(zlib.compress(b"22222222223")).decode())  # 11 of them
    monkeypatch.setattr(sample, "SVHN_ROWS", (("train", 0, 11), ("test", 3, 8), ("test", 20, 27)))  # 23 digits
    (raw / "usps.t.bz2").unlink()  # no test digit of USPS
    flags = ("digits", "--out", tmp_path / "out", "--raw", raw, "--sample")
    assert "labels of mnistm" in refusal(*flags)
    assert os.listdir(tmp_path / "out") == ["mnist"]
    svhn = np.r_[0:11, 3:8, 20:27]
    rows = {"mnistm": np.arange(2 * COUNT), "svhn": svhn, "usps": np.arange(COUNT)}
    known = {name: sample.sha256((which % 10).astype(np.uint8)) for name, which in rows.items()}
    monkeypatch.setattr(sample, "LABELS_SHA256", known)
    made = make(*flags)
    assert made == {
        "mnistm": {"train": 48, "val": 12},
        "svhn": {"train": 15, "val": 8},  # 7 photographs of 11, one of them the one of three digits
        "usps": {"train": 24, "val": 6},
    }
    warned = capsys.readouterr().out
    for domain in DOMAINS:
        assert {split: len(table) for split, table in tables(tmp_path / "out" / domain).items()} == made[domain]
        assert f"warning: {domain}" in warned  # not the pixels that were measured
    pixels = {
        split: scipy.io.loadmat(raw / f"{split}_32x32.mat")["X"].transpose(3, 0, 1, 2) for split in ("train", "test")
    }
    for i, digit in enumerate([*pixels["train"][0:11], *pixels["test"][svhn[11:]]]):
        with Image.open(tmp_path / "out" / "svhn" / "data" / f"{i:05d}.png") as image:
            assert image.tobytes() == Image.fromarray(digit).resize((28, 28), Image.Resampling.BICUBIC).tobytes()
    assert "--seed" in refusal(*flags, "--seed", 3)

"""The real archives, by small files in their formats: read, blended, split, fetched with a resume."""

import bz2
import gzip
import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import real_digits
from PIL import Image
from real_digits import Archive, blend, download, split_rows

import prepare_data
from utils import UserError

COUNT = 30  # images a file


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    return head + array.tobytes()


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Archives of 30 + 30 images a domain, in subfolders, with the checksums to match."""
    import scipy.io
    from torchvision import datasets

    rng = np.random.default_rng(0)
    root = tmp_path / "raw"
    for folder in ("mnist", "svhn", "usps", "photos/train"):
        (root / folder).mkdir(parents=True)
    mnist = []
    for archive in real_digits.MNIST:
        shape = (COUNT, 28, 28) if "images" in archive.name else (COUNT,)
        content = idx(rng.integers(0, 256 if "images" in archive.name else 10, shape, dtype=np.uint8))
        (root / "mnist" / archive.name).write_bytes(gzip.compress(content))
        mnist.append(Archive(archive.name, archive.address, hashlib.md5(content).hexdigest()))
    svhn, split_list = [], {}
    for archive, split in zip(real_digits.SVHN, ("train", "test"), strict=True):
        file = root / "svhn" / archive.name
        images = rng.integers(0, 256, (32, 32, 3, COUNT), dtype=np.uint8)
        scipy.io.savemat(file, {"X": images, "y": np.arange(1, COUNT + 1)[:, None] % 10 + 1})
        digest = hashlib.md5(file.read_bytes()).hexdigest()
        svhn.append(Archive(archive.name, archive.address, digest))
        split_list[split] = [archive.address, archive.name, digest]
    usps = []
    for archive in real_digits.USPS:
        lines = [
            f"{i % 10 + 1} " + " ".join(f"{k + 1}:{v:.3f}" for k, v in enumerate(rng.uniform(-1, 1, 256)))
            for i in range(COUNT)
        ]
        content = bz2.compress("\n".join(lines).encode())
        (root / "usps" / archive.name).write_bytes(content)
        usps.append(Archive(archive.name, archive.address, hashlib.md5(content).hexdigest()))
    for i in range(3):
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "photos" / "train" / f"{i}.jpg")
    monkeypatch.setattr(real_digits, "MNIST", mnist)
    monkeypatch.setattr(real_digits, "SVHN", svhn)
    monkeypatch.setattr(real_digits, "USPS", usps)
    needed = {"mnistm": [*mnist, real_digits.BSDS500], "svhn": svhn, "usps": usps}
    monkeypatch.setattr(real_digits, "NEEDED", needed)
    monkeypatch.setattr(datasets.SVHN, "split_list", split_list)
    return root


def test_the_pools_are_split_as_the_published_numbers_were() -> None:
    assert {split: len(rows) for split, rows in split_rows(99_289, 0).items()}["val"] == 15_887
    rows = split_rows(9_298, 0)
    assert len(rows["val"]) == 1_488
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(9_298))
    assert np.array_equal(split_rows(500, 3)["val"], split_rows(500, 3)["val"])
    assert not np.array_equal(split_rows(500, 3)["val"], split_rows(500, 4)["val"])


def test_blending_is_the_difference_of_patch_and_digit() -> None:
    photo = np.full((28, 28, 3), (10, 100, 250), np.uint8)  # one place for a patch
    digits = np.zeros((2, 28, 28), np.uint8)
    digits[1] = 200
    out = blend(digits, [photo], 0)
    assert (out[0] == (10, 100, 250)).all()
    assert (out[1] == (190, 100, 50)).all()


def test_patches_are_drawn_by_the_seed_from_every_photograph() -> None:
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (60, 80, 3), dtype=np.uint8) for _ in range(2)]
    digits = np.zeros((20, 28, 28), np.uint8)
    first, again, other = blend(digits, photos, 1), blend(digits, photos, 1), blend(digits, photos, 2)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len({image.tobytes() for image in first}) > 15


def test_every_archive_becomes_a_domain_of_the_layout(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "digits"
    made = prepare_data.main(["digits", "--out", str(out), "--raw", str(raw)])["domains"]
    assert made == {name: {"train": 38, "val": 10, "test": 12} for name in ("mnistm", "svhn", "usps")}
    for domain, mode in (("mnistm", "RGB"), ("svhn", "RGB"), ("usps", "L")):
        names: list[str] = []
        for split in ("train", "val", "test"):
            table = pd.read_csv(out / domain / f"{split}.csv")
            assert table.label.between(0, 9).all()
            names += table.image_name.tolist()
        assert sorted(names) == sorted(path.name for path in (out / domain / "data").iterdir())
        with Image.open(out / domain / "data" / names[0]) as image:
            assert (image.size, image.mode) == ((28, 28), mode)
    again = prepare_data.main(["digits", "--out", str(out), "--raw", str(raw)])
    assert again["domains"] == {}
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_labels_belong_to_their_images(raw: Path) -> None:
    files = real_digits.gather([*real_digits.USPS, *real_digits.SVHN], raw, raw)
    _, labels = real_digits.read_usps(files)
    assert labels.tolist() == [i % 10 for i in range(COUNT)] * 2
    _, labels = real_digits.read_svhn(files)
    assert labels.tolist() == [((i + 1) % 10 + 1) % 10 for i in range(COUNT)] * 2  # label 10 is the digit 0


def test_a_missing_archive_is_named_with_its_address(raw: Path, tmp_path: Path) -> None:
    (raw / "usps" / "usps.t.bz2").unlink()
    with pytest.raises(UserError, match=r"lacks usps\.t\.bz2 \(https://www\.csie\.ntu.*--only"):
        prepare_data.main(["digits", "--out", str(tmp_path / "out"), "--raw", str(raw)])
    assert not (tmp_path / "out").exists()
    prepare_data.main(["digits", "--out", str(tmp_path / "out"), "--raw", str(raw), "--only", "mnistm"])


def test_a_damaged_archive_is_refused(raw: Path, tmp_path: Path) -> None:
    (raw / "svhn" / "train_32x32.mat").write_bytes(b"something else")
    with pytest.raises(UserError, match="is not the file of http://ufldl"):
        prepare_data.main(["digits", "--out", str(tmp_path / "out"), "--raw", str(raw)])
    (raw / "svhn" / "train_32x32.mat").unlink()
    (raw / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="is damaged"):
        prepare_data.main(["digits", "--out", str(tmp_path / "out"), "--raw", str(raw), "--only", "mnistm"])


CONTENT = bytes(range(256)) * 4000


def test_an_unpacked_bsds500_gives_its_training_photographs(tmp_path: Path) -> None:
    for split in ("test", "train", "val"):
        (tmp_path / "BSDS500" / "images" / split).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "BSDS500" / "images" / split / "1.jpg")
    found = real_digits.find(tmp_path, real_digits.BSDS500)
    assert found is not None
    assert found.name == "train"
    (tmp_path / "other" / "train").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "other" / "train" / "1.jpg")
    with pytest.raises(UserError, match="has photographs in several folders"):
        real_digits.find(tmp_path, real_digits.BSDS500)


def test_a_domain_of_another_making_is_not_taken_for_the_real_one(raw: Path, tmp_path: Path) -> None:
    flags = ["digits", "--out", str(tmp_path / "out"), "--raw", str(raw), "--only", "usps"]
    prepare_data.main(flags)
    with pytest.raises(UserError, match="made with seed 0 and not seed 1"):
        prepare_data.main([*flags, "--seed", "1"])
    (tmp_path / "out" / "usps" / real_digits.MARKER).unlink()
    with pytest.raises(UserError, match="is there already and was not made by this command"):
        prepare_data.main(flags)


@pytest.fixture
def server() -> Iterator[tuple[str, list[str | None]]]:
    """A server of CONTENT that answers ranges, and the ranges it was asked for."""
    asked: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            asked.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            stop = len(CONTENT) // 2 if self.path == "/cut.bin" and not wanted else len(CONTENT)
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            self.wfile.write(CONTENT[start:stop])

        def log_message(self, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}/file.bin", asked
    httpd.shutdown()


def test_a_download_goes_on_where_it_was_cut_and_is_checked(
    server: tuple[str, list[str | None]], tmp_path: Path
) -> None:
    address, asked = server
    archive = Archive("file.bin", address, hashlib.md5(CONTENT).hexdigest())
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:5000])
    assert download(archive, tmp_path).read_bytes() == CONTENT
    assert asked == ["bytes=5000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


def test_a_connection_cut_half_way_keeps_what_has_arrived_for_the_next_try(
    server: tuple[str, list[str | None]], tmp_path: Path
) -> None:
    address, asked = server
    archive = Archive("cut.bin", address.replace("file.bin", "cut.bin"), hashlib.md5(CONTENT).hexdigest())
    with pytest.raises(UserError, match=r"cut after 512,000 of 1,024,000 bytes.*what has arrived is kept"):
        download(archive, tmp_path)
    assert download(archive, tmp_path).read_bytes() == CONTENT
    assert asked == [None, "bytes=512000-"]


def test_a_download_that_is_not_what_it_should_be_leaves_nothing(
    server: tuple[str, list[str | None]], tmp_path: Path
) -> None:
    address, _ = server
    with pytest.raises(UserError, match="is not the file of"):
        download(Archive("file.bin", address, "0" * 32), tmp_path)
    assert not list(tmp_path.iterdir())


def test_archives_are_fetched_once_and_what_was_fetched_is_made_into_a_domain(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(raw / "usps"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{httpd.server_port}"
        served = [Archive(archive.name, f"{home}/{archive.name}", archive.md5) for archive in real_digits.USPS]
        monkeypatch.setitem(real_digits.NEEDED, "usps", served)
        flags = ["digits", "--only", "usps", "--out"]
        made = prepare_data.main([*flags, str(tmp_path / "out")])["domains"]
        httpd.shutdown()
    assert made == {"usps": {"train": 38, "val": 10, "test": 12}}
    (tmp_path / "again").mkdir()
    (tmp_path / "out" / "archives").rename(tmp_path / "again" / "archives")
    prepare_data.main([*flags, str(tmp_path / "again")])  # the server is gone: nothing is fetched twice
    for split in ("train", "val", "test"):
        csv = Path("usps", f"{split}.csv")
        assert (tmp_path / "again" / csv).read_bytes() == (tmp_path / "out" / csv).read_bytes()


def test_a_server_that_is_not_there_is_named_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"file\.bin could not be fetched from http://127\.0\.0\.1:9/.* by hand into"):
        download(Archive("file.bin", "http://127.0.0.1:9/file.bin", None), tmp_path)

"""The real digits from their public archives: download, read, blend MNIST-M.

    python prepare_data.py digits --out data/digits
    python prepare_data.py digits --out data/sample --sample

The pool of a domain is its published train and test set together, split
64/16/20 into train, val and test by the seed, as the published numbers had it.
MNIST-M is blended by the recipe of arXiv 1505.07818, section 5.2.4: |b - x| per
channel, x an MNIST digit, b a random 28x28 patch of a BSDS500 photograph.
mnist keeps its own split, 60,000 train and 10,000 test, and has no val.

--sample makes the rows and the split behind the README's tables instead: the
59,001 released MNIST-M training images, the 7,291 of USPS, and 6,726 digits of
SVHN, 1,083 of its training set and 5,643 of its test set, pooled as the
published numbers had it. mnist is the same.

Downloads (about 340 MB without --sample) are kept in OUT/archives, go on where
they were cut, and are checked. A domain that is there already is kept.
Licences: see README; SVHN is for non-commercial use.
"""

import gzip
import hashlib
import http.client
import json
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.model_selection import train_test_split

from utils import Progress, UserError

SIDE = 28
MARKER = "digits.json"
MNIST_TRAIN = 60_000  # the other 10,000 are its test images
Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Archive:
    """A public file: its name, where it is fetched, and its MD5, where one is known (of MNIST's: unpacked)."""

    name: str
    address: str
    md5: str | None
    bytes: int | None = None


MNIST = [
    Archive(f"{name}.gz", f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}.gz", md5)
    for name, md5 in (
        ("train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb"),
        ("train-labels-idx1-ubyte", "a25bea736e30d166cdddb491f175f624"),
        ("t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea"),
        ("t10k-labels-idx1-ubyte", "27ae3e4e09519cfbb04c329615203637"),
    )
]
BSDS500 = Archive(
    "BSR_bsds500.tgz",
    "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/BSR/BSR_bsds500.tgz",
    "0b17383ff0b21fe43d2f28e624203169",
    bytes=70_763_455,
)
SVHN = [
    Archive(f"{split}_32x32.mat", f"http://ufldl.stanford.edu/housenumbers/{split}_32x32.mat", md5)
    for split, md5 in (("train", "e26dedcc434d2e4c54c9b2d4a06d8373"), ("test", "eb5a983be6a315427106f1b164d9cef3"))
]
USPS = [
    Archive(name, f"https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/{name}", md5)
    for name, md5 in (
        ("usps.bz2", "ec16c51db3855ca6c91edd34d0e9b197"),
        ("usps.t.bz2", "8ea070ee2aca1ac39742fdd1ef5ed118"),
    )
]
NEEDED = {"mnist": MNIST, "mnistm": [*MNIST, BSDS500], "svhn": SVHN, "usps": USPS}


@dataclass(frozen=True)
class Source:
    """How a domain is made: the archives it needs, their reading, its split, and the digits of a file name.

    read: files by archive name -> images uint8 [N, 28, 28] or [N, 28, 28, 3] and labels int64 [N]. split: labels ->
    rows by split name. settings: {"seed": N} or {"sample": True}, kept beside the domain. doubt: images, labels -> a
    sentence where they are not what they should be, or None.
    """

    archives: list[Archive]
    read: Callable[[dict[str, Path]], tuple[Pixels, Labels]]
    split: Callable[[Labels], dict[str, Labels]]
    settings: dict[str, Any]
    digits: int = 6
    doubt: Callable[[Pixels, Labels], str | None] = lambda images, labels: None


# Fetching


def find(raw: Path, archive: Archive) -> Path | None:
    """The archive's file anywhere below `raw`; for BSDS500 a folder of its photographs will do as well."""
    found = next((path for path in sorted(raw.rglob(archive.name)) if path.is_file()), None)
    if found is None and archive.name == BSDS500.name:
        folders = sorted({path.parent for path in raw.rglob("*.jpg")})
        train = [folder for folder in folders if folder.name == "train"]
        if len(train or folders) > 1:
            several = ", ".join(map(str, train or folders))
            raise UserError(
                f"--raw {raw} has photographs in several folders ({several}); leave the training ones only."
            )
        return next(iter(train or folders), None)
    return found


def check(path: Path, archive: Archive) -> None:
    """UserError when a file is not the one that its archive is known by."""
    if path.is_dir():
        return
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if archive.name.endswith("-ubyte.gz") else content
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and fetch {archive.address} again.") from error
    wrong_md5 = archive.md5 is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() != archive.md5
    if wrong_md5 or (archive.bytes is not None and path.stat().st_size != archive.bytes):
        raise UserError(f"{path} is not the file of {archive.address}, or damaged; delete it and fetch that again.")


def download(archive: Archive, folder: Path) -> Path:
    """Fetch an archive into `folder`, going on where an earlier try was cut; UserError when that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    target, part = folder / archive.name, folder / f"{archive.name}.part"
    there = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(archive.address, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            resumed = answer.status == 206
            total = int(answer.headers.get("Content-Length") or 0) + (there if resumed else 0)
            progress = Progress(total, f"download {archive.name}", "bytes", there if resumed else 0)
            with part.open("ab" if resumed else "wb") as file:
                while chunk := answer.read(1 << 18):
                    file.write(chunk)
                    progress.update(len(chunk))
            progress.close()
        if part.stat().st_size < total:
            raise UserError(by_hand(archive, folder, f"cut after {part.stat().st_size:,} of {total:,} bytes"))
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing is left to send: the part is whole
            raise UserError(by_hand(archive, folder, f"the server answers {error.code}")) from error
    except (OSError, http.client.HTTPException) as error:
        raise UserError(by_hand(archive, folder, str(getattr(error, "reason", error)))) from error
    try:
        check(part, archive)
    except UserError:
        part.unlink()  # or every further try would go on behind what is wrong
        raise
    os.replace(part, target)
    return target


def by_hand(archive: Archive, folder: Path, why: str) -> str:
    return (
        f"{archive.name} could not be fetched from {archive.address} ({why}); what has arrived is kept: try again, or "
        f"fetch it by hand into {folder}."
    )


def gather(archives: list[Archive], raw: Path | None, downloads: Path) -> dict[str, Path]:
    """The file of each archive, by name: from `raw`, or downloaded into `downloads`.

    Raises UserError that names every file missing from `raw`, with the address where it can be had.
    """
    if raw is not None:
        found = {archive.name: find(raw, archive) for archive in archives}
        missing = [f"{archive.name} ({archive.address})" for archive in archives if found[archive.name] is None]
        if missing:
            raise UserError(
                f"--raw {raw} lacks {', '.join(missing)}; put them there, or leave domains out with --only."
            )
        files = {name: path for name, path in found.items() if path is not None}
        for archive in archives:
            check(files[archive.name], archive)
        return files
    files = {}
    for archive in archives:
        target = downloads / archive.name
        if target.exists():
            check(target, archive)
        files[archive.name] = target if target.exists() else download(archive, downloads)
    return files


# Reading


def read_idx(path: Path) -> Pixels:
    """A gzip file of MNIST's idx format: uint8 [N] or [N, H, W]."""
    content = gzip.decompress(path.read_bytes())
    dimensions = content[3]
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def read_photos(path: Path) -> list[Pixels]:
    """The training photographs of BSDS500, uint8 [H, W, 3] each, from its archive or from a folder of them."""
    if path.is_dir():
        return [np.asarray(Image.open(photo).convert("RGB")) for photo in sorted(path.glob("*.jpg"))]
    photos = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if "/images/train/" in member.name and member.name.endswith(".jpg"):
                file = archive.extractfile(member)
                assert file is not None
                photos[member.name] = np.asarray(Image.open(file).convert("RGB"))
    return [photos[name] for name in sorted(photos)]


def blend(digits: Pixels, photos: list[Pixels], seed: int) -> Pixels:
    """MNIST-M: digits uint8 [N, 28, 28] and photographs -> |b - x| uint8 [N, 28, 28, 3], a random patch a digit."""
    rng = np.random.default_rng(seed)
    out = np.empty((len(digits), SIDE, SIDE, 3), np.uint8)
    for i, digit in enumerate(digits):
        photo = photos[rng.integers(len(photos))]
        y, x = (int(rng.integers(side - SIDE + 1)) for side in photo.shape[:2])
        patch = photo[y : y + SIDE, x : x + SIDE].astype(np.int16)
        out[i] = np.abs(patch - digit[..., None])
    return out


def resized(images: Pixels, filter_: Image.Resampling) -> Pixels:
    """Images uint8 [N, H, W] or [N, H, W, 3] at 28x28."""
    return np.stack([np.asarray(Image.fromarray(image).resize((SIDE, SIDE), filter_)) for image in images])


FILTERS = {"svhn": Image.Resampling.BICUBIC, "usps": Image.Resampling.BILINEAR}


def read_mnist(files: dict[str, Path]) -> tuple[Pixels, Labels]:
    """MNIST: its training images, then its test images."""
    images, labels = (np.concatenate([read_idx(files[MNIST[i].name]) for i in which]) for which in ((0, 2), (1, 3)))
    return images, labels.astype(np.int64)


def read_mnistm(files: dict[str, Path], seed: int) -> tuple[Pixels, Labels]:
    """MNIST-M, built: train and test of MNIST, blended by the seed."""
    images, labels = read_mnist(files)
    return blend(images, read_photos(files[BSDS500.name]), seed), labels


def read_svhn(files: dict[str, Path], splits: tuple[str, ...] = ("train", "test")) -> tuple[Pixels, Labels]:
    """SVHN's cropped digits at their 32x32."""
    from torchvision import datasets

    folders = {archive.name.split("_")[0]: str(files[archive.name].parent) for archive in SVHN if archive.name in files}
    parts = [datasets.SVHN(folders[split], split) for split in splits]
    images = np.concatenate([part.data for part in parts]).transpose(0, 2, 3, 1)  # [N, 32, 32, 3]
    return images, np.concatenate([part.labels for part in parts]).astype(np.int64)


def read_usps(files: dict[str, Path], splits: tuple[bool, ...] = (True, False)) -> tuple[Pixels, Labels]:
    """USPS at its 16x16; `splits`: train, test."""
    from torchvision import datasets

    folders = dict(zip((True, False), (files.get(archive.name) for archive in USPS), strict=True))
    parts = [datasets.USPS(str(folder.parent), train) for train in splits if (folder := folders[train])]
    images = np.concatenate([part.data for part in parts])  # [N, 16, 16]
    return images, np.concatenate([part.targets for part in parts]).astype(np.int64)


def pooled(domain: str, seed: int) -> Source:
    """A domain as the published numbers had it: train and test pooled, split by the seed."""

    def read(files: dict[str, Path]) -> tuple[Pixels, Labels]:
        if domain == "mnistm":
            return read_mnistm(files, seed)
        images, labels = read_svhn(files) if domain == "svhn" else read_usps(files)
        return resized(images, FILTERS[domain]), labels

    return Source(NEEDED[domain], read, lambda labels: split_rows(len(labels), seed), {"seed": seed})


def mnist() -> Source:
    """MNIST with its own split, which has no val."""

    def split(labels: Labels) -> dict[str, Labels]:
        train, test = np.split(np.arange(len(labels)), [MNIST_TRAIN])
        return {"train": train, "test": test}

    return Source(NEEDED["mnist"], read_mnist, split, {"seed": 0}, digits=5)


# Writing


def split_rows(count: int, seed: int) -> dict[str, npt.NDArray[np.int64]]:
    """Rows of train, val and test, 64/16/20 by the seed; of 99,289 that gives 15,887 val, of 9,298 1,488."""
    rest, test = train_test_split(np.arange(count), test_size=0.2, random_state=seed)
    train, val = train_test_split(rest, test_size=0.2, random_state=seed)
    return {"train": np.sort(train), "val": np.sort(val), "test": np.sort(test)}


def write_domain(
    folder: Path, images: Pixels, labels: Labels, rows: dict[str, Labels], digits: int, settings: dict[str, Any]
) -> dict[str, int]:
    """Write PNGs and a CSV a split, whole or not at all; returns the images of each split."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as made:
        part = Path(made, folder.name)
        (part / "data").mkdir(parents=True)
        progress = Progress(len(images), f"write {folder.name}", "images")

        def write_chunk(start: int) -> int:
            stop = min(start + 1000, len(images))
            for i in range(start, stop):
                Image.fromarray(images[i]).save(part / "data" / f"{i:0{digits}d}.png", compress_level=1)
            return stop - start

        with ThreadPoolExecutor() as pool:
            for count in pool.map(write_chunk, range(0, len(images), 1000)):
                progress.update(count)
        progress.close()
        for split, chosen in rows.items():
            lines = [f"{i:0{digits}d}.png,{labels[i]}" for i in chosen]
            (part / f"{split}.csv").write_text("\n".join(["image_name,label", *lines]) + "\n")
        counts = {split: len(chosen) for split, chosen in rows.items()}
        (part / MARKER).write_text(json.dumps({**settings, **counts}) + "\n")
        shutil.move(part, folder)
    return counts


def standing(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether an earlier call made this domain with the same settings; UserError where something else stands there."""
    if not folder.exists():
        return False
    try:
        marker = json.loads((folder / MARKER).read_text())
        before = {key: marker[key] for key in ("seed", "sample") if key in marker}
    except (OSError, ValueError, KeyError, TypeError):
        before = {}
    if not before:
        raise UserError(f"{folder} is there already and was not made by this command; delete it or name another --out.")
    if before != settings:
        how, now = ("--sample" if found.get("sample") else f"seed {found['seed']}" for found in (before, settings))
        raise UserError(f"{folder} is there already, made with {how} and not {now}; delete it or name another --out.")
    return True


def prepare(
    out: Path, raw: Path | None, sources: dict[str, Source]
) -> Iterator[tuple[str, dict[str, int], str | None]]:
    """Make each of the domains in `out` that is not there yet; yields its name, the size of each split, and a doubt."""
    todo = [domain for domain, source in sources.items() if not standing(out / domain, source.settings)]
    if raw is not None and not raw.is_dir():
        raise UserError(f"--raw {raw} is not a folder; name the folder of the archives.")
    archives = list(dict.fromkeys(archive for domain in todo for archive in sources[domain].archives))
    files = gather(archives, raw, out / "archives")
    out.mkdir(parents=True, exist_ok=True)
    for domain in todo:
        source = sources[domain]
        images, labels = source.read(files)
        doubt = source.doubt(images, labels)
        rows = source.split(labels)
        yield domain, write_domain(out / domain, images, labels, rows, source.digits, source.settings), doubt

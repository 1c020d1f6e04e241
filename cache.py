"""Decoded images on disk: a second launch decodes nothing, and a domain may be larger than the memory.

A file for each split and size: an array uint8 [N, H, W, 3] in NumPy's format and, behind it, a checksum of each image.
Its name has a hash of the image files' names, sizes and times: a changed, added or removed image is another file. It is
written whole or not at all, and every image is checked as it is read. Writing one removes those of other images of its
split, and those that no run has used for UNUSED_DAYS.
"""

import contextlib
import hashlib
import math
import os
import re
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from utils import UserError, atomic_path, note, remove_parts

UNUSED_DAYS = 60
NAME = re.compile(r"[\w-]+-\d+-[0-9a-f]{8}\.[0-9a-f]{32}(-[0-9a-f]{16})?\.npy")  # of our files, see file_name
FACTS = np.dtype([("checksum", "<u4"), ("plain", "?")])  # of an image: its CRC-32, and whether it is of one colour


def user_folder() -> Path | None:
    """The folder for what programs can make again, by the XDG specification; None where the user has no home."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = given if given.is_absolute() else Path(os.path.expanduser("~/.cache"))
    return folder / "dann-digits" if folder.is_absolute() else None


def one_colour(images: np.ndarray) -> np.ndarray:
    """Which of images uint8 [N, H, W, 3] are of one colour: bool [N]."""
    return np.array([(image == image[0, 0]).all() for image in images], bool)


def facts_of(images: np.ndarray) -> np.ndarray:
    """FACTS [N] of images uint8 [N, H, W, 3]."""
    facts = np.empty(len(images), FACTS)
    facts["checksum"] = [zlib.crc32(image.tobytes()) for image in images]
    facts["plain"] = one_colour(images)
    return facts


class Stored:
    """Images uint8 [N, H, W, 3] that stay in their file: `stored[rows]`, int64 [B] or a slice, reads and checks those.

    They are read, not mapped: around each place of a mapped file the system reads ahead, 100 MB for a batch of 5 MB on
    a disk with 8 MB of read-ahead. Raises ValueError or OSError for a file that is none of ours, UserError for an image
    that is not what was written.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path, self.shape, self.lock = path, shape, threading.Lock()
        self.file = path.open("rb", buffering=0)  # held, as another run may put a newer one in its place
        np.lib.format.read_magic(self.file)
        if np.lib.format.read_array_header_1_0(self.file) != (shape, False, np.dtype(np.uint8)):
            raise ValueError("other images")
        self.start = self.file.tell()
        self.file.seek(self.nbytes, os.SEEK_CUR)
        self.facts: np.ndarray = np.lib.format.read_array(self.file, allow_pickle=False)
        if self.facts.dtype != FACTS or self.facts.shape != shape[:1]:
            raise ValueError("other facts")

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape)

    def __getitem__(self, rows: Tensor | np.ndarray | list[int] | slice) -> Tensor:
        which = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows, np.int64)
        images, done = np.empty((len(which), *self.shape[1:]), np.uint8), 0
        with contextlib.suppress(OSError):
            for following in np.split(which, np.flatnonzero(np.diff(which) != 1) + 1)[: len(which)]:
                done += self.read(int(following[0]), images[done : done + len(following)])
        if [zlib.crc32(image) for image in images[:done]] != self.facts["checksum"][which].tolist():
            with contextlib.suppress(OSError):
                self.path.unlink()
            raise UserError(
                f"{self.path} was damaged and has been removed; start again (a training with --resume), and the images "
                "are decoded anew."
            )
        return torch.from_numpy(images)

    def read(self, first: int, images: np.ndarray) -> int:
        """Read the images from the row `first` on; returns how many there are, fewer in a file that has been cut."""
        left = images.reshape(-1).data
        with self.lock:
            self.file.seek(self.start + math.prod(self.shape[1:]) * first)
            while left and (count := self.file.readinto(left)):
                left = left[count:]
        return 0 if left else len(images)


class Cache:
    """The cache in `folder`; with None, or once the disk takes no more, nothing is found and nothing is kept.

    keep: False to read what is there and write nothing.
    """

    def __init__(self, folder: Path | None, keep: bool = True) -> None:
        self.folder, self.keep, self.bytes_written = folder, keep, 0

    def find(self, name: str, shape: tuple[int, ...], most: int) -> tuple[Tensor | Stored, np.ndarray] | None:
        """Images of that name and their FACTS, in memory up to `most` bytes; None where there is no sound file."""
        if self.folder is None:
            return None
        path = self.folder / name
        try:
            stored = Stored(path, shape)
            with contextlib.suppress(OSError):  # of another user
                os.utime(path)  # of the last use
            return stored if stored.nbytes > most else stored[:], stored.facts
        except FileNotFoundError:
            return None
        except (OSError, ValueError, UserError):
            note(f"{path} is damaged; its images are decoded anew.")
            return None

    def write(self, name: str, shape: tuple[int, ...], chunks: Iterable[np.ndarray]) -> bool:
        """Keep images uint8 of `shape`, given in chunks; False where the disk does not take them."""
        if self.folder is None or not self.keep:
            return False
        path, needed = self.folder / name, math.prod(shape)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_parts(self.folder, idle=3600)
            if shutil.disk_usage(self.folder).free < 2 * needed:  # the last space belongs to the run's own files
                raise OSError(0, f"{2 * needed / 1e9:.1f} GB of free space are asked for")
            with atomic_path(path) as part, part.open("wb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                facts = []
                for images in chunks:
                    facts.append(facts_of(images))
                    file.write(images.tobytes())
                np.lib.format.write_array(file, np.concatenate(facts), allow_pickle=False)
            old = time.time() - UNUSED_DAYS * 24 * 3600
            for other in self.folder.iterdir():
                with contextlib.suppress(OSError):
                    replaced = other != path and other.name.split(".")[0] == name.split(".")[0]
                    if NAME.fullmatch(other.name) and (replaced or other.stat().st_mtime < old):
                        other.unlink()
        except OSError as error:
            note(f"decoded images are not kept, as {self.folder} takes none ({error.strerror}).")
            self.folder = None
            return False
        self.bytes_written += needed
        return True

    def find_or_write(
        self, name: str | None, shape: tuple[int, ...], most: int, make: Callable[[], Iterable[np.ndarray]]
    ) -> tuple[Tensor | Stored, np.ndarray] | None:
        """As `find`, of what `make` gives in chunks where there is none yet; None where nothing is kept."""
        if name is None:
            return None
        return self.find(name, shape, most) or (
            self.find(name, shape, most) if self.write(name, shape, make()) else None
        )

    def tell(self) -> None:
        """Say what was written, once."""
        if self.folder and self.bytes_written >= 10**6:
            note(
                f"decoded images are kept for the next run, {self.bytes_written / 1e6:,.0f} MB in {self.folder}; it is "
                "safe to delete, and --cache none keeps none."
            )
            self.bytes_written = 0


NO_CACHE = Cache(None)


def file_name(origin: Path, kind: str, paths: Iterable[Path], size: int, decoder: bytes) -> str | None:
    """Name of the file for images of a split: a part for the split and size, and one for what the images are.

    origin, kind: the CSV or folder that lists them, and how it was read. decoder: the code that decodes, as another
    version may give other pixels. The time of the last change of any kind tells a file that was given its old time
    again. None where an image cannot be looked up.
    """
    home, start = os.path.realpath(origin), str(origin.parent)
    words = re.sub(r"[^\w-]+", "-", f"{origin.parent.name}-{origin.stem}")[-40:]
    split = hashlib.sha256(os.fsencode(f"{home}\0{kind}")).hexdigest()[:8]
    images = hashlib.sha256(os.fsencode(f"{home}\0{PIL.__version__}\0") + decoder)
    try:
        for path in paths:
            found, name = os.stat(path), str(path).removeprefix(start)
            times = f"{found.st_mtime_ns} {found.st_ctime_ns}"
            images.update(os.fsencode(f"{name}\0{found.st_size} {times}\0"))
    except OSError:
        return None
    return f"{words}-{size}-{split}.{images.hexdigest()[:32]}.npy"

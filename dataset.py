"""Domains on disk -> uint8 tensors -> batches.

Layout: `data_root/<domain>/<split>.csv` with columns image_name,label and the images in `data_root/<domain>/data/`.
Images right in `data_root/<domain>/`, in `<domain>/<split>/` or one folder per class are found too. Every image is
decoded once, into one contiguous uint8 tensor [N, H, W, 3]; a batch of it, permuted, is channels_last at no cost.
"""

import contextlib
import os
import re
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from csv import Error as CSVError
from csv import reader
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch import Tensor

from utils import Progress, UserError

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # no other decoder is tried: EPS, for one, runs programs
MAX_PIXELS = 50_000_000  # a larger image is taken for a decompression bomb
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is looser, and warns beside refusing
LARGE_PIXELS = 4_000_000  # images above it are decoded one at a time: a few threads with one each would fill the memory
one_large_image = threading.Lock()
CHUNK = 64  # images that a thread decodes at a time


class LooseImage(UserError):
    """An image beside class folders: it has no class, or the folders are none."""


@dataclass
class Listing:
    """Images of one split before they are read: names as the CSV has them, their files, and the labels as text."""

    origin: Path  # the CSV or folder, for messages
    names: list[str]
    paths: list[Path]
    labels: list[str] | None
    rows: list[int] | None = None  # line numbers in the CSV, None for a folder

    def of(self, kept: list[int]) -> "Listing":
        """The listing of the images `kept` alone."""
        names, paths = [self.names[i] for i in kept], [self.paths[i] for i in kept]
        labels, rows = ([cells[i] for i in kept] if cells else None for cells in (self.labels, self.rows))
        return Listing(self.origin, names, paths, labels, rows)  # type: ignore[arg-type]

    def where(self, i: int) -> str:
        """Where image i stands, for messages: the CSV's row, or the file itself."""
        return f"{self.origin} row {self.rows[i]}" if self.rows else str(self.paths[i])


@dataclass
class Domain:
    """One split in memory: images uint8 [N, H, W, 3], labels int64 [N] or None, names [N]."""

    images: Tensor
    labels: Tensor | None
    names: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def some(self, limit: int) -> "Domain":
        """At most `limit` of the images, without labels, drawn as some_rows does."""
        rows = some_rows(len(self), limit)
        return Domain(self.images[rows], None, [self.names[i] for i in rows])


def some_rows(count: int, limit: int) -> list[int]:
    """Rows of `limit` images at most of `count`, in their order, drawn at random: any rule may follow the classes."""
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return sorted(drawn[:limit].tolist())


# Finding images


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")


def image_names(folder: Path) -> list[str]:
    """Every image below `folder`, named relative to it, sorted; hidden folders and links to folders are passed over.

    Raises UserError for a folder that cannot be listed: its images would be missing unawares.
    """

    def refuse(error: OSError) -> None:
        raise UserError(
            f"{error.filename} cannot be listed ({error.strerror}); make it readable or move it away."
        ) from error

    found = []
    try:
        for root, folders, files in os.walk(folder, onerror=refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = Path(root).relative_to(folder).as_posix()
            prefix = "" if inside == "." else f"{inside}/"
            found += [prefix + name for name in files if is_image(name)]
    except RecursionError as error:
        raise UserError(f"{folder} has folders within folders without end; name one further down.") from error
    return sorted(found)


def domain_folder(data_root: Path, domain: str) -> Path:
    """Folder of a domain; UserError that names what stands there instead when it is missing."""
    folder = data_root / domain
    if folder.is_dir():
        return folder
    if not data_root.is_dir():
        raise UserError(f"--data_root {data_root} is not a folder; name the folder that holds the domains.")
    there = ", ".join(sorted(entry.name for entry in data_root.iterdir() if entry.is_dir())) or "no folder at all"
    raise UserError(f"domain folder {folder} does not exist; --data_root {data_root} holds: {there}.")


def list_split(data_root: Path, domain: str, split: str, with_labels: bool) -> Listing | None:
    """List a split of a domain without opening an image; None where the split does not exist.

    `<split>.csv` comes first; without it `<domain>/<split>/`; without that, `train` is every image of the domain that
    no other split lists. `with_labels=False` never reads the label column, nor the names of class folders.
    Raises UserError for a missing domain or a CSV that is not usable.
    """
    folder = domain_folder(data_root, domain)
    csv = folder / f"{split}.csv"
    if csv.is_file():
        return list_csv(csv, with_labels)
    if (folder / split).is_dir():
        return list_folder(folder / split, with_labels)
    if split != "train":
        return None
    home = folder / "data" if (folder / "data").is_dir() else folder
    listing = list_folder(home, with_labels)
    others = [list_split(data_root, domain, other, False) for other in ("val", "test")]
    taken = {path for other in others if other for path in other.paths}
    keep = [i for i, path in enumerate(listing.paths) if path not in taken]
    if not keep:
        raise UserError(f"{home} holds no image that val.csv or test.csv does not list; add images to train on.")
    return listing.of(keep)


def list_folder(folder: Path, with_labels: bool) -> Listing:
    """List the images below `folder`; with labels, each image's class is the first folder on its way.

    Without labels the order goes by file name, so that moving an image to another class's folder changes nothing.
    """
    names = image_names(folder)
    if not with_labels:
        names.sort(key=lambda name: (name.rpartition("/")[2], name))
    paths = [folder / name for name in names]
    if not names:
        raise UserError(f"{folder} holds no image; put images ({', '.join(sorted(EXTENSIONS))}) there.")
    if not with_labels:
        return Listing(folder, names, paths, None)
    loose = [name for name in names if "/" not in name]
    if loose and len(loose) < len(names):
        raise LooseImage(
            f"{folder} holds class folders and, beside them, {loose[0]}; move it into the folder of its class."
        )
    return Listing(folder, names, paths, None if loose else [name.split("/")[0] for name in names])


def list_csv(csv: Path, with_labels: bool) -> Listing:
    """List the rows of a CSV; labels stay None where they are not asked for or the column is missing.

    An image that is listed twice counts once. Raises UserError where its labels differ.
    """
    wanted = {"image_name", "label"} if with_labels else {"image_name"}
    try:
        header = read_header(csv)
        twice = [name for name in header if name in wanted and header.count(name) > 1]
        if twice:  # pandas would rename the second
            raise UserError(f"{csv} has two columns {twice[0]}; remove one.")
        table = pd.read_csv(
            csv,
            usecols=lambda column: column.strip() in wanted,
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
            skipinitialspace=True,
            skip_blank_lines=False,  # rows keep their line numbers
            index_col=False,
        )
    except (ValueError, OSError) as error:  # pandas' parser errors and undecodable text are ValueErrors
        raise UserError(f"{csv} is not readable as CSV ({error}); its first line must be image_name,label.") from error
    table.columns = table.columns.str.strip()
    if "image_name" not in table:
        raise UserError(f"{csv} has no column image_name; its first line must be image_name,label.")
    columns = {name: [cell.strip() for cell in table[name].tolist()] for name in table}
    filled = [i for i, cells in enumerate(zip(*columns.values(), strict=True)) if any(cells)]
    if not filled:
        raise UserError(f"{csv} lists no image; add rows or remove the file.")
    names, rows = [columns["image_name"][i] for i in filled], [i + 2 for i in filled]  # the header is row 1
    labels = [columns["label"][i] for i in filled] if any(columns.get("label", [])) else None
    if labels is not None and "" in labels:
        i = labels.index("")
        raise UserError(f"{csv} row {rows[i]}: no label for {names[i]}; fill it in or remove the row.")
    return without_repeats(Listing(csv, names, resolve_images(csv, rows, names), labels, rows))


def read_header(csv: Path) -> list[str]:
    """Names of a CSV's columns, up to 1,000 of them."""
    with csv.open(encoding="utf-8-sig", newline="") as file:
        rows = reader([file.readline(1 << 16)], skipinitialspace=True)
        try:
            header = [name.strip() for name in next(rows, [])]
        except CSVError as error:
            raise ValueError(str(error)) from error
    if len(header) > 1000:
        raise ValueError(f"it has {len(header)} columns")
    return header


def image_home(csv: Path) -> Path:
    """The folder that names in a CSV are relative to: data/ beside it, else one of its name, else its own folder."""
    homes = [home for home in (csv.parent / "data", csv.parent / csv.stem) if home.is_dir()]
    return (homes or [csv.parent])[0]


def resolve_images(csv: Path, rows: list[int], names: list[str]) -> list[Path]:
    """Files of the images named in a CSV; UserError for a name that is empty or leads out of the domain's folder."""
    home, paths = image_home(csv), []
    for row, name in zip(rows, names, strict=True):
        if name in ("", "..") or (any(mark in name for mark in "/\\:\0") and leads_out(Path(name))):
            raise UserError(f"{csv} row {row}: image_name {name!r} must be a path inside {csv.parent / 'data'}.")
        paths.append(home / name)
    return paths


def leads_out(relative: Path) -> bool:
    """Whether a path may lead out of the folder that it is meant to be relative to."""
    return bool(relative.anchor) or ".." in relative.parts or "\0" in str(relative)


def without_repeats(listing: Listing) -> Listing:
    """The listing with each image once, where it stands first; UserError for one with two different labels."""
    assert listing.rows is not None
    first: dict[Path, int] = {}
    for i, path in enumerate(listing.paths):
        before = first.setdefault(path, i)
        if before != i and listing.labels and canonical(listing.labels[i]) != canonical(listing.labels[before]):
            raise UserError(
                f"{listing.origin} rows {listing.rows[before]} and {listing.rows[i]}: {listing.names[i]} has the "
                f"labels {listing.labels[before]!r} and {listing.labels[i]!r}; remove the wrong row."
            )
    return listing if len(first) == len(listing.paths) else listing.of(list(first.values()))


# Labels


def canonical(label: str) -> str:
    """A label as text: '3', '3.0' and '03' are the same class, anything else is itself."""
    return str(int(label.split(".")[0])) if re.fullmatch(r"-?[0-9]{1,18}(\.0*)?", label) else label


def class_names(labels: Sequence[str]) -> list[str]:
    """Sorted names of the classes that occur; whole numbers in numerical order."""
    names = {canonical(label) for label in labels}
    if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names):
        return sorted(names, key=int)
    return sorted(names)


def encode_labels(listing: Listing, classes: list[str], whose: str = "the labelled domain") -> Tensor | None:
    """Class indices int64 [N] of a listing, None where it has no labels; UserError for a label outside `classes`.

    whose: what has those classes, for the message.
    """
    if listing.labels is None:
        return None
    index = {name: i for i, name in enumerate(classes)}
    codes = [index.get(canonical(label), -1) for label in listing.labels]
    if -1 in codes:
        i = codes.index(-1)
        raise UserError(
            f"{listing.where(i)} ({listing.names[i]}): label {listing.labels[i]!r} is not among the classes "
            f"of {whose} ({', '.join(classes)}); mend the label or leave the image out."
        )
    return torch.tensor(codes)


def drop_foreign_labels(listing: Listing, classes: list[str]) -> Listing:
    """The listing without labels where they are folder names that are no classes: folders may sort by anything."""
    foreign = listing.rows is None and not {canonical(label) for label in listing.labels or []} <= set(classes)
    return replace(listing, labels=None) if foreign else listing


# Reading images


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB: 16 bits scaled to 8, transparency over white, EXIF rotation undone."""
    if "exif" in image.info:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        wide = np.asarray(image, dtype=np.float32)
        if not np.isfinite(wide).all():
            raise ValueError("pixels that are no numbers")
        white = 65535 if image.mode.startswith("I;16") or wide.max() > 255 else 255
        if image.mode == "F" and wide.max() <= 1:
            white = 1
        image = Image.fromarray((wide / white * 255).clip(0, 255).round().astype(np.uint8))
    elif "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), layer)
    return image if image.mode == "RGB" else image.convert("RGB")


def read_image(path: Path, size: int) -> np.ndarray | str:
    """One image as uint8 [size, size, 3], or in words why it is unreadable."""
    try:
        if not os.path.isfile(path) and os.path.exists(path):
            return "no regular file"  # to open a pipe would wait for ever
        with Image.open(path, formats=FORMATS) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                return f"{image.width}x{image.height} pixels are more than {MAX_PIXELS}"
            with one_large_image if pixels > LARGE_PIXELS else contextlib.nullcontext():
                rgb = to_rgb(image)
                same = rgb.size == (size, size)
                return np.asarray(rgb if same else rgb.resize((size, size), Image.Resampling.BILINEAR))
    except FileNotFoundError:
        return "no such file"
    except PermissionError:
        return "no permission to read it"
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        if isinstance(error, OSError) and error.errno:  # the file, not its content
            return f"not readable ({error.strerror})"
        return f"not a readable image ({type(error).__name__})"


def read_images(paths: Sequence[Path], size: int, workers: int = 0, label: str = "") -> tuple[Tensor, dict[int, str]]:
    """Decode images, each once, on `workers` threads (0: one per core).

    Returns uint8 [N, size, size, 3] and, by index, why an image could not be read; its pixels are then 0.
    `label` names the progress bar; without one there is none.
    """
    warnings.filterwarnings("ignore", module="PIL")  # what a damaged file comes to is said in our words
    pixels = torch.zeros(len(paths), size, size, 3, dtype=torch.uint8)
    view = pixels.numpy()
    unreadable: dict[int, str] = {}
    progress = Progress(len(paths), label, "images") if label else None

    def read_chunk(start: int) -> int:
        stop = min(start + CHUNK, len(paths))
        for i in range(start, stop):
            image = read_image(paths[i], size)
            if isinstance(image, str):
                unreadable[i] = image
            else:
                view[i] = image
        return stop - start

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for done in pool.map(read_chunk, range(0, len(paths), CHUNK)):
            if progress:
                progress.update(done)
    if progress:
        progress.close()
    return pixels, dict(sorted(unreadable.items()))


def read_domain(listing: Listing, classes: list[str] | None, size: int, workers: int, label: str = "") -> Domain:
    """Read a listing into memory; labels are encoded where `classes` is given.

    Raises UserError naming the row when a listed image is absent or unreadable: training on part of a set unawares
    is worse than no training.
    """
    labels = encode_labels(listing, classes) if classes else None
    absent = {i: "no such file" for i, path in enumerate(listing.paths) if not os.path.lexists(path)}
    if absent:  # said before an hour is spent on reading the others
        images, unreadable = torch.empty(0), absent
    else:
        images, unreadable = read_images(listing.paths, size, workers, label)
    if unreadable:
        i, why = next(iter(unreadable.items()))
        place = f"{listing.where(i)}: {listing.paths[i]}" if listing.rows else str(listing.paths[i])
        more = f" ({len(unreadable)} such images in all)" if len(unreadable) > 1 else ""
        remedy = "restore the image or remove the row" if listing.rows else "restore or remove the image"
        raise UserError(f"{place}: {why}{more}; {remedy}.")
    return Domain(images, labels, listing.names)


# Batches


class Batches:
    """Endless shuffled batches of a domain; the batch of a step is a pure function of (seed, step).

    Each pass over the domain is a fresh permutation and a batch may span two passes, so that every image is drawn
    exactly once a pass and no batch is ever short. `stream` keeps two domains of one run apart; of `world` processes
    each gets its share of the batch, every world-th row from `rank` on.
    """

    def __init__(
        self,
        domain: Domain,
        batch_size: int,
        seed: int,
        stream: int,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.images = domain.images.to(device)
        self.labels = domain.labels.to(device) if domain.labels is not None else None
        self.batch_size, self.seed, self.stream, self.device = batch_size, seed, stream, device
        self.rank, self.world = rank, world
        self.passes: dict[int, Tensor] = {}

    def permutation(self, number: int) -> Tensor:
        """Order of pass `number`: int64 [N]."""
        if number not in self.passes:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number * 16 + self.stream) % 2**63)
            self.passes = {k: v for k, v in self.passes.items() if k >= number - 1}
            self.passes[number] = torch.randperm(len(self.images), generator=generator).to(self.device)
        return self.passes[number]

    def indices(self, step: int) -> Tensor:
        """Row numbers of the batch of `step`: int64 [B]."""
        position, parts, missing = step * self.batch_size, [], self.batch_size
        while missing:
            number, offset = divmod(position, len(self.images))
            parts.append(self.permutation(number)[offset : offset + missing])
            position += len(parts[-1])
            missing -= len(parts[-1])
        return torch.cat(parts)

    def __call__(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Images uint8 [B / world, 3, H, W] (channels_last) and labels int64 [B / world], or None, of `step`."""
        rows = self.indices(step)[self.rank :: self.world]
        return self.images[rows].permute(0, 3, 1, 2), self.labels[rows] if self.labels is not None else None

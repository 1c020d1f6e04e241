"""Domains on disk -> uint8 tensors -> batches.

Layout: `data_root/<domain>/<split>.csv` with columns image_name,label and the images in `data_root/<domain>/data/`.
Images right in `data_root/<domain>/`, in `<domain>/<split>/` or one folder per class are found too; what cannot be read
in one way alone is refused. Every image is decoded once, into one contiguous uint8 tensor [N, H, W, 3]; a batch of it,
permuted, is channels_last at no cost.
"""

import contextlib
import difflib
import io
import os
import re
import threading
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from csv import Error as CSVError
from csv import reader
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch import Tensor

from utils import ALONE, Progress, Ranks, UserError, memory_of_machine, note

EXTENSIONS = {
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".webp",
    ".ppm",
    ".pgm",
    ".avif",
    ".heic",
    ".heif",
}
# No other decoder is tried: EPS, for one, runs programs.
FORMATS = ("PNG", "JPEG", "MPO", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "HEIF")
COMPANIONS = {".csv", ".txt", ".json", ".xml", ".yaml", ".yml", ".md", ".html", ".db", ".ini", ".py", ".pt"}
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
SPLITS = {
    "train": {"train", "training", "trainset", "tr"},
    "val": {"val", "valid", "validation", "valset", "dev"},
    "test": {"test", "testing", "testset"},
}
BESIDE_SPLITS = {"seg", "set", "data", "dataset", "images", "image", "imgs", "split"}  # words beside such a name
MAX_PIXELS = 200_000_000  # a larger image is taken for a decompression bomb
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


def walk(folder: Path) -> Iterator[tuple[str, str]]:
    """Path and name, relative to `folder`, of every file below it; links are followed, each folder is entered once.

    Hidden files and folders are passed over. Raises UserError for a folder that cannot be listed: its images would be
    missing unawares.
    """
    real = os.path.realpath(folder)
    todo, seen = deque([(str(folder), "", real)]), {str(above) for above in Path(real).parents}  # no link leads up
    while todo:
        place, prefix, real = todo.pop()
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(
                f"{place} cannot be listed ({error.strerror}); make it readable or move it away."
            ) from error
        for entry in entries:
            if entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS:
                continue
            link = entry.is_symlink()
            if not (os.path.isdir(entry.path) if link else entry.is_dir()):
                yield entry.path, prefix + entry.name
                continue
            inside = os.path.realpath(entry.path) if link else os.path.join(real, entry.name)
            add = todo.appendleft if link else todo.append  # a folder counts where it is, not where a link to it is
            add((entry.path, f"{prefix}{entry.name}/", inside))


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """No warnings of Pillow: what a damaged file comes to is said in our words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@lru_cache(maxsize=1)
def formats() -> list[str]:
    """Those of FORMATS that Pillow has here; HEIF comes with the package pillow-heif."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def is_image(path: str) -> bool:
    """Whether a file is an image by its name, or else by its content."""
    ending = os.path.splitext(path)[1].lower()
    if ending in EXTENSIONS:
        return True
    if ending in COMPANIONS or not os.path.isfile(path):
        return False
    try:
        with quiet_pillow(), Image.open(path, formats=formats()):
            return True
    except Exception:  # Pillow raises nearly anything on a file that is none of its own
        return False


def image_names(folder: Path) -> list[str]:
    """Every image below `folder`, named relative to it, sorted; what is no image is counted, and said on stderr."""
    found, others = [], []
    for path, name in walk(folder):
        if is_image(path):
            found.append(name)
        elif os.path.splitext(name)[1].lower() not in COMPANIONS:
            others.append(name)
    if others:
        note(f"{folder}: {len(others)} of its files are no images and are passed over, such as {min(others)}.")
    return sorted(found)


def subfolders(folder: Path) -> list[Path]:
    """Folders right in `folder`, sorted; hidden ones and those of a system left out."""
    found = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(entry for entry in found if entry.name not in SYSTEM_FOLDERS)


def split_of(name: str) -> str | None:
    """The split that a folder's name means (`Training`, `seg_train`, `valid`); None for any other name."""
    words = [word for word in re.findall("[a-z]+", name.lower()) if word not in BESIDE_SPLITS]
    return next((split for split, known in SPLITS.items() if len(words) == 1 and words[0] in known), None)


def unwrapped(folder: Path, above_splits: bool = False) -> Path:
    """`folder`, or the one folder in it that holds everything: archives unpack to seg_train/seg_train/, or to images/.

    above_splits: a folder of any name counts that holds splits.
    """
    inside = subfolders(folder)
    if len(inside) != 1 or any(is_image(entry.path) for entry in os.scandir(folder) if entry.name[0] != "."):
        return folder
    name, below = inside[0].name, subfolders(inside[0])
    again = name.lower() == folder.name.lower() or name.lower() in BESIDE_SPLITS or split_of(name) is not None
    splits = above_splits and any(split_of(each.name) for each in below)
    return unwrapped(inside[0], above_splits) if below and (again or splits) else folder


def has_list(folder: Path) -> bool:
    """Whether a domain has a CSV of any split."""
    return any((folder / f"{split}.csv").is_file() for split in SPLITS)


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders of a domain that are its splits, by split; empty where its folders are classes, or anything.

    One folder alone that is called as a split beside others that are not is a class of that name where it holds no
    folder, and a split where it holds those classes. Raises UserError where it could be both.
    """
    named = [(split_of(inside.name), inside) for inside in subfolders(folder)]
    others = [
        inside.name for split, inside in named if split is None and not (inside.name == "data" and has_list(folder))
    ]
    splits = [(split, inside) for split, inside in named if split is not None]
    found = dict(splits)
    if len(found) < len(splits):
        twice = [inside.name for split, inside in splits if Counter(s for s, _ in splits)[split] > 1]
        raise UserError(f"{folder} holds {' and '.join(twice)}, which are the same split; keep one, or merge them.")
    below = [{each.name for each in subfolders(inside)} for inside in found.values()]
    if len(found) == 1 and others and not below[0]:
        return {}
    if others and ("train" in found or not all(names & set(others) for names in below)):
        raise UserError(
            f"{folder} holds {next(iter(found.values())).name}, which is called as a split, beside {others[0]}; put "
            "the rest into splits too, or give the class another name."
        )
    return found


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
    splits = split_folders(unwrapped(folder, above_splits=True))
    if split in splits:
        return list_folder(splits[split], with_labels)
    if split != "train":
        return None
    alone = [inside.name for inside in subfolders(folder)] == ["data"]
    home = folder / "data" if (folder / "data").is_dir() and (alone or has_list(folder)) else folder
    listing = list_folder(home, with_labels, frozenset(splits.values()))
    others = [list_split(data_root, domain, other, False) for other in ("val", "test")]
    taken = {path for other in others if other for path in other.paths}
    keep = [i for i, path in enumerate(listing.paths) if path not in taken]
    if not keep:
        raise UserError(f"{home} holds no image that val or test does not list; add images to train on.")
    return listing.of(keep)


def list_folder(folder: Path, with_labels: bool, beside: frozenset[Path] = frozenset()) -> Listing:
    """List the images below `folder`; with labels, each image's class is the first folder on its way.

    Without labels the order goes by file name, so that moving an image to another class's folder changes nothing.
    beside: folders in it that are other splits. Raises UserError for a class folder without an image.
    """
    names = [name for name in image_names(folder) if folder / name.split("/")[0] not in beside]
    if not with_labels:
        names.sort(key=lambda name: (name.rpartition("/")[2], name))
    paths = [folder / name for name in names]
    if not names:
        raise UserError(f"{folder} holds no image; put images ({', '.join(sorted(EXTENSIONS))}) there.")
    if not with_labels:
        return Listing(folder, names, paths, None)
    home = unwrapped(folder)
    depth = len(home.relative_to(folder).parts)
    parts = [name.split("/")[depth:] for name in names]
    loose = [name for name, way in zip(names, parts, strict=True) if len(way) == 1]
    if len(loose) == len(names):
        return Listing(folder, names, paths, None)
    if loose:
        raise LooseImage(
            f"{folder} holds class folders and, beside them, {loose[0]}; move it into the folder of its class."
        )
    labels = [way[0] for way in parts]
    empty = [inside for inside in subfolders(home) if inside not in beside and inside.name not in set(labels)]
    if empty:
        raise UserError(f"class folder {empty[0]} holds no image of its own; add images, or remove the folder.")
    below = {split_of(way[1]): "/".join(way[:2]) for way in parts if len(way) > 2}
    if len(below.keys() - {None}) > 1:
        where = below[next(split for split in below if split)]
        raise UserError(f"{folder} holds splits below its classes ({where}); let the splits hold the classes.")
    return Listing(folder, names, paths, labels)


def list_csv(csv: Path, with_labels: bool, find: bool = True) -> Listing:
    """List the rows of a CSV; labels stay None where they are not asked for or the column is missing.

    An image that is listed twice counts once. Raises UserError where its labels differ. find: look for the files, and
    for what a name can mean that is none.
    """
    wanted = {"image_name", "label"} if with_labels else {"image_name"}
    try:
        text, separator, header, first = read_table(csv)
        twice = [name for name in header if name in wanted and header.count(name) > 1]
        if twice:  # pandas would rename the second
            raise UserError(f"{csv} has two columns {twice[0]}; remove one.")
        table = pd.read_csv(
            io.StringIO(text),
            sep=separator,
            usecols=lambda column: column.strip().lower() in wanted,
            dtype=str,
            keep_default_na=False,
            skipinitialspace=True,
            skip_blank_lines=False,  # rows keep their line numbers
            index_col=False,
        )
    except (ValueError, OSError) as error:  # pandas' parser errors and undecodable text are ValueErrors
        raise UserError(f"{csv} is not readable as CSV ({error}); its first line must be image_name,label.") from error
    table.columns = table.columns.str.strip().str.lower()
    columns = {name: [cell.strip() for cell in table[name].tolist()] for name in table}
    filled = [i for i, cells in enumerate(zip(*columns.values(), strict=True)) if any(cells)]
    if not filled:
        raise UserError(f"{csv} lists no image; add rows or remove the file.")
    names, rows = [columns["image_name"][i] for i in filled], [i + first for i in filled]
    labels = [canonical(columns["label"][i]) for i in filled] if any(columns.get("label", [])) else None
    if labels is not None and "" in labels:
        i = labels.index("")
        raise UserError(f"{csv} row {rows[i]}: no label for {names[i]}; fill it in or remove the row.")
    paths = resolve_images(csv, rows, names) if find else [csv.parent / name for name in names]
    return without_repeats(Listing(csv, names, paths, labels, rows))


def read_text(path: Path) -> str:
    """A text as spreadsheets and editors save it: UTF-8, UTF-16 by its mark, else cp1252; ValueError for another."""
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252")


def read_table(csv: Path) -> tuple[str, str, list[str], int]:
    """Text of a CSV from its header on, its separator, the names of its columns, and the line of its first row.

    The separator is a comma, semicolon, tab or bar, the one by which the header has a column image_name; a line `sep=;`
    may stand above it. Raises ValueError where none does.
    """
    text, first = read_text(csv), 2
    if text[:4].lower() == "sep=":
        text, first = text.partition("\n")[2], 3
    line = text[: 1 << 16].partition("\n")[0].rstrip("\r")
    for separator in ",;\t|":
        try:
            header = [
                name.strip().lower() for name in next(reader([line], delimiter=separator, skipinitialspace=True), [])
            ]
        except CSVError as error:
            raise ValueError(str(error)) from error
        if "image_name" in header:
            if len(header) > 1000:
                raise ValueError(f"it has {len(header)} columns")
            return text, separator, header, first
    raise ValueError(f"no column image_name in its first line {line[:60]!r}")


def image_home(csv: Path) -> Path:
    """The folder that names in a CSV are relative to: data/ beside it, else one of its name, else its own folder."""
    homes = [home for home in (csv.parent / "data", csv.parent / csv.stem) if home.is_dir()]
    return (homes or [csv.parent])[0]


def resolve_images(csv: Path, rows: list[int], names: list[str]) -> list[Path]:
    """Files of the images named in a CSV; where there is none, the one file that the name can mean.

    Raises UserError for a name that is empty or leads out of the domain's folder.
    """
    home, paths = image_home(csv), []
    near: NearNames | None = None
    for row, name in zip(rows, names, strict=True):
        path = home / name
        odd = name in ("", "..") or (any(mark in name for mark in "/\\:\0") and leads_out(Path(name)))
        if "\0" not in name and (odd or not os.path.lexists(path)):
            near = near or NearNames(home)
            meant = near.meant(name)
            path, odd = (home / meant, False) if meant else (path, odd)
        if odd:
            raise UserError(f"{csv} row {row}: image_name {name!r} must be a path inside {csv.parent / 'data'}.")
        paths.append(path)
    return paths


class NearNames:
    """The images below a folder by what a list may call them: without the ending, in another case, with more before."""

    def __init__(self, home: Path) -> None:
        self.home, self.names = home, [name for path, name in walk(home) if is_image(path)]
        self.by_name: dict[str, list[str]] = {}
        for name in self.names:
            for key in {name.lower(), os.path.splitext(name)[0].lower()}:
                self.by_name.setdefault(key, []).append(name)

    def meant(self, name: str) -> str | None:
        """The one image that a name can mean; None for none or several.

        An absolute path means a file of this folder only where it leads into it.
        """
        plain = name.replace("\\", "/")
        if os.path.isabs(plain):
            roots = (f"{root}{os.sep}" for root in (os.path.abspath(self.home), os.path.realpath(self.home)))
            plain = next((plain[len(root) :] for root in roots if plain.startswith(root)), "..")
        parts = [part for part in plain.lower().split("/") if part not in ("", ".")]
        for start in range(len(parts) if ".." not in parts else 0):
            found = self.by_name.get("/".join(parts[start:]), [])
            if found:
                return found[0] if len(found) == 1 else None
        return None

    def like(self, name: str) -> str:
        """`; did you mean ...?` for a name that is no file, or nothing."""
        close = difflib.get_close_matches(name, self.names[:20_000], n=2, cutoff=0.7)
        return f"; did you mean {' or '.join(close)}?" if close else ""


def leads_out(relative: Path) -> bool:
    """Whether a path may lead out of the folder that it is meant to be relative to."""
    return bool(relative.anchor) or ".." in relative.parts or "\0" in str(relative)


def without_repeats(listing: Listing) -> Listing:
    """The listing with each image once, where it stands first; UserError for one with two different labels."""
    assert listing.rows is not None
    first: dict[Path, int] = {}
    for i, path in enumerate(listing.paths):
        before = first.setdefault(path, i)
        if before != i and listing.labels and listing.labels[i] != listing.labels[before]:
            raise UserError(
                f"{listing.origin} rows {listing.rows[before]} and {listing.rows[i]}: {listing.names[i]} has the "
                f"labels {listing.labels[before]!r} and {listing.labels[i]!r}; remove the wrong row."
            )
    return listing if len(first) == len(listing.paths) else listing.of(list(first.values()))


# Labels


def canonical(label: str) -> str:
    """A label of a CSV as text: spreadsheets write 3 as 3.0 or 3,0; anything else is itself."""
    whole = re.fullmatch(r"(-?[0-9]{1,18})[.,]0*", label)
    return whole[1] if whole else label


def number(name: str) -> int | str:
    """What two spellings of one number have in common; any other name is itself."""
    return int(name) if re.fullmatch(r"-?[0-9]{1,18}", name) else name


def class_names(listing: Listing) -> list[str]:
    """Sorted names of the classes of a listing, as they are written; whole numbers in numerical order.

    Raises UserError for two spellings of one number: nobody but their owner knows whether they are one class.
    """
    names = sorted(set(listing.labels or []))
    spelt: dict[int | str, str] = {}
    for name in names:
        other = spelt.setdefault(number(name), name)
        if other != name:
            raise UserError(
                f"{listing.origin} has the labels {other!r} and {name!r}; if they are one class, write them alike, "
                "else give them names that are no numbers."
            )
    return sorted(names, key=int) if all(isinstance(number(name), int) for name in names) else names


def encode_labels(listing: Listing, classes: list[str], whose: str = "the labelled domain") -> Tensor | None:
    """Class indices int64 [N] of a listing, None where it has no labels; UserError for a label outside `classes`.

    whose: what has those classes, for the message. Another spelling of a class's number is that class.
    """
    if listing.labels is None:
        return None
    index = {number(name): i for i, name in enumerate(classes)}
    codes = [index.get(number(label), -1) for label in listing.labels]
    if -1 in codes:
        i = codes.index(-1)
        raise UserError(
            f"{listing.where(i)} ({listing.names[i]}): label {listing.labels[i]!r} is not among the classes "
            f"of {whose} ({', '.join(classes)}); mend the label or leave the image out."
        )
    return torch.tensor(codes)


def of_known_classes(listing: Listing, classes: list[str]) -> Listing:
    """The images in folders that are classes, of a target whose folders may sort by anything; the rest is named.

    Without any such folder there are no labels. A CSV stays as it is.
    """
    if listing.rows is not None or listing.labels is None:
        return listing
    known = {number(name) for name in classes}
    kept = [i for i, label in enumerate(listing.labels) if number(label) in known]
    foreign = Counter(label for label in listing.labels if number(label) not in known)
    if not foreign:
        return listing
    folded = {name.casefold(): name for name in classes}
    meant = [f"; is {name} the class {folded[name.casefold()]}?" for name in foreign if name.casefold() in folded]
    folders = ", ".join(f"{name} ({count})" for name, count in foreign.most_common(5))
    what = f"{listing.origin}: folders that are no class of the source: {folders}{''.join(meant[:1])}"
    if not kept:
        note(f"{what}; none of its folders is a class, so no accuracy is measured on it.")
        return replace(listing, labels=None)
    note(f"{what}; accuracy is measured on the {len(kept)} images of the classes that both have.")
    return listing.of(kept)


# Reading images


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB: 16 bits scaled to 8, transparency over white, EXIF rotation undone.

    What would be blank over white, white strokes on a transparent ground, is laid over black. A damaged EXIF counts as
    none.
    """
    if "exif" in image.info:
        with contextlib.suppress(Exception):
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
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), layer).convert("RGB")
        if contrast(image) < 32:
            dark = Image.alpha_composite(Image.new("RGBA", image.size, "black"), layer).convert("RGB")
            image = max(image, dark, key=contrast)
    return image if image.mode == "RGB" else image.convert("RGB")


def contrast(image: Image.Image) -> int:
    """The widest range of values in a channel."""
    return max(high - low for low, high in image.getextrema())  # type: ignore[misc]


def read_image(path: Path, size: int) -> np.ndarray | str:
    """One image as uint8 [size, size, 3], or in words why it is unreadable."""
    try:
        if not os.path.isfile(path) and os.path.exists(path):
            return "no regular file"  # to open a pipe would wait for ever
        with Image.open(path, formats=formats()) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                return f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,}; make it smaller"
            if pixels > LARGE_PIXELS:  # a JPEG is decoded at a reduced scale, still larger than what is wanted
                image.draft(None, (4 * size, 4 * size))
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
        if path.suffix.lower() in (".heic", ".heif"):
            return "an image that needs the package pillow-heif; pip install pillow-heif"
        return f"not a readable image ({type(error).__name__})"


def read_images(paths: Sequence[Path], size: int, workers: int = 0, label: str = "") -> tuple[Tensor, dict[int, str]]:
    """Decode images, each once, on `workers` threads (0: one per core).

    Returns uint8 [N, size, size, 3] and, by index, why an image could not be read; its pixels are then 0.
    `label` names the progress bar; without one there is none.
    """
    needed, there = 3 * len(paths) * size * size, memory_of_machine()
    if there and needed > 0.9 * there:
        raise UserError(
            f"{len(paths):,} images of {size}x{size} take {needed / 1e9:,.1f} GB of memory, and this machine has "
            f"{there / 1e9:,.1f} GB; use a smaller --size or fewer images."
        )
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

    with quiet_pillow(), ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
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
        meant = NearNames(image_home(listing.origin)).like(listing.names[i]) if listing.rows and absent else ""
        raise UserError(f"{place}: {why}{more}{'' if ';' in why else f'; {remedy}'}{meant or '.'}")
    tell_one_colour(images, listing.names, str(listing.origin))
    return Domain(images, labels, listing.names)


def tell_one_colour(images: Tensor, names: Sequence[str], origin: str) -> None:
    """Say how many images uint8 [N, H, W, 3] are of one colour: they were empty, or are after what was done to them."""
    flat = images.flatten(1, 2)  # [N, H * W, 3]
    plain = (flat.amin(1) == flat.amax(1)).all(1).nonzero().flatten().tolist()
    if plain:
        note(f"{origin}: {len(plain)} of {len(images)} images are of one colour, such as {names[plain[0]]}.")


# Batches


class Batches:
    """Endless shuffled batches of a domain; the batch of a step is a pure function of (seed, step).

    Each pass over the domain is a fresh permutation and a batch may span two passes, so that every image is drawn
    exactly once a pass and no batch is ever short. `stream` keeps two domains of one run apart; of several
    processes each gets its share of the batch, every world-th row.
    """

    def __init__(
        self, domain: Domain, batch_size: int, seed: int, stream: int, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        self.images = domain.images.to(device)
        self.labels = domain.labels.to(device) if domain.labels is not None else None
        self.batch_size, self.seed, self.stream, self.device = batch_size, seed, stream, device
        self.ranks = ranks
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

    def __call__(self, step: int) -> tuple[Tensor, Any]:
        """Images uint8 [B / world, 3, H, W] (channels_last) and labels int64 [B / world], or None, of `step`."""
        rows = self.indices(step)[self.ranks.rank :: self.ranks.world]
        return self.images[rows].permute(0, 3, 1, 2), self.labels[rows] if self.labels is not None else None

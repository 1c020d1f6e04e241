"""Domains on disk -> names, files and labels; no image is decoded.

Layout: `data_root/<domain>/<split>.csv` with columns image_name,label and the images in `data_root/<domain>/data/`.
Images right in `data_root/<domain>/`, in `<domain>/<split>/` or one folder per class are found too; what cannot be read
in one way alone is refused.
"""

import contextlib
import difflib
import io
import os
import re
import unicodedata
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from csv import Error as CSVError
from csv import reader
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from utils import UserError, note

EXTENSIONS = set(
    [".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".avif", ".heic", ".heif"]
)
# No other decoder is tried: EPS, for one, runs programs.
FORMATS = ("PNG", "JPEG", "MPO", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "HEIF")
COMPANIONS = {".csv", ".txt", ".json", ".xml", ".yaml", ".yml", ".md", ".html", ".db", ".ini", ".py", ".pt"}
SYSTEM_FOLDERS = set(
    ["__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "#recycle", "@Recycle", "System Volume Information"]
)
SPLITS = {
    "train": {"train", "training", "trainset", "trn", "tr"},
    "val": {"val", "valid", "validation", "valset", "dev"},
    "test": {"test", "testing", "testset", "tst"},
}
SPLIT_WORDS = {word: split for split, words in SPLITS.items() for word in words}
BESIDE_SPLITS = {"seg", "set", "data", "dataset", "images", "image", "imgs", "split"}  # words beside such a name
NO_LABEL = {"", "nan", "NaN", "#N/A", "#REF!", "#NAME?", "#VALUE!", "#DIV/0!", "#NUM!", "#NULL!"}  # not NA, None, NULL
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is looser, and warns beside refusing


class NoClasses(UserError):
    """Folders that may be no classes: an image lies beside them, or they are called or filled as splits are."""


@dataclass
class Listing:
    """Images of one split before they are read: names as the CSV has them, their files, and the labels as text."""

    origin: Path  # the CSV or folder, for messages
    names: list[str]
    paths: list[Path]
    labels: list[str] | None
    rows: list[int] | None = None  # line numbers in the CSV, None for a folder
    whole: bool = True  # False where images were left out by their labels

    def of(self, kept: list[int]) -> "Listing":
        """The listing of the images `kept` alone."""
        names, paths = [self.names[i] for i in kept], [self.paths[i] for i in kept]
        labels, rows = ([cells[i] for i in kept] if cells else None for cells in (self.labels, self.rows))
        return Listing(self.origin, names, paths, labels, rows)  # type: ignore[arg-type]

    def where(self, i: int) -> str:
        """Where image i stands, for messages: the CSV's row, or the file itself."""
        return f"{self.origin} row {self.rows[i]}" if self.rows else str(self.paths[i])


# Finding images


def walk(folder: Path) -> Iterator[tuple[str, str]]:
    """Path and name, relative to `folder`, of every file below it; links are followed, each folder is entered once.

    Hidden files and folders are passed over; such a folder is named where it holds images. Raises UserError for a
    folder that cannot be listed: its images would be missing unawares.
    """
    real, clouded, hidden = os.path.realpath(folder), [], []
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
                clouded += [entry.path] if entry.name.endswith(".icloud") else []
                hidden += [entry.path] if entry.name not in SYSTEM_FOLDERS and holds_image(entry.path) else []
                continue
            link = entry.is_symlink()
            if not (os.path.isdir(entry.path) if link else entry.is_dir()):
                yield entry.path, prefix + entry.name
                continue
            inside = os.path.realpath(entry.path) if link else os.path.join(real, entry.name)
            add = todo.appendleft if link else todo.append  # a folder counts where it is, not where a link to it is
            add((entry.path, f"{prefix}{entry.name}/", inside))
    if clouded:
        note(f"{folder}: {len(clouded)} files are in iCloud alone, such as {clouded[0]}; download them to use them.")
    if hidden:
        note(f"{folder}: {len(hidden)} hidden folders hold images and are passed over, such as {hidden[0]}.")


def holds_image(path: str) -> bool:
    """Whether an image by its name lies below a folder."""
    names = chain.from_iterable(files for _, _, files in os.walk(path))
    return any(os.path.splitext(name)[1].lower() in EXTENSIONS and name[0] != "." for name in names)


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
    """Folders right in `folder`, sorted; hidden ones and those of a system left out.

    Raises UserError for a link to nothing that is called as no file is: it was a class, or a split.
    """
    there = [entry for entry in os.scandir(folder) if entry.name[0] != "." and entry.name not in SYSTEM_FOLDERS]
    for entry in there:
        ending = os.path.splitext(entry.name)[1].lower()
        if entry.is_symlink() and not os.path.exists(entry.path) and ending not in EXTENSIONS | COMPANIONS:
            raise UserError(f"{entry.path} is a link to nothing; restore what it leads to, or remove it.")
    return sorted(Path(entry.path) for entry in there if entry.is_dir())


@lru_cache(maxsize=4096)
def split_and_rest(name: str) -> tuple[str | None, str]:
    """The split that one word alone of a name means, and the other words: (train, mnist) for mnist_train or mnistTrain.

    Of `Training`, `train2017` and `TrainImages` nothing is left.
    """
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_a-zA-Z]+|\d+", name)
    words = [word.lower() for word in words if word.lower() not in BESIDE_SPLITS]
    found = [word for word in words if word in SPLIT_WORDS]
    rest = [word for word in words if word not in SPLIT_WORDS]
    if len(found) != 1:
        return None, name
    return SPLIT_WORDS[found[0]], "" if all(word.isdecimal() for word in rest) else " ".join(rest)


def split_of(name: str) -> str | None:
    """The split that a folder's name means (`Training`, `seg_train`, `valid`); None for any other name."""
    split, rest = split_and_rest(name)
    return None if rest else split


def called_as_splits(folders: list[Path]) -> list[tuple[str, Path]]:
    """Those of sibling folders that are called as splits; all, where the split alone tells them apart, mnist_train."""
    named = [(*split_and_rest(folder.name), folder) for folder in folders]
    splits, rests = {split for split, _, _ in named}, {rest for _, rest, _ in named}
    alike = len(rests) == 1 < len(splits) and None not in splits
    return [(split, folder) for split, rest, folder in named if split and (alike or not rest)]


def unwrapped(folder: Path, above_splits: bool = False) -> Path:
    """`folder`, or the one folder in it that holds everything: archives unpack to seg_train/seg_train/, or to images/.

    above_splits: it is a domain's; a folder of any name counts that holds splits, and one that is a split does not.
    """
    inside = subfolders(folder)
    if len(inside) != 1 or any(is_image(entry.path) for entry in os.scandir(folder) if entry.name[0] != "."):
        return folder
    name, below, split = inside[0].name, subfolders(inside[0]), split_of(inside[0].name)
    if split and (above_splits or split != split_of(folder.name)):
        return folder
    again = name.lower() == folder.name.lower() or name.lower() in BESIDE_SPLITS or split is not None
    splits = above_splits and called_as_splits(below)
    return unwrapped(inside[0], above_splits) if below and (again or splits) else folder


def split_csv(folder: Path, split: str) -> Path | None:
    """The CSV of a split, by any of its names in any case (`valid.csv`, `Val.csv.txt`); UserError for two of them."""
    names = {f"{word}.csv{more}" for word in SPLITS[split] for more in ("", ".txt")}
    found = sorted(name for name in os.listdir(folder) if name.lower() in names and not (folder / name).is_dir())
    if len(found) > 1:
        raise UserError(f"{folder} holds {found[0]} and {found[1]}, lists of the same split; keep one of them.")
    return folder / found[0] if found else None


def has_list(folder: Path) -> bool:
    """Whether a domain has a CSV of any split."""
    return any(split_csv(folder, split) for split in SPLITS)


def split_folders(folder: Path, classes: bool) -> dict[str, Path]:
    """The folders of a domain that are its splits, by split; empty where its folders are classes, or anything.

    One folder alone that is called as a split beside others that are not is a split where it holds those classes. It is
    a class of that name where it holds no folder, and it is called train or the names of classes are not asked for.
    Raises UserError where it could be both.
    """
    inside = [each for each in subfolders(folder) if not (each.name == "data" and has_list(folder))]
    splits = called_as_splits(inside)
    found = dict(splits)
    others = [
        each.name
        for each in inside
        if each not in found.values()  # annotations beside splits are no class
        and (len(found) < 2 or any(is_image(path) for path, _ in walk(each)))
    ]
    if len(found) < len(splits):
        twice = [each.name for split, each in splits if Counter(s for s, _ in splits)[split] > 1]
        raise UserError(f"{folder} holds {' and '.join(twice)}, which are the same split; keep one, or merge them.")
    below = [{each.name for each in subfolders(split)} for split in found.values()]
    if len(found) == 1 and others and not below[0] and not (classes and "train" not in found):
        if classes:
            note(f"{found['train']} is taken for a class, as it lies beside {others[0]} and holds no folder.")
        return {}
    if others and ("train" in found or not all(names & set(others) for names in below)):
        raise NoClasses(
            f"{folder} holds {next(iter(found.values())).name}, which is called as a split, beside {others[0]}; move "
            "one of them away, put all into splits, or give the class another name."
        )
    return found


def refuse_splits_for_classes(folder: Path, ways: list[list[str]], in_split: bool) -> None:
    """NoClasses where class folders may be splits: two are called so, hold folders that are, or one all of another's.

    ways: of each image the folders from `folder` on, its class first, and its name. in_split: what lies in a folder
    that is a split may hold the same folders in each class.
    """
    below: dict[str, set[str]] = {}
    deeper: dict[str | None, str] = {}
    for way in ways:
        below.setdefault(way[0], set()).update(way[1:-1][:1])
        deeper.update({split_of(name): "/".join(way[: i + 2]) for i, name in enumerate(way[1:-1])})
    called: dict[str, dict[str | None, str]] = {}  # of train_ash and test_ash: ash
    for name in below:
        split, rest = split_and_rest(name)
        called.setdefault(rest, {})[split] = name
    alike = [[name for name in below if below[name] >= names] for names in below.values() if len(names) > 1]
    called_so = [[by[split] for split in SPLITS if split in by] for by in (deeper, *called.values())]
    for doubtful in [*called_so, *([] if in_split else alike)]:
        if len(doubtful) > 1:
            raise NoClasses(
                f"{folder} holds {' and '.join(doubtful[:2])}, which may be splits or classes; put what to train on "
                "into a folder train, and classes that are called as splits under another name."
            )


def domain_folder(data_root: Path, domain: str) -> Path:
    """Folder of a domain; UserError that names what stands there instead when it is missing."""
    folder = data_root / domain
    if folder.is_dir():
        return folder
    if not data_root.is_dir():
        raise UserError(f"--data_root {data_root} is not a folder; name the folder that holds the domains.")
    there = ", ".join(sorted(entry.name for entry in data_root.iterdir() if entry.is_dir())) or "no folder at all"
    raise UserError(
        f"domain folder {folder} does not exist; --data_root {data_root} holds: {there}; name what you "
        "mean by --source_file (default: mnistm) or --target_file."
    )


def list_split(data_root: Path, domain: str, split: str, with_labels: bool) -> Listing | None:
    """List a split of a domain without opening an image; None where the split does not exist.

    `<split>.csv` comes first; without it `<domain>/<split>/`; without that, `train` is every image of the domain that
    no other split lists. `with_labels=False` never reads the label column, nor the names of class folders.
    Raises UserError for a missing domain or a CSV that is not usable.
    """
    folder = domain_folder(data_root, domain)
    csv = split_csv(folder, split)
    if csv:
        return list_csv(csv, with_labels)
    top = unwrapped(folder, above_splits=True)
    splits = split_folders(top, classes=with_labels and split == "train")
    if split in splits:
        return list_folder(splits[split], with_labels, in_split=True)
    if split != "train":
        if split == "val" and with_labels and ("test" in splits or split_csv(folder, "test")):
            note(
                f"{folder} has a test and no val: no validation measures on it; rename test to val to do so (train.py "
                "--eval_split test measures on a target's test, once at the end)."
            )
        return None
    alone = [inside.name for inside in subfolders(folder)] == ["data"]
    home = folder / "data" if (folder / "data").is_dir() and (alone or has_list(folder)) else top
    listing = list_folder(home, with_labels, frozenset(splits.values()))
    others = [list_split(data_root, domain, other, False) for other in ("val", "test")]
    taken = {path for other in others if other for path in other.paths}
    keep = [i for i, path in enumerate(listing.paths) if path not in taken]
    if not keep:
        raise UserError(f"{home} holds no image that val or test does not list; add images to train on.")
    return listing.of(keep)


def list_folder(
    folder: Path, with_labels: bool, beside: frozenset[Path] = frozenset(), in_split: bool = False
) -> Listing:
    """List the images below `folder`; with labels, each image's class is the first folder on its way.

    Without labels the order goes by file name, so that moving an image to another class's folder changes nothing.
    beside: folders in it that are other splits. in_split: it is one itself. Raises UserError for a class folder without
    an image.
    """
    names = [name for name in image_names(folder) if folder / name.split("/")[0] not in beside]
    if not with_labels:
        names.sort(key=lambda name: (name.rpartition("/")[2], name))
    paths = [folder / name for name in names]
    if not names:
        what = f"images ({', '.join(sorted(EXTENSIONS))}) there"
        if beside:
            what = f"those to train on into a folder train beside {' and '.join(sorted(each.name for each in beside))}"
        raise UserError(f"{folder} holds no image{' of its own' if beside else ''}; put {what}.")
    if not with_labels:
        return Listing(folder, names, paths, None)
    home = unwrapped(folder)
    depth = len(home.relative_to(folder).parts)
    parts = [name.split("/")[depth:] for name in names]
    loose = [name for name, way in zip(names, parts, strict=True) if len(way) == 1]
    if len(loose) == len(names):
        return Listing(folder, names, paths, None)
    if loose:
        raise NoClasses(
            f"{folder} holds class folders and, beside them, {loose[0]}; move it into the folder of its class."
        )
    labels = [way[0] for way in parts]
    empty = [inside for inside in subfolders(home) if inside not in beside and inside.name not in set(labels)]
    if empty:
        raise UserError(f"class folder {empty[0]} holds no image of its own; add images, or remove the folder.")
    refuse_splits_for_classes(home, parts, in_split)
    return Listing(folder, names, paths, labels)


def list_csv(csv: Path, with_labels: bool, find: bool = True) -> Listing:
    """List the rows of a CSV; labels stay None where they are not asked for or the column is missing.

    An image that is listed twice counts once. Raises UserError where its labels differ. find: look for the files, and
    for what a name can mean that is none.
    """
    wanted = ["image_name", "label"] if with_labels else ["image_name"]
    try:
        header, lines, columns = read_table(csv, wanted)
    except (ValueError, OSError, CSVError) as error:  # undecodable text is a ValueError
        raise UserError(f"{csv} is not readable as CSV ({error}); its first line must be image_name,label.") from error
    if not lines:
        raise UserError(f"{csv} lists no image; add rows or remove the file.")
    if with_labels and "label" not in header and len(header) > 1:
        note(f"{csv} has no column label, but {', '.join(header)}; call the column of the classes label to use it.")
    names, labels = columns["image_name"], None
    if any(columns.get("label", [])):
        labels = [canonical(label) for label in columns["label"]]
        i = next((i for i, label in enumerate(labels) if label in NO_LABEL), None)
        if i is not None:
            raise UserError(
                f"{csv} row {lines[i]}: {labels[i]!r} is no label for {names[i]}; fill it in or remove the row."
            )
    paths = resolve_images(csv, lines, names) if find else [csv.parent / name for name in names]
    return without_repeats(Listing(csv, names, paths, labels, lines))


def may_have_labels(listing: Listing) -> bool:
    """Whether a listing made without labels has a column of them, or folders; none is read."""
    if listing.rows is None:
        return any("/" in name for name in listing.names)
    return "label" in read_table(listing.origin, [])[0]


def read_text(path: Path) -> str:
    """A text as spreadsheets and editors save it: UTF-8, UTF-16 by its mark, else cp1252, and said; else ValueError."""
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    with contextlib.suppress(UnicodeDecodeError):
        return content.decode("utf-8-sig")
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError as error:
        raise ValueError("its text is neither UTF-8 nor Windows Western; save it as UTF-8") from error
    word = re.search(r"[^\s,;|]*[^\x00-\x7f][^\s,;|]*", text)
    assert word  # all of ASCII is UTF-8
    note(
        f"{path} is not UTF-8 and is read as Windows Western (cp1252), with such words as {word[0][:60]!r}; save it "
        "as UTF-8 if they should read otherwise."
    )
    return text


def read_table(csv: Path, wanted: list[str]) -> tuple[list[str], list[int], dict[str, list[str]]]:
    """Header of a CSV, the lines of the rows that say something in the columns `wanted`, and those columns there.

    The separator is a comma, semicolon, tab or bar, the one by which the header has a column image_name; a line `sep=;`
    may stand above it. Raises UserError for a row that has not the cells of the header, ValueError for another header.
    """
    text = io.StringIO(read_text(csv) + "\n", newline="")  # an open quote in the last line takes in a line break, too
    first, before = text.readline(1 << 16), 0
    if first[:4].lower() == "sep=":
        first, before = text.readline(1 << 16), 1
    for separator in ",;\t|":
        options: dict[str, Any] = {"delimiter": separator, "skipinitialspace": True}
        header = [name.strip().lower() for name in next(reader([first], **options), [])]
        if "image_name" in header:
            break
    else:
        raise ValueError(f"no column image_name in its first line {first.strip()[:60]!r}")
    if len(header) > 1000:
        raise ValueError(f"it has {len(header)} columns")
    twice = [name for name in wanted if header.count(name) > 1]
    if twice:
        raise UserError(f"{csv} has two columns {twice[0]}; remove one.")
    while not header[-1]:
        header.pop()
    at = {name: header.index(name) for name in wanted if name in header}
    lines: list[int] = []
    columns: dict[str, list[str]] = {name: [] for name in at}
    line, table = before + 1, reader(text, **options)
    for cells in table:
        start, line = line + 1, before + 1 + table.line_num
        if "".join(cells[len(header) :]).strip():
            raise UserError(f"{csv} row {start} has more cells than the header; quote a cell that holds {separator!r}.")
        if {"\n", "\r"} & set("".join(cells)):
            raise UserError(f"{csv} row {start}: a line break inside a cell; remove it, or the stray quote.")
        found = [unwrapped_cell(cells[i]) if i < len(cells) else "" for i in at.values()]
        if any(found):
            lines.append(line)
            for column, cell in zip(columns.values(), found, strict=True):
                column.append(cell)
    return header, lines, columns


def unwrapped_cell(cell: str) -> str:
    """The text of a cell, out of the `="001"` by which spreadsheets are kept from reading a number."""
    cell = cell.strip()
    return cell[2:-1].strip() if len(cell) > 2 and cell.startswith('="') and cell.endswith('"') else cell


def image_homes(csv: Path) -> list[Path]:
    """The folders that names in a CSV may be relative to: data/ beside it, one of its name, its own folder."""
    named = (csv.parent / "data", csv.parent / re.sub(r"\.csv(\.txt)?$", "", csv.name, flags=re.I))
    return [*(home for home in named if home.is_dir()), csv.parent]


def resolve_images(csv: Path, rows: list[int], names: list[str]) -> list[Path]:
    """Files of the images named in a CSV; where there is none, the one file that the name can mean.

    Raises UserError for a name that is empty, leads out of the domain's folder or is that of two files.
    """
    homes, paths = image_homes(csv), []
    near: NearNames | None = None
    for row, name in zip(rows, names, strict=True):
        odd = name in ("", "..") or (any(mark in name for mark in "/\\:\0") and leads_out(Path(name)))
        path = None if odd else file_of(homes, name, f"{csv} row {row}")
        if path is None and "\0" not in name:
            near = near or NearNames(csv)
            path = near.meant(name)
        if path is None and odd:
            raise UserError(f"{csv} row {row}: image_name {name!r} must be a path inside {csv.parent / 'data'}.")
        paths.append(path or homes[0] / name)
    return paths


def file_of(homes: list[Path], name: str, where: str) -> Path | None:
    """The file of that very name in one of the homes; UserError for two.

    A plain name means data/ before the CSV's own folder; one with a folder, such as val/0.png, may mean either.
    """
    if len(homes) == 2 and homes[0].name == "data" and "/" not in name and os.path.lexists(f"{homes[0]}/{name}"):
        return homes[0] / name
    found = [home / name for home in homes if os.path.lexists(f"{home}/{name}")]
    if len(found) == 2 and homes[0].name == "data" and found[1].parent == homes[-1]:
        found.pop()
    if len(found) > 1 and not all(os.path.realpath(path) == os.path.realpath(found[0]) for path in found):
        raise UserError(f"{where}: {name} may be {found[0]} or {found[1]}; move one of them away.")
    return found[0] if found else None


class NearNames:
    """The images below a CSV's folder by what a row may call them: without the ending, in another case or Unicode form.

    Before a name may stand what names the folder: `./`, the folder's own name, or its absolute path.
    """

    def __init__(self, csv: Path) -> None:
        self.folder, self.called = csv.parent, folded(csv.parent.absolute().name)
        starts = {home: "" if home == csv.parent else folded(f"{home.name}/") for home in image_homes(csv)}
        self.starts = list(starts.values())
        self.roots = {
            f"{root(home)}/": [starts[home]] for home in starts for root in (os.path.abspath, os.path.realpath)
        }
        self.names = [name for path, name in walk(csv.parent) if is_image(path)]
        self.by_name: dict[str, list[str]] = {}
        for name in self.names:
            for key in {folded(name), folded(os.path.splitext(name)[0])}:
                self.by_name.setdefault(key, []).append(name)

    def meant(self, name: str) -> Path | None:
        """The one image that a name can mean; None for none or several."""
        plain = slashed(name)
        root = next((root for root in self.roots if plain.startswith(root)), "")
        parts = [part for part in folded(plain[len(root) :]).split("/") if part not in ("", ".")]
        if ".." in parts or (os.path.isabs(plain) and not root):
            return None
        tails = ["/".join(parts)]
        if parts[:1] == [self.called]:
            tails.append("/".join(parts[1:]))
        starts = self.roots.get(root, self.starts)
        found = {file for tail in tails for start in starts for file in self.by_name.get(start + tail, [])}
        return self.folder / found.pop() if len(found) == 1 else None

    def like(self, name: str) -> str:
        """`; did you mean ...?` for a name that is no file, or nothing."""
        last = slashed(folded(name)).rpartition("/")[2]
        alike = [file for key, files in self.by_name.items() if key.rpartition("/")[2] == last for file in files]
        there = [each.removeprefix(self.starts[0]) for each in alike[:2] or self.names[:20_000]]
        close = there if alike else difflib.get_close_matches(name, there, n=2, cutoff=0.7)
        return f"; did you mean {' or '.join(close)}?" if close else ""


def folded(name: str) -> str:
    """A name whatever its case and Unicode form: a Mac writes é as two characters."""
    return unicodedata.normalize("NFC", name).lower()


def slashed(path: str) -> str:
    """A path as this system writes it, of one that Windows may have written."""
    return path.replace("\\", "/")


def leads_out(relative: Path) -> bool:
    """Whether a path may lead out of the folder that it is meant to be relative to."""
    return bool(relative.anchor) or ".." in relative.parts or "\0" in str(relative)


def without_repeats(listing: Listing) -> Listing:
    """The listing with each image once, where it stands first; UserError for one with two names or two labels."""
    assert listing.rows is not None
    first: dict[Path, int] = {}
    for i, path in enumerate(listing.paths):
        before = first.setdefault(path, i)
        if before == i:
            continue
        one, other = (
            f"{listing.names[k]} {listing.labels[k]!r}" if listing.labels else listing.names[k] for k in (before, i)
        )
        if one != other:
            raise UserError(
                f"{listing.origin} rows {listing.rows[before]} and {listing.rows[i]}: {one} and {other} are one image, "
                f"{path}; mend or remove a row."
            )
    return listing if len(first) == len(listing.paths) else listing.of(list(first.values()))


# Labels


@lru_cache(maxsize=4096)
def canonical(label: str) -> str:
    """A label of a CSV as text: spreadsheets write 3 as 3.0 or 3,00; anything else is itself, as 3.000 may be 3000."""
    whole = re.fullmatch(r"(-?[0-9]{1,18})[.,]00?", label)
    return whole[1] if whole else label


@lru_cache(maxsize=4096)
def number(name: str) -> int | str:
    """What spellings of one number, or Unicode forms of one name, have in common."""
    return int(name) if re.fullmatch(r"-?[0-9]{1,18}", name) else unicodedata.normalize("NFC", name)


def look(name: str) -> int | str:
    """What names have in common that differ in case, blanks, zeros or characters that nobody sees."""
    seen = "".join(mark for mark in folded(name) if unicodedata.category(mark) != "Cf")
    return number(re.sub(r"^(-?[0-9]+)[.,]0+$", r"\1", " ".join(seen.split())))


def class_names(listing: Listing) -> list[str]:
    """Sorted names of the classes of a listing, as they are written; whole numbers in numerical order.

    Raises UserError for two that look alike: nobody but their owner knows whether they are one class.
    """
    names = sorted(set(listing.labels or []))
    spelt: dict[int | str, str] = {}
    for name in names:
        other = spelt.setdefault(look(name), name)
        if other != name:
            raise UserError(
                f"{listing.origin} has the labels {other!a} and {name!a}; if they are one class, write them "
                "alike, else give them names that differ in more."
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
    return replace(listing.of(kept), whole=False)

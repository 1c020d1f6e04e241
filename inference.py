"""Label a folder of images with a trained checkpoint and write a CSV.

    python inference.py --checkpoint runs/dann_usps_tuned_seed0 \\
        --test_loc digits/usps --out_path predictions

Writes predictions/pred.csv with the columns image_name,label, sorted by name,
image_name relative to --test_loc. An unreadable image is named and left out,
the rest is labelled, and the exit code is then 1. Ends with the answers by
class, the mean confidence, and a warning where it is far below that on the
target of the training. Reads checkpoints of train.py and those of download.sh.

Computes in float32; --precision bf16 is faster on some hardware and may change
the label of an image that lies between two classes.
"""

import argparse
import math
import os
import re
import shlex
import unicodedata
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cache import one_colour
from dataset import read_images, tell_one_colour
from listing import encode_labels, image_homes, image_names, list_csv, read_text, slashed
from metrics import entropy, predict
from model import DANN
from runs import CHECKPOINT, build_network, load_checkpoint, resolve_checkpoint, with_error
from utils import (
    DEVICES,
    Parser,
    Progress,
    UserError,
    atomic_path,
    bounded,
    choose_device,
    choose_precision,
    note,
    run_script,
    shown,
    user_path,
)

CHUNK, CHUNK_BYTES = 8192, 100 << 20  # read at a time, the less; three are in memory, as one is read ahead of another


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(usage="%(prog)s --checkpoint PATH --test_loc PATH --out_path PATH [...]", description=__doc__)
    files = parser.add_argument_group("needed first")
    files.add_argument("--checkpoint", **CHECKPOINT)
    files.add_argument(
        "--test_loc",
        type=user_path,
        required=True,
        metavar="PATH",
        help="folder of images, searched with all its subfolders; or a .csv (image_name, found in data/ beside it or "
        "beside it), or a .txt of paths, absolute or from its own folder",
    )
    files.add_argument(
        "--out_path",
        type=user_path,
        required=True,
        metavar="PATH",
        help="folder, in which pred.csv is written, or the name of a .csv file",
    )
    more = parser.add_argument_group("answers")
    more.add_argument(
        "--probs",
        action="store_true",
        help="add the probability of each class (columns p_CLASS) and of the predicted one (confidence)",
    )
    more.add_argument(
        "--labels",
        type=user_path,
        metavar="CSV",
        help="score against this CSV (image_name,label): accuracy, by class, and which answers were confused",
    )
    compute = parser.add_argument_group("computing")
    compute.add_argument("--device", choices=DEVICES, default="auto", help="where to predict (default: auto)")
    compute.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="of the forward pass (default: fp32)"
    )
    compute.add_argument(
        "--batch_size",
        type=bounded(int, 1, 65536),
        metavar="N",
        help="images a forward pass (default: 128 on the CPU, else 2048); the answers do not depend on it",
    )
    compute.add_argument(
        "--num_workers",
        type=bounded(int, 0, 256),
        default=0,
        metavar="N",
        help="threads that decode images; 0: one per core (default)",
    )
    return parser


def output_file(out_path: Path) -> Path:
    """The CSV that --out_path means; UserError for a path that cannot become one."""
    if out_path.suffix.lower() == ".csv":
        if out_path.is_dir():
            raise UserError(f"--out_path {out_path} is a folder with the name of a CSV; choose another name.")
        return out_path
    if out_path.suffix and not out_path.is_dir():
        raise UserError(f"--out_path {out_path} ends in {out_path.suffix}; name a folder, or a file that ends in .csv.")
    if out_path.exists() and not out_path.is_dir():
        raise UserError(f"--out_path {out_path} is a file; name a folder or a file that ends in .csv.")
    return out_path / "pred.csv"


def read_chunks(
    home: Path, names: list[str], elsewhere: dict[str, str], net: DANN, workers: int
) -> Iterator[tuple[list[int], Tensor, dict[int, str]]]:
    """Yield row numbers, pixels uint8 [n, H, W, 3] and unreadable rows, chunk by chunk, the next one read ahead."""

    size = net.arguments["size"]
    count = max(1, min(CHUNK, CHUNK_BYTES // (3 * size * size)))

    def read(start: int) -> tuple[Tensor, dict[int, str]]:
        paths = [home / elsewhere.get(name, name) for name in names[start : start + count]]
        return read_images(paths, size, workers, net.preprocessing)

    starts = range(0, len(names), count)
    with ThreadPoolExecutor(1) as ahead:
        coming = [ahead.submit(read, start) for start in starts[:1]]
        for k, start in enumerate(starts):
            pixels, unreadable = coming.pop().result()
            coming += [ahead.submit(read, following) for following in starts[k + 1 : k + 2]]
            rows = [start + i for i in range(len(pixels)) if i not in unreadable]
            good = pixels[[row - start for row in rows]] if unreadable else pixels
            yield rows, good, {start + i: why for i, why in unreadable.items()}


def list_inputs(test_loc: Path) -> tuple[Path, list[str], dict[str, str]]:
    """The folder, the images in it that --test_loc means, by name and sorted, and the files of names that are none.

    Names alone, as Paths take several times their memory. Raises UserError where it means no image.

    A folder: every image below it. A CSV: its column image_name, files as training finds them. A .txt: a path a line,
    absolute or relative to the list's folder, and perhaps a label behind it; lines of a # and no file are comments.
    """
    if test_loc.is_file() and test_loc.suffix.lower() == ".csv":
        home, listing = image_homes(test_loc)[0], list_csv(test_loc, with_labels=False)
        both = zip(listing.names, listing.paths, strict=True)
        return home, sorted(listing.names), {name: os.path.abspath(path) for name, path in both if path != home / name}
    home = test_loc
    if test_loc.is_dir():
        names = image_names(test_loc)
    elif test_loc.is_file() and test_loc.suffix.lower() == ".txt":
        try:
            lines = [line.strip() for line in read_text(test_loc).splitlines()]
        except ValueError as error:
            raise UserError(f"--test_loc {test_loc} is no text; list one path a line.") from error
        home = test_loc.parent
        found = {path_in_line(home, line) for line in lines if line}
        names = sorted(name for name in found if name[0] != "#" or os.path.isfile(home / name))
    else:
        raise UserError(
            f"--test_loc {test_loc} is neither a folder of images nor a .csv or .txt that lists them; name one."
        )
    if not names:
        raise UserError(f"--test_loc {test_loc} holds no image; name a folder of images.")
    return home, names, {}


def path_in_line(home: Path, line: str) -> str:
    """The path of a line of a list: the whole of it, or what stands before the separator and a label.

    It may stand in quotes, have backslashes, begin with ~, and be in either Unicode form.
    """
    shorter = (line[: found.start()] for found in re.finditer(r"[\s,;]+[^\s,;]*$", line))
    for name in (line, *shorter):
        bare = name.strip("\"'")
        for meant in (name, bare, slashed(bare), os.path.expanduser(slashed(bare))):
            for form in (meant, unicodedata.normalize("NFC", meant), unicodedata.normalize("NFD", meant)):
                if os.path.isfile(home / form):
                    return form
    return line


def read_labels(csv: Path, classes: list[str]) -> dict[str, str]:
    """Label by image name of a CSV to score against; UserError for a CSV without labels or with foreign ones."""
    if not csv.is_file():
        why = "is a folder" if csv.is_dir() else "does not exist"
        raise UserError(f"--labels {csv} {why}; name a CSV with the columns image_name,label.")
    listing = list_csv(csv, with_labels=True, find=False)
    if listing.labels is None:
        raise UserError(f"--labels {csv} has no labels; its first line must be image_name,label.")
    codes = encode_labels(listing, classes, "the checkpoint")
    assert codes is not None
    return dict(zip(listing.names, (classes[k] for k in codes.tolist()), strict=True))


def matched(wanted: dict[str, str], predicted: Iterable[str]) -> dict[str, str]:
    """Labels by the names as predicted, which may have other separators or be in the other Unicode form.

    UserError for a name with two labels.
    """
    there = {os.path.normpath(slashed(name)): name for name in predicted}
    composed = {unicodedata.normalize("NFC", name): there[name] for name in there}
    found: dict[str, str] = {}
    for row, label in wanted.items():
        plain = os.path.normpath(slashed(row))
        name = there.get(plain) or composed.get(unicodedata.normalize("NFC", plain), plain)
        if found.setdefault(name, label) != label:
            raise UserError(f"--labels has two labels for {name}, {found[name]} and {label}; remove one.")
    return found


def score(predicted: dict[str, str], wanted: dict[str, str], classes: list[str]) -> tuple[dict[str, Any], str]:
    """Accuracy over the images that have a label, by class and confused with what; as numbers and as text.

    Raises UserError when no predicted image has a label.
    """
    wanted = matched(wanted, predicted)
    pairs = [(wanted[name], answer) for name, answer in predicted.items() if name in wanted]
    foreign = sorted(wanted.keys() - predicted.keys())
    if not pairs:
        raise UserError(
            f"--labels names none of the predicted images ({foreign[0]}, for one); its image_name must be relative to "
            "--test_loc, with the ending."
        )
    if foreign:
        note(
            f"{len(foreign)} of {len(wanted)} rows of --labels name no predicted image, such as {foreign[0]}; "
            f"{len(predicted) - len(pairs)} images have no label."
        )
    label, answer = (pd.Categorical(column, classes) for column in zip(*pairs, strict=True))
    confusion = pd.crosstab(label, answer, rownames=["label"], colnames=["answer"], dropna=False)
    right = np.diag(confusion)
    shares = {name: k / n if n else None for name, k, n in zip(classes, right, confusion.sum(axis=1), strict=True)}
    accuracy = right.sum() / len(pairs)
    table = confusion.assign(right=[shown(share, 3) for share in shares.values()]).to_string()
    text = f"accuracy {with_error(accuracy, len(pairs))}; rows: label, columns: answer\n{table}"
    return {"accuracy": float(accuracy), "per_class": shares, "scored": len(pairs)}, text


def summary(probabilities: Tensor, classes: list[str], trained: dict[str, Any]) -> str:
    """Answers by class, mean confidence, and a warning where the answers are less sure than on the training target.

    probabilities: float32 [N, K]. trained: metrics of the checkpoint; its entropy is that of the target's val images.
    """
    confidence, winner = probabilities.max(1)
    counts = torch.bincount(winner, minlength=len(classes)).tolist()
    text = f"answers: {', '.join(f'{name}: {count}' for name, count in zip(classes, counts, strict=True))}\n"
    text += f"confidence: mean {confidence.mean():.3f}; {(confidence < 0.5).sum().item():,} images below 0.5"
    usual, here = trained.get("entropy"), entropy(probabilities.double()).mean().item()
    if isinstance(usual, float) and here > 2 * usual + 0.1 * math.log(len(classes)):
        text += (
            f"\nwarning: the answers are far less confident than on the target that the checkpoint was trained for "
            f"(mean entropy {here:.2f}, there {usual:.2f}): these images may be of another domain."
        )
    return text


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Predict; returns `out_file`, `count`, `left_out` (why, by image name, an image has no prediction) and `score`."""
    args = build_parser().parse_args(argv)
    out_file = output_file(args.out_path)
    home, names, elsewhere = list_inputs(args.test_loc)
    file = resolve_checkpoint(args.checkpoint)
    checkpoint = load_checkpoint(file)
    net, classes = build_network(file, checkpoint, choose_device(args.device))
    wanted = read_labels(args.labels, classes) if args.labels else None
    for given in filter(None, (args.test_loc, args.labels, file)):
        if given.is_file() and out_file.exists() and given.samefile(out_file):
            raise UserError(f"--out_path {out_file} is an input of this command; choose another name.")
    precision = choose_precision(args.precision, net.device)
    left_out: dict[str, str] = {}
    rows: list[int] = []
    parts = []
    progress = Progress(len(names), "predict", "images")
    for chunk_rows, pixels, unreadable in read_chunks(home, names, elsewhere, net, args.num_workers):
        if chunk_rows:
            tell_one_colour(one_colour(pixels.numpy()), [names[row] for row in chunk_rows], str(args.test_loc))
            parts.append(predict(net, pixels, args.batch_size, precision=precision)[1])  # [n, K]
        rows += chunk_rows
        left_out.update({names[row]: why for row, why in unreadable.items()})
        progress.update(len(chunk_rows) + len(unreadable), lambda: confidence_so_far(parts))
    progress.close()
    if not rows:
        tell_left_out(home, left_out)
        raise UserError(f"none of the {len(names)} images in {args.test_loc} is readable; nothing was written.")
    probabilities = torch.cat(parts)
    if not probabilities.isfinite().all():
        raise UserError(f"{file} gives probabilities that are not finite; nothing was written; train it again.")
    found = [names[row] for row in rows]
    answers = [classes[k] for k in probabilities.argmax(1).tolist()]
    scored, text = score(dict(zip(found, answers, strict=True)), wanted, classes) if wanted else (None, "")
    metrics = checkpoint["metrics"] if isinstance(checkpoint["metrics"], dict) else {}
    text = "\n".join(filter(None, [text, summary(probabilities, classes, metrics)]))
    text += "" if "warning:" in text else "\nwarnings: none"
    write_predictions(out_file, found, probabilities, classes, args.probs)
    tell_left_out(home, left_out)
    print(f"checkpoint: {file}, step {checkpoint['step']}\n{text}")
    if wanted is None:
        given = ["--checkpoint", args.checkpoint, "--test_loc", args.test_loc, "--out_path", args.out_path]
        command = shlex.join(["python", "inference.py", *map(str, given), "--labels", "FILE.csv"])
        print(f"next: label fifty of the images by hand, image_name,label, and score the answers: {command}")
    how = "" if precision == torch.float32 else f" in {args.precision}"
    print(f"{len(rows)} images labelled{how}, {len(left_out)} left out: {out_file}")
    return {"out_file": str(out_file), "count": len(rows), "left_out": left_out, "score": scored}


def confidence_so_far(parts: list[Tensor]) -> str:
    """For the progress bar, of probabilities [n, K] each."""
    return f"mean confidence {torch.cat(parts).max(1).values.mean():.3f}" if parts else "nothing readable yet"


def tell_left_out(home: Path, left_out: dict[str, str]) -> None:
    for name in sorted(left_out):
        print(f"left out {home / name}: {left_out[name]}")


def write_predictions(path: Path, names: list[str], probabilities: Tensor, classes: list[str], probs: bool) -> None:
    """Write image_name,label and, with `probs`, the columns p_CLASS and confidence; replaces the old file at once."""
    confidence, winner = probabilities.max(1)
    columns: dict[str, Any] = {"image_name": names, "label": [classes[k] for k in winner.tolist()]}
    if probs:
        columns |= {f"p_{name}": probabilities[:, k].numpy() for k, name in enumerate(classes)}
        columns["confidence"] = confidence.numpy()
    with atomic_path(path) as part:
        pd.DataFrame(columns).to_csv(part, index=False, float_format="%.6f", errors="surrogateescape")


if __name__ == "__main__":
    run_script(main)

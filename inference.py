"""Label a folder of images with a trained checkpoint and write a CSV.

    python inference.py --checkpoint runs/dann_usps_paper_seed0 --test_loc digits/usps --out_path predictions

Writes predictions/pred.csv with the columns image_name,label, sorted by name, image_name relative to --test_loc.
An unreadable image is named and left out, the rest is labelled, and the exit code is then 1. Reads checkpoints of
train.py and those of download.sh.
"""

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from checkpoint import build_network, load_checkpoint, resolve_checkpoint
from dataset import find_images, read_images
from metrics import predict
from utils import DEVICES, Parser, Progress, UserError, atomic_path, bounded, choose_device, run_script

CHUNK = 8192  # images in memory at a time, twice: one chunk is read while the last is predicted


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    files = parser.add_argument_group("files")
    files.add_argument("--checkpoint", type=Path, required=True, metavar="PATH", help="run folder or checkpoint file")
    files.add_argument(
        "--test_loc", type=Path, required=True, metavar="DIR", help="folder of images, searched with all its subfolders"
    )
    files.add_argument(
        "--out_path",
        type=Path,
        required=True,
        metavar="PATH",
        help="folder, in which pred.csv is written, or the name of a .csv file",
    )
    files.add_argument(
        "--probs",
        action="store_true",
        help="add the probability of each class (columns p_CLASS) and of the predicted one (confidence)",
    )
    compute = parser.add_argument_group("computing (always in float32)")
    compute.add_argument("--device", choices=DEVICES, default="auto", help="where to predict (default: auto)")
    compute.add_argument(
        "--batch_size",
        type=bounded(int, 1, 65536),
        metavar="N",
        help="images a forward pass (default: 64 on the CPU, else 2048); the answers do not depend on it",
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
    if out_path.exists() and not out_path.is_dir():
        raise UserError(f"--out_path {out_path} is a file; name a folder or a file that ends in .csv.")
    return out_path / "pred.csv"


def read_chunks(paths: list[Path], size: int, workers: int) -> Iterator[tuple[list[int], Tensor, dict[int, str]]]:
    """Yield row numbers, pixels uint8 [n, H, W, 3] and unreadable rows, chunk by chunk, the next one read ahead."""
    starts = range(0, len(paths), CHUNK)
    with ThreadPoolExecutor(1) as ahead:
        coming = [ahead.submit(read_images, paths[start : start + CHUNK], size, workers) for start in starts[:1]]
        for k, start in enumerate(starts):
            pixels, unreadable = coming.pop().result()
            coming += [ahead.submit(read_images, paths[s : s + CHUNK], size, workers) for s in starts[k + 1 : k + 2]]
            rows = [start + i for i in range(len(pixels)) if i not in unreadable]
            good = pixels[[row - start for row in rows]] if unreadable else pixels
            yield rows, good, {start + i: why for i, why in unreadable.items()}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Predict; returns `out_file`, `count`, and `left_out`: why, by image name, an image has no prediction."""
    args = build_parser().parse_args(argv)
    out_file = output_file(args.out_path)
    if not args.test_loc.is_dir():
        raise UserError(f"--test_loc {args.test_loc} is not a folder; name a folder of images.")
    file = resolve_checkpoint(args.checkpoint)
    net, classes = build_network(file, load_checkpoint(file), choose_device(args.device))
    paths = find_images(args.test_loc)
    if not paths:
        raise UserError(f"--test_loc {args.test_loc} holds no image; name a folder of images.")
    names = [path.relative_to(args.test_loc).as_posix() for path in paths]
    left_out: dict[str, str] = {}
    rows: list[int] = []
    probabilities = []
    progress = Progress(len(paths), "predict", "images")
    for chunk_rows, pixels, unreadable in read_chunks(paths, net.arguments["size"], args.num_workers):
        if chunk_rows:
            probabilities.append(predict(net, pixels, args.batch_size)[1])  # [n, K]
        rows += chunk_rows
        left_out.update({names[row]: why for row, why in unreadable.items()})
        progress.update(len(chunk_rows) + len(unreadable))
    progress.close()
    for name, why in left_out.items():
        print(f"left out {os.path.join(args.test_loc, name)}: {why}")
    if not rows:
        raise UserError(f"none of the {len(paths)} images in {args.test_loc} is readable; nothing was written.")
    write_predictions(out_file, [names[row] for row in rows], torch.cat(probabilities), classes, args.probs)
    print(f"{len(rows)} images labelled, {len(left_out)} left out: {out_file}")
    return {"out_file": str(out_file), "count": len(rows), "left_out": left_out}


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

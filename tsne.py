"""Draw the latent space of a run: features G_f of validation images by t-SNE.

    python tsne.py --checkpoint runs/dann_usps_tuned_seed0 \\
        --data_root data/digits --out_path figures

Writes latent_by_class.png, latent_by_domain.png and latent.csv (image, domain,
label, prediction, x, y). Domains and classes come from the checkpoint. About 20
seconds for the default 1,000 images a domain on 2 cores.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from latent import Side, embed, look_at, read_validation, statistics
from metrics import domain_distance
from plots import draw_by_class, draw_by_domain
from runs import CHECKPOINT, build_network, load_checkpoint, resolve_checkpoint
from utils import DEVICES, SEED, Parser, UserError, atomic_path, bounded, choose_device, run_script, shown, user_path

FILES = {".png", ".jpg", ".jpeg", ".svg", ".pdf", ".csv"}  # what a user who takes --out_path for a file may name


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(usage="%(prog)s --checkpoint PATH --data_root DIR --out_path DIR [...]", description=__doc__)
    first, more = parser.add_argument_group("needed first"), parser.add_argument_group("what is drawn")
    first.add_argument("--checkpoint", **CHECKPOINT)
    first.add_argument(
        "--data_root", type=user_path, required=True, metavar="DIR", help="folder that holds the domains"
    )
    first.add_argument("--out_path", type=user_path, required=True, metavar="DIR", help="folder for the figures")
    more.add_argument("--source_file", metavar="NAME", help="source domain (default: the checkpoint's)")
    more.add_argument("--target_file", metavar="NAME", help="target domain (default: the checkpoint's)")
    more.add_argument(
        "--limit",
        type=bounded(int, 10, 20000),
        default=1000,
        metavar="N",
        help="images of each domain at most, drawn at random (default: 1000)",
    )
    more.add_argument("--seed", type=SEED, default=0, metavar="N", help="of the drawing and of t-SNE (default: 0)")
    more.add_argument("--device", choices=DEVICES, default="auto", help="where to compute features (default: auto)")
    return parser


def write_coordinates(path: Path, sides: list[Side], classes: list[str], points: np.ndarray) -> None:
    """Write image_name, domain, label, prediction, x, y of every drawn image."""
    rows = [
        (side.data.names[row], side.name, classes[label] if label >= 0 else "", classes[int(side.predicted[row])])
        for side in sides
        for row, label in zip(side.rows, side.drawn_labels(), strict=True)
    ]
    table = pd.DataFrame(rows, columns=["image_name", "domain", "label", "prediction"])
    with atomic_path(path) as part:
        table.assign(x=points[:, 0], y=points[:, 1]).to_csv(
            part, index=False, float_format="%.4f", errors="surrogateescape"
        )


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Draw both figures; returns the accuracies and the proxy A-distance that the titles state, and the count."""
    args = build_parser().parse_args(argv)
    if not args.out_path.is_dir() and (args.out_path.exists() or args.out_path.suffix.lower() in FILES):
        raise UserError(f"--out_path {args.out_path} is a file, or named as one; name a folder for the three files.")
    file = resolve_checkpoint(args.checkpoint)
    checkpoint = load_checkpoint(file)
    net, classes = build_network(file, checkpoint, choose_device(args.device))
    stated = checkpoint["args"]
    names = [args.source_file or stated.get("source_file"), args.target_file or stated.get("target_file")]
    for flag, name in zip(("--source_file", "--target_file"), names, strict=True):
        if not isinstance(name, str) or "\0" in name:
            raise UserError(f"{file} does not say its domain; give {flag}.")
    sides = [
        look_at(name, read_validation(args.data_root, name, classes, net), net, domain, args.limit, args.seed)
        for name, domain in zip(names, statistics(net, stated), strict=True)
    ]
    distance = domain_distance(sides[0].features, sides[1].features)
    points = embed(torch.cat([side.features[side.rows] for side in sides]).numpy(), args.seed)
    domains = np.repeat([0, 1], [len(side.rows) for side in sides])
    labels = np.concatenate([side.drawn_labels() for side in sides])
    how = (
        f"{stated.get('train_mode', 'published dann')}, recipe {stated.get('recipe', 'published')}, {net.arch} network"
    )
    title = (
        f"{sides[0].in_words()} -> {sides[1].in_words()}\n{how}; proxy A-distance {shown(distance, 2)}; "
        f"{len(sides[0].rows)} + {len(sides[1].rows)} images drawn"
    )
    args.out_path.mkdir(parents=True, exist_ok=True)
    draw_by_class(points, domains, labels, classes, names, title, args.out_path / "latent_by_class.png")
    draw_by_domain(points, domains, names, title, args.out_path / "latent_by_domain.png")
    write_coordinates(args.out_path / "latent.csv", sides, classes, points)
    print(f"{title}\n{args.out_path}")
    return {
        "out_path": str(args.out_path),
        "accuracy": {side.name: side.accuracy for side in sides},
        "proxy_a_distance": distance,
        "count": len(points),
    }


if __name__ == "__main__":
    run_script(main)

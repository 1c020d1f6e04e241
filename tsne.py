"""Draw the latent space of a run: features G_f of validation images by t-SNE.

    python tsne.py --checkpoint runs/dann_usps_tuned_seed0 \\
        --data_root data/digits --out_path figures

Writes latent_by_class.png, latent_by_domain.png and latent.csv (image, domain,
label, prediction, x, y). Domains and classes come from the checkpoint. About 20
seconds for the default 1,000 images a domain on 2 cores.
"""

import threads  # noqa: F401

# isort: split
import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from dataset import Domain, read_domain
from listing import NoClasses, list_split, of_known_classes
from metrics import MINIMUM, predict, proxy_a_distance
from model import DANN, SOURCE
from plots import draw_by_class, draw_by_domain
from runs import build_network, load_checkpoint, resolve_checkpoint
from utils import DEVICES, SEED, Parser, UserError, atomic_path, bounded, choose_device, run_script, shown, user_path

FILES = {".png", ".jpg", ".jpeg", ".svg", ".pdf", ".csv"}  # what a user who takes --out_path for a file may name


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--checkpoint", type=user_path, required=True, metavar="PATH", help="run folder or checkpoint file"
    )
    parser.add_argument(
        "--data_root", type=user_path, required=True, metavar="DIR", help="folder that holds the domains"
    )
    parser.add_argument("--out_path", type=user_path, required=True, metavar="DIR", help="folder for the figures")
    parser.add_argument("--source_file", metavar="NAME", help="source domain (default: the checkpoint's)")
    parser.add_argument("--target_file", metavar="NAME", help="target domain (default: the checkpoint's)")
    parser.add_argument(
        "--limit",
        type=bounded(int, 10, 20000),
        default=1000,
        metavar="N",
        help="images of each domain at most, drawn at random (default: 1000)",
    )
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="of the drawing and of t-SNE (default: 0)")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to compute features (default: auto)")
    return parser


def read_validation(data_root: Path, domain: str, classes: list[str], net: DANN) -> tuple[Domain, str]:
    """Images of a domain and the split they are of: val, or train where there is no val; labels where they are there.

    Labels that are no classes of the network (a target's folders may sort by anything) are left out.
    """
    for split in ("val", "train"):
        try:
            listing = list_split(data_root, domain, split, with_labels=True)
        except NoClasses:  # the folders of a target without labels need not be its classes
            listing = list_split(data_root, domain, split, with_labels=False)
        if listing is not None:
            found = of_known_classes(listing, classes)
            return read_domain(found, classes, net.arguments["size"], 0, wanted=net.preprocessing), split
    raise UserError(f"{data_root / domain} holds no images; put some there.")


@dataclass
class Side:
    """One domain of the figures: every image's feature [N, F] and prediction [N], and the rows that are drawn."""

    name: str
    split: str
    data: Domain
    features: Tensor
    predicted: Tensor
    rows: list[int]

    def in_words(self) -> str:
        """Name, n and accuracy for the title."""
        share = self.accuracy()
        words = "no labels" if share is None else f"accuracy {share:.3f}"
        return f"{self.name} {self.split} (n = {len(self.data):,}, {words})"

    def accuracy(self) -> float | None:
        if self.data.labels is None:
            return None
        return (self.predicted == self.data.labels).sum().item() / len(self.data)

    def drawn_labels(self) -> list[int]:
        """Class indices of the drawn images, -1 without labels."""
        return [-1] * len(self.rows) if self.data.labels is None else self.data.labels[self.rows].tolist()


def look_at(data_root: Path, name: str, net: DANN, classes: list[str], statistics: int, limit: int, seed: int) -> Side:
    """Read a domain, pass it with the BatchNorm statistics of `statistics`, and draw `limit` images by the seed."""
    data, split = read_validation(data_root, name, classes, net)
    features, probabilities = predict(net, data.images, domain=statistics)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return Side(name, split, data, features, probabilities.argmax(1), order[:limit].sort().values.tolist())


def embed(features: np.ndarray, seed: int) -> np.ndarray:
    """Features [N, F] -> coordinates [N, 2] by PCA to at most 50 dimensions and t-SNE.

    Raises UserError where all are alike.
    """
    if not np.isfinite(features).all() or np.ptp(features, axis=0).max() < 1e-6:
        raise UserError(
            f"the features of all {len(features)} images are the same, so there is nothing to draw: the network has "
            "collapsed; train it again with another --seed or a lower -lr."
        )
    reduced = PCA(min(50, *features.shape), random_state=seed).fit_transform(features)
    perplexity = min(30.0, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)


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
    # BatchNorm statistics of the source exist where it was trained on; a `target` run has its target's alone.
    alone = stated.get("train_mode") == "target" and not stated.get("with_source")
    statistics = [net.predict_as if alone else SOURCE, net.predict_as]
    sides = [
        look_at(args.data_root, name, net, classes, d, args.limit, args.seed)
        for name, d in zip(names, statistics, strict=True)
    ]
    enough = min(len(side.data) for side in sides) >= MINIMUM
    distance = proxy_a_distance(sides[0].features, sides[1].features) if enough else None
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
        "accuracy": {side.name: side.accuracy() for side in sides},
        "proxy_a_distance": distance,
        "count": len(points),
    }


if __name__ == "__main__":
    run_script(main)

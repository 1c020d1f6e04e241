"""Draw the latent space of a run: features G_f of source and target validation images, embedded by t-SNE.

    python tsne.py --checkpoint runs/dann_usps_paper_seed0 --data_root data/digits --out_path figures

Writes latent_by_class.png, latent_by_domain.png and latent.csv (image, domain, label, prediction, x, y). Domains and
classes come from the checkpoint. About 20 seconds for the default 1,000 images a domain on 2 cores.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from checkpoint import build_network, load_checkpoint, resolve_checkpoint
from dataset import Domain, list_split, read_domain
from metrics import predict, proxy_a_distance
from model import SOURCE
from plots import draw_by_class, draw_by_domain
from utils import DEVICES, SEED, Parser, UserError, atomic_path, bounded, choose_device, run_script


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="PATH", help="run folder or checkpoint file")
    parser.add_argument("--data_root", type=Path, required=True, metavar="DIR", help="folder that holds the domains")
    parser.add_argument("--out_path", type=Path, required=True, metavar="DIR", help="folder for the figures")
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


def read_validation(args: argparse.Namespace, domain: str, classes: list[str], size: int) -> Domain:
    """Validation images of a domain, its training images where it has none; labels where they are there."""
    for split in ("val", "train"):
        listing = list_split(args.data_root, domain, split, with_labels=True)
        if listing is not None:
            if listing.origin.suffix != ".csv":  # folder names of an unlabelled domain need not be classes
                known = listing.labels is not None and set(listing.labels) <= set(classes)
                listing.labels = listing.labels if known else None
            return read_domain(listing, classes, size, 0)
    raise UserError(f"{args.data_root / domain} holds no images.")


def draw_sample(domain: Domain, limit: int, seed: int) -> Domain:
    """At most `limit` images of a domain, chosen by `seed`."""
    rows = torch.randperm(len(domain), generator=torch.Generator().manual_seed(seed))[:limit].sort().values
    labels = domain.labels[rows] if domain.labels is not None else None
    return Domain(domain.images[rows], labels, [domain.names[i] for i in rows.tolist()])


def embed(features: np.ndarray, seed: int) -> np.ndarray:
    """Features [N, F] -> coordinates [N, 2] by PCA to at most 50 dimensions and t-SNE."""
    reduced = PCA(min(50, *features.shape), random_state=seed).fit_transform(features)
    perplexity = min(30.0, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Draw both figures; returns the paths, the accuracies and the proxy A-distance that the titles state."""
    args = build_parser().parse_args(argv)
    if args.out_path.exists() and not args.out_path.is_dir():
        raise UserError(f"--out_path {args.out_path} is a file; name a folder.")
    file = resolve_checkpoint(args.checkpoint)
    checkpoint = load_checkpoint(file)
    net, classes = build_network(file, checkpoint, choose_device(args.device))
    names = [
        args.source_file or checkpoint["args"].get("source_file"),
        args.target_file or checkpoint["args"].get("target_file"),
    ]
    for flag, name in zip(("--source_file", "--target_file"), names, strict=True):
        if name is None:
            raise UserError(f"{file} does not say its domain; give {flag}.")
    sides = (SOURCE, net.predict_as)  # whose BatchNorm statistics each domain is passed with
    full = [read_validation(args, name, classes, net.arguments["size"]) for name in names]
    f_full, p_full = zip(
        *(predict(net, data.images, domain=d) for data, d in zip(full, sides, strict=True)), strict=True
    )
    accuracies = [
        None if domain.labels is None else (p.argmax(1) == domain.labels).sum().item() / len(domain)
        for domain, p in zip(full, p_full, strict=True)
    ]
    distance = proxy_a_distance(f_full[0], f_full[1])
    drawn = [draw_sample(domain, args.limit, args.seed) for domain in full]
    f, p = zip(*(predict(net, data.images, domain=d) for data, d in zip(drawn, sides, strict=True)), strict=True)
    points = embed(torch.cat(f).numpy(), args.seed)
    domains = np.repeat([0, 1], [len(domain) for domain in drawn])
    labels = np.concatenate(
        [np.full(len(domain), -1) if domain.labels is None else domain.labels.numpy() for domain in drawn]
    )
    words = [
        f"{name} (n = {len(domain)}" + (")" if share is None else f", accuracy {share:.3f})")
        for name, domain, share in zip(names, full, accuracies, strict=True)
    ]
    stated = checkpoint["args"]
    how = (
        f"{stated.get('train_mode', 'published dann')}, recipe {stated.get('recipe', 'unknown')}, "
        f"{net.arguments['arch']} network"
    )
    title = (
        f"{words[0]} -> {words[1]}\n{how}; proxy A-distance {distance:.2f}; "
        f"{len(drawn[0])} + {len(drawn[1])} validation images drawn"
    )
    args.out_path.mkdir(parents=True, exist_ok=True)
    draw_by_class(points, domains, labels, classes, names, title, args.out_path / "latent_by_class.png")
    draw_by_domain(points, domains, names, title, args.out_path / "latent_by_domain.png")
    predicted = torch.cat(p).argmax(1).tolist()
    table = pd.DataFrame(
        {
            "image_name": [name for domain in drawn for name in domain.names],
            "domain": [names[d] for d in domains],
            "label": [classes[k] if k >= 0 else "" for k in labels],
            "prediction": [classes[k] for k in predicted],
            "x": points[:, 0],
            "y": points[:, 1],
        }
    )
    with atomic_path(args.out_path / "latent.csv") as part:
        table.to_csv(part, index=False, float_format="%.4f")
    print(f"{title}\n{args.out_path}")
    return {
        "out_path": str(args.out_path),
        "accuracy": dict(zip(names, accuracies, strict=True)),
        "proxy_a_distance": distance,
        "count": len(points),
    }


if __name__ == "__main__":
    run_script(main)

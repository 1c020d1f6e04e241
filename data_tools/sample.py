"""The rows and the split behind the README's tables: `prepare_data.py digits --sample`.

mnistm: the released MNIST-M training set, 28x28 out of the middle of its 32x32. usps: its training images at 28x28.
svhn: the digits of its first 499 training photographs. The split is 80/20, that of svhn 70/30 by photograph, so that no
number's neighbours stand on both sides.
"""

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from data_tools.archives import (
    FILTERS,
    SIDE,
    SVHN,
    USPS,
    Archive,
    Labels,
    Pixels,
    Source,
    read_svhn,
    read_usps,
    resized,
)
from utils import UserError

MNISTM = Archive(
    "mnist_m.tar.gz",
    "https://cornell.box.com/shared/static/jado7quprg6hzzdubvwzh9umr75damwi",
    "859df31c91afe82e80e5012ba928f279",
)
SPLIT_SEED = 20221
TRAIN_SHARE = {"mnistm": 0.8, "svhn": 0.7, "usps": 0.8}
# Digits on each of SVHN's first 499 training photographs, in their order: the cropped digits do not say it.
PHOTO_DIGITS = (
    "222222233222222222321322322232322212222223232322332222423212122222232242122233422221222123322242"
    "231322132221221322232432421123122132212122212123242323232111212321313323223222313224222433221231"
    "122133232331223132221133123231321313213242333232224222112223222222122324222133231323222122322223"
    "223123222321122232233222223223223223323232213422332232121221121143312212223121222212223211223323"
    "323212223134322231332322222422322224322122213112213222223122231223232322333122224221222224344223"
    "3423321212111322321"
)
# sha256 of the labels (uint8 [N]) and of the pixels (uint8 [N, 28, 28] or [N, 28, 28, 3]) that were measured.
LABELS_SHA256 = {
    "mnistm": "3270ced1a201191cc8822212bf0969cb73d940b21842e1c8c09413d70ca57d76",
    "svhn": "bf471b1128a601bb62b43db701bf4e00e73a3f236bf8b44788f554d584f2001a",
    "usps": "ee5027fd47b76715ac18ca27e72fa1332bde98e0b8ce593b503bb2bdb6c03da0",
}
PIXELS_SHA256 = {
    "mnistm": "7ea10580b2ba73a424d73c618000011af38c19bb583f30faa310ef69a5d08f26",
    "svhn": "d844110d756a4b017a5305b7e67144dff06228b09ff90cf1ed6bf2bbeb6df5c9",
    "usps": "4bac892618d736fc72f834279d98c056d9f60cf07fe5bbf8f6e0d8aefb0fc36a",
}


def photo_of_digit() -> Labels:
    """Which photograph, 0 to 498, each of SVHN's first 1,083 training digits is of: int64 [1083]."""
    return np.repeat(np.arange(len(PHOTO_DIGITS)), [int(count) for count in PHOTO_DIGITS])


def sample_rows(domain: str, count: int) -> dict[str, Labels]:
    """Rows of train and val of a domain of `count` images, both rising: whole photographs of svhn, else single rows."""
    rng = np.random.default_rng(SPLIT_SEED)
    group = photo_of_digit() if domain == "svhn" else np.arange(count)
    order = rng.permutation(len(np.unique(group)))
    train = np.isin(group, order[: int(TRAIN_SHARE[domain] * len(order))])
    return {"train": np.flatnonzero(train), "val": np.flatnonzero(~train)}


def read_released(path: Path) -> tuple[Pixels, Labels]:
    """The middle 28x28 of the released MNIST-M training images, in the order of their names."""
    images: dict[str, Pixels] = {}
    labels: dict[str, int] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member) if "mnist_m_train" in member.name and member.isfile() else None
            if file is None:
                continue
            if member.name.endswith("_labels.txt"):
                lines = file.read().decode().split()
                labels = dict(zip(lines[::2], map(int, lines[1::2]), strict=True))
            elif member.name.endswith(".png"):
                edge = (32 - SIDE) // 2
                picture = np.asarray(Image.open(file).convert("RGB"))
                images[Path(member.name).name] = picture[edge : edge + SIDE, edge : edge + SIDE]
    if not images or images.keys() != labels.keys():
        raise UserError(f"{path} lacks the training images of MNIST-M or their labels; fetch {MNISTM.address} again.")
    names = sorted(images)
    return np.stack([images[name] for name in names]), np.array([labels[name] for name in names], dtype=np.int64)


def enlarged(images: Pixels) -> Pixels:
    """Images uint8 [N, 16, 16] at 28x28: bilinear in float32, rounded."""
    wide = interpolate(torch.from_numpy(images)[:, None].float(), size=(SIDE, SIDE), mode="bilinear")
    return wide[:, 0].round().to(torch.uint8).numpy()


def read_sample(domain: str, files: dict[str, Path]) -> tuple[Pixels, Labels]:
    """Images at 28x28 and labels of a domain's rows, in their order."""
    if domain == "mnistm":
        return read_released(files[MNISTM.name])
    if domain == "usps":
        images, labels = read_usps(files, splits=(True,))
        return enlarged(images), labels
    count = len(photo_of_digit())
    images, labels = read_svhn(files, splits=("train",))
    return resized(images[:count], FILTERS["svhn"]), labels[:count]


def sha256(array: Pixels) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def doubt(domain: str, images: Pixels, labels: Labels) -> str | None:
    """UserError where the rows are not those of the tables; a sentence where only the pixels' rounding differs."""
    if sha256(labels.astype(np.uint8)) != LABELS_SHA256[domain]:
        raise UserError(
            f"--sample: the labels of {domain} are not those of the tables ({len(labels):,} rows); delete its "
            "archive and fetch it again, or make the domain without --sample."
        )
    if sha256(images) != PIXELS_SHA256[domain]:
        return (
            f"{domain}: the rows, labels and split are those of the tables, but not every pixel is, so accuracies may "
            "differ in the last digits"
        )
    return None


def sampled(domain: str) -> Source:
    """A domain as it stands behind the README's tables."""
    archives = {"mnistm": [MNISTM], "svhn": SVHN[:1], "usps": USPS[:1]}
    return Source(
        archives[domain],
        lambda files: read_sample(domain, files),
        lambda labels: sample_rows(domain, len(labels)),
        digits=5,
        doubt=lambda images, labels: doubt(domain, images, labels),
    )

"""The rows and the split behind the README's tables: `prepare_data.py digits --sample`.

mnistm: the released MNIST-M training set, 28x28 out of the middle of its 32x32. usps: its training images at 28x28.
svhn: 1,083 digits of its training set, those of the first 499 photographs, and 5,643 of its test set, pooled as the
published numbers had it. The split is 80/20, that of svhn 70/30 by photograph, so that no number's neighbours stand on
both sides.
"""

import base64
import hashlib
import tarfile
import zlib
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
# Rows of SVHN's public files, from 0: set, first, end.
SVHN_ROWS = (("train", 0, 1083), ("test", 999, 1642), ("test", 9999, 14_999))
# Digits on each of the 3,335 photographs of those rows, in their order: the cropped digits do not say it. A character
# each, deflated, in base64.
PHOTO_DIGITS = (
    "eNptVgFSBDEIe1Ma/P/X3EIC1NHRc9prKYQQOCd/yOMfHvB+3r/7CW/nsg7GPTXffGukkTi6gDr4rXmtQYZQZoP3xndGW9Ad3O/0ElBrfAbq5SNj95"
    "FgXiPSQt64xlgP4S6YK9THNVtm8jpQfstd1ibrCr1ZZ9JUwqJLwor9K2hww2fuZUA3AET6lTcFGNrYvZihVmShCCnPQj4EhamirddlcvKSO/dSpSUY"
    "USlh+fMBKt/uI7gHr4eVys4m7O3xU3IawiSd0PenDCRAMH8yMpupVeW+7mBAdwBlnTaBIRfGLH3+mAdnU1ZPTFqby6JjASm/wD4J/L1VobEwIzguAO"
    "uIrPbecqWBQPPkIR3XOUFH1ULBPNVn9mAhdhoaTHD3NVF1BYOoo2HScRXcOECHwx2gmFnuAJMPjOPmepMmngSMfmCnTORVTT2gmYMUDy5WgaNSeY1m"
    "RaAIrl2szEiD7r3A4LHyTb1DjBPEcKDgryqrEkyVcNRNA6bmNE3uq1AYWCF1FfPFsuBns7xoSREOB6/LrkZLbe+yeEu/NYBh/WNzpklmueJw+zowpx"
    "bpexdcTCz9hKmtsmFWF1xNSzdVOhXlLnu4+q41YBDaKuOiSWfSjO3DjJe9xb+uycw6sSRPQWHVBAtJvig5F1huYBjMfX1Q3pWV/WzUla2KcItYTTe5"
    "RTT9ls5w7DprXPpy3AhfVauemP5WSTRBj8VeAfLsPN/N1JDqWatSSrpolZFm8CnnTv2IeCsnVuFWB94CVI1d6oLpgq2uePvK+OW0l3CYEFUa3PkYPZ"
    "3im8Ih+VYqO2INNVyaiRkqsoAYaN846gaLJl02kKPAnkqqO+cqTvP9bVXzJJ5eDceOkn222qoDqg84OWyWe0Ya2vQZLMo/QorTkGLrxe6zzvE8vpoM"
    "FldRCEdJs2vLdBGxz9OLwdUU73BJjjqSj2pYVAI95XQ6z+nwaZ6/s6J7lyCDZAZ8Roinn70jpfdjOtUIwT8zzNLq4dCco6ch92kPgeyBbSaTpZt4no"
    "nJHdZwxGk15/wg26j0qAdhaPpfKNGDcvfs1qlYQH6bQfYsGGcNoqTD1WDLbOIBD72MIZ1HSOSsgEdB37F0el3NQ9btX+tmi7U="
)
# sha256 of the labels (uint8 [N]) and of the pixels (uint8 [N, 28, 28] or [N, 28, 28, 3]) that were measured.
LABELS_SHA256 = {
    "mnistm": "3270ced1a201191cc8822212bf0969cb73d940b21842e1c8c09413d70ca57d76",
    "svhn": "0078aca2fd7bdc831e1d47dc597baf594a9aa27e72eb621e9ef3470af42f81e4",
    "usps": "ee5027fd47b76715ac18ca27e72fa1332bde98e0b8ce593b503bb2bdb6c03da0",
}
PIXELS_SHA256 = {
    "mnistm": "7ea10580b2ba73a424d73c618000011af38c19bb583f30faa310ef69a5d08f26",
    "svhn": "30acf99311a3bd903b3d162daeaa629c9e5f61969c3f5f1cecfe74d164f1f995",
    "usps": "4bac892618d736fc72f834279d98c056d9f60cf07fe5bbf8f6e0d8aefb0fc36a",
}


def photo_of_digit() -> Labels:
    """Which photograph, numbered from 0, each of the sample's SVHN digits is of: int64 [6726], rising."""
    counts = [int(count) for count in zlib.decompress(base64.b64decode(PHOTO_DIGITS)).decode()]
    return np.repeat(np.arange(len(counts)), counts)


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
    parts = {split: read_svhn(files, splits=(split,)) for split in ("train", "test")}
    images, labels = (np.concatenate([parts[split][i][start:stop] for split, start, stop in SVHN_ROWS]) for i in (0, 1))
    return resized(images, FILTERS["svhn"]), labels


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
    archives = {"mnistm": [MNISTM], "svhn": SVHN, "usps": USPS[:1]}
    return Source(
        archives[domain],
        lambda files: read_sample(domain, files),
        lambda labels: sample_rows(domain, len(labels)),
        {"sample": True},
        digits=5,
        doubt=lambda images, labels: doubt(domain, images, labels),
    )

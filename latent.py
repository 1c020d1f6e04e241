"""The latent space of a network: validation images of both domains, their features G_f, and these in two dimensions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cache import Cache, user_folder
from dataset import Domain, read_domain, some_rows
from listing import NoClasses, list_split, of_known_classes
from metrics import Answers, answers
from model import DANN, SOURCE
from utils import UserError


def read_validation(data_root: Path, domain: str, classes: list[str], net: DANN) -> tuple[Domain, str]:
    """Images of a domain and the split they are of: val, or train where there is no val; labels where they are there.

    Labels that are no classes of the network (a target's folders may sort by anything) are left out. What a training
    kept in the user's cache is not decoded again.
    """
    cache = Cache(user_folder(), keep=False)
    for split in ("val", "train"):
        try:
            listing = list_split(data_root, domain, split, with_labels=True)
        except NoClasses:  # the folders of a target without labels need not be its classes
            listing = list_split(data_root, domain, split, with_labels=False)
        if listing is not None:
            found, size = of_known_classes(listing, classes), net.arguments["size"]
            return read_domain(found, classes, size, 0, cache=cache, wanted=net.preprocessing), split
    raise UserError(f"{data_root / domain} holds no images; put some there.")


@dataclass
class Side(Answers):
    """One domain in the latent space: the answers on its images, and the rows to draw."""

    name: str
    split: str
    data: Domain
    rows: list[int]

    @property
    def predicted(self) -> Tensor:
        """Class indices [N]."""
        return self.probabilities.argmax(1)

    def in_words(self) -> str:
        """Name, n and accuracy for the title."""
        words = "no labels" if self.accuracy is None else f"accuracy {self.accuracy:.3f}"
        return f"{self.name} {self.split} (n = {len(self.data):,}, {words})"

    def drawn_labels(self) -> list[int]:
        """Class indices of the drawn images, -1 without labels."""
        return [-1] * len(self.rows) if self.data.labels is None else self.data.labels[self.rows].tolist()


def statistics(net: DANN, stated: dict[str, Any]) -> list[int]:
    """Whose BatchNorm statistics the images of source and target pass with; `stated`: args of the checkpoint.

    Those of the source exist where it was trained on; a `target` run has its target's alone.
    """
    alone = stated.get("train_mode") == "target" and not stated.get("with_source")
    return [net.predict_as if alone else SOURCE, net.predict_as]


def look_at(name: str, images: tuple[Domain, str], net: DANN, domain: int, limit: int, seed: int) -> Side:
    """Pass what read_validation gave with the BatchNorm statistics of `domain`; draw `limit` images by the seed."""
    data, split = images
    found = answers(net, data, domain)
    assert found is not None  # a listing is never empty
    return Side(**vars(found), name=name, split=split, data=data, rows=some_rows(len(data), limit, seed))


def embed(features: np.ndarray, seed: int, start: np.ndarray | None = None) -> np.ndarray:
    """Features [N, F] -> coordinates [N, 2] by PCA to at most 50 dimensions and t-SNE.

    start: coordinates [N, 2] of the same images to begin with, so that two pictures of them can be compared; by default
    the first two components. Raises UserError where all features are alike.
    """
    from sklearn.decomposition import PCA  # here, as --help and a table of runs need not wait for it
    from sklearn.manifold import TSNE

    if not np.isfinite(features).all() or np.ptp(features, axis=0).max() < 1e-6:
        raise UserError(
            f"the features of all {len(features)} images are the same, so there is nothing to draw: the network has "
            "collapsed; train it again with another --seed or a lower -lr."
        )
    reduced = PCA(min(50, *features.shape), random_state=seed).fit_transform(features)
    perplexity = min(30.0, (len(features) - 1) / 3)
    init = "pca" if start is None else (1e-4 * start / start[:, 0].std()).astype(np.float32)  # of the size of "pca"
    return TSNE(perplexity=perplexity, init=init, random_state=seed).fit_transform(reduced)

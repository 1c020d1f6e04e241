"""Signs of how well a network does on a target whose labels nobody knows: computed from its answers alone.

Each takes class probabilities float32 [N, K] of N target images. Which sign goes with the true accuracy, and where it
fails, stands in the README with the runs behind it.
"""

import math

import torch
from torch import Tensor

SIGNS = ("entropy", "diversity", "information_maximisation", "soft_neighbourhood_density")


def entropy(p: Tensor) -> Tensor:
    """Entropy over the last dimension, in nats: [..., K] -> [...]."""
    return -torch.special.xlogy(p, p).sum(-1)


def soft_neighbourhood_density(p: Tensor, temperature: float = 0.05) -> float:
    """How densely each image's answer is surrounded by like answers, 0..log(N - 1); higher is better.

    The mean entropy of softmax(S_i / temperature) over the other images j, S_ij the cosine of the probabilities of i
    and j. N of at least 2. Source: Saito et al., arXiv 2108.10860.
    """
    direction = torch.nn.functional.normalize(p.double(), dim=1)
    similarity = direction @ direction.T / temperature  # [N, N]
    similarity.fill_diagonal_(-math.inf)
    return entropy(similarity.softmax(1)).mean().item()


def label_free_signs(p: Tensor, limit: int = 2000) -> dict[str, float]:
    """All signs of probabilities [N, K]; of the first `limit` images, as the density compares each with each.

    entropy: mean over images, low where the answers are sure. diversity: entropy of the mean answer, log K where all
    classes are answered alike, 0 when a single one is. information_maximisation: diversity - entropy, the mutual
    information of image and answer (Gomes et al., NIPS 2010). soft_neighbourhood_density: see there.
    """
    p = p[:limit].double()
    sure, spread = entropy(p).mean().item(), entropy(p.mean(0)).item()
    return {
        "entropy": sure,
        "diversity": spread,
        "information_maximisation": spread - sure,
        "soft_neighbourhood_density": soft_neighbourhood_density(p) if len(p) > 1 else 0.0,
    }

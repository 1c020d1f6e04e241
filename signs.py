"""Signs of how well a network does on a target whose labels nobody knows: computed from its answers alone.

Each takes class probabilities float32 [N, K] of N target images. Which sign goes with the true accuracy, and where it
fails, stands in the README with the runs behind it.
"""

import math
from typing import Any

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


def warnings_of(lines: list[dict[str, Any]], num_classes: int, adversarial: bool) -> list[str]:
    """What the lines of a finished run's metrics.jsonl give cause to doubt, a sentence each; no label is used.

    adversarial: whether the run was to align the domains.
    """
    found = []
    last = lines[-1]
    if last.get("diversity") is not None:
        answered = math.exp(last["diversity"])
        if answered < 1.05:
            found.append(
                "every target image gets the same answer: the features have collapsed; try another --seed, a lower "
                "-lr or more steps."
            )
        elif answered < num_classes / 2:
            found.append(
                f"the answers on the target spread over as few as {answered:.1f} of {num_classes} classes (exp of "
                "their entropy): unless the target is like that, adaptation has merged classes; compare another --seed."
            )
    if adversarial:
        if max(line["lambda"] for line in lines) == 0:
            found.append("lambda was 0 in every line: the run was too short to adapt; use more steps.")
        elif min(line["L_d"] for line in lines) > math.log(2) - 0.003:
            found.append(
                "the domain classifier never told the domains apart (L_d stayed at log 2 = 0.693): either they are "
                "alike, or it does not learn and nothing was adapted; try a higher -lr."
            )
    return found

"""What a trained network is worth: predictions, accuracy, features, and how far apart two domains still are."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from dataset import Domain
from model import DANN

EVAL_BATCH = {"cpu": 128}  # 1.0 to 1.09 times the rate of 64, which had 1.4 times that of 512; elsewhere 2048
MINIMUM = 10  # images of a domain for which a proxy A-distance means anything


def predict(
    net: DANN,
    images: Tensor,
    batch_size: int | None = None,
    domain: int | None = None,
    precision: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Features float32 [N, F] and class probabilities float32 [N, K] on the CPU, computed in float32.

    images: uint8 [N, H, W, 3] of `domain`, whose BatchNorm statistics are used (None: the network's predict_as).
    batch_size: None for one that suits the device. precision: bfloat16 for a rough answer, see inference.py.
    Puts the network in evaluation mode for the call: running statistics, no dropout.
    """

    @torch.inference_mode()
    def answer(batch: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(net.device.type, precision, enabled=precision != torch.float32):  # of this thread alone
            f = net.features(batch.to(net.device).permute(0, 3, 1, 2), domain)  # [B, F]
            logits = net.label_classifier(f)  # [B, K]
        return f.float().cpu(), logits.float().softmax(1).cpu()  # [B, F], [B, K]

    training = net.training
    net.eval()
    batches = images.split(batch_size or EVAL_BATCH.get(net.device.type, 2048))
    threads = torch.get_num_threads() if net.device.type == "cpu" else 1
    found = list(map(answer, batches)) if threads == 1 else a_thread_each(answer, batches, threads)
    net.train(training)
    features, probabilities = zip(*found, strict=True)
    return torch.cat(features), torch.cat(probabilities)


def a_thread_each(work: Callable[[Tensor], Any], batches: Sequence[Tensor], threads: int) -> list[Any]:
    """Results of `work` on each batch, in order; `threads` batches at a time, a single thread in each.

    A fifth more images a second than all threads on one batch after the other, where they wait for each other in every
    layer; the numbers are the same to the bit.
    """
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, batches))
    finally:
        torch.set_num_threads(threads)  # the setting of threads to come; that of the others is their own


@dataclass
class Answers:
    """What a network says of one set: features [N, F], probabilities [N, K] and, where labels exist, the accuracy."""

    features: Tensor
    probabilities: Tensor
    accuracy: float | None


def answers(net: DANN, data: Domain | None, domain: int | None = None) -> Answers | None:
    """Predict a set, and score it where it has labels; None where there is nothing to predict."""
    if data is None or len(data) == 0:
        return None
    features, probabilities = predict(net, data.images, domain=domain)
    right = (probabilities.argmax(1) == data.labels).sum().item() if data.labels is not None else None
    return Answers(features, probabilities, right / len(data) if right is not None else None)


def share_right(found: Answers | None) -> float | None:
    """Accuracy 0..1, None where it was not measured."""
    return found.accuracy if found else None


def proxy_a_distance(features_s: Tensor, features_t: Tensor, limit: int = 2000, seed: int = 0) -> float:
    """How well a linear classifier tells two domains apart: 2 (1 - 2 err), 0 not at all, 2 perfectly.

    features_s [N, F], features_t [M, F]: of held-out images; as many of each are drawn, `limit` at most, and err is
    the mean error of a logistic regression over 5 folds that it was not fitted on. Chance can carry it below 0.
    Source: Ben-David et al. 2007; arXiv 1505.07818, section 3.2 and 5.1, with a linear SVM.
    """
    count = min(len(features_s), len(features_t), limit)
    if count < MINIMUM:
        raise ValueError(f"{count} images of a domain are too few to measure a distance, {MINIMUM} are needed")
    generator = torch.Generator().manual_seed(seed)
    drawn = [f[torch.randperm(len(f), generator=generator)[:count]] for f in (features_s, features_t)]
    x = torch.cat(drawn).double().numpy()
    d = torch.arange(2).repeat_interleave(count).numpy()
    order = torch.randperm(2 * count, generator=generator).numpy()
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    return 2.0 * (2.0 * float(cross_val_score(classifier, x[order], d[order], cv=5).mean()) - 1.0)


def domain_distance(source: Answers | None, target: Answers | None, limit: int = 2000) -> float | None:
    """Proxy A-distance of two sets' features; None without both or with under 10 images."""
    if source is None or target is None or min(len(source.features), len(target.features)) < MINIMUM:
        return None
    return proxy_a_distance(source.features, target.features, limit)

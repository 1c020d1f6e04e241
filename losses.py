"""The losses of a training step, and the teacher behind the pseudo-labels; each with its formula and its source.

To try another loss, add it to Objective.forward under a name in L_, which the step sums up, and its weight to the
recipe in config.py. The parts of a recipe, which `--without PART ...` leaves out (lab/ has what each is worth):

    augmentation   strong random views of source and target images                   augment.views
    distractors    other digits pasted at the sides of the source's, in those views  augment.paste_distractors
    adversarial    L_d, the domain loss of DANN, with the gradient reversal          domain_loss
    priors         source batches drawn by the target's class priors, as estimated   ClassPriors
    confusion      L_c, minimum class confusion of the target's answers              minimum_class_confusion
    teacher        L_u, pseudo-labels of a moving average of the network             Teacher, pseudo_label_loss
"""

import copy
import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import DANN, SOURCE, TARGET, DomainBatchNorm, reverse_gradient
from utils import ALONE, Ranks

PARTS = ("augmentation", "distractors", "adversarial", "priors", "confusion", "teacher")
PSEUDO_LABEL_MEASURES = ("pseudo_label_coverage", "teacher_agreement")  # shares of each batch that need no label
# What metrics.jsonl has as means of the steps.
LOGGED = ("L_y", "L_d", "L_c", "L_u", "domain_accuracy", *PSEUDO_LABEL_MEASURES)


class Objective(nn.Module):
    """The losses of one step as one forward pass, which is what DistributedDataParallel wraps.

    Names in L_ are losses, to be summed; the others are shares without a gradient, for the log.
    """

    def __init__(self, net: DANN, parts: Collection[str] = ()) -> None:
        super().__init__()
        self.net, self.parts = net, parts

    def forward(
        self,
        x_s: Tensor,
        y_s: Tensor,
        x_t: Tensor | None = None,
        lambda_p: float = 0.0,
        pseudo: tuple[Tensor, Tensor] | None = None,
        weight_u: float = 1.0,
        priors: Tensor | None = None,
        y_t: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """L_y of the labelled images; with target images L_d too, L_c and, with the teacher's `pseudo` labels, L_u.

        x_s, x_t: uint8 or float [B, 3, H, W] in 0..255, y_s: int64 [B], pseudo: labels int64 [B] and mask float [B] of
        x_t, for L_u times weight_u. priors: float [K], of the target's classes. Returns the losses and the logits of
        x_t, [B, K], None where no part needs them. With net.norm `domain` source and target pass BatchNorm apart: each
        is normalised by its own batch and keeps running statistics of its own. Without x_t the labelled images are
        those of net.predict_as. With y_t, int64 [B], there is L_y alone, of both domains.
        """
        net = self.net
        if x_t is None:
            return {"L_y": F.cross_entropy(net(x_s).float(), y_s)}, None
        f_s, f_t = net.features_of_both(x_s, x_t)  # [B, F] each
        if y_t is not None:
            z = net.label_classifier(torch.cat([f_s, f_t])).float()  # [2B, K]
            return {"L_y": F.cross_entropy(z, torch.cat([y_s, y_t]))}, None
        z_s = net.label_classifier(f_s).float()  # [B, K]
        d_hat = net.domain_classifier(reverse_gradient(torch.cat([f_s, f_t]), lambda_p)).float()  # [2B, 2]
        L_d, domain_accuracy = domain_loss(d_hat, len(f_s))
        losses = {"L_y": F.cross_entropy(z_s, y_s), "L_d": L_d, "domain_accuracy": domain_accuracy}
        if not pseudo and not {"priors", "confusion"} & set(self.parts):
            return losses, None
        z_t = net.label_classifier(f_t).float()  # [B, K]
        if "confusion" in self.parts:
            losses["L_c"] = minimum_class_confusion(z_t, priors)
        if pseudo:
            labels, mask = pseudo
            losses["L_u"] = weight_u * pseudo_label_loss(z_t, labels, mask)
            losses["pseudo_label_coverage"] = mask.mean()
            losses["teacher_agreement"] = (z_t.argmax(1) == labels).float().mean()
        return losses, z_t


def total(losses: dict[str, Tensor], weight_d: float = 1.0) -> Tensor:
    """The sum of the losses, those named L_, L_d times its weight: what is logged of it is ln 2 for a guess always."""
    named = {name: value for name, value in losses.items() if name.startswith("L_")}
    return torch.stack([weight_d * value if name == "L_d" else value for name, value in named.items()]).sum()


def entropy(p: Tensor) -> Tensor:
    """Entropy over the last dimension, in nats: [..., K] -> [...]."""
    return -torch.special.xlogy(p, p).sum(-1)


def entropy_and_diversity(p: Tensor) -> tuple[Tensor, Tensor]:
    """Of probabilities [N, K] the mean entropy, low where answers are sure, and the entropy of the mean answer."""
    return entropy(p).mean(), entropy(p.mean(0))


def domain_loss(d_hat: Tensor, count_s: int) -> tuple[Tensor, Tensor]:
    """L_d = -mean log p(d_i | f_i) over the images of both domains, and the domain classifier's accuracy.

    d_hat: logits float [N, 2], the first `count_s` of them of source images. With equal halves L_d is half of the
    paper's sum of a mean per domain, so recipe `paper` weighs it 2; the reversal hands G_f the gradient
    -lambda_p dL_d/df. Source: arXiv 1505.07818, equations 9 and 13 to 15.
    """
    d = torch.full((len(d_hat),), TARGET, device=d_hat.device)  # [N]
    d[:count_s] = SOURCE
    return F.cross_entropy(d_hat, d), (d_hat.argmax(1) == d).float().mean()


def minimum_class_confusion(z_t: Tensor, priors: Tensor | None = None, temperature: float = 2.5) -> Tensor:
    """L_c: how far the answers on the target confuse classes with each other, 0..1; no label is used.

    z_t: logits float [B, K]. With p = softmax(z / temperature) and w_i = 1 + exp(-H(p_i)), normalised to mean 1, the
    classes are confused by C = sum_i w_i p_i p_i^T, its rows normalised to 1; L_c is the mean over the rows of what
    lies beside the diagonal. Source: Jin et al., arXiv 1912.03699 (ECCV 2020), equations 2 to 6.

    priors: float [K], of the target's classes, by which the rows count in that mean (ours): all rows alike pull images
    into classes that the target hardly has.
    """
    p = (z_t / temperature).softmax(1)  # [B, K]
    w = 1 + (-entropy(p)).exp()  # [B]
    confusion = (p * (w / w.mean()).detach()[:, None]).T @ p  # [K, K]
    rows = confusion.sum(1).clamp_min(torch.finfo(p.dtype).tiny)  # [K], a class that no image can be: not 0 / 0
    certain = confusion.diagonal() / rows  # [K]
    return 1 - (certain.mean() if priors is None else (certain * priors).sum() / priors.sum())


def pseudo_label_loss(logits_t: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """L_u = 1/B sum_i mask_i * cross_entropy(logits_i, label_i): images below the confidence threshold count as 0.

    logits_t: float [B, K] of strong views, labels: int64 [B], mask: float [B] of 0 and 1. Source: Sohn et al.,
    arXiv 2001.07685 (FixMatch), equation 4.
    """
    return (F.cross_entropy(logits_t, labels, reduction="none") * mask).mean()


def ramp(p: float, end: float) -> float:
    """Weight 0..1 of the pseudo-labels at progress `p`: exp(-5 (1 - p / end)^2), 1 from `end` on.

    Source: Laine & Aila, arXiv 1610.02242; French et al., arXiv 1706.05208.
    """
    return math.exp(-5.0 * (1.0 - min(1.0, p / end)) ** 2)


def estimate_priors(q: Tensor, trained: Tensor, iterations: int = 20) -> Tensor:
    """Class priors float [K] of the images behind answers q float [N, K] of a classifier for the priors `trained` [K].

    EM from `trained` on: priors_k <- mean q_k priors_k / trained_k, normalised to 1 for each image. An image of each
    class lies beside them, so that no class is given up, or less of it: of many classes all together a fortieth of N.
    Source: Saerens et al. 2002, "Adjusting the outputs of a classifier to new a priori probabilities: a simple
    procedure".
    """
    priors, of_each = trained, min(1.0, len(q) / (40 * len(trained)))
    for _ in range(iterations):
        r = q * (priors / trained)  # [N, K]
        priors = ((r / r.sum(1, keepdim=True)).sum(0) + of_each) / (len(q) + of_each * len(trained))
    return priors


class ClassPriors:
    """The target's class priors, estimated without its labels, and source batches that have them.

    labels_s: int64 [N] of the source, whose shares by class are `source` [K]. `target` [K] begins with all classes
    alike, as a class that is rare in the source would hardly be drawn at first, and be lost. Every PERIOD steps it
    moves by RATE to the estimate from the answers on the last WINDOW batches, or back to its beginning while those are
    unsure, their entropy half of their diversity or more: a class would be lost. Batches drawn by it have the target's
    priors in all that they enter, L_y, L_d and BatchNorm's statistics; weights in the losses (Combes et al., arXiv
    2003.04475) leave the statistics those of the source, and were worse. The classifier is then one for the priors
    `target`: taken for one of `source`, each estimate counts the one before again, and rare classes are lost.

    estimated: whether `target` moves. On a target far from the source the estimate is wrong, and batches drawn by it
    confirm it, so train.py lets it move only where a network trained on the source alone is sure of the target
    (lab/NOTES.md).
    """

    WINDOW, PERIOD, RATE = 16, 5, 0.1

    def __init__(self, labels_s: Tensor, num_classes: int, device: torch.device) -> None:
        self.rows = labels_s.argsort(stable=True).to(device)  # class by class
        self.counts = labels_s.bincount(minlength=num_classes).to(device)
        self.source = self.counts / len(labels_s)
        self.target = torch.full_like(self.source, 1 / num_classes)
        self.estimated = True
        self.answers: list[Tensor] = []  # of the last batches, [B, K] each

    def draw(self, count: int) -> Tensor:
        """Rows int64 [count] of source images, their classes drawn by `target`, any image of a class alike."""
        classes = torch.multinomial(self.target, count, replacement=True)
        place = (torch.rand(count, device=classes.device) * self.counts[classes]).long()
        return self.rows[(self.counts.cumsum(0) - self.counts)[classes] + place]

    @torch.no_grad()
    def follow(self, z_t: Tensor, step: int, ranks: Ranks = ALONE) -> None:
        """Take in the logits [B, K] of the target's batch of `step`."""
        if not self.estimated:
            return
        self.answers = [*self.answers[1 - self.WINDOW :], ranks.gather(z_t.detach().softmax(1))]
        if (step + 1) % self.PERIOD == 0:
            q = torch.cat(self.answers)
            unsure, spread = entropy_and_diversity(q)
            estimate = torch.where(unsure < 0.5 * spread, estimate_priors(q, self.target), 1 / len(self.target))
            self.target.lerp_(estimate, self.RATE)

    def state_dict(self) -> dict[str, Any]:
        return {"target": self.target, "answers": self.answers, "estimated": self.estimated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.target.copy_(state["target"])
        self.answers, self.estimated = [q.to(self.target) for q in state["answers"]], state.get("estimated", True)


class Teacher:
    """Mean teacher: an exponential moving average of the network's weights, which labels clean target images.

    net: the average; it is what a run keeps and predicts with. Its BatchNorm statistics are those of clean images, of
    the target by `label`, of the source by `measure_source`. Source: Tarvainen & Valpola, arXiv 1703.01780; for
    adaptation French et al., arXiv 1706.05208.
    """

    def __init__(self, net: DANN, decay: float, threshold: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self.norms = [layer for layer in self.net.modules() if isinstance(layer, DomainBatchNorm)]
        self.decay, self.threshold = decay, threshold

    @torch.no_grad()
    def label(self, x_t: Tensor) -> tuple[Tensor, Tensor]:
        """Pseudo-labels int64 [B] of clean target images uint8 [B, 3, H, W]; mask float [B], 1 above the threshold.

        The target's BatchNorm statistics move with the batch.
        """
        for layer in self.norms:
            layer.train()  # statistics of this batch, but no dropout
        q = self.net(x_t, TARGET).float().softmax(1)  # [B, K]
        self.net.eval()
        confidence, labels = q.max(1)
        return labels, (confidence > self.threshold).float()

    @torch.no_grad()
    def measure_source(self, batches: Iterable[Tensor]) -> None:
        """BatchNorm statistics of the source anew: the mean of those of clean batches, uint8 [B, 3, H, W] each.

        Only to measure on the source, before a validation: those of its augmented views would set the domains apart.
        """
        for k, x_s in enumerate(batches):
            for layer in self.norms:
                layer.train()
                layer.source.momentum = 1 / (k + 1)
            self.net.features(x_s, SOURCE)
        self.net.eval()

    @torch.no_grad()
    def follow(self, net: nn.Module, step: int) -> None:
        """theta_teacher <- m theta_teacher + (1 - m) theta; m rises to `decay`, so that the start is soon forgotten."""
        m = min(self.decay, (step + 1) / (step + 10))
        for mine, theirs in zip(self.net.parameters(), net.parameters(), strict=True):
            mine.lerp_(theirs, 1 - m)

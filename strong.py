"""Recipe `strong`: what it adds to domain-adversarial training, each part with its formula and its source.

    augmentation   strong random views of source and target images                       augment.views
    neighbours     other digits at the sides of the source's digits, within those views  augment.neighbours
    adversarial    L_d, the domain loss of DANN, with the gradient reversal              losses.adversarial_losses
    teacher        L_u, pseudo-labels of a moving average of the network                 Teacher, pseudo_label_loss

`--without PART ...` leaves parts out; the README's ladder says what each is worth. No target label is read.
"""

import copy
import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import DANN, MOMENTUM, SOURCE, TARGET, DomainBatchNorm2d

PARTS = ("augmentation", "neighbours", "adversarial", "teacher")
TEACHER_SIGNS = ("pseudo_label_coverage", "teacher_agreement")  # label-free: shares of each batch, logged in training


def ramp(p: float, end: float) -> float:
    """Weight 0..1 of the pseudo-labels at progress `p`: exp(-5 (1 - p / end)^2), 1 from `end` on.

    Source: Laine & Aila, arXiv 1610.02242; French et al., arXiv 1706.05208.
    """
    return math.exp(-5.0 * (1.0 - min(1.0, p / end)) ** 2)


def pseudo_label_loss(logits_t: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """L_u = 1/B sum_i mask_i * cross_entropy(logits_i, label_i): images that the teacher is unsure of count as 0.

    logits_t: float [B, K] of strong views, labels: int64 [B], mask: float [B] of 0 and 1. Source: Sohn et al.,
    arXiv 2001.07685, equation 4.
    """
    return (F.cross_entropy(logits_t, labels, reduction="none") * mask).mean()


class Teacher:
    """Exponential moving average of the network's weights, which labels the target's unaltered images.

    net: the average; it is what a run keeps and predicts with. Its BatchNorm statistics are those of unaltered images,
    of the target by `label`, of the source by `meet_source`. Source: Tarvainen & Valpola, arXiv 1703.01780;
    for adaptation French et al., arXiv 1706.05208.
    """

    def __init__(self, net: DANN, decay: float, threshold: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self.norms = [layer for layer in self.net.modules() if isinstance(layer, DomainBatchNorm2d)]
        self.decay, self.threshold = decay, threshold

    @torch.no_grad()
    def label(self, x_t: Tensor) -> tuple[Tensor, Tensor]:
        """Pseudo-labels int64 [B] of unaltered target images uint8 [B, 3, H, W], and the mask float [B] of sure ones.

        Sure is a probability above the threshold. Statistics of the target move with the batch.
        """
        for layer in self.norms:
            layer.training = True  # statistics of this batch, but no dropout
        q = self.net(x_t, TARGET).float().softmax(1)  # [B, K]
        self.net.eval()
        confidence, labels = q.max(1)
        return labels, (confidence > self.threshold).float()

    @torch.no_grad()
    def meet_source(self, batches: Iterable[Tensor]) -> None:
        """Statistics of the source anew: the mean of those of unaltered batches, uint8 [B, 3, H, W] each.

        Only to measure on the source, before a validation: those of its altered views would set the domains apart.
        """
        for k, x_s in enumerate(batches):
            for layer in self.norms:
                layer.training, layer.momentum = True, 1 / (k + 1)
            self.net.features(x_s, SOURCE)
        self.net.eval()
        for layer in self.norms:
            layer.momentum = MOMENTUM

    @torch.no_grad()
    def follow(self, net: nn.Module, step: int) -> None:
        """theta_teacher <- m theta_teacher + (1 - m) theta; m rises to `decay`, so that the start is soon forgotten."""
        m = min(self.decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(self.net.parameters()), list(net.parameters()), 1 - m)

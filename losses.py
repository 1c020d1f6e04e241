"""The losses of one training step, for the three modes and both recipes; one sum, one update.

L_y, L_d and L_u are named as in the papers; what a dictionary of losses holds beside names in L_ is only logged.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import DANN, SOURCE, TARGET, reverse_gradient
from strong import pseudo_label_loss


def label_loss(net: DANN, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """L_y alone, for `source` and `target`. x: uint8 or float [B, 3, H, W] of net.predict_as, y: int64 [B]."""
    f = net.features(x)  # [B, F]
    return {"L_y": F.cross_entropy(net.label_classifier(f).float(), y)}


def adversarial_losses(
    net: DANN,
    x_s: Tensor,
    y_s: Tensor,
    x_t: Tensor,
    lambda_p: float,
    pseudo: tuple[Tensor, Tensor] | None = None,
    weight_u: float = 1.0,
) -> dict[str, Tensor]:
    """L_y, L_d and, with the teacher's `pseudo` labels, L_u of one step; beside them shares that have no gradient.

    x_s, x_t: uint8 or float [B, 3, H, W] in 0..255, y_s: int64 [B], pseudo: labels int64 [B] and mask float [B] of x_t.
    Source and target pass BatchNorm apart: each is normalised by its own batch and keeps running statistics of its own.
    L_d = -mean log p(d_i | f_i) over both domains, half of the paper's sum of a mean a domain; the reversal hands G_f
    the gradient -lambda_p dL_d/df. Source: arXiv 1505.07818, equations 9 and 13 to 15. L_u is times its weight.
    """
    f_s, f_t = net.features(x_s, SOURCE), net.features(x_t, TARGET)  # [B, F] each
    z_s = net.label_classifier(f_s).float()  # [B, K]
    d = torch.full((len(f_s) + len(f_t),), TARGET, device=f_s.device)  # [2B]
    d[: len(f_s)] = SOURCE
    d_hat = net.domain_classifier(reverse_gradient(torch.cat([f_s, f_t]), lambda_p)).float()  # [2B, 2]
    losses = {"L_y": F.cross_entropy(z_s, y_s), "L_d": F.cross_entropy(d_hat, d)}
    if pseudo:
        labels, mask = pseudo
        z_t = net.label_classifier(f_t).float()  # [B, K]
        losses["L_u"] = weight_u * pseudo_label_loss(z_t, labels, mask)
        losses["pseudo_label_coverage"] = mask.mean()
        losses["teacher_agreement"] = (z_t.argmax(1) == labels).float().mean()
    losses["domain_accuracy"] = (d_hat.argmax(1) == d).float().mean()
    return losses


def train_step(optimizer: torch.optim.Optimizer, losses: dict[str, Tensor]) -> None:
    """One update of theta_f, theta_y and theta_d on the sum of the losses."""
    loss = torch.stack([value for name, value in losses.items() if name.startswith("L_")]).sum()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


class Step(nn.Module):
    """The losses as one forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, net: DANN) -> None:
        super().__init__()
        self.net = net

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        x_t: Tensor | None = None,
        lambda_p: float = 0.0,
        pseudo: tuple[Tensor, Tensor] | None = None,
        weight_u: float = 1.0,
    ) -> dict[str, Tensor]:
        """label_loss without target images, adversarial_losses with them."""
        if x_t is None:
            return label_loss(self.net, x, y)
        return adversarial_losses(self.net, x, y, x_t, lambda_p, pseudo, weight_u)

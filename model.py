"""Domain-adversarial network: feature extractor, label classifier, domain classifier, gradient reversal, schedules.

Glossary, symbol of arXiv 1505.07818 -> name here (section):

    G_f(x; theta_f)   net.feature_extractor   (4.2)   images [B, 3, H, W] -> features [B, F]
    G_y(f; theta_y)   net.label_classifier    (4.2)   features [B, F] -> logits [B, K]
    G_d(f; theta_d)   net.domain_classifier   (4.2)   features [B, F] -> logits [B, 2]
    R(x)              reverse_gradient        (4.2)   identity forwards, -lambda_p times the gradient backwards
    lambda_p          lambda_schedule(p)      (5.2.2) 2 / (1 + exp(-10 p)) - 1
    mu_p              annealed(p)             (5.2.2) 0.01 / (1 + 10 p)^0.75; recipes of ours have one_cycle(p)
    p                 step / total_steps      (5.2.2) training progress, 0..1
    L_y, L_d          cross-entropies in losses.py     (4.1)
    d_i               SOURCE = 0, TARGET = 1  (4.1)
"""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import Preprocessing, backbone, known, width

SOURCE, TARGET = 0, 1
ARCHITECTURES = ("small", "published")  # any other is a backbone of backbones.py
MIN_SIZE, MAX_SIZE = 8, 1024  # of an image's side
BOTTLENECK = 256  # features of a backbone behind its bottleneck, as in CDAN (arXiv 1705.10667)


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, lambda_p: float) -> Tensor:
        ctx.lambda_p = lambda_p
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.lambda_p * grad, None


def reverse_gradient(x: Tensor, lambda_p: float) -> Tensor:
    """Return `x` unchanged; the gradient that flows back through it is multiplied by -lambda_p.

    x: any shape. lambda_p: >= 0. Source: arXiv 1505.07818, section 4.2, equations 16 and 17.
    """
    return _ReverseGradient.apply(x, lambda_p)


def lambda_schedule(p: float) -> float:
    """Weight of the reversed gradient at progress `p` in 0..1: 0 at the start, 0.9999 at the end.

    2 / (1 + exp(-10 p)) - 1. Source: arXiv 1505.07818, section 5.2.2.
    """
    return 2.0 / (1.0 + math.exp(-10.0 * p)) - 1.0


def annealed(p: float, mu_0: float) -> float:
    """The paper's learning rate at progress `p` in 0..1: mu_p = mu_0 / (1 + 10 p)^0.75, from mu_0 to mu_0 / 6.

    Source: arXiv 1505.07818, section 5.2.2, where mu_0 is 0.01.
    """
    return mu_0 / (1.0 + 10.0 * p) ** 0.75


def one_cycle(p: float, peak: float, warmup: float = 0.1) -> float:
    """One-cycle learning rate at progress `p` in 0..1: linear from peak/25 over `warmup`, then a cosine to peak/1e4.

    Source: Smith & Topin, arXiv 1708.07120.
    """
    if p < warmup:
        return peak * (1 / 25 + (1 - 1 / 25) * p / warmup)
    cosine = 0.5 * (1.0 + math.cos(math.pi * (p - warmup) / (1.0 - warmup)))
    return peak * (1e-4 + (1 - 1e-4) * cosine)


BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


class DomainBatchNorm(nn.Module):
    """A BatchNorm for each domain, with running statistics of its own, behind the same weights.

    [B, C, ...] -> [B, C, ...] by the one of `domain`, which DANN.features sets before each pass. Both begin with the
    statistics of the given one. Source: Li et al., arXiv 1603.04779 (adaptive BatchNorm).
    """

    def __init__(self, norm: BatchNorm) -> None:
        super().__init__()
        self.domain = TARGET
        self.source, self.target = norm, copy.deepcopy(norm)
        self.target.weight, self.target.bias = self.source.weight, self.source.bias

    def forward(self, x: Tensor) -> Tensor:
        return (self.source, self.target)[self.domain](x)


Norm = Callable[[BatchNorm], nn.Module]  # what stands in its place
NORMS: dict[str, Norm] = {"domain": DomainBatchNorm, "shared": lambda norm: norm, "pretrained": DomainBatchNorm}


def replace_norms(module: nn.Module, norm: Norm) -> None:
    """Put `norm` of it in the place of every BatchNorm2d in a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, norm(child))
        else:
            replace_norms(child, norm)


class DANN(nn.Module):
    """G_f, G_y and G_d of one run, with the preprocessing of their input.

    arch: `small`, ours, takes any image size; `published`, the public implementation's, takes 28x28 only; or the name
    of a backbone, see backbones.py, in front of a bottleneck.
    predict_as: the domain whose BatchNorm statistics predict, TARGET, or SOURCE where no target was trained on.
    norm: the BatchNorm of G_f, `domain`: statistics per domain; `shared`: torch's, one set for both; or `pretrained`:
    per domain in the bottleneck, while a backbone keeps the statistics that came with its weights.
    preprocessing: of a backbone's images, a Preprocessing as plain values. frozen: the backbone keeps its weights and
    statistics, and there is one set of these. body: the backbone with its weights; None: one of random weights.
    Raises ValueError for an unknown `arch` or `norm` or a size that it does not take.
    """

    mean: Tensor  # of a backbone's images, [3, 1, 1] in 0..255
    deviation: Tensor

    def __init__(
        self,
        num_classes: int = 10,
        arch: str = "small",
        size: int = 28,
        predict_as: int = TARGET,
        norm: str = "domain",
        preprocessing: dict[str, Any] | None = None,
        frozen: bool = False,
        body: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if norm not in tuple(NORMS):  # of a damaged checkpoint it may be anything
            raise ValueError(f"norm {norm!r} is not one of {', '.join(NORMS)}")
        if arch not in ARCHITECTURES and not known(arch):
            raise ValueError(f"arch {arch!r} is neither {' nor '.join(ARCHITECTURES)}, and no backbone of that name")
        if arch == "published" and size != 28:
            raise ValueError(f"arch published takes images of 28x28, not {size}x{size}")
        self.arguments: dict[str, Any] = {
            "num_classes": num_classes,
            "arch": arch,
            "size": size,
            "predict_as": predict_as,
            "norm": norm,
        }
        self.arch, self.predict_as, self.norm = arch, predict_as, norm
        self.preprocessing = None
        if arch in ARCHITECTURES:
            if norm == "pretrained":
                raise ValueError(f"norm pretrained is for a backbone, not for arch {arch}")
            layers = (_small if arch == "small" else _published)(num_classes, NORMS[norm])
        else:
            if preprocessing is None:
                raise ValueError(f"arch {arch!r} is without the preprocessing of its images")
            self.preprocessing = Preprocessing(**preprocessing)
            self.arguments |= {"preprocessing": preprocessing, "frozen": frozen}
            layers = _with_backbone(num_classes, norm, arch, size, body, frozen)
            for name in ("mean", "deviation"):
                values = torch.tensor(getattr(self.preprocessing, name)).view(3, 1, 1)
                self.register_buffer(name, 255 * values, persistent=False)
        self.feature_extractor, self.label_classifier, self.domain_classifier = layers
        self.to(memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def preprocess(self, images: Tensor) -> Tensor:
        """Images uint8 [B, 3, H, W], or float in 0..255, -> network input float32 [B, 3, H, W].

        The one preprocessing of training, evaluation, prediction and figures: -1..1 for `published`; each image to
        mean 0 and deviation 1 over all its pixels and channels for `small` (a single-coloured image to 0); by the mean
        and deviation that its weights were trained with for a backbone.
        """
        x = images.to(torch.float32)
        if self.preprocessing:
            return (x - self.mean) / self.deviation
        if self.arch == "published":
            return x / 127.5 - 1.0
        deviation, mean = torch.std_mean(x, dim=(1, 2, 3), keepdim=True)
        return (x - mean) / (deviation + 0.25)

    def train(self, mode: bool = True) -> "DANN":
        """As in torch; with norm `pretrained` the backbone's BatchNorm stays as it predicts."""
        super().train(mode)
        if self.norm == "pretrained":
            for layer in self.feature_extractor[0].modules():
                if isinstance(layer, nn.BatchNorm2d | nn.SyncBatchNorm):
                    layer.eval()
        return self

    def features(self, images: Tensor, domain: int | None = None) -> Tensor:
        """Images uint8 [B, 3, H, W] of `domain` (None: predict_as) -> features [B, F].

        For images may stand what a frozen backbone makes of them, [B, C], see backbone_features.
        """
        for layer in self.feature_extractor.modules():
            if isinstance(layer, DomainBatchNorm):
                layer.domain = self.predict_as if domain is None else domain
        if images.ndim == 2:
            return self.feature_extractor[1](images)
        return self.feature_extractor(self.preprocess(images))

    def backbone_features(self, images: Tensor) -> Tensor:
        """Images uint8 [B, 3, H, W] -> what the backbone makes of them, [B, C], for the bottleneck."""
        return self.feature_extractor[0](self.preprocess(images))

    def features_of_both(self, x_s: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        """A batch of each domain, [B, 3, H, W] -> f_s, f_t, [B, F]: BatchNorm per domain, or over both as one batch."""
        if self.norm != "shared":
            return self.features(x_s, SOURCE), self.features(x_t, TARGET)
        f = self.features(torch.cat([x_s, x_t]))  # [2B, F]
        return f[: len(x_s)], f[len(x_s) :]

    def forward(self, images: Tensor, domain: int | None = None) -> Tensor:
        """Images uint8 [B, 3, H, W] of `domain` (None: predict_as) -> label logits [B, K]."""
        return self.label_classifier(self.features(images, domain))


def _with_backbone(
    num_classes: int, norm: str, arch: str, size: int, body: nn.Module | None, frozen: bool
) -> tuple[nn.Sequential, nn.Sequential, nn.Sequential]:
    """A pretrained network without its head and a bottleneck, F = 256; G_d as in CDAN, arXiv 1705.10667."""
    body = body or backbone(arch)
    channels = width(body, arch, size)
    if frozen:
        body.requires_grad_(False)
    elif norm != "pretrained":
        replace_norms(body, NORMS[norm])
    bottleneck = nn.Sequential(nn.Linear(channels, BOTTLENECK), NORMS[norm](nn.BatchNorm1d(BOTTLENECK)), nn.ReLU())
    feature_extractor = nn.Sequential(OrderedDict(backbone=body, bottleneck=bottleneck))  # [B, C], then [B, 256]
    label_classifier = nn.Sequential(nn.Linear(BOTTLENECK, num_classes))
    hidden = (nn.Linear(BOTTLENECK, 1024), nn.ReLU(), nn.Dropout(), nn.Linear(1024, 1024), nn.ReLU(), nn.Dropout())
    domain_classifier = nn.Sequential(*hidden, nn.Linear(1024, 2))
    return feature_extractor, label_classifier, domain_classifier


def _published(num_classes: int, norm: Norm) -> tuple[nn.Sequential, nn.Sequential, nn.Sequential]:
    """The public implementation's layers, F = 800. Dropout2d comes before the pooling there; it commutes."""
    feature_extractor = nn.Sequential(
        nn.Conv2d(3, 64, 5),
        norm(nn.BatchNorm2d(64)),
        nn.MaxPool2d(2),
        nn.ReLU(),  # [B, 64, 12, 12]
        nn.Conv2d(64, 50, 5),
        norm(nn.BatchNorm2d(50)),
        nn.MaxPool2d(2),
        nn.ReLU(),  # [B, 50, 4, 4]
        nn.Dropout2d(),
        nn.Flatten(),  # [B, 800]
    )
    label_classifier = nn.Sequential(
        nn.Linear(800, 100),
        nn.BatchNorm1d(100),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(100, 100),
        nn.BatchNorm1d(100),
        nn.ReLU(),
        nn.Linear(100, num_classes),
    )
    domain_classifier = nn.Sequential(nn.Linear(800, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 2))
    return feature_extractor, label_classifier, domain_classifier


class Magnitude(nn.Module):
    """|x|: an edge answers alike whichever of its sides is the bright one.

    MNIST-M shows a digit by the inverse of the photo behind it, so that polarity changes from pixel to pixel, and house
    numbers are bright on dark as often as dark on bright: it says nothing of the class in any of the domains.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class InstanceNorm2d(nn.GroupNorm):
    """Each channel of each image to mean 0 and deviation 1 over its places, then weight and bias per channel.

    [B, C, H, W] -> [B, C, H, W], the same in training and evaluation: no statistics of a domain to be wrong on the
    other. Computed in rows of one channel, 20 times as fast on a CPU as in channels_last. Source: arXiv 1607.08022.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.requires_grad:  # else the pooling before takes its gradient apart row by row
            x.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)


class Quadrants(nn.Module):
    """[B, C, H, W] -> [B, C, 2, 2]: nn.AdaptiveAvgPool2d(2), which Apple's GPUs refuse for an odd side."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, ((x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2), (x.shape[2] // 2, x.shape[3] // 2))


def _small(num_classes: int, norm: Norm) -> tuple[nn.Sequential, nn.Sequential, nn.Sequential]:
    """Ours: 3x3 convolutions, pooling ahead of BatchNorm and ReLU (a quarter of the work). F = 96.

    The first block measures edges, whichever side is bright, against the other edges of the same image: what a
    photograph and a plain background differ in most is gone before BatchNorm could learn it.
    The last pooling averages over quadrants and learns a weight per channel and quadrant: the mean over all places
    adapts as well to USPS and fails on SVHN, a weight per place does the reverse (numbers in lab/NOTES.md).
    """

    def block(c_in: int, c_out: int, pool: bool = False, dropout: float = 0.1) -> nn.Sequential:
        layers: list[nn.Module] = [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)] + [nn.MaxPool2d(2)] * pool
        return nn.Sequential(*layers, norm(nn.BatchNorm2d(c_out)), nn.ReLU(), nn.Dropout2d(dropout))

    edges = [nn.Conv2d(3, 32, 3, padding=1, bias=False), Magnitude(), nn.MaxPool2d(2), InstanceNorm2d(32), nn.ReLU()]
    feature_extractor = nn.Sequential(
        nn.Sequential(*edges),  # [B, 32, H/2, W/2]
        block(32, 48, dropout=0.0),
        block(48, 48, pool=True),  # [B, 48, H/4, W/4]
        block(48, 96),
        block(96, 96),
        Quadrants(),  # [B, 96, 2, 2]
        nn.Conv2d(96, 96, 2, groups=96, bias=False),  # [B, 96, 1, 1]
        norm(nn.BatchNorm2d(96)),
        nn.ReLU(),
        nn.Flatten(),  # [B, 96]
    )
    label_classifier = nn.Sequential(nn.Linear(96, num_classes))
    domain_classifier = nn.Sequential(nn.Linear(96, 256), nn.ReLU(), nn.Linear(256, 2))
    return feature_extractor, label_classifier, domain_classifier

"""Random views of image batches, drawn per image and computed for the whole batch on its device.

Every function takes images float32 [B, C, H, W] in 0..255 and returns such images; what is drawn comes from torch's
generators alone, so a seeded step draws the same views again. `views` is what recipe `strong` trains on. Findings that
led to it: French et al., arXiv 1706.05208 (affine, intensity flips), Haeusser et al., arXiv 1708.00938 (recolouring).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def uniform(like: Tensor, low: float, high: float, *shape: int) -> Tensor:
    """Uniform random numbers [B, *shape] in [low, high), one row an image of `like`."""
    return torch.rand(len(like), *shape, device=like.device).mul_(high - low).add_(low)


def warp(
    x: Tensor, degrees: float, scale: float, stretch: float, shear: float, shift: float, bend: float = 0.0
) -> Tensor:
    """Rotate, scale, stretch, shear, shift and bend each image; what comes in at the border mirrors the image.

    degrees: rotation in [-degrees, degrees]. scale: size times exp(u), |u| <= scale; stretch: width over height times
    exp(2u), |u| <= stretch. shear: horizontal slant in [-shear, shear]. shift: in [-shift, shift] of the half side.
    bend: elastic distortion, in [-bend, bend] of the half side at each of 4x4 places and smooth between them. Source:
    Simard et al. 2003, "Best practices for convolutional neural networks".
    """
    angle = uniform(x, -1, 1).mul(math.radians(degrees))
    size, ratio = uniform(x, -scale, scale), uniform(x, -stretch, stretch)
    slant = uniform(x, -shear, shear)
    inverse_w, inverse_h = (-size - ratio).exp(), (-size + ratio).exp()  # output place -> input place
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([inverse_w * cos, inverse_w * (slant * cos - sin)], 1),
        torch.stack([inverse_h * sin, inverse_h * (slant * sin + cos)], 1),
    ]
    theta = torch.cat([torch.stack(rows, 1), uniform(x, -shift, shift, 2, 1)], 2)  # [B, 2, 3]
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)  # [B, H, W, 2]
    if bend:
        across, down = (cubic(side, x.device) for side in (x.shape[3], x.shape[2]))
        field = down @ uniform(x, -bend, bend, 2, 4, 4) @ across.T  # [B, 2, H, W]
        grid = grid + field.permute(0, 2, 3, 1)
    return sample(x, grid)


def sample(x: Tensor, grid: Tensor) -> Tensor:
    """Images [B, C, H, W] at places [B, H, W, 2], -1..1 from border to border, mirrored beyond."""
    if x.device.type == "mps":  # not every version has a padding but zeros there
        return F.grid_sample(x, reflected(grid, x.shape[3], x.shape[2]), mode="bilinear", align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def reflected(grid: Tensor, width: int, height: int) -> Tensor:
    """Places [B, H, W, 2] of grid_sample mirrored at the borders into the image, as its padding `reflection` does."""
    last = torch.tensor([1 - 1 / width, 1 - 1 / height], device=grid.device)  # the middle of the last pixel
    return (((grid - 1).remainder(4) - 2).abs() - 1).clamp(-last, last)


def cubic(side: int, device: torch.device) -> Tensor:
    """Weights [side, 4] of bicubic interpolation between 4 values, the first and the last at the borders."""
    identity = torch.eye(4, device=device)[None, None]
    return F.interpolate(identity, size=(side, 4), mode="bicubic", align_corners=True)[0, 0]


def paste_distractors(x: Tensor, reach: float = 0.25, share: float = 0.7) -> Tensor:
    """Paste strips of other images of the batch at the left and right, as a house number has other digits.

    reach: the widest strip at a side, as a part of the width. share: probability of a strip, each side for itself. The
    strip shows the inner columns of the other image and ends in a seam two pixels soft. The middle of the image stays.
    """
    width = x.shape[3]
    column = torch.arange(width, device=x.device, dtype=x.dtype)
    for side in (-1, 1):
        other = x[torch.randperm(len(x), device=x.device)]
        distance = uniform(x, 0.45, 0.75, 1).mul(width)  # from one digit's middle to the next's
        from_edge = column if side < 0 else width - 1 - column
        at = (column - side * distance).round().long().clamp(0, width - 1)  # [B, W]
        strip = other.gather(3, at[:, None, None, :].expand_as(x))
        shown = uniform(x, 0, 1, 1) < share
        edge = torch.where(shown, uniform(x, -1, reach * width, 1), -1.0)
        weight = ((edge - from_edge) / 2 + 0.5).clamp(0, 1)[:, None, None, :]  # [B, 1, 1, W]
        x = torch.lerp(x, strip, weight)
    return x


def recolour(x: Tensor, low: float = 0.3, high: float = 1.5, flip: float = 0.5, shift: float = 64) -> Tensor:
    """Multiply each channel's contrast by its own gain in [low, high) and, for `flip` of the images, turn it negative.

    The channel means move by up to `shift`; values may leave 0..255, as no rounding follows.
    """
    mean = x.mean((2, 3), keepdim=True)
    gain = uniform(x, low, high, x.shape[1], 1, 1)
    sign = 1 - 2 * (uniform(x, 0, 1, 1, 1, 1) < flip).to(x.dtype)
    return (x - mean) * gain * sign + mean + uniform(x, -shift, shift, x.shape[1], 1, 1)


def random_crop(x: Tensor, smallest: float = 0.3, stretch: float = 0.14) -> Tensor:
    """A rectangle of each image, resized to the whole, that lies anywhere in it.

    smallest: part of the image's area, in [smallest, 1]; its width over its height is exp(2u), |u| <= stretch. Source:
    Szegedy et al., arXiv 1409.4842 (there from 0.08 on, which leaves of many photos nothing of their class).
    """
    side, ratio = uniform(x, smallest, 1).sqrt(), uniform(x, -stretch, stretch)
    sides = torch.stack([side * ratio.exp(), side * (-ratio).exp()], 1).clamp(max=1)  # [B, 2], width and height
    middle = uniform(x, -1, 1, 2) * (1 - sides)
    theta = torch.cat([torch.diag_embed(sides), middle[:, :, None]], 2)  # [B, 2, 3]
    return sample(x, F.affine_grid(theta, list(x.shape), align_corners=False))


def mirrored(x: Tensor, share: float = 0.5) -> Tensor:
    """That share of the images with left and right exchanged."""
    return torch.where(uniform(x, 0, 1, 1, 1, 1) < share, x.flip(3), x)


def blur(x: Tensor, strongest: float = 0.33) -> Tensor:
    """Average each pixel with its neighbours, weights (a, 1 - 2a, a) along both sides, a in [0, strongest)."""
    a = uniform(x, -strongest, strongest, 1, 1, 1).clamp_(0)  # half of the images stay sharp
    for dim in (2, 3):
        n = x.shape[dim]
        before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, n - 1)], dim)
        after = torch.cat([x.narrow(dim, 1, n - 1), x.narrow(dim, n - 1, 1)], dim)
        x = torch.lerp(x, (before + after) / 2, 2 * a)
    return x


def soften(x: Tensor) -> Tensor:
    """Mix each image, by a weight in [0, 1), with itself made smaller by 2, by 4 from 112 pixels on, and large again.

    The blur of photos, faster than one as wide by neighbouring pixels (lab/NOTES.md).
    """
    sides = x.shape[2:]
    fewer = [-(-side // (2 if side < 112 else 4)) for side in sides]
    coarse = F.interpolate(F.interpolate(x, fewer, mode="area"), sides, mode="bilinear")
    return torch.lerp(x, coarse, uniform(x, -1, 1, 1, 1, 1).clamp_(0))  # half of the images stay sharp


def noise(x: Tensor, strongest: float = 0.3) -> Tensor:
    """Add noise to each image, its deviation drawn in [0, strongest) of the image's own contrast.

    Uniform noise: on a CPU it costs an eighth of Gaussian noise, and the next convolution averages the difference away.
    """
    deviation = x.std((1, 2, 3), keepdim=True) * uniform(x, 0, strongest, 1, 1, 1)
    return x + torch.rand_like(x).sub_(0.5).mul_(math.sqrt(12)) * deviation


def cut_out(x: Tensor, largest: float = 0.4) -> Tensor:
    """Replace a rectangle, its sides up to `largest` of the image's, by the image's mean.

    Source: DeVries & Taylor, arXiv 1708.04552.
    """
    inside = []
    for side in x.shape[2:]:
        place = (torch.arange(side, device=x.device, dtype=x.dtype) + 0.5) / side
        middle, half = uniform(x, 0, 1, 1), uniform(x, 0, largest / 2, 1)
        inside.append((place - middle).abs() < half)  # [B, side]
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]  # [B, 1, H, W]
    return torch.where(hole, x.mean((1, 2, 3), keepdim=True), x)


def views(x: Tensor, kind: str, paste: bool, mirror: bool = False) -> Tensor:
    """Strong random views of images uint8 or float [B, 3, H, W] -> float32 [B, 3, H, W].

    kind: `digits`, half of whose views are negatives, or `photos`, random crops whose colours stay near theirs. paste:
    with distractors, other images of the batch at the sides. mirror: half of the images, left to right.
    """
    x = x.to(torch.float32)
    if mirror:
        x = mirrored(x)
    if kind == "photos":
        return cut_out(soften(recolour(random_crop(x), low=0.6, high=1.4, flip=0.0, shift=24)))
    x = warp(x, degrees=12, scale=0.3, stretch=0.15, shear=0.3, shift=0.15, bend=0.12)
    if paste:
        x = paste_distractors(x)
    return cut_out(noise(blur(recolour(x))))

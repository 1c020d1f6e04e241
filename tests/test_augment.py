"""Random views: each does what its docstring says, image by image, and on any device alike."""

import math

import pytest
import torch

from augment import blur, cubic, cut_out, mirrored, noise, paste_distractors, random_crop, recolour, soften, views, warp


def digits(count: int = 32, size: int = 28) -> torch.Tensor:
    """Images whose value tells their number and their column: float32 [B, 3, size, size]."""
    number = torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1) * 7
    column = torch.arange(size, dtype=torch.float32)
    return (number + column / 100).expand(count, 3, size, size).contiguous()


def test_a_warp_without_any_range_is_the_image() -> None:
    x = torch.rand(4, 3, 28, 28) * 255
    torch.testing.assert_close(warp(x, 0, 0, 0, 0, 0), x, rtol=0, atol=1e-2)


def test_rotation_scale_and_shift_stay_within_their_ranges() -> None:
    """A dot right of the middle moves by no more than the ranges allow, and does move."""
    torch.manual_seed(0)
    x = torch.zeros(200, 1, 41, 41)
    x[:, :, 20, 30] = 1.0

    def places(**ranges: float) -> tuple[torch.Tensor, torch.Tensor]:
        all_ranges = {"degrees": 0.0, "scale": 0.0, "stretch": 0.0, "shear": 0.0, "shift": 0.0, **ranges}
        y = warp(x, **all_ranges).flatten(1)
        assert (y.sum(1) > 0.2).all()
        at = torch.arange(41 * 41)
        across = (y * (at % 41 - 20)).sum(1) / y.sum(1)
        down = (y * (at // 41 - 20)).sum(1) / y.sum(1)
        return across, down

    across, down = places(degrees=30)
    angle = torch.atan2(down, across).rad2deg()
    assert angle.abs().max() < 33
    assert angle.std() > 10
    across, down = places(scale=0.3)
    assert down.abs().max() < 0.5
    assert across.min() > 10 * math.exp(-0.3) - 0.7
    assert across.max() < 10 * math.exp(0.3) + 0.7
    assert across.std() > 1
    across, down = places(shift=0.2)
    assert (across - 10).abs().max() < 0.2 * 20.5 + 0.5
    assert down.abs().max() < 0.2 * 20.5 + 0.5
    across, down = places(shear=0.5)
    assert (across - 10).abs().max() < 0.5  # a slant leaves the middle row in its place


def test_bending_moves_each_place_by_no_more_than_its_range_and_neighbours_nearly_alike() -> None:
    """A dot that the field carries away lands within the range; a straight line becomes a smooth curve."""
    torch.manual_seed(0)
    x = torch.zeros(100, 1, 41, 41)
    x[:, :, :, 20] = 1.0  # an upright line
    y = warp(x, 0, 0, 0, 0, 0, bend=0.2)
    column = torch.arange(41.0)
    across = (y * column).sum(3) / y.sum(3).clamp(min=1e-6) - 20  # [B, 1, H]: where the line now is in each row
    inner = across[:, 0, 5:36]
    assert inner.abs().max() < 0.2 * 20.5 * 1.6  # bicubic interpolation overshoots
    assert inner.std(1).mean() > 0.5  # bent, not only shifted
    assert inner.diff(dim=1).abs().max() < 1.5  # smoothly
    weights = cubic(41, x.device)
    torch.testing.assert_close(weights.sum(1), torch.ones(41))
    torch.testing.assert_close(weights[[0, -1]], torch.eye(4)[[0, -1]], rtol=0, atol=1e-6)


def test_distractors_come_in_at_the_sides_only() -> None:
    torch.manual_seed(0)
    x = digits(64)
    y = paste_distractors(x, reach=0.25, share=0.7)
    middle = slice(9, 19)
    assert torch.equal(y[..., middle], x[..., middle])
    changed = (y != x).any(3).any(2).any(1).float().mean()
    assert 0.6 < changed < 1.0
    left = (y[:, 0, 0, 0] - x[:, 0, 0, 0]).abs() > 3
    assert left.any()
    assert not left.all()
    assert torch.equal(paste_distractors(x, share=0.0), x)


def test_recolouring_scales_each_channel_by_its_own_gain_and_flips_half_of_the_images() -> None:
    torch.manual_seed(0)
    x = torch.rand(400, 3, 8, 8) * 255
    centred, changed = (v - v.mean((2, 3), keepdim=True) for v in (x, recolour(x, 0.5, 1.5, flip=0.5)))
    gain = (changed * centred).sum((2, 3)) / (centred**2).sum((2, 3))  # [B, 3]
    assert ((gain.abs() >= 0.5 - 1e-3) & (gain.abs() <= 1.5 + 1e-3)).all()
    assert (gain.sign() == gain[:, :1].sign()).all()  # one polarity an image
    assert 0.4 < (gain[:, 0] < 0).float().mean() < 0.6
    assert gain.abs().std(1).mean() > 0.1


def test_blur_averages_with_the_neighbours_and_leaves_the_mean_and_half_of_the_images() -> None:
    torch.manual_seed(0)
    x = torch.zeros(200, 1, 9, 9)
    x[:, :, 4, 4] = 1.0
    y = blur(x)
    torch.testing.assert_close(y.sum((1, 2, 3)), torch.ones(200))
    sharp = (y == x).all(3).all(2).all(1).float().mean()
    assert 0.35 < sharp < 0.65
    a = y[:, 0, 4, 3] / (y[:, 0, 4, 4] + 2 * y[:, 0, 4, 3])
    assert a.max() <= 0.33
    torch.testing.assert_close(y[:, 0, 3, 4], y[:, 0, 4, 3])


@pytest.mark.parametrize("side", [9, 32, 112])
def test_softened_photos_keep_their_mean_lose_detail_and_half_of_them_are_sharp(side: int) -> None:
    torch.manual_seed(0)
    x = torch.rand(200, 1, side, side)
    y = soften(x)
    sharp = (y == x).all(3).all(2).all(1)
    assert 0.35 < sharp.float().mean() < 0.65
    assert (y.mean((1, 2, 3)) - x.mean((1, 2, 3))).abs().max() < 0.05
    assert (y.std((1, 2, 3)) / x.std((1, 2, 3)))[~sharp].min() < 0.6
    assert (y.std((1, 2, 3)) < x.std((1, 2, 3)))[~sharp].all()


def test_noise_is_measured_in_the_images_own_contrast() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 3, 28, 28) * 10
    share = (noise(x, 0.3) - x).std((1, 2, 3)) / x.std((1, 2, 3))
    assert share.max() < 0.31
    assert share.min() >= 0
    assert share.std() > 0.05
    flat = torch.full((2, 3, 8, 8), 9.0)
    assert torch.equal(noise(flat), flat)


def test_a_cut_out_is_a_rectangle_of_the_images_mean() -> None:
    torch.manual_seed(0)
    x = torch.rand(100, 3, 20, 20) * 255
    y = cut_out(x, 0.4)
    for before, after in zip(x, y, strict=True):
        hole = (before != after).any(0)
        assert hole.float().mean() <= 0.17
        rows, columns = hole.any(1), hole.any(0)
        assert torch.equal(hole, rows[:, None] & columns[None, :])
        assert torch.allclose(after[:, hole], before.mean())


@pytest.mark.parametrize(("kind", "paste"), [("digits", False), ("digits", True), ("photos", False)])
def test_views_are_a_function_of_the_seed_and_differ_from_image_to_image(kind: str, paste: bool) -> None:
    x = torch.randint(0, 256, (1, 3, 28, 28), dtype=torch.uint8).expand(16, 3, 28, 28)
    torch.manual_seed(5)
    first = views(x, kind, paste)
    torch.manual_seed(5)
    again = views(x, kind, paste)
    assert torch.equal(first, again)
    assert first.dtype == torch.float32
    assert first.shape == x.shape
    assert len({tuple(image.flatten().tolist()) for image in first}) == 16
    assert torch.isfinite(first).all()


def test_views_of_photos_are_no_negatives_and_keep_left_and_right() -> None:
    """Each view is nearer to its image than to the negative or the mirror image of it."""
    ramp = torch.linspace(0, 255, 32)
    x = torch.stack([ramp.expand(32, 32), ramp.expand(32, 32).T, ramp.expand(32, 32)])[None].expand(64, 3, 32, 32)
    torch.manual_seed(0)
    y = views(x, "photos", paste=False)
    middle = (y[:, 0, 8:24, 20:] - y[:, 0, 8:24, :12].flip(2)).mean((1, 2))  # right minus left
    assert (middle > 0).all()
    torch.manual_seed(0)
    digits = views(x, "digits", paste=False)
    assert ((digits[:, 0, 8:24, 20:] - digits[:, 0, 8:24, :12].flip(2)).mean((1, 2)) < 0).float().mean() > 0.3


def test_a_random_crop_is_a_rectangle_inside_the_image_of_no_less_than_its_share() -> None:
    """Of an image whose channels tell the place, the crop's corners say where it was."""
    torch.manual_seed(0)
    place = (torch.arange(64) + 0.5) / 64
    x = torch.stack([place.expand(64, 64), place.expand(64, 64).T, torch.zeros(64, 64)]).expand(200, 3, 64, 64)
    y = random_crop(x, smallest=0.3)
    width, height = y[:, 0, 0, -1] - y[:, 0, 0, 0], y[:, 1, -1, 0] - y[:, 1, 0, 0]
    area = width * height * (64 / 63) ** 2
    assert area.min() > 0.25
    assert area.max() < 1.05
    assert area.std() > 0.1
    assert (width / height).log().abs().max() < 0.45
    assert y[:, 0, 0, 0].std() > 0.05  # anywhere
    torch.testing.assert_close(y[:, 0, 0], y[:, 0, -1])  # upright
    torch.testing.assert_close(random_crop(x, smallest=1.0, stretch=0.0), x)


def test_half_of_the_views_are_mirrored_when_asked() -> None:
    torch.manual_seed(0)
    x = torch.arange(8.0).expand(400, 3, 8, 8)
    y = mirrored(x)
    turned = (y == x.flip(3)).all(3).all(2).all(1)
    assert ((y == x).all(3).all(2).all(1) | turned).all()
    assert 0.4 < turned.float().mean() < 0.6
    right = views(x.mul(30), "photos", False, mirror=True)[:, 0].mean(1)  # [B, W]
    assert 0.4 < (right[:, :3].mean(1) > right[:, 5:].mean(1)).float().mean() < 0.6


def test_what_is_drawn_lands_on_the_images_device() -> None:
    """No device is named: on `meta`, a device of no values, every view keeps to it."""
    x = torch.empty(4, 3, 28, 28, device="meta")
    for view in (paste_distractors, random_crop, mirrored, recolour, blur, soften, noise, cut_out):
        assert view(x).device.type == "meta"
    assert views(x, "digits", True).device.type == "meta"
    assert views(x, "photos", False, mirror=True).device.type == "meta"

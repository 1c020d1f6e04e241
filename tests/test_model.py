"""The network, the reversal and the schedules do what the paper says."""

import math

import pytest
import torch
from torch import Tensor, nn

from model import (
    ARCHITECTURES,
    DANN,
    SOURCE,
    TARGET,
    DomainBatchNorm,
    annealed,
    lambda_schedule,
    one_cycle,
    reverse_gradient,
)


def images(count: int = 16) -> Tensor:
    return torch.randint(0, 256, (count, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def build(arch: str = "small", predict_as: int = TARGET, norm: str = "domain") -> DANN:
    torch.manual_seed(0)
    return DANN(10, arch, predict_as=predict_as, norm=norm)


# Reversal and schedules


def test_the_reversal_is_the_identity_forwards_and_minus_lambda_backwards() -> None:
    x, weights = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    y = reverse_gradient(x, 0.3)
    assert torch.equal(y, x)
    (y * weights).sum().backward()
    torch.testing.assert_close(x.grad, -0.3 * weights)


def test_lambda_follows_the_papers_formula_from_zero_to_nearly_one() -> None:
    for p in (0.0, 0.1, 0.5, 1.0):
        assert lambda_schedule(p) == pytest.approx(2 / (1 + math.exp(-10 * p)) - 1)
    assert lambda_schedule(0.0) == 0.0
    assert 0.999 < lambda_schedule(1.0) < 1.0


def test_the_papers_learning_rate_falls_from_mu_0_by_its_formula() -> None:
    for p in (0.0, 0.1, 0.5, 1.0):
        assert annealed(p, 0.01) == pytest.approx(0.01 / (1 + 10 * p) ** 0.75)
        assert annealed(p, 0.02) == 2 * annealed(p, 0.01)
    assert annealed(0.0, 0.01) == 0.01


def test_our_learning_rate_warms_up_to_its_peak_and_decays_towards_zero() -> None:
    rates = [one_cycle(i / 100, 2e-3) for i in range(101)]
    assert max(rates) == pytest.approx(2e-3)
    assert rates.index(max(rates)) == 10
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(2e-7)


# Networks


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_each_network_maps_images_to_class_and_domain_logits_not_probabilities(arch: str) -> None:
    """Softmax before cross-entropy is a fault of public code."""
    net = DANN(7, arch).eval()
    assert net(images()).shape == (16, 7)
    for logits in (net(images()), net.domain_classifier(net.features(images()))):
        assert not torch.allclose(logits.sum(1), torch.ones(16), atol=0.01)
        assert not torch.allclose(logits.exp().sum(1), torch.ones(16), atol=0.01)
    assert net.domain_classifier(net.features(images())).shape == (16, 2)


def test_the_published_network_has_the_published_layers() -> None:
    """As DESIGN.md states them; that their answers are the published ones is checked on files of that format."""
    net = DANN(10, "published")
    layers = [each.source if isinstance(each, DomainBatchNorm) else each for each in net.feature_extractor]
    kinds = [type(layer).__name__ for layer in layers]
    conv, rest = ["Conv2d", "BatchNorm2d", "MaxPool2d", "ReLU"], ["Dropout2d", "Flatten"]
    assert kinds == conv + conv + rest
    assert net.features(images()).shape == (16, 800)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert shapes["feature_extractor.0.weight"] == (64, 3, 5, 5)
    assert shapes["feature_extractor.4.weight"] == (50, 64, 5, 5)
    assert shapes["label_classifier.0.weight"] == (100, 800)
    assert shapes["domain_classifier.3.weight"] == (2, 100)


def test_the_small_network_takes_other_image_sizes_and_the_published_one_refuses_them() -> None:
    for size in (16, 32, 45):
        assert DANN(10, "small", size).eval()(torch.zeros(2, 3, size, size, dtype=torch.uint8)).shape == (2, 10)
    with pytest.raises(ValueError, match="32x32"):
        DANN(10, "published", 32)


@pytest.mark.parametrize("norm", ["domain", "shared"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_domain_classifier_sends_a_gradient_to_every_layer_of_the_features(arch: str, norm: str) -> None:
    """A domain classifier that is constant gives a gradient of exactly zero."""
    net = build(arch, norm=norm)
    d_hat = net.domain_classifier(reverse_gradient(net.features(images(32)), 1.0))
    nn.functional.cross_entropy(d_hat, torch.arange(2).repeat_interleave(16)).backward()
    used = {name: p.grad for name, p in net.feature_extractor.named_parameters() if not name.endswith("bias")}
    for name, gradient in used.items():  # a convolution's bias ahead of BatchNorm has none by construction
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name


# Preprocessing


def test_the_small_network_sees_each_image_at_mean_zero_and_deviation_one() -> None:
    dim = images(8) // torch.arange(1, 9).view(-1, 1, 1, 1) + 3
    x = DANN().preprocess(dim.to(torch.uint8))
    torch.testing.assert_close(x.mean((1, 2, 3)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std((1, 2, 3)), torch.ones(8), atol=0.05, rtol=0)
    assert DANN().preprocess(torch.full((1, 3, 28, 28), 77, dtype=torch.uint8)).abs().max() == 0


def test_the_published_network_sees_pixels_from_minus_one_to_one() -> None:
    assert DANN(arch="published").preprocess(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


# BatchNorm of two domains

STATISTICS = ("running_mean", "running_var")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_each_domain_moves_all_of_its_own_batchnorm_statistics_and_none_of_the_others(arch: str) -> None:
    net = build(arch)
    names = [name for name, _ in net.feature_extractor.named_buffers() if name.endswith(STATISTICS)]
    assert len(names) >= 8
    for domain, word in ((SOURCE, "source"), (TARGET, "target")):
        before = {name: net.feature_extractor.get_buffer(name).clone() for name in names}
        net.features(images(), domain)
        moved = [name for name in names if not torch.equal(before[name], net.feature_extractor.get_buffer(name))]
        assert moved == [name for name in names if f".{word}." in name]
        assert len(moved) == len(names) / 2


@pytest.mark.parametrize("predict_as", [SOURCE, TARGET])
def test_prediction_uses_the_statistics_of_the_domain_it_is_asked_for(predict_as: int) -> None:
    net = build(predict_as=predict_as)
    net.features(images(), TARGET)
    net.eval()
    with torch.no_grad():
        assert torch.equal(net(images()), net(images(), predict_as))
        assert not torch.equal(net(images()), net(images(), 1 - predict_as))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_an_ordinary_batchnorm_normalises_both_domains_as_one_batch_and_predicts_both_alike(arch: str) -> None:
    net, together = build(arch, norm="shared"), build(arch, norm="shared")
    x_s, x_t = images(), images(8) // 3
    torch.manual_seed(1)
    f_s, f_t = net.features_of_both(x_s, x_t)
    torch.manual_seed(1)
    f = together.feature_extractor(together.preprocess(torch.cat([x_s, x_t])))
    assert torch.equal(torch.cat([f_s, f_t]), f)
    assert (len(f_s), len(f_t)) == (16, 8)
    kept = dict(net.named_buffers())
    assert kept.keys() == dict(together.named_buffers()).keys()
    assert not any(part in ("source", "target") for name in kept for part in name.split("."))
    assert all(torch.equal(value, kept[name]) for name, value in together.named_buffers())
    net.eval()
    with torch.no_grad():
        assert torch.equal(net(x_s, SOURCE), net(x_s, TARGET))


def layers(net: nn.Module) -> list[DomainBatchNorm]:
    return [layer for layer in net.modules() if isinstance(layer, DomainBatchNorm)]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_batchnorms_of_several_gpus_share_weights_keep_their_statistics_apart_and_have_the_same_keys(
    arch: str,
) -> None:
    net = build(arch)
    for domain in (SOURCE, TARGET):
        net.features(images() // (1 + domain), domain)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert not any(type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d) for layer in synced.modules())
    assert list(synced.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in synced.state_dict().items())
    for layer in layers(synced):
        assert layer.source.weight is layer.target.weight
        assert layer.source.bias is layer.target.bias
        for name in STATISTICS:
            assert layer.source.get_buffer(name) is not layer.target.get_buffer(name)
            assert not torch.equal(layer.source.get_buffer(name), layer.target.get_buffer(name))
    plain = DANN(10, arch)
    plain.load_state_dict(synced.state_dict())
    with torch.no_grad():
        for domain in (SOURCE, TARGET):
            torch.testing.assert_close(synced.eval()(images(), domain), plain.eval()(images(), domain))

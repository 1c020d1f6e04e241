"""The network, the reversal and the schedules do what the paper says."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import model
from model import (
    ARCHITECTURES,
    DANN,
    SOURCE,
    TARGET,
    DomainBatchNorm2d,
    lambda_schedule,
    learning_rate,
    reverse_gradient,
    to_onednn,
)


def test_the_reversal_is_the_identity_forwards_and_minus_lambda_backwards() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    weights = torch.randn(4, 3)
    y = reverse_gradient(x, 0.3)
    assert torch.equal(y, x)
    (y * weights).sum().backward()
    torch.testing.assert_close(x.grad, -0.3 * weights)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_lambda_follows_the_papers_formula(p: float) -> None:
    assert lambda_schedule(p) == pytest.approx(2 / (1 + math.exp(-10 * p)) - 1)


def test_lambda_starts_at_zero_and_rises() -> None:
    values = [lambda_schedule(i / 20) for i in range(21)]
    assert values[0] == 0.0
    assert values == sorted(values)
    assert 0.999 < values[-1] < 1.0


def test_the_learning_rate_warms_up_to_its_peak_and_decays_towards_zero() -> None:
    rates = [learning_rate(i / 100, 2e-3) for i in range(101)]
    assert max(rates) == pytest.approx(2e-3)
    assert rates.index(max(rates)) == 10
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(2e-7)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_each_architecture_maps_images_to_class_and_domain_logits(arch: str) -> None:
    net = DANN(7, arch).eval()
    images = torch.randint(0, 256, (5, 3, 28, 28), dtype=torch.uint8)
    f = net.features(images)
    assert net(images).shape == (5, 7)
    assert net.domain_classifier(f).shape == (5, 2)


def test_the_published_architecture_has_the_published_layers() -> None:
    net = DANN(10, "published")
    kinds = [type(layer).__name__.removeprefix("Domain") for layer in net.feature_extractor]
    assert kinds == [
        "Conv2d",
        "BatchNorm2d",
        "MaxPool2d",
        "ReLU",
        "Conv2d",
        "BatchNorm2d",
        "MaxPool2d",
        "ReLU",
        "ToDense",  # changes no number
        "Dropout2d",  # ahead of the pooling there: whole channels times 0 or 2 commute with maximum and ReLU
        "Flatten",
    ]
    assert net.features(torch.zeros(2, 3, 28, 28, dtype=torch.uint8)).shape == (2, 800)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items() if name.endswith("weight")}
    assert shapes["feature_extractor.0.weight"] == (64, 3, 5, 5)
    assert shapes["feature_extractor.4.weight"] == (50, 64, 5, 5)
    assert shapes["label_classifier.0.weight"] == (100, 800)
    assert shapes["domain_classifier.3.weight"] == (2, 100)


@pytest.mark.parametrize("size", [16, 28, 32, 45])
def test_the_small_architecture_takes_other_image_sizes(size: int) -> None:
    assert DANN(10, "small", size).eval()(torch.zeros(2, 3, size, size, dtype=torch.uint8)).shape == (2, 10)


def test_the_published_architecture_refuses_other_sizes() -> None:
    with pytest.raises(ValueError, match="28x28, not 32x32"):
        DANN(10, "published", 32)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_classifiers_return_logits_not_probabilities(arch: str) -> None:
    """Softmax before cross-entropy is a fault of public code."""
    net = DANN(10, arch)
    assert not any(isinstance(module, nn.Softmax | nn.LogSoftmax | nn.Sigmoid) for module in net.modules())
    logits = net(torch.randint(0, 256, (64, 3, 28, 28), dtype=torch.uint8))
    assert not torch.allclose(logits.sum(1), torch.ones(64), atol=0.1)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_domain_classifier_sends_a_gradient_to_the_features(arch: str) -> None:
    """A domain classifier that is constant gives a gradient of exactly zero."""
    torch.manual_seed(0)
    net = DANN(10, arch)
    f = net.features(torch.randint(0, 256, (32, 3, 28, 28), dtype=torch.uint8))
    d = torch.arange(2).repeat_interleave(16)
    d_hat = net.domain_classifier(reverse_gradient(f, 1.0))
    nn.functional.cross_entropy(d_hat, d).backward()
    for name, parameter in net.feature_extractor.named_parameters():
        if not name.endswith("bias"):  # a convolution's bias ahead of BatchNorm has none by construction
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0, name


def test_a_grey_image_in_three_equal_channels_is_preprocessed_like_any_other() -> None:
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    x = DANN().preprocess(grey)
    assert x.dtype == torch.float32
    assert torch.equal(x[:, 0], x[:, 2])


def bn_layers(net: DANN) -> list[DomainBatchNorm2d]:
    return [layer for layer in net.feature_extractor if isinstance(layer, DomainBatchNorm2d)]


def test_each_domain_moves_its_own_batchnorm_statistics_only() -> None:
    torch.manual_seed(0)
    net = DANN()
    images = torch.randint(0, 256, (16, 3, 28, 28), dtype=torch.uint8)
    for domain in (SOURCE, TARGET):
        before = [[layer.statistics(d)[0].clone() for d in (SOURCE, TARGET)] for layer in bn_layers(net)]
        net.features(images, domain)
        for old, layer in zip(before, bn_layers(net), strict=True):
            assert not torch.equal(old[domain], layer.statistics(domain)[0])
            assert torch.equal(old[1 - domain], layer.statistics(1 - domain)[0])


@pytest.mark.parametrize("predict_as", [SOURCE, TARGET])
def test_prediction_uses_the_statistics_of_the_domain_it_is_asked_for(predict_as: int) -> None:
    torch.manual_seed(0)
    net = DANN(predict_as=predict_as)
    images = torch.randint(0, 256, (16, 3, 28, 28), dtype=torch.uint8)
    net.features(images, TARGET)
    net.eval()
    with torch.no_grad():
        assert torch.equal(net(images), net(images, predict_as))
        assert not torch.equal(net(images), net(images, 1 - predict_as))


def test_the_normalisation_is_that_of_torchs_batchnorm() -> None:
    torch.manual_seed(0)
    ours, theirs = DomainBatchNorm2d(4), nn.BatchNorm2d(4)
    for _ in range(3):
        x = torch.randn(8, 4, 5, 5) * 3 + 1
        torch.testing.assert_close(ours(x), theirs(x))
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.statistics(TARGET)[1], theirs.running_var)


def skip_without_onednn(precision: torch.dtype) -> None:
    """Skip where model.to_onednn must leave images as they are."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX") or not torch.backends.mkldnn.is_available():
        pytest.skip("images keep torch's layout on this processor")
    if precision == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no bfloat16 on this processor")


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_onednns_layout_changes_what_is_fast_and_nothing_else(precision: torch.dtype) -> None:
    """Features, gradients and running statistics of training are those of torch's own layers, to rounding."""
    skip_without_onednn(precision)

    def trained(onednn: bool, precision: torch.dtype) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = DANN(arch="published")
        images = torch.randint(0, 256, (32, 3, 28, 28), dtype=torch.uint8)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            x = net.preprocess(images)
            assert to_onednn(x).is_mkldnn
            assert to_onednn(x).dtype == precision
            torch.manual_seed(1)  # of the dropout
            f = (net.features(images) if onednn else net.feature_extractor(x)).float()
            F.cross_entropy(f[:, :10], torch.arange(32) % 10).backward()
        found = {"features": f.detach(), **dict(net.feature_extractor.named_buffers())}
        for name, parameter in net.feature_extractor.named_parameters():
            if name not in ("0.bias", "4.bias"):  # ahead of BatchNorm: 0 but for rounding
                assert parameter.grad is not None
                found[f"gradient of {name}"] = parameter.grad
        return found

    exact = trained(False, torch.float32)
    in_torchs, in_onednns = trained(False, precision), trained(True, precision)
    for name, value in exact.items():
        off, allowed = (in_onednns[name] - value).norm(), 1.5 * (in_torchs[name] - value).norm()
        assert off <= allowed + 0.01 * value.norm(), name  # a maximum taken elsewhere counts 0.002


def test_float32_prediction_and_the_default_network_stay_in_torchs_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Tensor] = []

    def spy(x: Tensor) -> Tensor:
        taken.append(x)
        return x

    monkeypatch.setattr(model, "to_onednn", spy)
    images = torch.zeros(2, 3, 28, 28, dtype=torch.uint8)
    DANN(arch="published").eval()(images)
    DANN(arch="small").train()(images)
    assert not taken
    DANN(arch="published").train()(images)
    assert len(taken) == 1
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        DANN(arch="published").eval()(images)
    assert len(taken) == 2


def test_evaluation_in_bfloat16_gives_gradients_too() -> None:
    net = DANN(arch="published").eval()
    with torch.autocast("cpu", torch.bfloat16):
        net.features(torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)).float().sum().backward()
    gradient = net.feature_extractor[0].weight.grad
    assert isinstance(gradient, Tensor)
    assert gradient.abs().max() > 0


def test_rough_prediction_in_onednns_layout_is_that_in_torchs_to_rounding() -> None:
    skip_without_onednn(torch.bfloat16)
    torch.manual_seed(0)
    net = DANN(arch="published").train()
    images = torch.randint(0, 256, (64, 3, 28, 28), dtype=torch.uint8)
    net.features(images)  # statistics other than 0 and 1
    net.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        in_torchs = net.feature_extractor(net.preprocess(images))
        torch.testing.assert_close(net.features(images), in_torchs, rtol=0.02, atol=0.05)


def test_dropping_channels_after_the_pooling_is_dropping_them_before_it() -> None:
    x = torch.randn(16, 50, 8, 8)
    pooling = nn.Sequential(nn.MaxPool2d(2), nn.ReLU())
    torch.manual_seed(0)
    before = pooling(nn.Dropout2d()(x))
    torch.manual_seed(0)
    assert torch.equal(nn.Dropout2d()(pooling(x)), before)
    assert (before == 0).all((2, 3)).any()


def test_the_small_network_sees_each_image_at_mean_zero_and_deviation_one() -> None:
    images = torch.randint(0, 256, (8, 3, 28, 28), dtype=torch.uint8) // torch.arange(1, 9).view(-1, 1, 1, 1) + 3
    x = DANN().preprocess(images.to(torch.uint8))
    torch.testing.assert_close(x.mean((1, 2, 3)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std((1, 2, 3)), torch.ones(8), atol=0.05, rtol=0)
    assert DANN().preprocess(torch.full((1, 3, 28, 28), 77, dtype=torch.uint8)).abs().max() == 0
    assert DANN(arch="published").preprocess(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]

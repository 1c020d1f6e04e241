"""The losses are those computed by hand, their gradients those of the paper, and the teacher is as stated."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from augment import views
from config import RECIPES
from dataset import Batches, Domain
from losses import PARTS, ClassPriors, Objective, Teacher, minimum_class_confusion, pseudo_label_loss, ramp, total
from model import DANN, SOURCE, TARGET, DomainBatchNorm

META = torch.device("meta")  # has shapes and no values: any .item(), and any tensor of another device, is an error


def images(seed: int, count: int = 6) -> Tensor:
    return torch.randint(0, 256, (count, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


X_S, X_T, Y_S = images(0), images(1), torch.tensor([3, 1, 4, 1, 5, 9])


def build(arch: str = "small", norm: str = "domain") -> DANN:
    """A network without dropout, the same each time."""
    torch.manual_seed(0)
    net = DANN(10, arch, norm=norm)
    for module in net.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    return net


# L_y and L_d


def cross_entropy(z: Tensor, wanted: Tensor) -> float:
    z = z.double()
    return (z.exp().sum(1).log() - z[torch.arange(len(z)), wanted]).mean().item()


@pytest.mark.parametrize("arch", ["small", "published"])
def test_the_losses_of_a_step_are_those_computed_by_hand(arch: str) -> None:
    net = build(arch)
    losses, _ = Objective(net)(X_S, Y_S, X_T, 0.5)
    with torch.no_grad():
        f_s, f_t = net.features(X_S, SOURCE), net.features(X_T, TARGET)
        d_hat = net.domain_classifier(torch.cat([f_s, f_t]))
        d = torch.tensor([0] * 6 + [1] * 6)  # 0 source, 1 target
        by_hand = {"L_y": cross_entropy(net.label_classifier(f_s), Y_S), "L_d": cross_entropy(d_hat, d)}
    assert losses["domain_accuracy"].item() == pytest.approx((d_hat.argmax(1) == d).double().mean().item())
    assert {name: losses[name].item() for name in ("L_y", "L_d")} == pytest.approx(by_hand, abs=1e-5)
    assert total(losses).item() == pytest.approx(sum(by_hand.values()), abs=1e-5)


@pytest.mark.parametrize("arch", ["small", "published"])
def test_the_domain_loss_of_recipe_paper_is_the_sum_of_a_mean_per_domain(arch: str) -> None:
    net = build(arch, "shared")
    losses, _ = Objective(net)(X_S, Y_S, X_T, 0.5)
    with torch.no_grad():
        f = net.features(torch.cat([X_S, X_T]))
        d_hat = net.domain_classifier(f)
        L_y = cross_entropy(net.label_classifier(f[:6]), Y_S)
        of_s, of_t = (cross_entropy(d_hat[6 * d : 6 * d + 6], torch.full((6,), d)) for d in (SOURCE, TARGET))
    assert losses["L_d"].item() == pytest.approx((of_s + of_t) / 2, abs=1e-5)
    weight_d = RECIPES["paper"].weight_d
    assert total(losses, weight_d).item() == pytest.approx(L_y + of_s + of_t, abs=1e-5)


@pytest.mark.parametrize(("arch", "norm"), [("small", "domain"), ("published", "domain"), ("small", "shared")])
def test_with_labels_of_both_domains_the_loss_is_their_mean_and_there_is_no_other(arch: str, norm: str) -> None:
    y_t = torch.tensor([2, 6, 5, 3, 5, 8])
    losses, _ = Objective(build(arch, norm))(X_S, Y_S, X_T, y_t=y_t)
    net = build(arch, norm)
    f = torch.cat(net.features_of_both(X_S, X_T))
    assert losses.keys() == {"L_y"}
    by_hand = cross_entropy(net.label_classifier(f), torch.cat([Y_S, y_t]))
    assert losses["L_y"].item() == pytest.approx(by_hand, abs=1e-5)


def test_features_get_minus_lambda_times_the_domain_gradient_and_the_domain_classifier_gets_it_whole() -> None:
    def gradients(lambda_p: float) -> dict[str, Tensor]:
        net = build()
        total(Objective(net)(X_S, Y_S, X_T, lambda_p)[0]).backward()
        return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}

    zero, half, one = gradients(0.0), gradients(0.5), gradients(1.0)
    net = build()
    L_y = F.cross_entropy(net.label_classifier(net.features(X_S, SOURCE)), Y_S)
    f = torch.cat([net.features(X_S, SOURCE), net.features(X_T, TARGET)])
    L_d = F.cross_entropy(net.domain_classifier(f), torch.arange(2).repeat_interleave(6))
    names, parameters = zip(*net.feature_extractor.named_parameters(), strict=True)
    plain_y, plain_d = torch.autograd.grad(L_y, parameters), torch.autograd.grad(L_d, parameters, retain_graph=True)
    for name, of_y, of_d in zip(names, plain_y, plain_d, strict=True):
        for lambda_p, found in ((0.0, zero), (0.5, half), (1.0, one)):
            wanted = of_y - lambda_p * of_d
            torch.testing.assert_close(found[f"feature_extractor.{name}"], wanted, rtol=1e-3, atol=1e-5)
    for name, parameter in net.domain_classifier.named_parameters():
        (whole,) = torch.autograd.grad(L_d, parameter, retain_graph=True)
        assert whole.abs().max() > 0
        for found in (zero, half, one):
            torch.testing.assert_close(found[f"domain_classifier.{name}"], whole, rtol=1e-3, atol=1e-5)


def test_the_label_loss_does_not_depend_on_the_target() -> None:
    """BatchNorm statistics mixed by accident are a fault of public code."""
    first, second = (Objective(build())(X_S, Y_S, x_t, 1.0)[0] for x_t in (X_T, images(7)))
    assert torch.equal(first["L_y"], second["L_y"])
    assert not torch.equal(first["L_d"], second["L_d"])


# L_u


def test_the_pseudo_label_loss_is_that_computed_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    loss = pseudo_label_loss(logits, torch.tensor([0, 0, 1]), torch.tensor([1.0, 1.0, 0.0]))
    by_hand = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 3  # the unsure image counts as 0
    assert loss.item() == pytest.approx(by_hand, abs=1e-6)


def test_pseudo_labels_enter_the_total_with_their_weight() -> None:
    labels, mask = torch.tensor([0, 1, 2, 3, 4, 5]), torch.tensor([1.0, 0, 1, 0, 0, 1])
    losses = [Objective(build())(X_S, Y_S, X_T, 0.5, (labels, mask), weight)[0] for weight in (1.0, 0.25)]
    net = build()
    loss = pseudo_label_loss(net(X_T, TARGET), labels, mask).item()
    assert [each["L_u"].item() for each in losses] == pytest.approx([loss, loss / 4], abs=1e-5)
    totals = [total(each).item() for each in losses]
    assert totals[0] - totals[1] == pytest.approx(0.75 * loss, abs=1e-5)
    assert losses[0]["pseudo_label_coverage"] == 0.5


def test_pseudo_labels_set_in_smoothly_and_reach_their_full_weight() -> None:
    weights = [ramp(i / 100, 0.3) for i in range(101)]
    assert weights[0] == pytest.approx(math.exp(-5))
    assert all(a <= b for a, b in itertools.pairwise(weights))
    assert weights[30] == weights[-1] == 1.0
    assert weights[29] < 1.0


# The teacher


def test_the_teacher_labels_clean_images_with_a_mask_of_those_above_the_threshold() -> None:
    net = build().train()
    with torch.no_grad():
        confidence, wanted = net(X_T, TARGET).softmax(1).max(1)  # batch statistics, no dropout
    threshold = confidence.sort().values[2:4].mean().item()  # three images on either side
    labels, mask = Teacher(build(), 0.99, threshold).label(X_T)
    assert torch.equal(labels, wanted)
    assert torch.equal(mask, (confidence > threshold).float())
    assert mask.sum() == 3


def test_the_teachers_weights_are_a_moving_average_and_its_statistics_its_own() -> None:
    net, teacher = build(), Teacher(build(), 0.9, 0.5)
    before = {name: value.clone() for name, value in teacher.net.state_dict().items()}
    with torch.no_grad():
        for value in itertools.chain(net.parameters(), net.buffers()):
            value += 1
    teacher.follow(net, 10_000)
    after, weights = teacher.net.state_dict(), dict(teacher.net.named_parameters(remove_duplicate=False))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value + 0.1 if name in weights else value)


def statistics(net: DANN, domain: str) -> dict[str, Tensor]:
    """Copies of the running statistics of a domain in every layer."""
    return {
        name: value.clone()
        for name, value in net.named_buffers()
        if f".{domain}." in name and value.is_floating_point()
    }


def test_the_teachers_target_statistics_are_those_of_clean_images() -> None:
    teacher, net = Teacher(build(), 0.99, 0.5), build().train()
    for x_t in (images(3, 16), images(4, 16)):
        teacher.label(x_t)
        net.features(x_t, TARGET)
    for name, value in statistics(net, "target").items():
        torch.testing.assert_close(statistics(teacher.net, "target")[name], value)
    untouched = statistics(build(), "source")
    assert all(torch.equal(value, untouched[name]) for name, value in statistics(teacher.net, "source").items())


def test_the_teachers_source_statistics_are_the_mean_over_clean_batches_whatever_they_were_before() -> None:
    teacher, batches = Teacher(build(), 0.99, 0.5), [images(seed, 16) for seed in (4, 5, 6)]
    layers = {name: each for name, each in teacher.net.named_modules() if isinstance(each, DomainBatchNorm)}
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    for name, layer in layers.items():
        layer.source.running_mean.add_(7)  # type: ignore[union-attr]
        layer.register_forward_pre_hook(lambda _, x, means=seen[name]: means.append(x[0].mean((0, 2, 3))))
    before = statistics(teacher.net, "target")
    teacher.measure_source(batches)
    after = statistics(teacher.net, "source")
    for name, means in seen.items():
        assert len(means) == 3
        torch.testing.assert_close(after[f"{name}.source.running_mean"], torch.stack(means).mean(0))
    assert all(torch.equal(value, before[name]) for name, value in statistics(teacher.net, "target").items())
    assert not any(module.training for module in teacher.net.modules())


# Class priors and minimum class confusion


def test_minimum_class_confusion_is_that_computed_by_hand() -> None:
    z = torch.tensor([[4.0, 0.0, 1.0], [0.0, 3.0, 1.0], [2.0, 2.0, 0.0], [0.0, 0.0, 5.0]])
    p = (z / 2.5).softmax(1).double().numpy()
    w = 1 + np.exp((p * np.log(p)).sum(1))  # 1 + exp(-entropy)
    w = len(p) * w / w.sum()
    confusion = sum(w[i] * np.outer(p[i], p[i]) for i in range(len(p)))
    rows = confusion / confusion.sum(1, keepdims=True)
    beside = rows.sum(1) - rows.diagonal()
    assert minimum_class_confusion(z).item() == pytest.approx(beside.mean(), abs=1e-6)
    priors = torch.tensor([0.5, 2.0, 1.0]) / 3.5
    assert minimum_class_confusion(z, priors).item() == pytest.approx((0.5, 2, 1) @ beside / 3.5, abs=1e-6)


def test_minimum_class_confusion_is_0_for_certain_answers_and_greatest_for_answers_that_tell_nothing() -> None:
    certain = 100 * torch.eye(5)
    assert minimum_class_confusion(certain).item() == pytest.approx(0, abs=1e-6)
    assert minimum_class_confusion(torch.zeros(8, 5)).item() == pytest.approx(0.8, abs=1e-6)


def test_minimum_class_confusion_is_finite_where_no_image_can_be_of_a_class() -> None:
    z_t = torch.tensor([[0.0, 1.0, -1e4], [1.0, 0.0, -1e4]], requires_grad=True)
    loss = minimum_class_confusion(z_t)
    loss.backward()
    assert z_t.grad is not None
    assert loss.isfinite()
    assert z_t.grad.isfinite().all()


def test_the_estimated_class_priors_become_those_of_a_shifted_target() -> None:
    """Answers of a classifier that is wrong on 4 of 100 images and has seen the classes as they were drawn."""
    true, generator = torch.tensor([0.7, 0.2, 0.1]), torch.Generator().manual_seed(0)
    priors = ClassPriors(torch.tensor([0, 1, 2] * 10), 3, torch.device("cpu"))
    likelihood = torch.full((3, 3), 0.02) + 0.94 * torch.eye(3)  # p(seen | class)
    for step in range(300):
        classes = torch.multinomial(true, 128, replacement=True, generator=generator)
        seen = torch.multinomial(likelihood[classes], 1, generator=generator).flatten()
        priors.follow((likelihood[:, seen].T * priors.target).log(), step)
    torch.testing.assert_close(priors.target, true, atol=0.03, rtol=0)
    drawn = priors.draw(20_000)
    assert set(drawn.tolist()) == set(range(30))
    torch.testing.assert_close((drawn % 3).bincount() / 20_000, true, atol=0.04, rtol=0)


def test_of_many_classes_the_rare_ones_are_estimated_as_rare_as_they_are() -> None:
    """345 classes, the 305 rarest 0.083 of all; with an image of each beside the answers they were estimated at 0.4."""
    true = torch.arange(1, 346) ** -1.5
    true /= true.sum()
    generator = torch.Generator().manual_seed(0)
    priors = ClassPriors(torch.arange(345), 345, torch.device("cpu"))
    for step in range(300):
        classes = torch.multinomial(true, 32, replacement=True, generator=generator)
        likelihood = torch.full((32, 345), 1e-4).scatter_(1, classes[:, None], 1.0)
        priors.follow((likelihood * priors.target).log(), step)
    assert priors.target[40:].sum() == pytest.approx(true[40:].sum().item(), abs=0.04)
    assert priors.target.min() > 1e-5


@pytest.mark.parametrize("estimated", [False, True])
def test_class_priors_that_are_not_estimated_stay_even_and_no_class_is_ever_given_up(estimated: bool) -> None:
    priors = ClassPriors(torch.tensor([0, 0, 0, 1]), 2, torch.device("cpu"))
    priors.estimated = estimated
    for step in range(100):  # unsure answers
        priors.follow(torch.tensor([[1.0, 0.0]] * 64 + [[0.0, 0.8]] * 64), step)
    assert priors.target.tolist() == pytest.approx([0.5, 0.5])
    for step in range(2000):
        priors.follow(torch.tensor([[9.0, -9.0]] * 127 + [[-9.0, 9.0]]), step)
    assert priors.source.tolist() == [0.75, 0.25]
    if not estimated:
        assert priors.target.tolist() == [0.5, 0.5]
        return
    assert 1e-4 < priors.target[1] < 0.02
    assert priors.target.sum().item() == pytest.approx(1, abs=1e-5)


# Devices and precision


@pytest.mark.parametrize("arch", ["small", "published"])
@pytest.mark.parametrize("strong", [False, True])
def test_a_whole_step_runs_where_its_data_is_without_reading_a_value(arch: str, strong: bool) -> None:
    net = DANN(10, arch).to(META).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    domain = Domain(torch.zeros(20, 28, 28, 3, dtype=torch.uint8), torch.zeros(20, dtype=torch.int64), [])
    (x_s, y_s), (x_t, _) = (Batches(domain, 8, 0, stream, META)(1) for stream in (SOURCE, TARGET))
    assert y_s is not None
    pseudo, teacher = None, Teacher(net, 0.99, 0.85)
    if strong:
        pseudo = teacher.label(x_t)
        x_s, x_t = views(x_s, "digits", paste=True), views(x_t, "digits", paste=False)
    priors = ClassPriors(torch.arange(10), 10, META)
    losses, z_t = Objective(net, PARTS)(x_s, y_s, x_t, 0.5, pseudo, 0.5, priors.target)
    total(losses).backward()
    optimizer.step()
    assert z_t is not None
    priors.follow(z_t, 4)
    assert priors.draw(8).device == META
    teacher.follow(net, 3)
    teacher.measure_source([x_s])
    assert ("L_u" in losses) == strong
    assert priors.target.device == META
    assert all(value.device == META for value in losses.values())
    assert all(p.grad is not None and p.grad.device == META for p in net.parameters())


def test_a_step_in_bfloat16_is_near_that_in_float32_and_leaves_all_that_is_kept_in_float32() -> None:
    def step(enabled: bool) -> tuple[dict[str, Tensor], Tensor, DANN]:
        net = build()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses, _ = Objective(net)(X_S, Y_S, X_T, 0.5)
        total(losses).backward()
        return losses, torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]), net

    (exact, wanted, net), (rounded, gradient, other) = step(False), step(True)
    for name in ("L_y", "L_d"):
        assert not torch.equal(rounded[name], exact[name])  # it was computed in bfloat16
        torch.testing.assert_close(rounded[name], exact[name], rtol=0.02, atol=0.02)  # of the same dtype
    assert gradient.dtype == torch.float32
    assert F.cosine_similarity(gradient, wanted, dim=0) > 0.9
    for name, value in statistics(net, "target").items():
        torch.testing.assert_close(statistics(other, "target")[name], value, rtol=0.03, atol=0.02)

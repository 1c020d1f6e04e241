"""Accuracy, distance and validation scores are what their formulas say, and runs that go wrong are warned of."""

import math
import operator
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import after_each_step, quick_run
from PIL import Image

from dataset import Domain
from metrics import (
    SCORES,
    Answers,
    accuracy_of,
    answer_scores,
    answers,
    batch_nuclear_norm,
    changed_answers,
    class_ami,
    collapse,
    domain_distance,
    harm,
    idle_adversary,
    importance_weighted_accuracy,
    mixval,
    predict,
    soft_neighbourhood_density,
    top_class_share,
    validation_scores,
)
from model import DANN
from runs import Run

# Answers


def small_domain(count: int = 30) -> Domain:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (count, 28, 28, 3), dtype=torch.uint8)
    return Domain(images, torch.randint(0, 10, (count,)), [str(i) for i in range(count)])


def test_accuracy_is_the_share_of_right_answers_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    net, domain = DANN(arch="published").train(), small_domain()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    share = accuracy_of(answers(net, domain))
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())  # no statistic moved
    with torch.no_grad():
        right = net.eval()(domain.images[:].permute(0, 3, 1, 2)).argmax(1) == domain.labels
    assert share == right.sum().item() / 30


def test_what_was_not_measured_is_none() -> None:
    net, domain = DANN(), small_domain()
    enough, few = (predict(net, each.images)[0] for each in (domain, small_domain(5)))
    assert accuracy_of(answers(net, None)) is None
    assert accuracy_of(answers(net, Domain(domain.images, None, domain.names))) is None
    assert domain_distance(few, enough) is None
    assert domain_distance(few, few) is None


def test_predictions_do_not_depend_on_the_batch_size() -> None:
    net, domain = DANN(), small_domain()
    for whole, parts in zip(predict(net, domain.images), predict(net, domain.images, 7), strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


# Proxy A-distance


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    found = domain_distance(a, b)
    assert found is not None
    return found


def drawn(*sizes: int, width: int) -> list[torch.Tensor]:
    """Sets of features of one distribution."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, width, generator=generator) for size in sizes]


def test_the_proxy_a_distance_is_near_zero_for_one_distribution_and_two_for_separate_ones() -> None:
    a, b = drawn(500, 500, width=10)
    assert abs(distance(a, b)) < 0.3
    assert distance(a, b + 10) == pytest.approx(2.0)


def test_the_proxy_a_distance_is_of_held_out_features() -> None:
    """With as many dimensions as points a classifier separates what it was fitted on; held out it cannot."""
    a, b = drawn(40, 40, width=200)
    assert distance(a, b) < 0.8


def test_unequal_domains_are_compared_as_equals() -> None:
    """1,000 against 50 of one distribution: always answering the larger one must not count as telling them apart."""
    a, b = drawn(1000, 50, width=5)
    assert abs(distance(a, b)) < 0.8


# Validation scores


@pytest.mark.parametrize(
    ("p", "entropy", "diversity"),
    [
        (torch.eye(4).repeat(5, 1), 0.0, math.log(4)),  # sure and even answers
        (torch.eye(4)[[2] * 10], 0.0, 0.0),  # a single answer
        (torch.full((10, 4), 0.25), math.log(4), math.log(4)),  # unsure answers
    ],
)
def test_information_is_diversity_less_entropy(p: torch.Tensor, entropy: float, diversity: float) -> None:
    found = answer_scores(p)
    assert found["entropy"] == pytest.approx(entropy, abs=1e-6)
    assert found["diversity"] == pytest.approx(diversity, abs=1e-6)
    assert found["information"] == pytest.approx(diversity - entropy, abs=1e-6)


def test_the_neighbourhood_density_is_that_computed_by_hand() -> None:
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    e = math.exp(20)  # cosine 1 against 0 at temperature 0.05
    pair, alone = (e / (e + 1), 1 / (e + 1)), (0.5, 0.5)
    by_hand = -(2 * sum(q * math.log(q) for q in pair) + sum(q * math.log(q) for q in alone)) / 3
    assert soft_neighbourhood_density(p) == pytest.approx(by_hand, abs=1e-6)


def test_the_neighbourhood_density_goes_by_the_cosine_at_temperature_0_05() -> None:
    p, total = [(0.8, 0.2), (0.75, 0.25), (0.7, 0.3)], 0.0
    for i in range(3):
        others = [p[j] for j in range(3) if j != i]
        cosines = [sum(map(operator.mul, p[i], q)) / math.hypot(*p[i]) / math.hypot(*q) for q in others]
        parts = [math.exp(cosine / 0.05) for cosine in cosines]
        total -= sum(part / sum(parts) * math.log(part / sum(parts)) for part in parts)
    assert soft_neighbourhood_density(torch.tensor(p)) == pytest.approx(total / 3, abs=1e-6)


def test_images_alike_are_denser_than_images_spread_between_the_classes() -> None:
    torch.manual_seed(0)
    clusters = torch.eye(10).repeat(20, 1) * 0.9 + 0.01
    assert soft_neighbourhood_density(clusters) > soft_neighbourhood_density((3 * torch.randn(200, 10)).softmax(1))


def test_the_batch_nuclear_norm_is_that_computed_by_hand() -> None:
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # singular values: roots of 3 and 1
    assert batch_nuclear_norm(p) == pytest.approx((math.sqrt(3) + 1) / math.sqrt(4 * 2))
    assert batch_nuclear_norm(torch.eye(4).repeat(5, 1)) == pytest.approx(1.0)
    assert batch_nuclear_norm(torch.eye(4)[[2] * 10]) == pytest.approx(math.sqrt(10) / math.sqrt(40))  # one answer
    assert batch_nuclear_norm(torch.eye(4)[:2]) == pytest.approx(1.0)  # fewer images than classes


def test_the_class_ami_is_one_where_answers_are_the_clusters_and_zero_where_they_are_one() -> None:
    features = torch.eye(3).repeat_interleave(10, 0) + 0.01 * torch.randn(
        30, 3, generator=torch.Generator().manual_seed(0)
    )
    p = torch.eye(3).repeat_interleave(10, 0)
    assert class_ami(p.roll(1, 1), features) == pytest.approx(1.0)  # by any names
    assert class_ami(torch.eye(3)[[1] * 30], features) == 0.0
    assert class_ami(torch.eye(3)[[1] * 30], torch.zeros(30, 3)) == 0.0  # all has collapsed
    assert -0.1 < class_ami(torch.eye(3).repeat(10, 1), features) < 0.0  # answers across the clusters: below chance
    assert class_ami(p, features * torch.logspace(-2, 2, 30)[:, None]) == pytest.approx(1.0)  # whatever their length
    assert class_ami(torch.eye(3), torch.eye(3)) == 0.0  # no more images than classes


def test_the_importance_weighted_accuracy_is_that_computed_by_hand() -> None:
    right, p_target = torch.tensor([True, False, True]), torch.tensor([0.5, 0.75, 0.2])  # w: 1, 3, 1/4
    assert importance_weighted_accuracy(right, p_target) == pytest.approx(1.25 / 4.25)
    assert importance_weighted_accuracy(right, torch.full((3,), 0.4)) == pytest.approx(2 / 3)  # all alike


def test_mixval_is_the_mean_of_two_kinds_of_pairs() -> None:
    p, partner = torch.eye(2)[[0, 0, 1, 1]], torch.tensor([1, 2, 3, 0])  # pairs 0 and 2 alike, 1 and 3 different
    assert mixval(p, partner, torch.eye(2)[[0, 0, 1, 0]]) == pytest.approx((1.0 + 0.5) / 2)
    collapsed = torch.eye(2)[[0, 0, 0, 0]]
    assert mixval(collapsed, partner, collapsed) == 0.5  # no pair of different answers


def test_every_validator_scores_a_network_and_none_reads_a_label_of_the_target() -> None:
    net, source, target = DANN(), small_domain(40), small_domain(30)
    on_source, on_target = answers(net, source), answers(net, target)
    assert on_source is not None
    assert on_target is not None
    found = validation_scores(net, target.images, on_target, on_source)
    assert set(found) == {*SCORES, "proxy_a_distance"}
    assert None not in found.values()
    on_target.right = None
    assert validation_scores(net, target.images, on_target, on_source) == found
    assert validation_scores(net, target.images, on_target)["iw"] is None  # without labels of the source


def test_the_weights_of_the_source_are_those_of_the_images_whose_answers_they_weigh() -> None:
    """Every third image of the source looks like the target's, and the network is right on these alone."""
    like = torch.arange(90) % 3 == 0
    source = Answers(like.float()[:, None], torch.eye(10)[[0] * 90], like)
    target = Answers(torch.ones(60, 1), torch.eye(10)[[0] * 60], None)
    found = validation_scores(DANN(size=8), torch.zeros(60, 8, 8, 3, dtype=torch.uint8), target, source)
    assert found["iw"] is not None
    assert found["iw"] > 0.8


def test_the_scores_of_images_in_the_order_of_their_classes_are_those_of_any_order() -> None:
    for p in (torch.eye(10).repeat_interleave(2000, 0), torch.eye(10).repeat(2000, 1)):  # in blocks, in turn
        target = Answers(p.float(), p.float(), None)
        net, images = DANN(size=8), torch.zeros(len(p), 8, 8, 3, dtype=torch.uint8)
        assert validation_scores(net, images, target)["diversity"] == pytest.approx(math.log(10), abs=0.01)


def test_the_top_class_share_is_that_of_the_most_frequent_answer() -> None:
    assert top_class_share(torch.eye(4)[[0, 1, 1, 1, 3]]) == 0.6


# Warnings


def line(**changed: float) -> dict[str, float]:
    """Of answers that are sure: all of their diversity is information."""
    diversity = changed.get("diversity", math.log(9))
    information = diversity - changed.get("entropy", 0.0)
    sound = {"diversity": diversity, "entropy": 0.0, "information": information, "lambda": 0.2, "L_d": 0.6}
    return {**sound, **changed}


def test_a_sound_run_gives_no_warning() -> None:
    lines = [line(), line(L_d=0.69)]
    assert collapse(lines[-1], 10, 99) + idle_adversary(lines) == []
    assert collapse({"diversity": None, "lambda": 0.0, "L_d": None}, 10, 99) == []


@pytest.mark.parametrize(
    ("lines", "classes", "names"),
    [
        ([line(diversity=0.0)], 10, "same answer"),
        ([line(), line(diversity=math.log(2))], 10, "classes have merged"),
        ([line(), line(entropy=math.log(2))], 10, "unsure"),
        ([line(entropy=0.6, diversity=0.69)], 2, "unsure"),
        ([line(top_class_share=0.7)], 10, "70%"),
        ([line(diversity=0.69, top_class_share=0.96)], 2, "96%"),
        ([line(**{"lambda": 0.0})], 10, "--lambda_max"),
        ([line(L_d=0.9), line(L_d=0.85)], 10, "-lr"),
        ([line(L_d=0.6931), line(L_d=0.6929)], 10, "0.693"),
    ],
)
def test_each_thing_that_goes_wrong_is_warned_of_once(lines: list[dict[str, float]], classes: int, names: str) -> None:
    (found,) = collapse(lines[-1], classes, 99) + idle_adversary(lines)
    assert names in found


@pytest.mark.parametrize("share", [0.5, 0.87])
def test_two_classes_of_which_one_is_frequent_are_no_collapse(share: float) -> None:
    diversity = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert collapse(line(diversity=diversity, top_class_share=share), 2, 99) == []


@pytest.mark.parametrize("losses", [[0.6931, 0.6929], [0.6, 0.6931, 0.6931, 0.6931]])
def test_a_domain_classifier_that_guesses_is_reported_with_the_distances_that_tell_whether_it_was_fooled(
    losses: list[float],
) -> None:
    lines = [line(L_d=loss) for loss in losses]
    (told,), (plain,) = idle_adversary(lines, 1.79, 0.44), idle_adversary(lines)
    assert "1.79" in told
    assert "0.44" in told
    assert "proxy" not in plain


@torch.no_grad()
def set_last(part: torch.nn.Module, weight: float, bias: float = 0.0) -> None:
    """Scale the last layer's weight; its bias becomes `bias` for its first output and else 0."""
    *_, last_weight, last_bias = part.parameters()
    last_weight.mul_(weight)
    last_bias.zero_()
    last_bias[0] = bias


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (lambda run: set_last(run.net.domain_classifier, 0.0), "never told the domains apart"),
        (lambda run: set_last(run.net.domain_classifier, 1.0, bias=9.0), "worse than a guess"),
        (lambda run: set_last(run.net.label_classifier, 0.0, bias=0.05), "same answer"),  # however unsure it is
    ],
)
def test_a_run_whose_network_is_spoilt_says_so(
    spoil: Callable[[Run], None], names: str, small_data: Path, tmp_path: Path
) -> None:
    with after_each_step(spoil):
        found = quick_run(small_data, tmp_path, "dann", "usps", "--max_steps", "6", "--val_period", "2")["warnings"]
    assert any(names in sentence for sentence in found)


@pytest.mark.usefixtures("no_figures")
def test_a_run_too_short_for_lambda_to_rise_says_so(small_data: Path, tmp_path: Path) -> None:
    found = quick_run(small_data, tmp_path, "dann", "usps", "--max_steps", "1")["warnings"]
    assert any("--lambda_max" in sentence for sentence in found)


@pytest.mark.usefixtures("no_figures")
def test_a_domain_classifier_that_stops_learning_on_the_way_says_so(small_data: Path, tmp_path: Path) -> None:
    """It tells blank images from others, until its last layer dies."""
    (tmp_path / "mnistm").symlink_to(small_data / "mnistm")
    (tmp_path / "blank").mkdir()
    for i in range(20):
        Image.new("L", (28, 28), i).save(tmp_path / "blank" / f"{i}.png")

    def spoil(run: Run) -> None:
        if run.step > 9:
            set_last(run.net.domain_classifier, 0.0)

    more = ("--max_steps", "24", "-lr", "0.02", "--val_period", "2")
    with after_each_step(spoil):
        found = quick_run(tmp_path, tmp_path / "runs", "dann", "blank", *more)["warnings"]
    assert any("no longer tells" in sentence for sentence in found)
    assert any("same answer" in sentence for sentence in found)  # measured without a val set, too


# Against training on the source alone


@pytest.mark.parametrize(
    ("right_before", "kept", "harmed"), [(0.95, 0.7, True), (0.95, 0.92, False), (0.97, 0.2, True), (0.75, 0.2, False)]
)
def test_harm_is_said_where_adaptation_must_have_made_sure_answers_worse(
    right_before: float, kept: float, harmed: bool
) -> None:
    """Of 1,000 answers as confident as they are right before; of the last case they are unsure, too."""
    classes = torch.arange(1000) % 4
    reference = torch.full((1000, 4), (1 - right_before) / 3).scatter(1, classes[:, None], right_before)
    adapted = torch.eye(4)[torch.where(torch.arange(1000) < 1000 * kept, classes, (classes + 1) % 4)]
    changed = changed_answers(reference, adapted)
    assert [changed["agreement"], changed["confidence"]] == pytest.approx([kept, right_before], abs=1e-6)
    assert (len(harm(changed)) == 1) == harmed

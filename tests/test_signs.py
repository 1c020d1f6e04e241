"""Label-free signs are what their formulas say."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import QUICK
from PIL import Image
from signs import SIGNS, collapse, idle_adversary, label_free_signs, soft_neighbourhood_density, top_class_share

import train
from model import DANN
from runs import Run


def test_sure_and_even_answers_have_all_the_information() -> None:
    found = label_free_signs(torch.eye(4).repeat(5, 1))
    assert tuple(found) == SIGNS
    assert found["entropy"] == pytest.approx(0)
    assert found["diversity"] == pytest.approx(math.log(4))
    assert found["information_maximisation"] == pytest.approx(math.log(4))


def test_a_single_answer_has_no_diversity() -> None:
    found = label_free_signs(torch.eye(4)[[2] * 10])
    assert found["diversity"] == pytest.approx(0)
    assert found["information_maximisation"] == pytest.approx(0)


def test_unsure_answers_have_no_information() -> None:
    found = label_free_signs(torch.full((10, 4), 0.25))
    assert found["entropy"] == pytest.approx(math.log(4))
    assert found["information_maximisation"] == pytest.approx(0, abs=1e-6)


def test_the_neighbourhood_density_is_that_computed_by_hand() -> None:
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    e = math.exp(20)  # cosine 1 against 0 at temperature 0.05
    pair, alone = (e / (e + 1), 1 / (e + 1)), (0.5, 0.5)
    by_hand = -(2 * sum(q * math.log(q) for q in pair) + sum(q * math.log(q) for q in alone)) / 3
    assert soft_neighbourhood_density(p) == pytest.approx(by_hand, abs=1e-6)


def test_images_alike_are_denser_than_images_spread_between_the_classes() -> None:
    torch.manual_seed(0)
    clusters = torch.eye(10).repeat(20, 1) * 0.9 + 0.01
    assert soft_neighbourhood_density(clusters) > soft_neighbourhood_density((3 * torch.randn(200, 10)).softmax(1))


def line(**changed: float) -> dict[str, float]:
    """Of answers that are sure: all of their diversity is information."""
    diversity = changed.get("diversity", math.log(9))
    return {"diversity": diversity, "information_maximisation": diversity - changed.get("entropy", 0.0)} | {
        "entropy": 0.0,
        "lambda": 0.2,
        "L_d": 0.6,
        **changed,
    }


def test_a_sound_run_gives_no_warning() -> None:
    lines = [line(), line(L_d=0.69)]
    assert collapse(lines[-1], 10) + idle_adversary(lines) == []
    assert collapse({"diversity": None, "lambda": 0.0, "L_d": None}, 10) == []


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([line(diversity=0.0)], "every target image, or nearly every, gets the same answer"),
        ([line(), line(diversity=math.log(3))], "tell as few as 3.0 of 10 classes apart"),
        ([line(), line(entropy=math.log(2))], "tell as few as 4.5 of 10 classes apart"),
        ([line(top_class_share=0.7)], "one class gets 70% of the answers on the target: unless"),
        ([line(**{"lambda": 0.0})], "lambda was 0 in every line"),
        ([line(L_d=0.6931), line(L_d=0.6929)], "the domain classifier never told the domains apart"),
    ],
)
def test_what_goes_wrong_is_said_in_plain_words(lines: list[dict[str, float]], sentence: str) -> None:
    (found,) = collapse(lines[-1], 10) + idle_adversary(lines)
    assert sentence in found


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"entropy": 0.6, "diversity": 0.69}, "tell as few as 1.1 of 2 classes apart"),
        ({"diversity": 0.69, "top_class_share": 0.96}, "one class gets 96% of the answers"),
    ],
)
def test_two_classes_get_the_same_warnings_as_ten(changed: dict[str, float], sentence: str) -> None:
    (found,) = collapse(line(**changed), 2)
    assert sentence in found
    for share in (0.5, 0.87):  # sure of every answer
        diversity = -share * math.log(share) - (1 - share) * math.log(1 - share)
        assert collapse(line(diversity=diversity, top_class_share=share), 2) == []


@pytest.mark.parametrize("losses", [[0.6931, 0.6929], [0.6, 0.6931, 0.6931, 0.6931]])
def test_a_domain_classifier_that_guesses_is_reported_with_the_distances_that_tell_whether_it_was_fooled(
    losses: list[float],
) -> None:
    lines = [line(L_d=loss) for loss in losses]
    (told,) = idle_adversary(lines, 1.79, 0.44)
    assert "(proxy A-distance 1.79 before, 0.44 after)" in told
    (plain,) = idle_adversary(lines)
    assert "proxy" not in plain


def test_the_signs_of_images_in_the_order_of_their_classes_are_those_of_any_order() -> None:
    for answers in (torch.eye(10).repeat_interleave(2000, 0), torch.eye(10).repeat(2000, 1)):  # in blocks, in turn
        assert label_free_signs(answers)["diversity"] == pytest.approx(math.log(10), abs=0.01)


# Real runs that go wrong


class Spoilt:
    """A run of a few steps on tiny data whose network is changed before its steps; `warnings` is what it says."""

    def __init__(self, small_data: Path, save_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arguments = ["--data_root", str(small_data), "--target_file", "usps", "--save_dir", str(save_dir), *QUICK]
        self.monkeypatch = monkeypatch

    def warnings(self, before_step: Callable[[DANN, int], None], *more: str) -> list[str]:
        start, step, number, started = train.start_run, train.train_step, itertools.count(), []

        def noted(*args: Any) -> Run:
            started.append(start(*args))
            return started[-1]

        def spoilt(optimizer: torch.optim.Optimizer, losses: dict[str, torch.Tensor]) -> None:
            step(optimizer, losses)
            before_step(started[-1].net, next(number))

        self.monkeypatch.setattr(train, "start_run", noted)
        self.monkeypatch.setattr(train, "train_step", spoilt)
        return train.main([*self.arguments, "--train_mode", "dann", "--val_period", "2", *more])["warnings"]


@pytest.fixture
def spoilt(small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spoilt:
    return Spoilt(small_data, tmp_path, monkeypatch)


@torch.no_grad()
def set_last(part: torch.nn.Module, weight: float, bias: float = 0.0) -> None:
    """Set the last layer of a part: `bias` goes to its first output."""
    *_, last_bias = part.parameters()
    list(part.parameters())[-2].mul_(weight)
    last_bias.zero_()
    last_bias[0] = bias


def test_a_run_too_short_for_lambda_to_rise_says_so(spoilt: Spoilt) -> None:
    found = spoilt.warnings(lambda net, step: None, "--max_steps", "1")
    assert (
        "lambda was 0 in every line, or nearly: nothing was adapted; use more steps, or a larger --lambda_max." in found
    )


def test_a_domain_classifier_that_never_learns_says_so(spoilt: Spoilt) -> None:
    found = spoilt.warnings(lambda net, step: set_last(net.domain_classifier, 0.0))
    assert [sentence for sentence in found if sentence.startswith("the domain classifier never told the domains apart")]


def test_a_domain_classifier_that_stops_learning_on_the_way_says_so(
    spoilt: Spoilt, small_data: Path, tmp_path: Path
) -> None:
    """It tells blank images from others, until its last layer dies."""
    (tmp_path / "mnistm").symlink_to(small_data / "mnistm")
    (tmp_path / "usps").mkdir()
    for i in range(20):
        Image.new("L", (28, 28), i).save(tmp_path / "usps" / f"{i}.png")

    def change(net: DANN, step: int) -> None:
        if step >= 9:
            set_last(net.domain_classifier, 0.0)

    found = spoilt.warnings(change, "--max_steps", "24", "-lr", "0.02", "--data_root", str(tmp_path))
    assert [sentence for sentence in found if sentence.startswith("the domain classifier no longer tells")]
    assert found[0].startswith("every target image, or nearly every, gets the same answer")  # without a val set, too


def test_a_domain_classifier_that_is_worse_than_a_guess_says_so(spoilt: Spoilt) -> None:
    found = spoilt.warnings(lambda net, step: set_last(net.domain_classifier, 1.0, bias=9.0))
    assert [sentence for sentence in found if sentence.startswith("the domain classifier does worse than a guess")]


def test_a_target_that_is_predicted_as_one_class_says_so_however_unsure_the_answers_are(spoilt: Spoilt) -> None:
    found = spoilt.warnings(lambda net, step: set_last(net.label_classifier, 0.0, bias=0.05))
    assert found[0].startswith("every target image, or nearly every, gets the same answer")


def test_a_target_of_which_most_is_predicted_as_one_class_says_so() -> None:
    (found,) = collapse(line(top_class_share=0.8), 10)
    assert "one class gets 80% of the answers" in found


def test_the_top_class_share_is_that_of_the_most_frequent_answer() -> None:
    assert top_class_share(torch.eye(4)[[0, 1, 1, 1, 3]]) == 0.6

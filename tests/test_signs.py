"""Label-free signs are what their formulas say."""

import math

import pytest
import torch

from signs import SIGNS, label_free_signs, soft_neighbourhood_density, warnings_of


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
    return {"diversity": math.log(9), "lambda": 0.2, "L_d": 0.6, **changed}


def test_a_sound_run_gives_no_warning() -> None:
    assert warnings_of([line(), line(L_d=0.69)], 10, adversarial=True) == []
    assert warnings_of([{"diversity": None, "lambda": 0.0, "L_d": None}], 10, adversarial=False) == []


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([line(diversity=0.0)], "every target image, or nearly every, gets the same answer"),
        ([line(), line(diversity=math.log(3))], "spread over as few as 3.0 of 10 classes"),
        ([line(**{"lambda": 0.0})], "lambda was 0 in every line"),
        ([line(L_d=0.6931), line(L_d=0.6929)], "the domain classifier never told the domains apart"),
    ],
)
def test_what_goes_wrong_is_said_in_plain_words(lines: list[dict[str, float]], sentence: str) -> None:
    (found,) = warnings_of(lines, 10, adversarial=True)
    assert sentence in found

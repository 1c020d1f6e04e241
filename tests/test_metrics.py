"""Accuracy and the distance of two domains are measured as stated."""

import pytest
import torch

from dataset import Domain
from metrics import answers, domain_distance, predict, proxy_a_distance, share_right
from model import DANN


def test_the_proxy_a_distance_is_near_zero_for_one_distribution_and_two_for_separate_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1000, 10, generator=generator) for _ in range(2))
    assert abs(proxy_a_distance(a, b)) < 0.3
    assert proxy_a_distance(a, b + 10) == pytest.approx(2.0)


def test_the_proxy_a_distance_is_of_held_out_features() -> None:
    """With as many dimensions as points a classifier separates what it was fitted on; held out it cannot."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(40, 200, generator=generator) for _ in range(2))
    assert proxy_a_distance(a, b) < 0.8


def test_unequal_domains_are_compared_as_equals() -> None:
    """1,000 against 50 of one distribution: always answering the larger one must not count as telling them apart."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(1000, 5, generator=generator), torch.randn(50, 5, generator=generator)
    assert abs(proxy_a_distance(a, b)) < 0.8


def small_domain(count: int = 30) -> Domain:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (count, 28, 28, 3), dtype=torch.uint8)
    return Domain(images, torch.randint(0, 10, (count,)), [str(i) for i in range(count)])


def test_accuracy_is_the_share_of_right_answers_in_evaluation_mode() -> None:
    net, domain = DANN(arch="published"), small_domain()
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    share = share_right(answers(net, domain))
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())  # no statistic moved
    net.eval()
    with torch.no_grad():
        right = net(domain.images.permute(0, 3, 1, 2)).argmax(1) == domain.labels
    assert share == right.sum().item() / 30
    assert share_right(answers(net, None)) is None
    assert share_right(answers(net, Domain(domain.images, None, domain.names))) is None


def test_predictions_do_not_depend_on_the_batch_size() -> None:
    net, domain = DANN(), small_domain()
    for whole, parts in zip(predict(net, domain.images), predict(net, domain.images, 7), strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_a_distance_that_cannot_be_measured_is_none() -> None:
    net = DANN()
    enough, few = answers(net, small_domain()), answers(net, small_domain(5))
    assert domain_distance(None, enough) is None
    assert domain_distance(few, few) is None

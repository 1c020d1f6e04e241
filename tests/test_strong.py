"""Recipe strong: each loss by hand, the teacher as stated, and runs that are as reproducible as recipe paper's."""

import itertools
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK, same_tensors
from strong import Teacher, pseudo_label_loss, ramp

import train
from checkpoint import load_checkpoint
from model import DANN, SOURCE, TARGET, DomainBatchNorm2d
from utils import UserError


def images(seed: int, count: int = 6) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def build() -> DANN:
    torch.manual_seed(0)
    net = DANN(10)
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0
    return net


def strong_run(data: Path, save_dir: Path, *more: str, mode: str = "dann") -> dict:
    return train.main(
        ["--data_root", str(data), "--train_mode", mode, "--target_file", "usps", "--recipe", "strong"]
        + ["--save_dir", str(save_dir), *QUICK, *more]
    )


def test_the_pseudo_label_loss_is_that_computed_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    loss = pseudo_label_loss(logits, torch.tensor([0, 0, 1]), torch.tensor([1.0, 1.0, 0.0]))
    by_hand = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 3  # the unsure image counts as 0
    assert loss.item() == pytest.approx(by_hand, abs=1e-6)


def test_pseudo_labels_set_in_smoothly_and_reach_their_full_weight() -> None:
    weights = [ramp(p, 0.3) for p in np.linspace(0, 1, 101)]
    assert weights[0] == pytest.approx(math.exp(-5))
    assert all(a <= b for a, b in itertools.pairwise(weights))
    assert weights[30] == weights[-1] == 1.0


def test_the_teacher_labels_with_the_averaged_weights_where_it_is_sure() -> None:
    net = build()
    teacher = Teacher(net, 0.99, 0.15)
    x_t = images(2)
    net.train()
    with torch.no_grad():
        q = net(x_t, TARGET).softmax(1)  # batch statistics, no dropout
    labels, mask = teacher.label(x_t)
    assert torch.equal(labels, q.argmax(1))
    assert torch.equal(mask, (q.max(1).values > 0.15).float())
    assert 0 < mask.mean() < 1 or q.max(1).values.min() > 0.15


def test_the_teacher_follows_as_a_moving_average_and_keeps_its_own_statistics() -> None:
    net, teacher = build(), Teacher(build(), 0.9, 0.5)
    before = {name: value.clone() for name, value in teacher.net.state_dict().items()}
    with torch.no_grad():
        for value in net.state_dict().values():
            value += 1
    teacher.follow(net, 10_000)
    after = teacher.net.state_dict()
    for name, value in before.items():
        if name.endswith(("_s", "_t")):
            assert torch.equal(after[name], value)
        else:
            torch.testing.assert_close(after[name], value + 0.1)


def test_the_teachers_target_statistics_are_those_of_unaltered_images() -> None:
    teacher = Teacher(build(), 0.99, 0.5)
    x_t = images(3, count=64)
    for _ in range(80):
        teacher.label(x_t)
    first = next(layer for layer in teacher.net.modules() if isinstance(layer, DomainBatchNorm2d))
    moved = first.statistics(TARGET)[0].clone()
    plain = build().train()
    for _ in range(80):
        plain.features(x_t, TARGET)
    first = next(layer for layer in plain.modules() if isinstance(layer, DomainBatchNorm2d))
    torch.testing.assert_close(moved, first.statistics(TARGET)[0], rtol=1e-3, atol=1e-4)


def test_the_teachers_source_statistics_are_the_mean_over_unaltered_batches_whatever_they_were_before() -> None:
    teacher, batches = Teacher(build(), 0.99, 0.5), [images(seed, count=32) for seed in (4, 5, 6)]
    responses = []
    name = next(name for name, layer in teacher.net.named_modules() if isinstance(layer, DomainBatchNorm2d))
    before = teacher.net.get_submodule(f"{name.rpartition('.')[0]}.0")  # the convolution whose output it normalises
    with torch.no_grad():
        hook = before.register_forward_hook(lambda layer, inputs, output: responses.append(output.mean((0, 2, 3))))
        for layer in teacher.norms:
            layer.statistics(SOURCE)[0].add_(7)
        targets = [layer.statistics(TARGET)[0].clone() for layer in teacher.norms]
        teacher.meet_source(batches)
        hook.remove()
    torch.testing.assert_close(teacher.norms[0].statistics(SOURCE)[0], torch.stack(responses).mean(0))
    assert all(torch.equal(old, layer.statistics(TARGET)[0]) for old, layer in zip(targets, teacher.norms, strict=True))
    assert not any(module.training for module in teacher.net.modules())
    assert {layer.momentum for layer in teacher.norms} == {0.1}


def test_how_often_a_run_validates_changes_nothing_of_its_teacher(small_data: Path, tmp_path: Path) -> None:
    runs = [strong_run(small_data, tmp_path / period, "--val_period", period) for period in ("3", "100")]
    first, second = (load_checkpoint(Path(run["folder"]) / "last.pt") for run in runs)
    assert same_tensors(first["model"], second["model"])


@pytest.mark.parametrize("mode", ["source", "dann", "target"])
def test_the_same_seed_gives_identical_weights(mode: str, small_data: Path, tmp_path: Path) -> None:
    runs = [strong_run(small_data, tmp_path / str(i), "--source_file", "mnistm", mode=mode) for i in range(2)]
    first, second = (load_checkpoint(Path(run["folder"]) / "last.pt") for run in runs)
    assert same_tensors(first["model"], second["model"])
    assert runs[0]["target_val_accuracy"] == runs[1]["target_val_accuracy"]


def test_a_run_cut_in_the_middle_goes_on_to_identical_weights(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = strong_run(small_data, tmp_path / "whole")
    step, calls = train.train_step, iter(range(100))

    def killed(*args: object) -> None:
        if next(calls) == 8:
            raise KeyboardInterrupt
        step(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        strong_run(small_data, tmp_path / "cut")
    monkeypatch.setattr(train, "train_step", step)
    cut = strong_run(small_data, tmp_path / "cut", "--resume")
    first, second = (load_checkpoint(Path(run["folder"]) / "last.pt") for run in (whole, cut))
    assert same_tensors(first["model"], second["model"])
    assert same_tensors(first["resume"]["student"], second["resume"]["student"])


def test_permuted_target_labels_give_identical_weights(small_data: Path, tmp_path: Path) -> None:
    other = tmp_path / "data"
    shutil.copytree(small_data, other)
    lines = (other / "usps" / "train.csv").read_text().splitlines()
    names, labels = zip(*(line.split(",") for line in lines[1:]), strict=True)
    shuffled = [f"{name},{label}" for name, label in zip(names, labels[1:] + labels[:1], strict=True)]
    (other / "usps" / "train.csv").write_text("\n".join([lines[0], *shuffled]) + "\n")
    runs = [strong_run(data, tmp_path / str(i)) for i, data in enumerate((small_data, other))]
    first, second = (load_checkpoint(Path(run["folder"]) / "last.pt") for run in runs)
    assert same_tensors(first["model"], second["model"])


def test_without_leaves_parts_out(small_data: Path, tmp_path: Path) -> None:
    run = strong_run(small_data, tmp_path, "--without", "teacher", "neighbours")
    checkpoint = load_checkpoint(Path(run["folder"]) / "last.pt")
    assert checkpoint["resume"]["student"] is None
    assert checkpoint["metrics"]["L_u"] is None
    assert run["args"]["without"] == ["neighbours", "teacher"]


def test_without_the_adversarial_part_no_domain_gradient_reaches_the_features(small_data: Path, tmp_path: Path) -> None:
    run = strong_run(small_data, tmp_path, "--without", "adversarial")
    assert load_checkpoint(Path(run["folder"]) / "last.pt")["metrics"]["lambda"] == 0.0


def test_leaving_parts_out_of_recipe_paper_is_refused(small_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--without leaves parts out of --recipe strong"):
        train.main(
            ["--data_root", str(small_data), "--train_mode", "dann", "--target_file", "usps", "--without", "teacher"]
            + ["--save_dir", str(tmp_path)]
        )

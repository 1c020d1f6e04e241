"""Training does what the paper says and reads what it may: each known fault of public code has a test here."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import flags
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import QUICK, ctrl_c_in_step, same_tensors, write_domain
from records import read_metrics
from signs import SIGNS

import inference
import losses as losses_module
import train
from checkpoint import build_network, load_checkpoint
from dataset import list_split, read_domain
from losses import adversarial_losses
from metrics import Answers, predict
from model import DANN
from utils import UserError


def run(root: Path, save_dir: Path, mode: str = "dann", target: str = "usps", *more: str) -> dict[str, Any]:
    return train.main(
        [
            "--data_root",
            str(root),
            "--train_mode",
            mode,
            "--target_file",
            target,
            "--save_dir",
            str(save_dir),
            *QUICK,
            *more,
        ]
    )


def weights(outcome: dict[str, Any], name: str = "last.pt") -> dict[str, torch.Tensor]:
    return load_checkpoint(Path(outcome["folder"]) / name)["model"]


def copy_with_csv(root: Path, to: Path, domain: str, split: str, change: Any) -> Path:
    """A copy of a data root in which the CSV of one split is `change(table)`."""
    shutil.copytree(root, to)
    file = to / domain / f"{split}.csv"
    change(pd.read_csv(file, dtype=str)).to_csv(file, index=False)
    return to


# The step


def batch(seed: int = 0, count: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_s, x_t = (torch.randint(0, 256, (count, 3, 28, 28), dtype=torch.uint8, generator=generator) for _ in range(2))
    return x_s, torch.randint(0, 10, (count,), generator=generator), x_t


def build(seed: int = 0, arch: str = "small") -> DANN:
    torch.manual_seed(seed)
    net = DANN(10, arch)
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
            module.p = 0.0
    return net


@pytest.mark.parametrize("arch", ["small", "published"])
def test_the_losses_of_a_step_are_those_computed_by_hand(arch: str) -> None:
    net, (x_s, y_s, x_t) = build(arch=arch), batch()
    losses = adversarial_losses(net, x_s, y_s, x_t, 0.5)
    with torch.no_grad():
        f_s, f_t = net.features(x_s, 0), net.features(x_t, 1)
        logits = net.label_classifier(f_s).double().numpy()
        d_hat = net.domain_classifier(torch.cat([f_s, f_t])).double().numpy()

    def cross_entropy(z: np.ndarray, wanted: np.ndarray) -> float:
        log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
        return float(-log_p[np.arange(len(z)), wanted].mean())

    d = np.array([0] * 6 + [1] * 6)  # 0 source, 1 target
    assert losses["L_y"].item() == pytest.approx(cross_entropy(logits, y_s.numpy()), abs=1e-5)
    assert losses["L_d"].item() == pytest.approx(cross_entropy(d_hat, d), abs=1e-5)
    assert losses["domain_accuracy"].item() == pytest.approx((d_hat.argmax(1) == d).mean())


def test_features_get_minus_lambda_times_the_domain_gradient_and_the_domain_classifier_gets_it_whole() -> None:
    x_s, y_s, x_t = batch()

    def gradients(lambda_p: float) -> dict[str, torch.Tensor]:
        net = build()
        losses = adversarial_losses(net, x_s, y_s, x_t, lambda_p)
        (losses["L_y"] + losses["L_d"]).backward()
        return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}

    zero, one, half = gradients(0.0), gradients(1.0), gradients(0.5)
    net = build()
    f = torch.cat([net.features(x_s, 0), net.features(x_t, 1)])
    d = torch.arange(2).repeat_interleave(6)
    plain = torch.autograd.grad(F.cross_entropy(net.domain_classifier(f), d), list(net.feature_extractor.parameters()))
    for (name, _), unreversed in zip(net.feature_extractor.named_parameters(), plain, strict=True):
        key = f"feature_extractor.{name}"
        torch.testing.assert_close(one[key] - zero[key], -unreversed, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(half[key] - zero[key], -0.5 * unreversed, rtol=1e-3, atol=1e-5)
    for name in zero:
        if name.startswith("domain_classifier"):
            torch.testing.assert_close(zero[name], one[name])
            assert one[name].abs().max() > 0


def test_a_step_uses_the_gradient_of_that_step_alone() -> None:
    """`zero_grad` missing in the adversarial step is a fault of public code."""
    net, (x_s, y_s, x_t) = build(), batch()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    grads = []
    for _ in range(2):
        train.train_step(optimizer, adversarial_losses(net, x_s, y_s, x_t, 1.0))
        grads.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    for first, second in zip(*grads, strict=True):
        torch.testing.assert_close(first, second)


def test_source_and_target_pass_batchnorm_apart() -> None:
    """Statistics mixed by accident are a fault of public code: the source's features do not depend on the target."""
    x_s, y_s, x_t = batch()
    other = batch(seed=1)[2]
    assert torch.equal(
        adversarial_losses(build(), x_s, y_s, x_t, 1.0)["L_y"],
        adversarial_losses(build(), x_s, y_s, other, 1.0)["L_y"],
    )


@pytest.mark.parametrize("mode", flags.MODES)
def test_the_optimizer_holds_exactly_the_parameters_that_the_mode_trains(mode: str) -> None:
    net = build()
    optimizer = train.build_optimizer(net, mode, flags.RECIPES["paper"])
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    wanted = {id(p) for name, p in net.named_parameters() if mode == "dann" or not name.startswith("domain_classifier")}
    assert held == wanted


def test_a_dann_step_moves_all_three_parts() -> None:
    net, (x_s, y_s, x_t) = build(), batch()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = train.build_optimizer(net, "dann", flags.RECIPES["paper"])
    train.train_step(optimizer, adversarial_losses(net, x_s, y_s, x_t, 1.0))
    for part in ("feature_extractor", "label_classifier", "domain_classifier"):
        assert any(not torch.equal(before[name], p) for name, p in net.named_parameters() if name.startswith(part))


# What a run reads


def test_permuted_target_labels_give_identical_weights(small_data: Path, tmp_path: Path) -> None:
    def shuffled(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(label=table["label"].sample(frac=1, random_state=1).to_numpy())

    permuted = copy_with_csv(small_data, tmp_path / "train", "usps", "train", shuffled)
    permuted = copy_with_csv(permuted, tmp_path / "both", "usps", "val", shuffled)
    first, second = run(small_data, tmp_path / "a"), run(permuted, tmp_path / "b")
    assert same_tensors(weights(first), weights(second))
    assert first["target_val_accuracy"] != second["target_val_accuracy"]  # the permutation was a real one


def test_dann_takes_a_target_whose_labels_are_nonsense_or_absent(small_data: Path, tmp_path: Path) -> None:
    nonsense = copy_with_csv(small_data, tmp_path / "x", "usps", "train", lambda table: table.assign(label="?"))
    absent = copy_with_csv(small_data, tmp_path / "y", "usps", "train", lambda table: table[["image_name"]])
    reference = weights(run(small_data, tmp_path / "a"))
    assert same_tensors(reference, weights(run(nonsense, tmp_path / "b")))
    assert same_tensors(reference, weights(run(absent, tmp_path / "c")))


def test_dann_takes_a_target_that_is_a_plain_folder_of_images(small_data: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(small_data / "mnistm", root / "mnistm")
    shutil.copytree(small_data / "usps" / "data", root / "photos")
    outcome = run(root, tmp_path / "runs", "dann", "photos")
    assert outcome["images"]["unlabelled_train"] == 60
    assert outcome["target_val_accuracy"] is None


def test_source_mode_never_sees_a_target_image(small_data: Path, tmp_path: Path) -> None:
    other = shutil.copytree(small_data, tmp_path / "other")
    shutil.rmtree(other / "usps")
    write_domain(other / "usps", {"train": 30, "val": 20}, seed=9)
    assert same_tensors(
        weights(run(small_data, tmp_path / "a", "source")), weights(run(other, tmp_path / "b", "source"))
    )


def test_source_mode_needs_no_target(small_data: Path, tmp_path: Path) -> None:
    outcome = train.main(
        ["--data_root", str(small_data), "--train_mode", "source", "--save_dir", str(tmp_path), *QUICK]
    )
    assert outcome["target_val_accuracy"] is None
    assert outcome["source_val_accuracy"] is not None


def test_target_mode_needs_no_source(small_data: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(small_data / "usps", root / "usps")
    outcome = run(root, tmp_path / "runs", "target")
    assert outcome["source_val_accuracy"] is None
    assert outcome["target_val_accuracy"] is not None


def test_sorce_is_source(small_data: Path, tmp_path: Path) -> None:
    outcome = run(small_data, tmp_path, "sorce")
    assert outcome["args"]["train_mode"] == "source"
    assert Path(outcome["folder"]).name == "source_usps_paper_seed0"


# The schedule and the log


def test_lambda_rises_from_zero_with_the_real_progress(small_data: Path, tmp_path: Path) -> None:
    """Progress computed as total/total, or with another loader's length, are faults of public code."""
    outcome = run(small_data, tmp_path, "dann", "usps", "--max_steps", "10", "--val_period", "1")
    lines = read_metrics(Path(outcome["folder"]) / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 11))
    lambda_max = flags.RECIPES["paper"].lambda_max
    expected = [lambda_max * train.lambda_schedule((step - 1) / 10) for step in range(1, 11)]  # of the step just done
    assert [line["lambda"] for line in lines] == pytest.approx(expected)
    assert lines[0]["lambda"] == 0.0
    assert expected == sorted(expected)


def test_lambda_max_is_where_the_schedule_ends_and_is_refused_where_nothing_reads_it(
    small_data: Path, tmp_path: Path
) -> None:
    outcome = run(small_data, tmp_path, "dann", "usps", "--lambda_max", "3")
    line = read_metrics(Path(outcome["folder"]) / "metrics.jsonl")[-1]
    assert line["lambda"] == pytest.approx(3 * train.lambda_schedule(11 / 12))
    with pytest.raises(
        UserError, match="--lambda_max weighs the domain gradient, which this mode and recipe do without"
    ):
        run(small_data, tmp_path, "source", "usps", "--lambda_max", "3")


def test_lambda_does_not_depend_on_how_many_images_a_domain_has(small_data: Path, tmp_path: Path) -> None:
    root = shutil.copytree(small_data, tmp_path / "root")
    shutil.rmtree(root / "usps")
    write_domain(root / "usps", {"train": 130, "val": 20})
    logs = [
        read_metrics(Path(run(data, tmp_path / name)["folder"]) / "metrics.jsonl")
        for name, data in (("a", small_data), ("b", root))
    ]
    assert [line["lambda"] for line in logs[0]] == [line["lambda"] for line in logs[1]]


def test_epochs_count_passes_over_the_labelled_domain_and_max_steps_goes_first(
    small_data: Path, tmp_path: Path
) -> None:
    base = [
        "--data_root",
        str(small_data),
        "--train_mode",
        "dann",
        "--target_file",
        "usps",
        "--save_dir",
        str(tmp_path),
        "-bs",
        "8",
        "-ep",
        "2",
    ]
    assert train.main(base)["steps"] == 10  # 40 images, 8 a step
    assert train.main([*base, "--max_steps", "3"])["steps"] == 3


def test_a_line_of_the_log_has_what_the_contract_names(dann_run: Path) -> None:
    lines = read_metrics(dann_run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [6, 12]
    for line in lines:
        assert {
            "step",
            "seconds",
            "lambda",
            "L_y",
            "L_d",
            "domain_accuracy",
            "source_val_accuracy",
            "target_val_accuracy",
        } <= set(line)
        assert 0 <= line["domain_accuracy"] <= 1
    assert lines[0]["seconds"] < lines[1]["seconds"]


def test_a_result_has_what_the_contract_names(dann_run: Path) -> None:
    result = json.loads((dann_run / "result.json").read_text())
    assert {
        "target_val_accuracy",
        "source_val_accuracy",
        "seconds",
        "images_per_second",
        "steps",
        "seed",
        "select",
        "command",
        "args",
        "versions",
        "device",
        "proxy_a_distance",
    } <= set(result)
    assert result["select"] == "last"
    assert result["selected_step"] == result["steps"] == 12
    assert result["command"].startswith("python train.py --data_root ")
    assert sorted(file.name for file in dann_run.iterdir()) == [
        "args.json",
        "confusion.png",
        "curves.png",
        "last.pt",
        "metrics.jsonl",
        "mistakes.png",
        "result.json",
    ]


def test_the_reported_accuracy_is_that_of_the_checkpoint_on_val(
    dann_run: Path, small_data: Path, tmp_path: Path
) -> None:
    """Evaluation on the training loader, and other preprocessing in prediction, are faults of public code."""
    listing = list_split(small_data, "usps", "val", True)
    assert listing is not None
    assert listing.labels is not None
    for path in listing.paths:
        (tmp_path / "val").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "val")
    inference.main(["--checkpoint", str(dann_run), "--test_loc", str(tmp_path / "val"), "--out_path", str(tmp_path)])
    predicted = pd.read_csv(tmp_path / "pred.csv", dtype=str)["label"].tolist()
    share = np.mean([a == b for a, b in zip(predicted, listing.labels, strict=True)])
    assert json.loads((dann_run / "result.json").read_text())["target_val_accuracy"] == pytest.approx(share)


def test_training_learns_the_source(small_data: Path, tmp_path: Path) -> None:
    outcome = run(small_data, tmp_path, "source", "usps", "--max_steps", "60", "--val_period", "60")
    assert outcome["source_val_accuracy"] > 0.9


def test_a_domain_smaller_than_a_batch_and_an_odd_rest_train(small_data: Path, tmp_path: Path) -> None:
    """A last short batch that crashes BatchNorm is a fault of public code."""
    root = tmp_path / "root"
    write_domain(root / "mnistm", {"train": 17, "val": 3})
    write_domain(root / "usps", {"train": 3, "val": 3}, classes=3)
    assert run(root, tmp_path / "runs")["steps"] == 12


# Determinism and going on


@pytest.mark.parametrize("mode", flags.MODES)
def test_the_same_seed_gives_identical_weights_and_another_seed_does_not(
    mode: str, small_data: Path, tmp_path: Path
) -> None:
    auto = ("--precision", "auto")
    first, second = (weights(run(small_data, tmp_path / name, mode, "usps", *auto)) for name in "ab")
    assert same_tensors(first, second)
    other = weights(run(small_data, tmp_path, mode, "usps", "--seed", "1", *auto))
    assert not same_tensors(first, other)


def test_when_it_validates_and_with_how_many_threads_it_reads_does_not_change_the_weights(
    small_data: Path, tmp_path: Path
) -> None:
    first = run(small_data, tmp_path / "a", "dann", "usps", "--val_period", "1")
    second = run(small_data, tmp_path / "b", "dann", "usps", "--val_period", "12", "--num_workers", "3")
    assert same_tensors(weights(first), weights(second))


@pytest.mark.parametrize("arch", ["small", "published"])
def test_an_interrupted_run_goes_on_to_identical_weights(arch: str, small_data: Path, tmp_path: Path) -> None:
    whole = run(small_data, tmp_path / "a", "dann", "usps", "--arch", arch)
    with ctrl_c_in_step(8):
        stopped = run(small_data, tmp_path / "b", "dann", "usps", "--arch", arch)
    assert stopped["interrupted"]
    assert load_checkpoint(Path(stopped["folder"]) / "last.pt")["step"] == 8
    resumed = run(small_data, tmp_path / "b", "dann", "usps", "--arch", arch, "--resume")
    assert resumed["folder"] == stopped["folder"]
    assert same_tensors(weights(whole), weights(resumed))
    assert whole["target_val_accuracy"] == resumed["target_val_accuracy"]
    assert [line["step"] for line in read_metrics(Path(resumed["folder"]) / "metrics.jsonl")] == [6, 8, 12]


def test_ctrl_c_leaves_a_usable_checkpoint_and_says_how_to_go_on(small_data: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "train.py",
        "--data_root",
        str(small_data),
        "--train_mode",
        "dann",
        "--target_file",
        "usps",
        "--save_dir",
        str(tmp_path),
        "-bs",
        "16",
        "--max_steps",
        "100000",
        "--val_period",
        "2",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(train.__file__).parent
    ) as process:
        log = tmp_path / "dann_usps_paper_seed0" / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (log.exists() and log.read_text()):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    *_, said, again, folder = out.strip().splitlines()
    assert said.startswith("stopped at step ")
    assert said.endswith(" of 100000; go on with:")
    assert again.endswith("--resume")
    assert load_checkpoint(Path(folder) / "last.pt")["step"] == int(said.split()[3])


def test_resuming_a_finished_run_does_nothing_and_a_new_one_starts_at_zero(small_data: Path, tmp_path: Path) -> None:
    first = run(small_data, tmp_path, "dann", "usps", "--resume")
    before = (Path(first["folder"]) / "last.pt").stat().st_mtime_ns
    second = run(small_data, tmp_path, "dann", "usps", "--resume")
    assert second["target_val_accuracy"] == first["target_val_accuracy"]
    assert (Path(first["folder"]) / "last.pt").stat().st_mtime_ns == before


def test_a_folder_in_use_by_another_run_is_refused_and_a_dead_runs_lock_does_not_block(
    small_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "dann_usps_paper_seed0"
    folder.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import fcntl, os, time; d = os.open({str(folder)!r}, os.O_RDONLY); "
         "fcntl.flock(d, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="is in use by another run; wait for it or stop it"):
        run(small_data, tmp_path, "dann", "usps", "--resume")
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert run(small_data, tmp_path, "dann", "usps", "--resume")["steps"] == 12


def test_no_run_is_overwritten(small_data: Path, tmp_path: Path) -> None:
    folders = [Path(run(small_data, tmp_path)["folder"]).name for _ in range(3)]
    assert folders == ["dann_usps_paper_seed0", "dann_usps_paper_seed0-2", "dann_usps_paper_seed0-3"]
    run(small_data, tmp_path, "dann", "usps", "--run_name", "mine")
    with pytest.raises(UserError, match="exists and is not overwritten"):
        run(small_data, tmp_path, "dann", "usps", "--run_name", "mine")


# Selection


def fake_accuracies(monkeypatch: pytest.MonkeyPatch, source: list[float], target: list[float]) -> None:
    """Make validations return these accuracies, in turn."""
    values = iter([value for pair in zip(source, target, strict=True) for value in pair])
    monkeypatch.setattr(train, "share_right", lambda _: next(values))


SOURCE_ACCURACY, TARGET_ACCURACY = [0.5, 0.9, 0.7, 0.6], [0.8, 0.1, 0.2, 0.3]


@pytest.mark.parametrize(("select", "step"), [("last", 12), ("source_val", 6), ("target_val", 3)])
def test_the_checkpoint_is_picked_as_select_says_and_by_default_not_by_target_labels(
    select: str, step: int, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_accuracies(monkeypatch, SOURCE_ACCURACY, TARGET_ACCURACY)
    more = () if select == "last" else ("--select", select)
    outcome = run(small_data, tmp_path, "dann", "usps", "--val_period", "3", *more)
    assert outcome["select"] == select
    assert outcome["selected_step"] == step
    assert outcome["target_val_accuracy"] == TARGET_ACCURACY[step // 3 - 1]
    assert load_checkpoint(Path(outcome["folder"]) / outcome["checkpoint"])["step"] == step


@pytest.mark.parametrize("select", ["last", "source_val"])
def test_the_proxy_a_distance_is_of_the_selected_checkpoint(
    select: str, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_accuracies(monkeypatch, SOURCE_ACCURACY, TARGET_ACCURACY)
    seen: list[Answers | None] = []
    original = train.domain_distance

    def watching(source: Answers | None, target: Answers | None) -> float | None:
        seen.append(target)
        return original(source, target)

    monkeypatch.setattr(train, "domain_distance", watching)
    more = () if select == "last" else ("--select", select)
    outcome = run(small_data, tmp_path, "dann", "usps", "--val_period", "3", *more)
    file = Path(outcome["folder"]) / outcome["checkpoint"]
    net, classes = build_network(file, load_checkpoint(file), torch.device("cpu"))
    listing = list_split(small_data, "usps", "val", with_labels=True)
    assert listing is not None
    features, _ = predict(net, read_domain(listing, classes, 28, 1).images)
    assert seen[-1] is not None
    assert torch.equal(seen[-1].features, features)


@pytest.mark.parametrize(("select", "steps"), [("source_val", [6, 9]), ("target_val", [3, 12]), ("last", [9, 12])])
def test_topk_keeps_the_best_files_and_deletes_the_others(
    select: str, steps: list[int], small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A top-k that deletes the wrong file is a fault of public code."""
    fake_accuracies(monkeypatch, SOURCE_ACCURACY, TARGET_ACCURACY)
    outcome = run(small_data, tmp_path, "dann", "usps", "--val_period", "3", "--select", select, "--topk", "2")
    kept = sorted(Path(outcome["folder"]).glob("step*.pt"))
    assert [file.name for file in kept] == [f"step{step:07d}.pt" for step in steps]
    assert [load_checkpoint(file)["step"] for file in kept] == steps


# Refusals


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--train_mode", "sauce"], "argument --train_mode: invalid choice: 'sauce'"),
        (["--target_file", "mnistm"], "--source_file and --target_file are both mnistm; dann needs two domains."),
        (["--target_file", "nowhere"], "nowhere does not exist; --data_root"),
        (["-bs", "0"], "argument -bs/--batch_size: '0' is not a whole number of at least 2 and at most 65,536"),
        (["-lr", "nan"], "argument -lr/--learning_rate: 'nan' is not a number above 0 and at most 10"),
        (["-ep", "-1"], "argument -ep/--epochs: '-1' is not a number above 0"),
        (["--run_name", "../x"], "--run_name '../x' must be a plain folder name"),
        (["--arch", "published", "--size", "32"], "--arch published takes images of 28x28, not --size 32"),
        (["--select", "target_val", "--topk", "0"], "--topk 0 keeps no checkpoint for --select target_val"),
        (["--lamda", "3"], "unrecognized arguments: --lamda 3"),
        (["--recipe", "strong", "--arch", "published"], "--recipe strong is for --arch small"),
        (
            ["--train_mode", "target", "--recipe", "strong", "--without", "teacher"],
            "--without teacher: --train_mode target has no such part to leave out.",
        ),
    ],
)
def test_a_refusal_is_one_sentence_and_leaves_nothing_behind(
    change: list[str], sentence: str, small_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refusal:
        run(small_data, tmp_path / "runs", "dann", "usps", *change)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "runs").exists()


def test_an_unknown_mode_ends_with_exit_code_2_and_one_line(small_data: Path, tmp_path: Path) -> None:
    """An unknown mode that silently trains on target labels is a fault of public code."""
    done = subprocess.run(
        [
            sys.executable,
            "train.py",
            "--data_root",
            str(small_data),
            "--train_mode",
            "danm",
            "--target_file",
            "usps",
            "--save_dir",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        cwd=Path(train.__file__).parent,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("train.py: argument --train_mode: invalid choice: 'danm'")
    assert list(tmp_path.iterdir()) == []


def test_a_source_without_labels_is_refused(small_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.csv has no labels, and --train_mode dann trains on them"):
        run(small_data, tmp_path, "dann", "usps", "--source_file", "svhn")


def test_a_target_label_outside_the_classes_is_refused(small_data: Path, tmp_path: Path) -> None:
    root = copy_with_csv(small_data, tmp_path / "x", "usps", "val", lambda table: table.assign(label="11"))
    with pytest.raises(UserError, match="label '11' is not among the classes of the labelled domain"):
        run(root, tmp_path / "runs")


def test_resuming_with_other_arguments_is_refused(small_data: Path, tmp_path: Path) -> None:
    run(small_data, tmp_path, "dann", "usps", "--run_name", "x")
    (tmp_path / "x" / "result.json").unlink()
    with pytest.raises(UserError, match=r"learning_rate \(was 0.004, is 0.1\)"):
        run(small_data, tmp_path, "dann", "usps", "--run_name", "x", "--resume", "-lr", "0.1")


def test_resuming_a_finished_run_with_other_arguments_is_refused_too(small_data: Path, tmp_path: Path) -> None:
    run(small_data, tmp_path, "dann", "usps")
    with pytest.raises(UserError, match=r"arch \(was small, is published\)"):
        run(small_data, tmp_path, "dann", "usps", "--resume", "--arch", "published")


def test_a_step_at_which_ctrl_c_stopped_is_not_selected(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_accuracies(monkeypatch, [0.5, 0.9, 0.6], [0.1, 0.1, 0.1])  # of steps 6, 8 (interrupted) and 12
    with ctrl_c_in_step(8):
        run(small_data, tmp_path, "dann", "usps", "--select", "source_val")
    outcome = run(small_data, tmp_path, "dann", "usps", "--select", "source_val", "--resume")
    assert outcome["selected_step"] == 12


def test_target_folders_that_are_no_classes_are_no_labels(small_data: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(small_data / "mnistm", root / "mnistm")
    for split in ("train", "val"):
        shutil.copytree(small_data / "usps" / "data", root / "photos" / split / "camera1")
    outcome = run(root, tmp_path / "runs", "dann", "photos")
    assert outcome["target_val_accuracy"] is None


def test_a_class_folder_of_the_sources_val_that_is_no_class_is_refused(tmp_path: Path, small_data: Path) -> None:
    for split, folders in (("train", ("ash", "birch")), ("val", ("Ash", "birch"))):
        for folder in folders:
            shutil.copytree(small_data / "usps" / "data", tmp_path / "scans" / split / folder)
    with pytest.raises(UserError, match="label 'Ash' is not among the classes of the labelled domain"):
        run(tmp_path, tmp_path / "runs", "source", "scans", "--source_file", "scans")


@pytest.mark.parametrize("mode", ["source", "dann"])
def test_signs_and_distance_of_a_target_without_labels_are_measured_on_images_spread_over_it(
    mode: str, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mnistm").symlink_to(small_data / "mnistm")
    shutil.copytree(small_data / "usps" / "data", tmp_path / "photos")
    monkeypatch.setattr(train, "SIGN_IMAGES", 15)
    args = train.parse_args(["--data_root", str(tmp_path), "--train_mode", mode, "--target_file", "photos"])
    data = train.load_data(args)
    every = sorted(path.name for path in (tmp_path / "photos").iterdir())
    assert data.target_sample is not None
    assert data.target_sample.labels is None
    assert len(data.target_sample) == 15 < len(every)
    assert data.target_sample.names == sorted(data.target_sample.names) != every[:15]
    assert set(data.target_sample.names) < set(every)
    outcome = run(tmp_path, tmp_path / "runs", mode, "photos")
    assert None not in [outcome["signs"][name] for name in SIGNS]
    assert None not in outcome["proxy_a_distance"].values()
    assert outcome["target_val_accuracy"] is None


def test_source_and_dann_measure_an_unlabelled_target_on_the_same_images(small_data: Path, tmp_path: Path) -> None:
    (tmp_path / "mnistm").symlink_to(small_data / "mnistm")
    for split in ("train", "val"):
        shutil.copytree(small_data / ("usps" if split == "val" else "svhn") / "data", tmp_path / "photos" / split)
    arguments = ["--data_root", str(tmp_path), "--target_file", "photos", "--train_mode"]
    first, second = (train.load_data(train.parse_args([*arguments, mode])).target_sample for mode in ("source", "dann"))
    assert first is not None
    assert second is not None
    assert torch.equal(first.images, second.images)


def test_mode_source_measures_on_a_target_that_has_an_unlabelled_val_alone(small_data: Path, tmp_path: Path) -> None:
    (tmp_path / "mnistm").symlink_to(small_data / "mnistm")
    shutil.copytree(small_data / "usps" / "data", tmp_path / "photos" / "val")
    outcome = run(tmp_path, tmp_path / "runs", "source", "photos")
    assert None not in [outcome["signs"][name] for name in SIGNS]
    assert outcome["target_val_accuracy"] is None


def test_an_accuracy_is_not_parsed_from_a_file_name(small_data: Path, tmp_path: Path) -> None:
    outcome = run(small_data, tmp_path)
    renamed = tmp_path / "ep9_usps_acc=0.99999.pt"
    shutil.copy(Path(outcome["folder"]) / "last.pt", renamed)
    assert load_checkpoint(renamed)["metrics"]["target_val_accuracy"] == outcome["target_val_accuracy"]


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = losses_module.label_loss
    calls = iter(range(100))
    monkeypatch.setattr(
        losses_module,
        "label_loss",
        lambda net, x, y: {
            name: value * (float("nan") if next(calls) == 8 else 1) for name, value in original(net, x, y).items()
        },
    )
    with pytest.raises(UserError, match=r"L_y is no finite number at step 9 .* the last good checkpoint is .*"):
        run(small_data, tmp_path, "source")
    good = load_checkpoint(tmp_path / "source_usps_paper_seed0" / "last.pt")
    assert good["step"] == 6
    assert all(torch.isfinite(value).all() for value in good["model"].values())


def test_weights_that_overflow_in_a_step_of_finite_losses_are_not_saved(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, numbers = train.train_step, iter(range(1, 100))

    def overflowing(optimizer: torch.optim.Optimizer, losses: dict[str, torch.Tensor]) -> None:
        step(optimizer, losses)
        if next(numbers) == 12:  # the last one: no loss will show it
            optimizer.param_groups[0]["params"][-1].data[0] = float("inf")

    monkeypatch.setattr(train, "train_step", overflowing)
    with pytest.raises(UserError) as refusal:
        run(small_data, tmp_path)
    last = tmp_path / "dann_usps_paper_seed0" / "last.pt"
    assert re.fullmatch(
        rf"a weight is no finite number at step 12 \(learning rate \S+\); the last good checkpoint is {last}; start "
        r"again with a smaller -lr or with --precision fp32\.",
        str(refusal.value),
    )
    assert load_checkpoint(last)["step"] == 6

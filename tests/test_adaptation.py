"""What ADAPTATION.md says is what the runs in results/ say."""

import math
import os
import shlex
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tables
from conftest import write_domain
from records import read_json

import report
import train
from checkpoint import load_checkpoint
from dataset import list_split

PROJECT = Path(report.__file__).parent
PAGE = PROJECT / "ADAPTATION.md"
PATTERNS = dict(tables.EVIDENCE)


def runs(words: str, target: str) -> list[dict[str, Any]]:
    """Results of a row of the page's table."""
    return [read_json(file) for file in sorted((PROJECT / "results").glob(PATTERNS[words].format(target) + ".json"))]


def accuracy(words: str, target: str) -> float:
    return statistics.mean(result["target_val_accuracy"] for result in runs(words, target))


def distances(words: str, target: str) -> list[float]:
    return [result["proxy_a_distance"]["trained"] for result in runs(words, target)]


def test_the_page_states_what_results_hold() -> None:
    assert report.main(["--readme", str(PAGE), "--check"])["changed"] is False


@pytest.mark.parametrize("target", tables.TARGETS)
def test_the_distance_is_near_2_before_and_low_after_adaptation_and_accuracy_rises(target: str) -> None:
    assert min(distances("`source`", target)) > 1.8
    assert max(distances("`dann`, lambda to 0.2 (default)", target)) < 0.6
    assert accuracy("`dann`, lambda to 0.2 (default)", target) > accuracy("`source`", target)


def test_the_published_network_aligned_nothing_on_usps_and_did_worse_than_source() -> None:
    assert min(distances("`dann`, network `published`", "usps")) > 1.8
    assert accuracy("`dann`, network `published`", "usps") < accuracy("`source`", "usps")
    seeds = [result["target_val_accuracy"] for result in runs("`dann`, network `published`", "usps")]
    assert max(seeds) - min(seeds) > 0.08


@pytest.mark.parametrize("target", tables.TARGETS)
def test_information_rises_with_accuracy_from_source_to_dann_and_is_lower_where_less_was_aligned(target: str) -> None:
    information = "information_maximisation"
    for words in ("`source`", "`dann`, network `published`"):
        assert sign(PLAIN, target, information) > sign(words, target, information) + 0.15
        assert accuracy(PLAIN, target) > accuracy(words, target)


def test_a_lower_distance_is_not_always_better() -> None:
    plain, strong = "`dann`, shifted shares", "`dann --recipe strong`, shifted shares"
    assert min(distances(strong, "usps")) > max(distances(plain, "usps"))
    assert accuracy(strong, "usps") > accuracy(plain, "usps") + 0.3
    plain, strong = "`dann`, lambda to 0.2 (default)", "`dann --recipe strong`"
    assert abs(statistics.mean(distances(strong, "svhn")) - statistics.mean(distances(plain, "svhn"))) < 0.1
    assert accuracy(strong, "svhn") > accuracy(plain, "svhn") + 0.2


def test_a_domain_loss_that_stayed_at_log_2_was_warned_of_in_three_runs_that_adapted_well() -> None:
    for result in runs("`dann`, lambda to 1", "usps"):
        assert any("never told the domains apart" in sentence for sentence in result["warnings"])
        assert result["target_val_accuracy"] > 0.97


def test_recipe_strong_ends_with_the_domain_losses_that_the_page_states() -> None:
    losses = [statistics.mean(result["losses"]["L_d"] for result in runs(STRONG, target)) for target in tables.TARGETS]
    assert losses == [pytest.approx(0.46, abs=0.005), pytest.approx(0.52, abs=0.005)]


def test_source_accuracy_hardly_differs_where_target_accuracy_does() -> None:
    for target in tables.TARGETS:
        plain, adapted = (
            statistics.mean(result["source_val_accuracy"] for result in runs(words, target))
            for words in ("`source`", "`dann`, lambda to 0.2 (default)")
        )
        assert abs(plain - adapted) < 0.01
        assert accuracy("`dann`, lambda to 0.2 (default)", target) - accuracy("`source`", target) > 0.03


def test_adaptation_gains_less_than_is_left_to_gain_where_source_starts_low() -> None:
    left = {target: 1 - accuracy("`dann`, lambda to 0.2 (default)", target) for target in tables.TARGETS}
    assert left["svhn"] > 5 * left["usps"]
    assert accuracy("`source`", "svhn") < accuracy("`source`", "usps")


def test_the_domain_losses_of_the_shipped_checkpoints_are_stated() -> None:
    shipped = [load_checkpoint(file)["metrics"] for file in sorted((PROJECT / "checkpoint").glob("dann_*.pt"))]
    assert len(shipped) >= 2
    block = report.render_evidence()
    assert all(f"{line['L_d']:.3f}" in block for line in shipped)


def sign(words: str, target: str, name: str) -> float:
    """Mean over a row's runs of a label-free sign."""
    return statistics.mean(result["signs"][name] for result in runs(words, target) if result.get("signs"))


WEAK, PLAIN, FULL = "`dann`, lambda to 0.02", "`dann`, lambda to 0.2 (default)", "`dann`, lambda to 1"
STRONG, SHIFTED = "`dann --recipe strong`", "`dann`, shifted shares"


def test_a_weak_lambda_adapts_too_little_on_svhn_and_does_as_well_on_usps() -> None:
    assert accuracy(WEAK, "svhn") < accuracy(PLAIN, "svhn") - 0.05
    assert accuracy(WEAK, "usps") > accuracy(PLAIN, "usps") - 0.01
    assert statistics.mean(distances(WEAK, "svhn")) < 0.5  # and still the distance is low
    losses = [result["losses"]["L_d"] for result in runs(WEAK, "svhn")]
    assert statistics.mean(losses) == pytest.approx(0.13, abs=0.02)


@pytest.mark.parametrize("target", tables.TARGETS)
def test_from_lambda_0_2_to_1_nothing_is_gained(target: str) -> None:
    found = [result["target_val_accuracy"] for words in (PLAIN, FULL) for result in runs(words, target)]
    assert abs(accuracy(FULL, target) - accuracy(PLAIN, target)) < 2 * statistics.stdev(found)
    assert all(abs(result["losses"]["L_d"] - 0.693) < 0.02 for result in runs(FULL, target))


def test_information_fails_between_networks_and_recipes_and_under_shifted_shares() -> None:
    information = "information_maximisation"
    source, published = "`source`", "`dann`, network `published`"
    assert sign(source, "usps", information) == pytest.approx(sign(published, "usps", information), abs=0.05)
    assert accuracy(source, "usps") > accuracy(published, "usps") + 0.05
    assert sign(PLAIN, "svhn", information) > sign(STRONG, "svhn", information)
    assert accuracy(PLAIN, "svhn") < accuracy(STRONG, "svhn") - 0.2
    assert sign(SHIFTED, "usps", information) > sign("`source`, shifted shares", "usps", information)


def test_density_falls_both_where_dann_is_worse_and_where_it_is_better() -> None:
    density = "soft_neighbourhood_density"
    assert sign(SHIFTED, "usps", density) < sign("`source`, shifted shares", "usps", density)
    assert sign(PLAIN, "svhn", density) < sign("`source`", "svhn", density)


def test_shifted_shares_cost_more_than_alignment_gained_and_recipe_strong_nothing() -> None:
    source = accuracy("`source`, shifted shares", "usps")
    assert accuracy(SHIFTED, "usps") < source - 0.2
    assert accuracy("`dann --recipe strong`, shifted shares", "usps") > accuracy(STRONG, "usps") - 0.01
    spread = [math.exp(sign(words, "usps", "diversity")) for words in ("`source`, shifted shares", SHIFTED)]
    assert spread == [pytest.approx(6.5, abs=0.3), pytest.approx(9.5, abs=0.3)]


def test_dann_removes_a_smaller_part_of_many_errors() -> None:
    wrong = {target: [1 - accuracy(words, target) for words in ("`source`", PLAIN)] for target in tables.TARGETS}
    removed = {target: round(100 * (1 - after / before)) for target, (before, after) in wrong.items()}
    assert removed == {"svhn": 35, "usps": 65}


STAND_IN = """#!/usr/bin/env bash
[ "$1" = train.py ] || exit 0
echo "${*:2}" >> commands.txt
while [ "$1" != --run_name ]; do shift; done
mkdir -p "runs/reproduce/$2"
echo "{}" > "runs/reproduce/$2/result.json"
"""


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_reproduce_makes_the_runs_behind_the_page_from_data_with_shifted_shares(tmp_path: Path, jobs: str) -> None:
    """With a stand-in for python: which runs, on what data, and none of them twice; JOBS=2 makes the same ones."""
    shutil.copy(PROJECT / "reproduce.sh", tmp_path)
    (tmp_path / "python").write_text(STAND_IN)
    (tmp_path / "python").chmod(0o755)
    for domain in ("mnistm", "svhn", "usps"):
        write_domain(tmp_path / "data" / domain, {"train": 200, "val": 50})
    for _ in range(2):
        command = ["bash", "reproduce.sh", "data", "0", "adaptation"]
        settings = {"PYTHON": str(tmp_path / "python"), "JOBS": jobs}
        subprocess.run(command, cwd=tmp_path, check=True, env={**os.environ, **settings})
    made = sorted(file.stem for file in (tmp_path / "results" / "adaptation").glob("*.json"))
    wanted = [pattern.removeprefix("adaptation/") for pattern in PATTERNS.values() if "adaptation/" in pattern]
    names = {wish.format(target).replace("*", "0") for wish in wanted for target in tables.TARGETS}
    assert set(made) == {name for name in names if "svhn_shifted" not in name}
    commands = [shlex.split(line) for line in (tmp_path / "commands.txt").read_text().splitlines()]
    assert len(commands) == len(made)
    for words in commands:
        train.parse_args(words)
    labels = pd.read_csv(tmp_path / "runs" / "shifted" / "usps" / "train.csv").label.value_counts()
    assert labels[[0, 1, 2, 3, 4]].tolist() == [20] * 5
    assert labels.drop([0, 1, 2, 3, 4]).sum() < 25
    assert list_split(tmp_path / "runs" / "shifted", "usps", "train", with_labels=True) is not None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            [".", "0", "laddder"],
            "reproduce.sh: there is no part laddder; the parts are paper, strong, ladder and adaptation.",
        ),
        ([], "reproduce.sh: name the folder of the real digits: bash reproduce.sh DATA_ROOT [SEEDS [PART ...]]"),
        (
            ["nowhere"],
            "reproduce.sh: no nowhere/mnistm; python prepare_data.py digits --out nowhere --sample makes it.",
        ),
    ],
)
def test_reproduce_refuses_what_it_cannot_run_in_one_sentence(words: list[str], sentence: str) -> None:
    done = subprocess.run(["bash", PROJECT / "reproduce.sh", *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{sentence}\n")


def test_a_row_appears_with_its_results_and_says_how_many_measured_what(tmp_path: Path) -> None:
    (tmp_path / "adaptation").mkdir()
    result = {"target_val_accuracy": 0.5, "source_val_accuracy": 0.9, "proxy_a_distance": {"trained": None}}
    for seed, extra in enumerate(({"losses": {"L_d": 0.6}}, {})):
        report.write_json(tmp_path / "adaptation" / f"dann_usps_lambda1_seed{seed}.json", result | extra)
    (row,) = tables.evidence_table(tmp_path)[2:]
    assert row.startswith(
        "| `dann`, lambda to 1 | USPS | 0.500 ± 0.000 (worst 0.500) | 0.900 ± 0.000 | - | 0.600 (of 1)"
    )
    assert row.endswith("| - | 2 |")

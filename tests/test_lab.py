"""The pages state what results/ holds, what they claim follows from it, and the laboratory makes the runs behind it."""

import json
import math
import operator
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import chain, permutations, product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import ended, same_tensors, write_domain

import train
from config import RECIPES, Recipe, read_settings
from dataset import Domain
from lab import benchmark, peers, tables
from listing import list_split
from metrics import VALIDATORS
from model import DANN
from runs import load_checkpoint, write_json
from utils import UserError

PROJECT = Path(train.__file__).parent
INFORMATION = "information"
Result = dict[str, Any]


# The pages and their blocks


def result(mode: str, target: str, seed: int, accuracy: float) -> Result:
    return {
        "target_val_accuracy": accuracy,
        "source_val_accuracy": 0.9,
        "seed": seed,
        "select": "last",
        "proxy_a_distance": {"untrained": 1.9, "trained": 0.5},
        "losses": {"L_c": 0.1},
        "class_priors": {"0": {"source": 1.0}},
        "steps": 1800 if mode == "dann" else 1000,
        "seconds": 60.0 + seed,
        "images": {"target_val": 100 if target == "svhn" else 200},
        "versions": {"torch": "2.9"},
        "device": "cpu (x, 2 threads)",
        "command": "python train.py",
        "args": {"train_mode": mode, "target_file": target, "recipe": "tuned", "arch": "small", "run_name": f"r{seed}"},
    }


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with results of `source` and `dann` on both targets, three seeds each, and a page of two blocks."""
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    for mode, base in (("source", 0.3), ("dann", 0.5)):
        for target in tables.TARGETS:
            for seed in range(3):
                name = f"{mode}_{target}_tuned_small_seed{seed}.json"
                write_json(tmp_path / "results" / name, result(mode, target, seed, base + 0.1 * seed))
    (tmp_path / "README.md").write_text(page("results", "evidence"))
    return tmp_path


def page(*blocks: str) -> str:
    return "".join(
        f"before {b}\n<!-- {b}: begin, by lab/tables.py -->\nold\n<!-- {b}: end -->\nafter\n" for b in blocks
    )


def change(file: Path, key: str, value: Any) -> None:
    """Put a value at a dotted key of a JSON file; None: take the key out."""
    content = inner = json.loads(file.read_text())
    *way, last = key.split(".")
    for name in way:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    file.write_text(json.dumps(content))


def row(block: list[str], start: str) -> list[str]:
    """The cells of the one line that begins with these."""
    (line,) = [line for line in block if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_blocks_of_the_pages_are_those_of_results_and_the_script_runs_from_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, str(PROJECT / "lab" / "tables.py"), "--check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_result_is_of_the_last_step_as_the_pages_say() -> None:
    files = [*(PROJECT / "results").glob("**/*_seed*.json")]
    assert {tables.read_result(file)["select"] for file in files} == {"last"}


def test_a_page_that_would_change_fails_the_check_unchanged_and_is_then_rewritten_between_its_markers(
    project: Path,
) -> None:
    readme = project / "README.md"
    old = readme.read_text()
    code, _, error = ended(tables, "--check")
    assert (code, len(error.splitlines()), "README.md" in error) == (2, 1, True)
    assert readme.read_text() == old
    assert tables.main([]) == {"changed": ["README.md"]}
    kept = re.sub(r"(begin, by lab/tables\.py -->\n).*?(<!-- \w+: end)", r"\1old\n\2", readme.read_text(), flags=re.S)
    assert kept == old != readme.read_text()
    assert tables.main(["--check"]) == {"changed": []}
    change(project / "results" / "dann_usps_tuned_small_seed0.json", "target_val_accuracy", 0.51)
    assert ended(tables, "--check")[0] == 2


@pytest.mark.parametrize(
    ("text", "named"),
    [(page("resluts"), "resluts"), (page("results").replace("<!-- results: end -->", ""), "results: end")],
    ids=["unknown", "without end"],
)
def test_a_block_that_nothing_fills_or_nothing_ends_is_refused_by_its_name(
    project: Path, text: str, named: str
) -> None:
    (project / "README.md").write_text(text)
    code, _, error = ended(tables)
    assert (code, "README.md" in error, named in error) == (2, True, True)
    assert (project / "README.md").read_text() == text


PEERS = {"repeats": 2, "device": "x", "steps": 600, "versions": {"skada": "0.6.0"}}
BENCHMARK = {"growth": {"images_per_second": {"500": 1.0}, "largest_over_smallest": 1.0, "repeats": 5, "device": "x"}}
SOAK = {"counts": {"CSVs": 4, "CSVs refused": 3}, "seconds": 60, "device": "x", "versions": {"torch": "2.9"}}
RUN = "dann_usps_tuned_small_seed0"


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        *((RUN, key, None) for key in ("target_val_accuracy", "seconds", "seed", "command", "images", "args.recipe")),
        *((RUN, key, None) for key in ("images.target_val", "versions.torch", "proxy_a_distance.trained")),
        (RUN, "target_val_accuracy", float("nan")),
        (RUN, "scores", {"entropy": "low"}),
        (RUN, "losses", {"L_d": []}),
        ("benchmark-cpu", "growth.repeats", None),
        ("benchmark-cpu", "growth.images_per_second.500", "fast"),
        ("benchmark-cpu", "growth.images_per_second", None),
        ("benchmark-cpu", "training", {"repeats": 1, "device": "x", "small": {"images_per_second": 1.0}}),
        ("benchmark-cpu", "start", {"repeats": 1, "device": "x", "second_launch": {}}),
        ("benchmark-cpu", "large", {"repeats": 1, "device": "x", "arch": "x", "photos": {"9": {}}}),
        ("benchmark-cpu", "peers", PEERS | {"by": {"skada": {"accuracy": [0.5], "lines": 9}}}),
        ("benchmark-cpu", "peers", PEERS | {"by": {"skada": {"images_per_second": 1.0, "lines": 9}}}),
        ("benchmark-cpu", "peers", PEERS | {"by": {"skada": {"accuracy": [None], "lines": 9}}}),
        ("soak", "counts", None),
        ("soak", "counts.CSVs", "many"),
    ],
)
def test_a_result_that_lacks_what_the_tables_state_is_refused_by_file_and_key_and_no_page_is_written(
    project: Path, name: str, key: str, value: Any
) -> None:
    write_json(project / "results" / "benchmark-cpu.json", BENCHMARK)
    write_json(project / "results" / "soak.json", SOAK)
    old = page(*tables.BLOCKS)
    (project / "README.md").write_text(old)
    file = project / "results" / f"{name}.json"
    change(file, key, value)
    code, out, error = ended(tables)
    assert (code, out, len(error.splitlines())) == (2, "", 1)
    assert str(file) in error
    missing = {"training": "plain_images_per_second", "start": "import_train_seconds", "large": "first_launch"}
    missing |= {"peers": "accuracy" if "accuracy" not in str(value) or "None" in str(value) else "images_per_second"}
    wanted = next(iter(value)) if key in ("scores", "losses") else missing.get(key, key.split(".")[-1])
    assert wanted in error.replace(str(file), "")
    assert (project / "README.md").read_text() == old


def test_a_cell_is_mean_deviation_and_worst_over_the_seeds_below_the_published_numbers(project: Path) -> None:
    block = tables.BLOCKS["cells"](project / "results")
    accuracy = "0.600 ± 0.100 (worst 0.500)"
    assert row(block, "`dann --recipe tuned --arch small`")[1:] == [accuracy, accuracy, "3"]
    assert row(block, "*`dann`, published implementation*")[1:3] == ["*0.41745*", "*0.82392*"]
    assert "n = 100" in block[0]
    assert "n = 200" in block[0]
    assert row(tables.BLOCKS["results"](project / "results"), "DANN, our default: `dann`")[1:] == [accuracy] * 2 + ["3"]


@pytest.mark.parametrize("block", ["results", "evidence"])
def test_runs_on_different_val_sets_of_one_domain_are_not_compared(block: str, project: Path) -> None:
    change(project / "results" / f"{RUN}.json", "images.target_val", 300)
    with pytest.raises(UserError, match="300"):
        tables.BLOCKS[block](project / "results")


@pytest.mark.parametrize("block", tables.ACCURACIES)
def test_a_table_has_each_of_its_rows_once_it_is_measured_and_dashes_where_a_part_is_not(
    tmp_path: Path, block: str
) -> None:
    """Runs are added one at a time, a target after the other; those on MNIST are measured on its test split."""
    rows, pairs = tables.ACCURACIES[block]
    ours = {words: kind for words, kind in rows.items() if isinstance(kind, tables.Cell)}
    others = [words for words in rows if words not in ours]
    assert len(tables.BLOCKS[block](tmp_path)) == 1  # no table yet
    for i, (source, target) in enumerate(pairs):
        for words, kind in ours.items():
            content = result(kind.mode, target, 0, 0.5)
            content["args"] |= {"recipe": kind.recipe, "arch": kind.arch, "without": list(reversed(kind.without))}
            content["args"] |= {"with_source": kind.with_source, "source_file": source}
            usual = RECIPES[kind.recipe].steps["source" if kind.with_source else kind.mode]
            content["steps"] = kind.steps or usual
            if target == "mnist":
                content["args"]["eval_split"] = "test"
                content |= {"target_val_accuracy": None, "target_test_accuracy": 0.5}
                content["images"] = {"target_val": None, "target_test": 10_000}
            write_json(tmp_path / f"{source}_{target}_{words.replace('/', '')}.json", content)
            found = tables.BLOCKS[block](tmp_path)
            cells = row(found, words)[1:-1]
            assert cells == ["0.500 (worst 0.500)"] * (i + 1) + ["-"] * (len(pairs) - i - 1)
            measured = list(ours)[: list(ours).index(words) + 1] if i == 0 else ours
            assert len(found) == 2 + len(measured) + len(others)
    assert ("n = 10,000" in found[0]) == ("mnist" in dict(pairs).values())


def test_a_cell_takes_no_two_kinds_of_runs(project: Path) -> None:
    change(project / "results" / f"{RUN}.json", "precision", "float16")
    change(project / "results" / f"{RUN}.json", "args.batch_size", 7)
    with pytest.raises(UserError, match=r"batch_size, precision"):
        tables.read_results(project / "results")


@pytest.mark.parametrize(("key", "value"), [("args.source_file", "mnist"), ("args.with_source", True)])
def test_runs_of_another_source_or_with_its_labels_are_cells_of_their_own(project: Path, key: str, value: Any) -> None:
    change(project / "results" / f"{RUN}.json", key, value)
    if key == "args.with_source":
        change(project / "results" / f"{RUN}.json", "steps", RECIPES["tuned"].steps["source"])
    assert row(tables.BLOCKS["cells"](project / "results"), "`dann --recipe tuned --arch small`")[-1] == "3/2"


def test_an_evidence_row_says_how_many_runs_measured_what(project: Path) -> None:
    change(project / "results" / f"{RUN}.json", "losses", {"L_d": 0.6})
    found = row(tables.evidence_block(project / "results"), "`dann` | USPS")
    assert found[2:] == ["200", "0.600 ± 0.100 (worst 0.500)", "0.900 ± 0.000", "1.90 ± 0.00", "0.50 ± 0.00"] + [
        "0.600 (of 1)",
        "-",
        "3",
    ]


def test_a_score_that_follows_the_accuracy_has_correlation_one_and_loses_nothing(tmp_path: Path) -> None:
    """A run of ten validations, whose entropy is of no use and whose information rises with the accuracy."""
    line = {"source_val_accuracy": 0.9, **dict.fromkeys(VALIDATORS, 0.0)}
    found = [line | {"target_val_accuracy": 0.1 * i, "information": i**2, "snd": -i} for i in range(10)]
    write_json(tmp_path / "a.json", result("dann", "usps", 0, 0.9) | {"validations": found})
    block = tables.scores_block(tmp_path)
    block = block[: block.index("")]
    cells = dict(zip(row(block, "pair"), row(block, "MNIST-M → USPS, `small`, n = 200"), strict=True))
    assert cells["validations"] == "10"
    assert cells["`information`"] == "1.00, 0.000"
    assert cells["`snd`"] == "-0.99, 0.900"
    assert cells["`source_val_accuracy`"] == "-, 0.450"  # all equal: any of them
    lost = dict(zip(row(block, "pair"), row(block, "**worst pair**"), strict=True))
    assert (lost["`information`"], lost["`snd`"], lost["`bnm`"]) == ("**0.000**", "**0.900**", "**0.450**")


def test_scores_are_compared_on_the_same_validations(tmp_path: Path) -> None:
    """One that some validations lack is no reason for another to be judged on them; one that all lack is a dash."""
    found = [
        {"target_val_accuracy": 0.05 * i, "information": -i, "snd": i if i < 10 else None, "bnm": None}
        for i in range(12)
    ]
    write_json(tmp_path / "a.json", result("dann", "usps", 0, 0.9) | {"validations": found})
    block = tables.scores_block(tmp_path)
    block = block[: block.index("")]
    cells = dict(zip(row(block, "pair"), row(block, "MNIST-M → USPS, `small`, n = 200"), strict=True))
    assert (cells["validations"], cells["`information`"], cells["`bnm`"]) == ("10", "-0.99, 0.450", "-")
    assert row(block, "**worst pair**")[2:] == ["-"] * 7


def test_the_mean_over_pairs_of_photos_is_of_the_seeds_that_have_every_pair(tmp_path: Path) -> None:
    for k, (source, target) in enumerate(permutations(tables.STYLES, 2)):
        for seed in range(3 if k else 2):
            found = result("dann", target, seed, 0.5 + 0.01 * k + 0.1 * seed)
            found["images"]["target_val"] = 50
            write_json(tmp_path / "photos" / f"dann_{source}_{target}_seed{seed}.json", found)
    block = tables.BLOCKS["photos"](tmp_path)
    assert row(block, "photo → art") == ["photo → art", "50", "0.550 ± 0.071"]
    assert row(block, "**mean**")[-1] == "0.605 ± 0.071 (2 seeds)"
    block = tables.photos_mean_block(tmp_path)
    assert row(block, "frozen, `--freeze`")[1:] == ["-", "-", "0.605 ± 0.071 (2 seeds)", "-"]


def weighted_by_hand(scores: Sequence[float], accuracies: Sequence[float]) -> float:
    """Number by number: a point's weight is the square of its better rank, its rank the weight up to it."""
    n = range(len(scores))

    def dense(values: Sequence[float], i: int) -> float:
        return sum(value <= values[i] for value in set(values)) / len(set(values))

    w = [max(dense(scores, i), dense(accuracies, i)) ** 2 for i in n]

    def rank(values: Sequence[float], i: int) -> float:
        equal = [w[j] for j in n if values[j] == values[i]]
        return sum(w[j] for j in n if values[j] < values[i]) + (len(equal) + 1) / 2 * sum(equal) / len(equal)

    x, y = ([rank(values, i) for i in n] for values in (scores, accuracies))
    mx, my = (sum(w[i] * r[i] for i in n) / sum(w) for r in (x, y))
    xy, xx, yy = (
        sum(w[i] * (a[i] - ma) * (b[i] - mb) for i in n)
        for a, ma, b, mb in ((x, mx, y, my), (x, mx, x, mx), (y, my, y, my))
    )
    return xy / math.sqrt(xx * yy)


def test_the_correlation_weighs_high_scores_more() -> None:
    assert tables.weighted_spearman([1, 2, 3, 4], [1, 4, 9, 16]) == pytest.approx(1)
    swapped_low, swapped_high = ([2, 1, 3, 4], [1, 2, 4, 3])
    low, high = (tables.weighted_spearman([1, 2, 3, 4], order) for order in (swapped_low, swapped_high))
    assert low == pytest.approx(weighted_by_hand([1, 2, 3, 4], swapped_low))
    assert high == pytest.approx(weighted_by_hand([1, 2, 3, 4], swapped_high))
    assert low is not None
    assert high is not None
    assert high < low - 0.4
    ties = ([1, 1, 2, 3], [1, 3, 2, 2])
    assert tables.weighted_spearman(*ties) == pytest.approx(weighted_by_hand(*ties))
    assert tables.weighted_spearman([1, 2], [1, 2]) is None
    assert tables.weighted_spearman([1, 1, 1], [1, 2, 3]) is None


def test_the_page_says_which_runs_the_warnings_name(tmp_path: Path) -> None:
    """Of adapted runs at 0.5 and 0.9 where the source has 0.8 the first is harmful; both are warned of."""
    scores = {"entropy": 0.0, "diversity": math.log(10), "top_class_share": 0.1}
    kinds = (("source", 0.8, None), ("dann", 0.5, {"agreement": 0.1}), ("dann", 0.9, {"agreement": 0.9}))
    for i, (mode, right, compared) in enumerate(kinds):
        warned = ["adaptation may have done harm: ..."] if compared else []
        more = {"scores": scores, "source_only": compared, "warnings": warned}
        write_json(tmp_path / f"{i}.json", result(mode, "usps", i, right) | more)
    line = tables.scores_block(tmp_path)[-1].split(" | ")
    assert line[-4:] == ["0", "3 (0.500 to 0.900)", "1 of 1", "1 of 1 |"]


def test_counts_of_the_soak_stand_beside_those_refused_and_none_are_stated_before_there_is_one(tmp_path: Path) -> None:
    assert len(tables.soak_block(tmp_path)) == 1
    write_json(tmp_path / "soak.json", SOAK | {"counts": {"CSVs": 4000, "CSVs refused": 3, "rows": 7}})
    block = tables.soak_block(tmp_path)
    assert [row(block, name) for name in ("CSVs", "rows")] == [["CSVs", "4,000", "3"], ["rows", "7", ""]]


def test_a_shipped_checkpoint_predicts_the_same_without_its_optimizer_and_an_added_result_is_the_runs(
    dann_run: Path, project: Path
) -> None:
    tables.main(["--ship", str(dann_run)])
    file = project / "checkpoint" / "dann_usps.pt"
    shipped, whole = load_checkpoint(file), load_checkpoint(dann_run / "last.pt")
    assert same_tensors(shipped["model"], whole["model"])
    assert shipped["resume"] is None
    assert file.stat().st_size < (dann_run / "last.pt").stat().st_size / 2
    tables.main(["--add", str(dann_run), "--to", "results/adaptation"])
    added = project / "results" / "adaptation" / f"{dann_run.name}.json"
    finished = json.loads((dann_run / "result.json").read_text())
    assert json.loads(added.read_text()) == json.loads(file.with_suffix(".json").read_text()) == finished
    assert tables.accuracy(tables.read_result(added)) == finished["target_val_accuracy"]


# What README.md and ADAPTATION.md say of the runs


def runs(words: str, target: str) -> list[Result]:
    """Results of a row of ADAPTATION.md."""
    pattern = tables.EVIDENCE[words].format(target) + ".json"
    return [tables.read_result(file) for file in sorted((PROJECT / "results").glob(pattern))]


def three_seeds(*rows: list[Result]) -> None:
    """Skip a claim that compares these rows until each has three seeds."""
    assert all(rows)
    if any(len(row) < 3 for row in rows):
        pytest.skip(f"compares rows of {', '.join(str(len(row)) for row in rows)} seeds")


def accuracy(words: str, target: str) -> float:
    return statistics.mean(result["target_val_accuracy"] for result in runs(words, target))


def distances(words: str, target: str) -> list[float]:
    return [result["proxy_a_distance"]["trained"] for result in runs(words, target)]


def score(words: str, target: str, name: str) -> float:
    """Mean over a row's runs of a validation score."""
    return statistics.mean(result["scores"][name] for result in runs(words, target))


SOURCE, PUBLISHED = "`source`", "`dann`, network `published`"
DEFAULT, STRONG = "`dann`", "`dann --recipe strong`"
WEAK, PLAIN, FULL = (f"plain `dann`, lambda to {end}" for end in ("0.02", "0.2", "1"))
SHIFTED_SOURCE, SHIFTED, SHIFTED_DEFAULT, SHIFTED_STRONG = (
    f"{words}, label shift" for words in (SOURCE, "plain `dann`", DEFAULT, STRONG)
)


@pytest.mark.parametrize("target", tables.TARGETS)
def test_the_distance_is_near_2_before_and_low_after_adaptation_and_accuracy_rises_on_the_target_alone(
    target: str,
) -> None:
    three_seeds(runs(SOURCE, target), runs(PLAIN, target))
    assert min(distances(SOURCE, target)) > 1.8
    assert max(distances(PLAIN, target)) < 0.6
    assert accuracy(PLAIN, target) > accuracy(SOURCE, target) + 0.03
    plain, adapted = (
        statistics.mean(result["source_val_accuracy"] for result in runs(words, target)) for words in (SOURCE, PLAIN)
    )
    assert abs(plain - adapted) < 0.01


def test_the_published_network_aligned_nothing_on_usps_and_did_worse_than_source() -> None:
    assert min(distances(PUBLISHED, "usps")) > 1.8
    assert accuracy(PUBLISHED, "usps") < accuracy(SOURCE, "usps")
    seeds = [result["target_val_accuracy"] for result in runs(PUBLISHED, "usps")]
    assert max(seeds) - min(seeds) > 0.08


@pytest.mark.parametrize("target", tables.TARGETS)
def test_information_rises_with_accuracy_from_source_to_dann_and_is_lower_where_less_was_aligned(target: str) -> None:
    three_seeds(*(runs(words, target) for words in (SOURCE, PUBLISHED, PLAIN)))
    for words in (SOURCE, PUBLISHED):
        assert score(PLAIN, target, INFORMATION) > score(words, target, INFORMATION) + 0.15
        assert accuracy(PLAIN, target) > accuracy(words, target)


def test_information_fails_under_label_shift() -> None:
    assert score(SHIFTED, "usps", INFORMATION) > score(SHIFTED_SOURCE, "usps", INFORMATION)


def test_density_falls_both_where_dann_is_worse_and_where_it_is_better() -> None:
    density = "snd"
    assert score(SHIFTED, "usps", density) < score(SHIFTED_SOURCE, "usps", density)
    three_seeds(runs(PLAIN, "svhn"), runs(SOURCE, "svhn"))
    assert score(PLAIN, "svhn", density) < score(SOURCE, "svhn", density)


def test_the_score_that_the_pages_recommend_loses_least_or_hardly_more_on_average_and_on_its_worst_pair() -> None:
    (recommended,) = set(re.findall(r"--(?:rank|select) (\w+)", (PROJECT / "README.md").read_text(encoding="utf-8")))
    block = tables.scores_block(PROJECT / "results")
    block = block[: block.index("")]
    for words in ("**accuracy lost, mean**", "**worst pair**"):
        lost = dict(
            zip(row(block, "pair")[2:], (float(cell.strip("*")) for cell in row(block, words)[2:]), strict=True)
        )
        assert lost[f"`{recommended}`"] <= min(lost.values()) + 0.02


def test_the_page_says_how_many_harmful_runs_the_warning_named() -> None:
    block = tables.scores_block(PROJECT / "results")
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ")[3] for line in block[block.index("") + 3 :]}
    named = {pair: [int(count) for count in cell.split(" of ")] for pair, cell in cells.items()}
    where = {pair for pair, (count, _) in named.items() if count}
    page = (PROJECT / "ADAPTATION.md").read_text(encoding="utf-8")
    assert f"it named {sum(n for n, _ in named.values())} of {sum(of for _, of in named.values())} harmful runs" in page
    assert all("label shift" in pair for pair in where)
    assert sum(of for pair, (_, of) in named.items() if "timm" in pair) == 11
    photos = tables.on_photos(PROJECT / "results", tables.ON_PHOTOS)
    source = {pair: statistics.mean(map(tables.accuracy, runs)) for pair, runs in photos["`source`"].items()}
    alone = [(run, pair) for pair, runs in photos["statistics of the target alone"].items() for run in runs]
    assert sum(tables.accuracy(run) < source[pair] - 0.01 for run, pair in alone) == 7


def test_the_page_says_what_recipe_strong_loses_on_mnist_to_mnistm_and_to_what() -> None:
    cells = tables.read_results(PROJECT / "results")
    labelled, without_views, adapted = (
        statistics.mean(map(tables.accuracy, cells[tables.Cell(*kind, source="mnist", target="mnistm")]))
        for kind in (("target", "strong"), ("target", "tuned"), ("dann", "strong"))
    )
    page = (PROJECT / "lab" / "README.md").read_text(encoding="utf-8").partition("views that limit")[2]
    assert re.findall(r"0\.\d{3}", page)[:2] == [f"{number:.3f}" for number in (labelled, without_views)]
    assert 0 < labelled - adapted < 0.01


def test_a_distance_that_stays_is_no_proof_that_nothing_was_won() -> None:
    cells = tables.read_results(PROJECT / "results")
    source, adapted = (cells[tables.Cell(mode, "paper", source="mnistm", target="svhn")] for mode in ("source", "dann"))
    gained = statistics.mean(map(tables.accuracy, adapted)) - statistics.mean(map(tables.accuracy, source))
    kept = statistics.mean(run["proxy_a_distance"]["trained"] for run in adapted)
    page = (PROJECT / "ADAPTATION.md").read_text(encoding="utf-8")
    assert f"ends at {kept:.2f} on SVHN and is yet {gained:.2f} above its `source`" in page


def test_the_scores_fail_where_the_page_says() -> None:
    pairs = tables.runs_by_pair(PROJECT / "results")

    def chosen_by(score: str, pair: str) -> Result:
        runs = next(runs for name, runs in pairs.items() if name.startswith(pair))
        values = ((line.get(score), run) for run in runs for line in tables.validations(run))
        return max(((value, run) for value, run in values if value is not None), key=operator.itemgetter(0))[1]

    for score in ("snd", "mixval"):
        assert chosen_by(score, "MNIST-M → SVHN, `small`")["args"]["train_mode"] == "source"
    for score in (INFORMATION, "bnm"):
        shifted = chosen_by(score, "MNIST-M → USPS, label shift")
        assert (shifted["args"]["train_mode"], shifted["args"]["without"]) == ("dann", ("priors", "confusion"))
        assert shifted["target_val_accuracy"] < 0.7


def test_a_lower_distance_is_not_always_better() -> None:
    assert min(distances(SHIFTED_DEFAULT, "usps")) > max(distances(SHIFTED, "usps"))
    assert accuracy(SHIFTED_DEFAULT, "usps") > accuracy(SHIFTED, "usps") + 0.3
    three_seeds(runs(STRONG, "svhn"), runs(PLAIN, "svhn"))
    assert statistics.mean(distances(STRONG, "svhn")) > statistics.mean(distances(PLAIN, "svhn"))
    assert accuracy(STRONG, "svhn") > accuracy(PLAIN, "svhn") + 0.15


def test_a_weak_lambda_adapts_too_little_on_svhn_and_does_as_well_on_usps() -> None:
    assert accuracy(WEAK, "usps") > accuracy(PLAIN, "usps") - 0.01
    three_seeds(runs(WEAK, "svhn"), runs(PLAIN, "svhn"))
    assert accuracy(WEAK, "svhn") < accuracy(PLAIN, "svhn") - 0.05
    assert statistics.mean(distances(WEAK, "svhn")) < 0.5  # and still the distance is low
    assert max(result["losses"]["L_d"] for result in runs(WEAK, "svhn")) < math.log(2) / 2


@pytest.mark.parametrize("target", tables.TARGETS)
def test_from_lambda_0_2_to_1_nothing_is_gained_and_a_domain_loss_at_log_2_may_be_well(target: str) -> None:
    three_seeds(runs(PLAIN, target), runs(FULL, target))
    found = [result["target_val_accuracy"] for words in (PLAIN, FULL) for result in runs(words, target)]
    assert abs(accuracy(FULL, target) - accuracy(PLAIN, target)) < 2 * statistics.stdev(found)
    assert all(abs(result["losses"]["L_d"] - math.log(2)) < 0.02 for result in runs(FULL, target))


def test_label_shift_costs_recipe_strong_nothing() -> None:
    assert min(run["target_val_accuracy"] for run in runs(SHIFTED_STRONG, "usps")) > accuracy(STRONG, "usps") - 0.01


def test_label_shift_costs_plain_dann_more_than_alignment_gained() -> None:
    assert accuracy(SHIFTED, "usps") < accuracy(SHIFTED_SOURCE, "usps") - 0.2
    spread_over = [math.exp(score(words, "usps", "diversity")) for words in (SHIFTED_SOURCE, SHIFTED)]
    assert spread_over[1] > spread_over[0] + 2  # classes, where half of ten are rare


def test_the_default_does_no_harm_under_label_shift_and_states_the_priors() -> None:
    assert accuracy(SHIFTED_DEFAULT, "usps") > accuracy(SHIFTED_SOURCE, "usps") - 0.005
    for run in runs(SHIFTED_DEFAULT, "usps"):
        assert all(abs(p["target_estimated"] - p["target_val"]) < 0.03 for p in run["class_priors"].values())
        assert run["warnings"] == []


EVERYTHING, NO_TEACHER = "+ teacher", "+ adversarial (DANN)"
STATISTICS = "+ BatchNorm statistics of the target"
NO_ADVERSARY, NO_VIEWS = (f"up to + teacher, without {part}" for part in ("adversarial", "augmentation"))


def rows(target: str) -> dict[str, list[Result]]:
    """Results of the ablation's rows on a target, of those that are measured."""
    found = tables.results_of(tables.read_results(PROJECT / "results"), "ablation")
    measured = {words: results[tables.TARGETS.index(target)] for words, results in found.items()}
    return {words: results for words, results in measured.items() if results}


def means(target: str, value: Callable[[Result], float]) -> dict[str, float]:
    return {words: statistics.mean(map(value, found)) for words, found in rows(target).items()}


def test_the_ablation_holds_what_the_readme_says_of_the_parts() -> None:
    svhn, usps = (means(target, lambda run: run["target_val_accuracy"]) for target in ("svhn", "usps"))
    assert all(
        abs(usps[words] - usps[EVERYTHING]) < 0.01 for words in ("+ augmentation", NO_TEACHER, NO_ADVERSARY, NO_VIEWS)
    )
    for target, found in (("usps", usps), ("svhn", svhn)):
        three_seeds(*(rows(target)[words] for words in (EVERYTHING, NO_TEACHER, NO_ADVERSARY, NO_VIEWS)))
        seeds = [run["target_val_accuracy"] for run in rows(target)[EVERYTHING]]
        assert abs(found[NO_ADVERSARY] - found[EVERYTHING]) < 2 * statistics.stdev(seeds)
        assert all(run["scores"]["pseudo_label_coverage"] > 0.99 for run in rows(target)[NO_VIEWS])
    lost = {words: svhn[EVERYTHING] - svhn[words] for words in (NO_ADVERSARY, NO_VIEWS, NO_TEACHER)}
    assert sorted(lost, key=lost.__getitem__) == [NO_ADVERSARY, NO_VIEWS, NO_TEACHER]
    assert (round(lost[NO_VIEWS], 2), round(lost[NO_TEACHER], 2)) == (0.12, 0.14)
    page = (PROJECT / "lab" / "README.md").read_text(encoding="utf-8").partition("<!-- ablation: end -->")[2]
    steps = "+ steps, learning rate, weight decay"
    told = [svhn["source"], svhn["+ distractors"], svhn[steps], usps[steps], svhn[STATISTICS], svhn[NO_TEACHER]]
    told += [svhn[EVERYTHING], svhn[NO_ADVERSARY]]
    assert re.findall(r"0\.\d{3}", page.partition("## ")[0]) == [f"{number:.3f}" for number in told]
    assert abs(svhn[STATISTICS] - svhn["+ distractors"]) < 0.005


def chosen(score: str, *kinds: str) -> tuple[int, int]:
    """Of two kinds of run, seed 0: on how many pairs of styles a score chooses the better one, and the first one."""
    file = "results/photos/{}_{}_{}_seed0.json"
    pairs = [
        [tables.read_result(PROJECT / file.format(kind, *pair)) for kind in kinds]
        for pair in permutations(tables.STYLES, 2)
    ]
    first = [a["scores"][score] > b["scores"][score] for a, b in pairs]
    better = [tables.accuracy(a) > tables.accuracy(b) for a, b in pairs]
    return sum(map(operator.eq, first, better)), sum(first)


def test_the_page_says_of_photos_what_their_runs_hold() -> None:
    found = tables.on_photos(PROJECT / "results", tables.ON_PHOTOS)
    means = {
        words: {pair: statistics.mean(map(tables.accuracy, runs)) for pair, runs in column.items()}
        for words, column in found.items()
    }
    without, adapted = (statistics.mean(means[words].values()) for words in ("`dann --without adversarial`", "`dann`"))
    pairs = means["`dann`"]
    groups = (
        [pairs[pair] for pair in pairs if pair.endswith("sketch")],
        [pairs[pair] for pair in pairs if pair.startswith("sketch")],
        [pairs[pair] for pair in pairs if "sketch" not in pair],
    )
    widest = max(abs(pairs[pair] - means["`dann --without adversarial`"][pair]) for pair in pairs)
    small = tables.on_small_photos(PROJECT / "results")
    alone, frozen, whole, strong = (
        {pair: tables.accuracy(run) for pair, runs in column.items() for run in runs} for column in small.values()
    )
    below = {pair: alone[pair] - whole[pair] for pair in alone if whole[pair] < alone[pair] - 0.001}
    assert (set(below), round(max(below.values()), 2)) == ({"sketch → photo", "sketch → art"}, 0.04)
    assert all(strong[pair] > alone[pair] for pair in alone)
    assert {pair for pair in strong if strong[pair] < whole[pair]} == {"sketch → cartoon", "photo → art"}
    assert strong["photo → art"] > whole["photo → art"] - 0.0015
    assert max(strong, key=lambda pair: strong[pair] - whole[pair]) == "sketch → photo"
    assert {pair for pair in frozen if whole[pair] < frozen[pair]} == {"art → photo", "sketch → photo"}
    frozen_at_224 = {
        "photo → art",
        "art → photo",
        "cartoon → photo",
        "cartoon → art",
        "sketch → art",
        "sketch → cartoon",
    }
    assert {pair for pair in pairs if pairs[pair] > strong[pair]} == frozen_at_224
    found_by = {score: chosen(score, "dann", "strong112") for score in VALIDATORS}
    assert found_by == dict.fromkeys(VALIDATORS, (6, 12)) | {"snd": (6, 8)}
    assert (chosen("class_ami", "dann", "whole112")[0], chosen(INFORMATION, "dann", "whole112")[1]) == (12, 12)
    gained = statistics.mean(strong.values()) - statistics.mean(whole.values())
    assert f"{gained:.2f} on photos with a whole backbone" in (PROJECT / "ADAPTATION.md").read_text(encoding="utf-8")
    *_, of_frozen, of_whole, of_strong = (
        statistics.mean(run["seconds"] / 60 for run in chain(*column.values())) for column in small.values()
    )
    minutes = [max(1, round(taken, -1)) for taken in (of_frozen, of_whole, of_strong)]
    assert minutes == [1, 10, 20]  # the README's too
    smalls = [statistics.mean(column.values()) for column in (frozen, alone, whole, strong)]
    told = [without, adapted, widest, *map(statistics.mean, groups), *smalls, adapted]
    text = (PROJECT / "lab" / "README.md").read_text(encoding="utf-8")
    text = text.partition("<!-- photos: end -->")[2].partition("<!-- small_photos")[0]
    assert re.findall(r"0\.\d{3}", text) == [f"{number:.3f}" for number in told]
    assert min(pairs[pair] - means["`source`"][pair] for pair in pairs) > -0.01


# The runs behind the pages


STAND_IN = """#!/usr/bin/env bash
echo "$*" >> commands.txt
[ "$2" != --add ] || { mkdir -p "$5"; echo "{}" > "$5/${3##*/}.json"; }
"""


@pytest.mark.parametrize("jobs", [{}, {"JOBS": "1"}])
def test_reproduce_makes_the_runs_that_results_holds_each_once(tmp_path: Path, jobs: dict[str, str]) -> None:
    """With a stand-in for python; JOBS=1 makes the same ones. It makes more where cells are not measured yet."""
    (tmp_path / "lab").mkdir()
    shutil.copy(PROJECT / "lab" / "reproduce.sh", tmp_path / "lab")
    (tmp_path / "python").write_text(STAND_IN)
    (tmp_path / "python").chmod(0o755)
    for domain in ("mnist", "mnistm", "svhn", "usps"):
        write_domain(tmp_path / "data" / domain, {"train": 200, "val": 50})
    for style, name, i in product(tables.STYLES, ("dog", "house"), range(5)):
        (tmp_path / "photos" / style / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / style / name / f"{i}.jpg").touch()
    for _ in range(2):
        parts = ["paper", "tuned", "strong", "ablation", "pairs", "adaptation", "photos"]
        command = ["bash", "lab/reproduce.sh", "data", "0", *parts]
        settings = {"PYTHON": str(tmp_path / "python"), "PHOTOS": "photos", "WEIGHTS": "python", **jobs}
        subprocess.run(command, cwd=tmp_path, check=True, env={**os.environ, **settings})
    made, kept = (
        {file.relative_to(root).as_posix() for file in (root / "results").glob("**/*_seed0.json")}
        for root in (tmp_path, PROJECT)
    )
    assert made >= kept
    lines = [line.split() for line in (tmp_path / "commands.txt").read_text().splitlines()]
    trained = [words[1:] for words in lines if words[0] == "train.py"]
    assert len(trained) == len(made)
    for words in trained:
        read_settings(train.build_parser().parse_args(words))
    labels = pd.read_csv(tmp_path / "runs" / "shifted" / "usps" / "train.csv").label.value_counts()
    assert labels[[0, 1, 2, 3, 4]].tolist() == [20] * 5
    assert labels.drop([0, 1, 2, 3, 4]).sum() < 25
    assert list_split(tmp_path / "runs" / "shifted", "usps", "train", with_labels=True) is not None
    whole, split = (tmp_path / "runs" / name / "sketch" for name in ("pacs", "pacs_split"))
    val = pd.read_csv(whole / "val.csv")
    assert pd.read_csv(whole / "train.csv").equals(val)
    assert [*map(tuple, val[::9].to_numpy())] == [("dog/0.jpg", "dog"), ("house/4.jpg", "house")]
    assert [len(pd.read_csv(split / f"{name}.csv")) for name in ("train", "val")] == [8, 2]
    assert (split / "data" / "dog" / "0.jpg").is_file()


@pytest.mark.parametrize(
    ("words", "named"), [([".", "0", "abblation"], "abblation"), ([], "DATA_ROOT"), (["nowhere"], "nowhere/mnistm")]
)
def test_reproduce_refuses_what_it_cannot_run_in_one_sentence(words: list[str], named: str) -> None:
    command = ["bash", str(PROJECT / "lab" / "reproduce.sh"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert named in done.stderr


# The benchmark; how fast is not asserted


def test_what_is_compared_alternates_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []

    def measure(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    found = benchmark.alternate({"ours": lambda: measure("ours"), "plain": lambda: measure("plain")}, 3)
    assert calls == ["ours", "plain"] * 4
    assert found == {"ours": [3.0, 5.0, 7.0], "plain": [4.0, 6.0, 8.0]}
    assert benchmark.medians(found) == {"ours": 5.0, "plain": 6.0}


def test_operations_of_the_published_step_are_those_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A multiplication and an addition are two; the gradient of the images is not asked for."""
    count = 4
    monkeypatch.setattr(benchmark, "choose_precision", lambda *_: torch.float32)
    images = torch.zeros(count, 28, 28, 3, dtype=torch.uint8)
    half = Domain(images, torch.arange(count), ["x.png"] * count)
    data = train.Data(list("0123456789"), half, half, None, None, None)
    step = benchmark.BareStep(data, "published", torch.device("cpu"))
    step.count = count
    first, second = 2 * 64 * 24**2 * 3 * 5**2, 2 * 50 * 8**2 * 64 * 5**2
    label = 2 * (800 * 100 + 100 * 100 + 100 * 10)  # of the source's images alone: half of a step's
    domain = 2 * (800 * 100 + 100 * 2)
    assert step.operations() == 2 * first + 3 * second + 3 * label / 2 + 3 * domain


def test_a_missing_library_is_refused_with_the_line_that_installs_it(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "skada", None)
    code, out, error = ended(benchmark, "--data_root", small_data, "--out", tmp_path, "--parts", "peers")
    assert (code, out, len(error.splitlines())) == (2, "", 1)
    assert "skada" in error
    assert "pip install" in error
    assert list(tmp_path.iterdir()) == []


def test_parts_that_take_long_or_need_further_packages_run_only_where_they_are_named() -> None:
    parts = benchmark.build_parser().parse_args(["--data_root", "."]).parts
    assert set(benchmark.MEASURES) - set(parts) == {"large", "peers"}


def test_each_library_trains_the_same_network_from_the_same_weights_and_its_images_are_counted(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the libraries, of one forward pass a step."""
    given: list[dict[str, torch.Tensor]] = []

    def stand_in(net: DANN, recipe: Recipe, x_s: torch.Tensor, y_s: torch.Tensor, x_t: torch.Tensor) -> None:
        given.append({name: value.clone() for name, value in net.state_dict().items()})
        rows = torch.arange(recipe.batch_size) % len(x_s)
        for _ in range(peers.STEPS):
            net.feature_extractor(torch.cat([x_s[rows], x_t[rows]]))

    monkeypatch.setattr(peers, "STEPS", 2)
    monkeypatch.setattr(peers, "LIBRARIES", {"one": stand_in, "two": stand_in})
    monkeypatch.setattr(peers, "require_packages", lambda: None)
    monkeypatch.setattr(benchmark, "version", lambda name: f"{name}'s")
    flags = ["--data_root", str(small_data), "--out", str(tmp_path), "--device", "cpu", "--seeds", "0", "1"]
    found = benchmark.main([*flags, "--parts", "peers"])["peers"]
    assert [same_tensors(given[i], given[j]) for i, j in ((0, 1), (2, 3), (0, 2))] == [True, True, False]
    assert {name: len(measured["accuracy"]) for name, measured in found["by"].items()} == {
        "train.py": 2,
        "one": 2,
        "two": 2,
    }
    assert "1 thread," in found["device"]
    block = tables.speed_block(tmp_path)
    assert row(block, "one one's")[-1] == str(found["by"]["one"]["lines"])
    assert row(block, "`train.py`")[-1] == "1"


def test_the_table_of_the_libraries_has_version_accuracy_of_each_seed_and_speed_and_is_left_out_unmeasured(
    tmp_path: Path,
) -> None:
    measured = {"accuracy": [0.9754, 0.5], "images_per_second": 612.4, "lines": 30}
    write_json(tmp_path / "benchmark-cpu.json", BENCHMARK)
    assert not any("skada" in line for line in tables.speed_block(tmp_path))
    write_json(tmp_path / "benchmark-cpu.json", BENCHMARK | {"peers": PEERS | {"by": {"skada": measured}}})
    assert row(tables.speed_block(tmp_path), "skada 0.6.0")[1:] == ["0.975, 0.500", "612", "30"]


@pytest.mark.slow
def test_a_benchmark_ends_in_a_json_from_which_the_tables_are_made(
    demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("QUICK_STEPS", 10),
        ("OFTEN", 5),
        ("SIDE_STEPS", 6),
        ("COUNTS", (200, 400)),
        ("FEW", 80),
        ("PHOTO_STEPS", 1),
        ("OWN_PHOTOS", 90),
        ("DIFFERENT", 80),
    ):
        monkeypatch.setattr(benchmark, name, value)
    flags = ["--data_root", str(demo_data), "--out", str(tmp_path), "--device", "cpu", "--seeds", "0"]
    flags += ["--repeats", "1", "--steps", "2", "--images", "40", "--large", "100", "--parts"]
    kept = benchmark.main([*flags, "training"])["training"]
    found = benchmark.main([*flags, "prediction", "start", "growth", "accuracy", "side", "frozen", "large"])
    assert found["training"] == kept  # parts that are not run keep what the file says of them
    assert found == json.loads((tmp_path / "benchmark-cpu.json").read_text())
    assert found["prediction"]["small"]["images"] == 40
    assert found["start"]["images"].keys() >= {"labelled_train", "unlabelled_train", "source_val", "target_val"}
    assert found["start"]["launch_to_first_step_seconds"] > found["start"]["read_seconds"] > 0
    assert found["start"]["second_launch"]["read_seconds"] > 0
    assert (tmp_path / "figures" / "time_to_accuracy.png").read_bytes().startswith(b"\x89PNG")
    block = tables.speed_block(tmp_path)
    for start in ("`small`", "`published`"):
        assert sum(line.startswith(f"| {start} |") for line in block) == 2  # training and prediction
    assert row(block, "images a domain")[1:] == ["200", "400"]
    assert row(block, "0.82392")
    assert row(block, "reading the images, s")
    assert float(row(block, "five validations, with both distances")[1]) > 0
    assert all(min(rates) > 0 for rates in found["side"]["images_per_second"].values())
    assert row(block, "2")
    assert found["large"]["photos"].keys() == {"80", "100"}
    assert row(block, "100")
    assert float(row(block, "90")[-1]) > 0

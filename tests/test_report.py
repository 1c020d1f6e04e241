"""The README's tables are those of results/, and runs can be compared."""

import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ladder
import pytest
import records
from conftest import ended, same_tensors
from signs import COLLAPSE_SIGN, too_few
from tables import TARGETS, read_results

import report
from checkpoint import load_checkpoint
from utils import UserError

PROJECT = Path(report.__file__).parent


def result(mode: str, target: str, seed: int, accuracy: float) -> dict[str, Any]:
    return {
        "target_val_accuracy": accuracy,
        "source_val_accuracy": 0.9,
        "seed": seed,
        "select": "last",
        "proxy_a_distance": {"untrained": 1.9, "trained": 1.5 if mode == "source" else 0.5},
        "seconds": 60.0,
        "images_per_second": 1000.0,
        "images": {"target_val": 100 if target == "svhn" else 200},
        "versions": {"torch": "2.9"},
        "device": "cpu (x)",
        "args": {"train_mode": mode, "target_file": target, "recipe": "paper", "arch": "small", "run_name": "r"},
    }


def write_results(folder: Path) -> None:
    folder.mkdir()
    for mode, base in (("source", 0.3), ("dann", 0.5)):
        for target in ("svhn", "usps"):
            for seed in range(3):
                accuracy = base + 0.1 * seed
                (folder / f"{mode}_{target}_{seed}.json").write_text(json.dumps(result(mode, target, seed, accuracy)))


def test_the_readme_states_what_results_hold() -> None:
    outcome = report.main(["--readme", str(PROJECT / "README.md"), "--check"])
    assert outcome["changed"] is False


def test_every_result_is_of_a_real_run_with_its_command() -> None:
    for file in (PROJECT / "results").glob("*.json"):
        content = json.loads(file.read_text())
        if file.name.startswith("benchmark-"):
            assert all(part["command"].startswith("python benchmark.py ") for part in content.values()), file
            continue
        if file.name == "soak.json":
            assert content["command"].startswith("SOAK=1 python -m pytest ")
            continue
        assert content["command"].startswith("python "), file
        assert content["select"] == "last", file
        assert content["images"]["target_val"] in (321, 1459), file


def test_a_cell_is_mean_deviation_and_worst_over_the_seeds(tmp_path: Path) -> None:
    write_results(tmp_path / "results")
    block = report.render(tmp_path / "results")
    assert "| dann | paper, small | 0.600 ± 0.100 (worst 0.500) | 0.600 ± 0.100 (worst 0.500) | 0.50 ± 0.00 / " in block
    assert "| source | paper, small | 0.400 ± 0.100 (worst 0.300) |" in block
    assert "| dann | *published, best epoch by target labels* | *0.41745* | *0.82392* |" in block
    assert "0.049 on SVHN (n = 100), 0.035 on USPS (n = 200)" in block  # sqrt(0.6 * 0.4 / n)


def test_a_changed_result_makes_the_check_fail_and_the_rewrite_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_results(tmp_path / "results")
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report.render, "__defaults__", (tmp_path / "results",))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\n{report.END}\nafter\n")
    with pytest.raises(UserError, match="are not those of results/"):
        report.main(["--readme", str(readme), "--check"])
    report.main(["--readme", str(readme)])
    report.main(["--readme", str(readme), "--check"])
    assert readme.read_text().startswith("before\n")
    assert readme.read_text().endswith("\nafter\n")


def soak_result() -> dict[str, Any]:
    counts = {name: 1000 + i for i, name in enumerate((*records.KINDS, *records.MEMORY))}
    command = "SOAK=1 python -m pytest tests/test_soak.py"
    return {"counts": counts, "seconds": 725, "device": "cpu (x)", "versions": {"torch": "2.9"}, "command": command}


def test_the_page_states_the_counts_of_the_soak_and_drifts_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_results(tmp_path / "results")
    for block in (report.render, report.render_soak):
        monkeypatch.setattr(block, "__defaults__", (tmp_path / "results",))
    page, file = tmp_path / "README.md", tmp_path / "results" / "soak.json"
    page.write_text(f"a\n{report.BEGIN}\n{report.END}\nb\n{report.SOAK_BEGIN}\nold\n{report.SOAK_END}\nc\n")
    report.main(["--readme", str(page)])
    absent = "`make soak` has not been run on this version: there are no counts to state yet."
    assert page.read_text().endswith(f"\nb\n{report.SOAK_BEGIN}\n{absent}\n{report.SOAK_END}\nc\n")
    file.write_text(json.dumps(soak_result()))
    with pytest.raises(UserError, match="are not those of results/"):
        report.main(["--readme", str(page), "--check"])
    report.main(["--readme", str(page)])
    text = page.read_text()
    assert "The last `make soak` took 12 minutes on cpu (x), torch 2.9: 2,001 kills, 1,002 of them while a file" in text
    assert "written, and 7,042 hostile cases without a traceback, a hang or a write beside the output, 7,091 of" in text
    assert "refused: 1,003 CSVs, 1,004 argument lists, 1,005 command lines, 1,006 images, 1,007 checkpoints, " in text
    assert "1,008 runs of `train.py`, 1,009 runs of `tsne.py`. The longest CSV had 1,017 rows, 1,018 pairs of" in text
    assert "1,019 images were predicted in 1,020 MB at most, 1,021 bytes an image. The counts are in " in text
    assert absent not in text
    file.write_text(with_value(soak_result(), "counts.CSVs", "many"))
    code, out, error = ended(report, "--readme", page)
    said = f'report.py: {file}: counts.CSVs is "many", not a number from 0 to 1e+15; restore the file.\n'
    assert (code, out, error, page.read_text()) == (2, "", said, text)


def test_runs_are_compared_in_a_table_that_names_what_differs(dann_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    changed = json.loads((dann_run / "result.json").read_text())
    changed["args"]["learning_rate"] = 0.5
    (other / "result.json").write_text(json.dumps(changed))
    (other / "metrics.jsonl").write_text((dann_run / "metrics.jsonl").read_text())
    table = report.main([str(dann_run), str(other), "--out_path", str(tmp_path / "curves.png")])["table"]
    head, first, second = table.splitlines()
    assert head.split()[-1] == "learning_rate"
    assert first.split()[-1] == "0.004"
    assert second.split()[-1] == "0.5"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    report.main([str(other), str(dann_run)])
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_a_gain_is_stated_only_for_runs_that_differ_in_nothing_else(dann_run: Path, tmp_path: Path) -> None:
    content = json.loads((dann_run / "result.json").read_text())
    for name, size in (("alike", 28), ("other", 40)):
        (tmp_path / name).mkdir()
        changed = content | {"args": content["args"] | {"train_mode": "source", "size": size}}
        (tmp_path / name / "result.json").write_text(json.dumps(changed))
        (tmp_path / name / "metrics.jsonl").write_text((dann_run / "metrics.jsonl").read_text())
    assert "\nadaptation gained +0.0000 on the target" in report.main([str(tmp_path / "alike"), str(dann_run)])["table"]
    assert "gained" not in report.main([str(tmp_path / "other"), str(dann_run)])["table"]


def test_a_cell_takes_seeds_of_several_machines_and_no_two_kinds_of_runs(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    write_results(folder)
    first, second, *_ = sorted(folder.glob("dann_*.json"))
    content = json.loads(first.read_text())
    second.write_text(json.dumps(json.loads(second.read_text()) | {"device": "cpu (another)"}))
    assert "cpu (another)" in report.render(folder)
    second.write_text(json.dumps(content | {"seed": 99, "steps": 7, "precision": "float16"}))
    with pytest.raises(UserError, match="differ in precision, steps; keep one kind and delete the others"):
        report.render(folder)


def with_value(content: dict[str, Any], key: str, value: Any) -> str:
    """JSON of `content` with another value at a dotted key."""
    changed = json.loads(json.dumps(content))
    *way, last = key.split(".")
    inner = changed
    for name in way:
        inner = inner[name]
    inner[last] = value
    return json.dumps(changed)


NAN, HUGE = float("nan"), 10**400
RUN_VALUES: list[tuple[str, Any, str]] = [
    ("target_val_accuracy", "high", 'is "high", not a number from 0 to 1'),
    ("target_val_accuracy", NAN, "is NaN, not a number from 0 to 1"),
    ("target_val_accuracy", True, "is true, not a number from 0 to 1"),
    ("source_val_accuracy", [0.9], "is a list, not a number from 0 to 1"),
    ("source_val_accuracy", -0.5, "is -0.5, not a number from 0 to 1"),
    ("proxy_a_distance", "far", 'is "far", not an object'),
    ("proxy_a_distance.trained", {}, "is an object, not a number from -2 to 2"),
    ("seconds", None, "is null, not a number from 0 to 1e+15"),
    ("seconds", HUGE, f"is 1{'0' * 36}..., not a number from 0 to 1e+15"),
    ("images_per_second", "1000", 'is "1000", not a number from 0 to 1e+15'),
    ("images_per_second", float("inf"), "is Infinity, not a number from 0 to 1e+15"),
    ("checkpoint", 3, "is 3, not a text"),
    ("args.train_mode", ["dann"], "is a list, not a text"),
    ("args.target_file", "us\0ps", 'is "us\\u0000ps", not a text'),
]


@pytest.mark.parametrize(("key", "value", "said"), RUN_VALUES, ids=[key for key, *_ in RUN_VALUES])
def test_a_value_of_a_run_that_is_none_is_refused_by_file_and_key_and_nothing_is_written(
    key: str, value: Any, said: str, dann_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RESULTS", "SHIPPED"):
        monkeypatch.setattr(report, name, tmp_path / "out" / name)
    file = tmp_path / "run" / "result.json"
    shutil.copytree(dann_run, file.parent)
    file.write_text(with_value(json.loads(file.read_text()), key, value))
    for words in ([file.parent], ["--add", file.parent], ["--ship", file.parent]):
        code, out, error = ended(report, *words)
        assert (code, out, error) == (2, "", f"report.py: {file}: {key} {said}; restore the file.\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("L_y", "low", 'is "low", not a number from -1e+15 to 1e+15'),
        ("L_d", HUGE, f"is 1{'0' * 36}..., not a number from -1e+15 to 1e+15"),
        ("lambda", [], "is a list, not a number from -1e+15 to 1e+15"),
        ("target_val_accuracy", NAN, "is NaN, not a number from 0 to 1"),
        ("step", HUGE, f"is 1{'0' * 36}..., not a number from -1e+15 to 1e+15"),
    ],
    ids=["L_y", "L_d", "lambda", "target_val_accuracy", "step"],
)
def test_a_value_of_a_log_that_is_none_is_refused_by_line_and_key(
    key: str, value: Any, said: str, dann_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(dann_run, tmp_path / "run")
    log = tmp_path / "run" / "metrics.jsonl"
    first, second = log.read_text().splitlines()
    log.write_text(f"{first}\n{with_value(json.loads(second), key, value)}\n")
    code, out, error = ended(report, tmp_path / "run")
    assert (code, out, error) == (2, "", f"report.py: {log} line 2: {key} {said}; restore the file.\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


# file, key, value, what is said of it, said of which key where that lies deeper
CITED_VALUES: list[tuple[str, str, Any, str, str]] = [
    ("dann_svhn_0", "target_val_accuracy", None, "is null, not a number from 0 to 1", ""),
    ("dann_svhn_0", "target_val_accuracy", 1.5, "is 1.5, not a number from 0 to 1", ""),
    ("dann_svhn_0", "seconds", "long", 'is "long", not a number from 0 to 1e+15', ""),
    ("dann_svhn_0", "seed", "first", 'is "first", not a number from 0 to 1e+15', ""),
    ("dann_svhn_0", "images.target_val", 0, "is 0, not a number from 1 to 1e+15", ""),
    ("dann_svhn_0", "images", None, "is null, not an object", ""),
    ("dann_svhn_0", "proxy_a_distance.untrained", "far", 'is "far", not a number from -2 to 2', ""),
    ("dann_svhn_0", "versions.torch", 2.9, "is 2.9, not a text", ""),
    ("dann_svhn_0", "signs", {"entropy": "low"}, 'is "low", not a number from -1e+15 to 1e+15', "signs.entropy"),
    ("dann_svhn_0", "args", "dann", 'is "dann", not an object', ""),
    ("dann_svhn_0", "args.without", [["teacher"]], "is a list, not a text", "args.without[0]"),
    ("adaptation/dann_usps_lambda1_seed0", "target_val_accuracy", "high", 'is "high", not a number from 0 to 1', ""),
    (
        "adaptation/dann_usps_lambda1_seed0",
        "losses",
        {"L_d": NAN},
        "is NaN, not a number from -1e+15 to 1e+15",
        "losses.L_d",
    ),
    ("benchmark-cpu", "growth.repeats", None, "is null, not a number from 0 to 1e+15", ""),
    ("benchmark-cpu", "growth.images_per_second", {"many": 1}, 'has the key "many", not a number', ""),
    ("benchmark-cpu", "growth.images_per_second.5000", "x", 'is "x", not a number from 0 to 1e+15', ""),
    ("benchmark-cpu", "growth.images_per_second.5000", HUGE, f"is 1{'0' * 36}..., not a number from 0 to 1e+15", ""),
    ("benchmark-cpu", "training", "small", 'is "small", not an object', ""),
    (
        "benchmark-cpu",
        "training",
        {"repeats": 1, "device": "x", "small": {}},
        "is missing",
        "training.small.images_per_second",
    ),
]


@pytest.mark.parametrize(
    ("name", "key", "value", "said", "inner"), CITED_VALUES, ids=[key for _, key, *_ in CITED_VALUES]
)
def test_a_value_of_results_that_is_none_is_refused_by_file_and_key_and_the_page_is_left_as_it_is(
    name: str, key: str, value: Any, said: str, inner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = tmp_path / "results", tmp_path / "results" / f"{name}.json"
    write_results(folder)
    (folder / "adaptation").mkdir()
    shutil.copy(folder / "dann_usps_0.json", folder / "adaptation" / "dann_usps_lambda1_seed0.json")
    growth = {"images_per_second": {"5000": 1.0}, "largest_over_smallest": 1.0, "repeats": 5, "device": "x"}
    (folder / "benchmark-cpu.json").write_text(json.dumps({"growth": growth}))
    monkeypatch.setattr(report.render, "__defaults__", (folder,))
    monkeypatch.setattr(report.render_evidence, "__defaults__", (folder,))
    markers = (
        (report.EVIDENCE_BEGIN, report.EVIDENCE_END) if name.startswith("adaptation/") else (report.BEGIN, report.END)
    )
    page = tmp_path / "page.md"
    page.write_text("\n".join(markers))
    file.write_text(with_value(json.loads(file.read_text()), key, value))
    code, out, error = ended(report, "--readme", page)
    assert (code, out, error) == (2, "", f"report.py: {file}: {inner or key} {said}; restore the file.\n")
    assert page.read_text() == "\n".join(markers)


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no result.json; name a finished run folder"):
        report.main([str(tmp_path)])


def test_a_shipped_checkpoint_predicts_the_same_without_its_optimizer(
    dann_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "SHIPPED", tmp_path)
    report.main(["--ship", str(dann_run)])
    shipped, whole = load_checkpoint(tmp_path / "dann_usps.pt"), load_checkpoint(dann_run / "last.pt")
    assert same_tensors(shipped["model"], whole["model"])
    assert shipped["resume"] is None
    assert (tmp_path / "dann_usps.pt").stat().st_size < (dann_run / "last.pt").stat().st_size / 2
    assert json.loads((tmp_path / "dann_usps.json").read_text())["command"].startswith("python train.py")


def ladder_results(folder: Path) -> None:
    """Five rungs on USPS, two seeds each: entropy falls as the accuracy rises, diversity says nothing."""
    folder.mkdir()
    for i, (_, recipe, mode, without) in enumerate(ladder.LADDER[:5]):
        for seed in range(2):
            content = result(mode, "usps", seed, 0.5 + 0.1 * i)
            content["args"] |= {"recipe": recipe, "without": list(without)}
            content["signs"] = {"entropy": 1 - 0.1 * i, "diversity": 2.0, "information_maximisation": 1 + 0.3 * i}
            (folder / f"{i}_{seed}.json").write_text(json.dumps(content))


def test_the_ladder_has_a_row_a_rung_and_a_dash_where_nothing_ran(tmp_path: Path) -> None:
    ladder_results(tmp_path / "results")
    block = report.render(tmp_path / "results")
    assert "| + adversarial (DANN) | - | 0.800 ± 0.000 (worst 0.800) | 0/2 |" in block
    assert "| everything but adversarial | - | - | 0 |" in block
    (row,) = [line for line in block.splitlines() if line.startswith("| dann | strong, small |")]
    assert "0.900 ± 0.000" in row  # runs that leave parts out are not in the main table


def test_before_any_rung_of_the_ladder_the_page_says_how_to_get_there(tmp_path: Path) -> None:
    ladder_results(tmp_path / "results")
    for file in (tmp_path / "results").glob("[13]_*.json"):  # left: source and whole runs
        file.unlink()
    block = report.render(tmp_path / "results")
    assert '`bash reproduce.sh DATA_ROOT "0 1 2" ladder` has been run' in block
    assert "+ adversarial (DANN)" not in block
    assert "| entropy |" not in block


def test_signs_are_ranked_with_the_true_accuracy(tmp_path: Path) -> None:
    ladder_results(tmp_path / "results")
    block = report.render(tmp_path / "results")
    assert "| entropy | low | - (0 runs) | -1.00 (10 runs) |" in block
    assert "| diversity | high | - (0 runs) | - (10 runs) |" in block
    assert block.index("| entropy |") < block.index("| diversity |")  # the best first


def test_the_page_says_which_runs_the_collapse_warning_names(tmp_path: Path) -> None:
    ladder_results(tmp_path / "results")  # exp of information: 2.7, 3.7, 5.0 - 0.05, then above half of the classes
    block = report.render(tmp_path / "results")
    assert "it would warn of 0 on SVHN and 6 on USPS (accuracy 0.500 to 0.700);" in block
    assert "it is silent on 0 on SVHN and 4 on USPS (accuracy 0.800 to 0.900)." in block


def test_the_collapse_warning_goes_by_the_sign_that_ranks_best_in_results() -> None:
    ranked = ladder.rank_signs(ladder.sign_points(read_results(report.RESULTS)))
    assert next(iter(ranked)) == COLLAPSE_SIGN


def rungs(target: str) -> dict[str, list[dict[str, Any]]]:
    """Results of the ladder's rungs on a target, by their words."""
    found = ladder.rungs(read_results(report.RESULTS))
    return {words: results[TARGETS.index(target)] for words, results in found.items()}


def means(target: str, value: Callable[[dict[str, Any]], float]) -> dict[str, float]:
    return {words: statistics.mean(value(run) for run in runs) for words, runs in rungs(target).items()}


EVERYTHING, NO_ADVERSARY, NO_VIEWS = (
    "+ teacher: everything",
    "everything but adversarial",
    "everything but augmentation",
)


def test_the_ladder_holds_what_the_readme_says_of_the_parts() -> None:
    svhn, usps = (means(target, lambda run: run["target_val_accuracy"]) for target in ("svhn", "usps"))
    lost = {words: svhn[EVERYTHING] - svhn[words] for words in (NO_ADVERSARY, NO_VIEWS, "+ adversarial (DANN)")}
    assert sorted(lost, key=lost.__getitem__) == [NO_ADVERSARY, "+ adversarial (DANN)", NO_VIEWS]
    assert 0.2 < lost[NO_VIEWS] / svhn[EVERYTHING] < 0.3
    removed = ("+ augmentation", "+ adversarial (DANN)", NO_ADVERSARY, NO_VIEWS)
    assert all(abs(usps[words] - usps[EVERYTHING]) < 0.01 for words in removed)
    for target, found in (("svhn", svhn), ("usps", usps)):
        seeds = [run["target_val_accuracy"] for run in rungs(target)[EVERYTHING]]
        assert abs(found[NO_ADVERSARY] - found[EVERYTHING]) < 2 * statistics.stdev(seeds)
        assert all(run["signs"]["pseudo_label_coverage"] > 0.99 for run in rungs(target)[NO_VIEWS])


def test_the_signs_fail_where_the_readme_says_they_fail() -> None:
    information = means("svhn", lambda run: run["signs"][COLLAPSE_SIGN])
    accuracy = means("svhn", lambda run: run["target_val_accuracy"])
    adapted = [words for words, _, mode, _ in ladder.LADDER if mode == "dann"]
    assert min(adapted, key=accuracy.__getitem__) == NO_VIEWS == max(adapted, key=information.__getitem__)
    assert not any(too_few(run["signs"], 10) for run in rungs("svhn")[NO_VIEWS])
    for words in ("+ augmentation", "+ neighbours"):
        assert all(too_few(run["signs"], 10) and run["target_val_accuracy"] > 0.6 for run in rungs("svhn")[words])
    ranked = ladder.rank_signs(ladder.sign_points(read_results(report.RESULTS)))
    for sign in ("source_val_accuracy", "teacher_agreement", "pseudo_label_coverage"):
        assert (ranked[sign]["svhn"] or 0) < -0.3


def test_rank_correlation_is_spearmans() -> None:
    assert ladder.rank_correlation([1, 2, 3, 4], [1, 4, 9, 16]) == pytest.approx(1)
    assert ladder.rank_correlation([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)  # 1 - 6 * 4 / (5 * 24)
    assert ladder.rank_correlation([1, 2], [1, 2]) is None


def test_the_speed_table_states_what_the_benchmark_measured(tmp_path: Path) -> None:
    found = {
        "growth": {
            "images_per_second": {"5000": 1000.0, "500000": 950.0},
            "largest_over_smallest": 0.95,
            "repeats": 5,
            "device": "cpu (x)",
        }
    }
    (tmp_path / "benchmark-cpu.json").write_text(json.dumps(found))
    block = report.render(tmp_path)
    assert "| images/s by images a domain | 0.95 | 5,000: 1,000, 500,000: 950 |" in block
    assert "Speed, medians of 5, cpu (x):" in block


def test_the_signs_are_drawn_over_the_ladders_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ladder_results(tmp_path / "results")
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    report.main(["--signs", str(tmp_path / "signs.png")])
    assert (tmp_path / "signs.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    with pytest.raises(UserError, match="has no run with label-free signs yet"):
        report.main(["--signs", str(tmp_path / "signs.png")])

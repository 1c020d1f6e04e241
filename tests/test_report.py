"""Runs are compared in a table and in one figure, or refused by file and key."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ended

import report


def altered(run: Path, folder: Path, **args: Any) -> Path:
    """A copy of a run with other arguments in its result."""
    shutil.copytree(run, folder)
    content = json.loads((run / "result.json").read_text())
    content["args"] |= args
    (folder / "result.json").write_text(json.dumps(content))
    return folder


def is_picture(file: Path) -> bool:
    return file.read_bytes().startswith(b"\x89PNG")


def test_runs_are_compared_in_a_table_that_names_what_differs_and_drawn_where_it_is_asked(
    dann_run: Path, tmp_path: Path
) -> None:
    other = altered(dann_run, tmp_path / "other", learning_rate=0.5)
    table = report.main([str(dann_run), str(other), "--out_path", str(tmp_path / "curves.png")])["table"]
    head, first, second = table.splitlines()
    assert (head.split()[-1], first.split()[-1], second.split()[-1]) == ("learning_rate", "0.004", "0.5")
    assert is_picture(tmp_path / "curves.png")
    report.main([str(other), str(dann_run)])
    assert is_picture(tmp_path / "comparison.png")


def test_runs_of_one_name_in_two_folders_are_told_apart(dann_run: Path, tmp_path: Path) -> None:
    twins = [altered(dann_run, tmp_path / name / "run") for name in ("a", "b")]
    table = report.main([*map(str, twins), "--out_path", str(tmp_path / "x.png")])["table"]
    assert [line.split()[0] for line in table.splitlines()[1:3]] == list(map(str, twins))


def test_a_gain_is_stated_only_for_runs_that_differ_in_nothing_else(dann_run: Path, tmp_path: Path) -> None:
    alike = altered(dann_run, tmp_path / "alike", train_mode="source")
    other = altered(dann_run, tmp_path / "other", train_mode="source", size=40)
    assert "gained +0.0000" in report.main([str(alike), str(dann_run)])["table"]
    assert "gained" not in report.main([str(other), str(dann_run)])["table"]


def test_accuracies_on_test_stand_in_a_column_and_a_gain_is_of_them_where_each_run_has_one(
    dann_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "draw_curves", lambda *_: None)
    runs = [altered(dann_run, tmp_path / mode, train_mode=mode) for mode in ("source", "dann")]
    for run, accuracy in zip(runs, (0.25, 0.75), strict=True):
        assert "target test" not in report.main([str(runs[1])])["table"]
        content = json.loads((run / "result.json").read_text()) | {"target_test_accuracy": accuracy}
        (run / "result.json").write_text(json.dumps(content))
        assert "target test" in report.main([str(run), str(dann_run)])["table"]
    assert "gained +0.5000 on the target's test" in report.main([*map(str, runs)])["table"]
    del content["target_test_accuracy"]  # a run older than the flag
    (run / "result.json").write_text(json.dumps(content))
    assert "gained +0.0000 on the target's val" in report.main([*map(str, runs)])["table"]


def test_of_runs_without_labels_of_the_target_no_column_is_empty_and_a_score_to_rank_by_is_named(
    dann_run: Path, tmp_path: Path
) -> None:
    run = altered(dann_run, tmp_path / "run")
    content = json.loads((run / "result.json").read_text()) | {"target_val_accuracy": None}
    (run / "result.json").write_text(json.dumps(content))
    head, line, hint = report.main([str(run)])["table"].splitlines()
    assert "target val" not in head
    assert "-" not in line.split()
    assert "--rank" in hint
    assert "target val" in report.main([str(run), str(dann_run)])["table"]
    differing: list[dict[str, Any]] = [{"target_test_accuracy": 0.5}, {"scores": {}}]
    for known in differing:  # an accuracy after all, or no target
        (run / "result.json").write_text(json.dumps(content | known))
        assert "--rank" not in report.main([str(run)])["table"]


def scored(run: Path, folder: Path, score: float | None, **args: Any) -> Path:
    altered(run, folder, **args)
    content = json.loads((folder / "result.json").read_text())
    content["scores"]["bnm"] = score
    (folder / "result.json").write_text(json.dumps(content))
    return folder


def test_runs_are_ranked_by_a_score_the_best_first(dann_run: Path, tmp_path: Path) -> None:
    runs = [scored(dann_run, tmp_path / name, score) for name, score in (("a", 0.1), ("b", 0.9), ("c", 0.5))]
    table = report.main([*map(str, runs), "--rank", "bnm"])["table"]
    assert [line.split()[:2] for line in table.splitlines()[1:4]] == [["b", "0.9000"], ["c", "0.5000"], ["a", "0.1000"]]


def test_a_score_that_is_highest_in_two_runs_is_said_not_to_tell_them_apart(dann_run: Path, tmp_path: Path) -> None:
    runs = [scored(dann_run, tmp_path / name, score) for name, score in (("a", 1.0), ("b", 0.9), ("c", 0.99999))]
    said = ["2 runs" in report.main([*map(str, some), "--rank", "bnm"])["table"] for some in (runs, runs[:2])]
    assert said == [True, False]


def test_of_a_frozen_and_a_whole_backbone_the_ranking_says_that_it_does_not_choose(
    dann_run: Path, tmp_path: Path
) -> None:
    runs = [
        scored(dann_run, tmp_path / name, 0.5, freeze=freeze)
        for name, freeze in (("a", True), ("b", True), ("c", False), ("older", None))
    ]
    said = [
        "--freeze" in report.main([*map(str, some), "--rank", "bnm"])["table"]
        for some in (runs[:2], runs[1:3], runs[2:])
    ]
    assert said == [False, True, False]


def test_runs_on_other_images_and_one_without_the_score_are_not_ranked(dann_run: Path, tmp_path: Path) -> None:
    other, none, fewer = (
        scored(dann_run, tmp_path / "other", 0.1, target_file="svhn"),
        scored(dann_run, tmp_path / "none", None),
        scored(dann_run, tmp_path / "fewer", 0.1),
    )
    content = json.loads((fewer / "result.json").read_text())
    content["images"]["target_val"] -= 1
    (fewer / "result.json").write_text(json.dumps(content))
    for run in (other, none, fewer):
        code, out, error = ended(report, dann_run, run, "--rank", "bnm")
        assert (code, out, run.name in error) == (2, "", True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scores", "high"),
        ("target_val_accuracy", "high"),
        ("target_val_accuracy", float("nan")),
        ("source_val_accuracy", True),
        ("proxy_a_distance", "far"),
        ("proxy_a_distance.trained", {}),
        ("images.target_val", []),
        ("seconds", None),
        ("seconds", 10**400),
        ("checkpoint", 3),
        ("args.train_mode", ["dann"]),
        ("args.target_file", 1),
    ],
)
def test_a_result_with_a_value_that_is_none_is_refused_by_file_and_key_and_nothing_is_drawn(
    key: str, value: Any, dann_run: Path, tmp_path: Path
) -> None:
    file = altered(dann_run, tmp_path / "run") / "result.json"
    content = inner = json.loads(file.read_text())
    *way, last = key.split(".")
    for name in way:
        inner = inner[name]
    for change in ("other", "missing"):
        if change == "other":
            inner[last] = value
        else:
            del inner[last]
        file.write_text(json.dumps(content))
        code, out, error = ended(report, file.parent)
        assert (code, out, len(error.splitlines())) == (2, "", 1)
        assert str(file) in error
        assert last in error
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_an_unfinished_run_and_a_figure_without_a_pictures_name_are_refused(dann_run: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    code, _, error = ended(report, tmp_path / "run")
    assert (code, str(tmp_path / "run") in error, "--resume" in error) == (2, True, True)
    code, _, error = ended(report, dann_run, "--out_path", tmp_path / "curves.txt")
    assert (code, "--out_path" in error) == (2, True)

"""Figures show the numbers they are given, whole or not at all."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK, ended, quick_run
from matplotlib.figure import Figure

import plots
import train


def test_a_run_draws_its_curves_its_confusion_and_its_mistakes(dann_run: Path) -> None:
    for name in ("curves", "confusion", "mistakes"):
        assert (dann_run / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name


def test_a_run_on_a_target_without_labels_draws_the_answers_on_the_source(small_data: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mnistm").symlink_to(small_data / "mnistm")
    (tmp_path / "data" / "photos").symlink_to(small_data / "usps" / "data")
    folder = Path(quick_run(tmp_path / "data", tmp_path / "runs", "dann", "photos", "--max_steps", "2")["folder"])
    assert (folder / "confusion.png").exists()


@pytest.mark.parametrize(("source", "target"), [("plain", "usps"), ("mnistm", "plain"), ("plain", None)])
def test_a_run_draws_what_it_has_where_a_domain_has_no_val(
    source: str, target: str | None, small_data: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(small_data, tmp_path / "data")
    shutil.copytree(root / "usps", root / "plain")
    (root / "plain" / "val.csv").rename(root / "plain" / "test.csv")
    words = ["--data_root", root, "--source_file", source, "--save_dir", tmp_path, *QUICK]
    words += ["--train_mode", "dann", "--target_file", target] if target else ["--train_mode", "source"]
    code, out, _ = ended(train, *words)
    assert code == 0
    drawn = sorted(file.name for file in Path(out.splitlines()[-1]).glob("*.png"))
    assert drawn == (["confusion.png", "curves.png", "mistakes.png"] if target else ["curves.png"])


def test_the_curves_are_a_panel_a_quantity_with_a_line_a_run(tmp_path: Path, figures: list[Figure]) -> None:
    one = [{"step": s, "L_y": 1 / s, "L_d": 0.7, "lambda": s / 4, "target_val_accuracy": None} for s in (1, 2, 4)]
    other = [{"step": 3, "L_y": 0.5, "L_d": None, "lambda": 0.0, "target_val_accuracy": None}]
    plots.draw_curves({"one": one, "other": other}, tmp_path / "x.png")
    panels = {axes.get_title(): axes for axes in figures[0].axes if axes.get_title()}
    assert len(panels) == 3  # nothing has an accuracy
    axes = next(axes for title, axes in panels.items() if "L_y" in title)
    lines = [(line.get_label(), line.get_xydata().tolist()) for line in axes.lines]  # type: ignore[union-attr]
    assert lines == [("one", [[1, 1], [2, 0.5], [4, 0.25]]), ("other", [[3, 0.5]])]
    colours = {line.get_label(): line.get_color() for line in axes.lines}
    named = {text.get_text(): (text.get_color(), text.get_position()[0]) for text in axes.texts}
    assert {name: colour for name, (colour, _) in named.items()} == colours
    assert min(x for _, x in named.values()) > 1  # beside the curves, not over them
    assert figures[0].legends == []


def test_a_run_has_one_colour_in_every_panel_and_names_at_one_height_do_not_overlap(
    tmp_path: Path, figures: list[Figure]
) -> None:
    line = {"step": 4, "L_y": 0.5, "lambda": 0.1}
    names = [f"dann_svhn_tuned_seed{k}" for k in range(12)]
    plots.draw_curves({name: [line] for name in names}, tmp_path / "x.png")
    figure = figures[0]
    colours = [[(line.get_color(), line.get_linestyle()) for line in axes.lines] for axes in figure.axes if axes.lines]
    assert colours[0] == colours[1]
    assert len(set(colours[0])) == 12
    texts = sorted(figure.axes[0].texts, key=lambda text: text.get_position()[1])
    points = figure.axes[0].get_position().height * figure.get_figheight() * 72  # of the panel's height
    heights = [text.get_position()[1] * points for text in texts]
    assert all(above - below > float(texts[0].get_fontsize()) for below, above in itertools.pairwise(heights))
    assert {text.get_text() for text in figure.axes[0].texts} == {f"seed{k}" for k in range(12)}


def test_the_confusion_and_the_mistakes_are_those_of_the_predictions(tmp_path: Path, figures: list[Figure]) -> None:
    labels, p = np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]])
    plots.draw_confusion(labels, p.argmax(1), ["ash", "$5"], "title", tmp_path / "x.png")
    plots.draw_mistakes(np.zeros((4, 8, 8, 3), np.uint8), labels, p, ["ash", "$5"], "title", tmp_path / "x.png")
    texts = {text.get_position(): text.get_text() for text in figures[0].axes[0].texts}
    assert texts == {(0, 0): "1", (1, 0): "1", (0, 1): "1", (1, 1): "1"}
    assert [text.get_text() for text in figures[1].axes[0].texts] == ["$5 as ash, 0.70", "ash as $5, 0.60"]
    assert len(figures[1].axes[0].images) == 2

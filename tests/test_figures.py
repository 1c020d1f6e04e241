"""What a run leaves to look at: figures by default, TensorBoard on request, always the numbers of the log."""

import contextlib
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import QUICK
from records import RunLog, read_metrics

import plots
import train
from utils import UserError


def run(root: Path, save_dir: Path, *more: str) -> dict[str, Any]:
    flags = ["--train_mode", "dann", "--target_file", "usps", "--save_dir", str(save_dir)]
    return train.main(["--data_root", str(root), *flags, *QUICK, *more])


def test_tensorboard_shows_the_numbers_of_the_log_also_after_a_resume(small_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = Path(run(small_data, tmp_path, "--tensorboard")["folder"])
    lines = read_metrics(folder / "metrics.jsonl")
    with contextlib.closing(RunLog(folder / "metrics.jsonl", lines[0]["step"], tensorboard=True)) as log:
        log.write(lines[1])  # as a resumed run writes it again
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for name in ("L_y", "L_d", "lambda", "target_val_accuracy"):
        assert [(event.step, event.value) for event in events.Scalars(name)] == [
            (line["step"], pytest.approx(line[name])) for line in lines
        ]


def test_without_the_tensorboard_package_the_flag_is_refused_before_anything_is_written(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="--tensorboard needs the package tensorboard; run pip install tensorboard"):
        run(small_data, tmp_path, "--tensorboard")
    assert not list(tmp_path.iterdir())


def test_a_run_draws_its_curves_its_confusion_and_its_surest_mistakes(
    dann_run: Path, small_data: Path, tmp_path: Path
) -> None:
    for name in ("curves", "confusion", "mistakes"):
        assert (dann_run / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
    unlabelled = tmp_path / "data"
    shutil.copytree(small_data, unlabelled)
    (unlabelled / "usps" / "val.csv").unlink()
    folder = Path(run(unlabelled, tmp_path / "runs")["folder"])
    assert (folder / "confusion.png").exists()  # of the source: the target has no labels


def test_the_confusion_and_the_mistakes_are_those_of_the_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    labels, p = np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]])
    plots.draw_confusion(labels, p.argmax(1), ["ash", "$5"], "title", tmp_path / "x.png")
    plots.draw_mistakes(np.zeros((4, 8, 8, 3), np.uint8), labels, p, ["ash", "$5"], "title", tmp_path / "x.png")
    texts = {text.get_position(): text.get_text() for text in figures[0].axes[0].texts}
    assert texts == {(0, 0): "1", (1, 0): "1", (0, 1): "1", (1, 1): "1"}
    assert [text.get_text() for text in figures[1].axes[0].texts] == ["$5 as ash, 0.70", "ash as $5, 0.60"]
    assert len(figures[1].axes[0].images) == 2

"""Same seed, machine and thread count: the same weights and metrics to the bit, in each mode and recipe."""

from pathlib import Path
from typing import Any

import flags
import pytest
from conftest import QUICK, ctrl_c_in_step, ended, same_state, same_tensors
from records import read_metrics

import train
from checkpoint import load_checkpoint

CLOCK = {"seconds", "images_per_second"}  # of a line of metrics.jsonl: what may differ


def measured(folder: Path, steps: set[int]) -> list[dict[str, Any]]:
    """The lines of those steps, but for what a clock says."""
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["step"] in steps]
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


@pytest.mark.parametrize("recipe", train.RECIPES)
@pytest.mark.parametrize("mode", flags.MODES)
def test_loader_threads_and_a_resume_change_neither_weights_nor_metrics(
    mode: str, recipe: str, small_data: Path, tmp_path: Path
) -> None:
    """Twice the same run: once in one piece, once with other threads and cut by Ctrl-C at step 8 of 12."""
    arguments = ["--data_root", small_data, "--train_mode", mode, "--target_file", "usps", "--recipe", recipe, *QUICK]
    arguments += ["--precision", "auto", "--val_period", "4", "--run_name", "run", "--save_dir"]
    assert ended(train, *arguments, tmp_path / "whole", "--num_workers", 0)[0] == 0
    with ctrl_c_in_step(8):
        assert ended(train, *arguments, tmp_path / "cut", "--num_workers", 3)[0] == 130
    assert ended(train, *arguments, tmp_path / "cut", "--num_workers", 1, "--resume")[0] == 0
    whole, cut = (tmp_path / name / "run" for name in ("whole", "cut"))
    first, second = (load_checkpoint(folder / "last.pt") for folder in (whole, cut))
    assert same_tensors(first["model"], second["model"])
    assert same_state(first["resume"], second["resume"])
    assert measured(whole, {4, 8, 12}) == measured(cut, {4, 8, 12})
    assert len(measured(cut, {4, 8, 12})) == 3

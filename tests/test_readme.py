"""The commands that the README prints work as printed, on demo data."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

PROJECT = Path(__file__).resolve().parent.parent
README = (PROJECT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """Every line of the README's plain code blocks that runs a script, without its comment, in its order."""
    blocks = re.findall(r"^```\n(.*?)^```", README, flags=re.M | re.S)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(("python ", "bash "))]


@pytest.fixture(scope="module")
def workplace(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project beside demo data, with a stand-in for gdown that has no network."""
    home = tmp_path_factory.mktemp("readme") / "project"
    shutil.copytree(PROJECT, home, ignore=shutil.ignore_patterns(".*", "data", "demo", "runs", "tests", "results"))
    for name, old in (("scans", "mnistm"), ("photos", "usps")):
        shutil.copytree(demo_data / old, home / "my_data" / name)
    (home / "my_data" / "photos" / "val.csv").unlink()
    (home / "bin").mkdir()
    (home / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (home / "bin" / "python").chmod(0o755)
    (home / "bin" / "gdown").write_text("#!/bin/sh\nexit 1\n")
    (home / "bin" / "gdown").chmod(0o755)
    return home


def test_every_command_of_the_readme_works_in_its_order(workplace: Path, demo_data: Path) -> None:
    """Only the length of the trainings is cut. What downloads has tests of its own; reproduce.sh takes hours."""
    environment = {**os.environ, "data_dir": str(demo_data), "PATH": f"{workplace / 'bin'}:/usr/bin:/bin"}
    ran = 0
    for line in commands():
        if line.startswith(("bash download.sh", "bash reproduce.sh", "python prepare_data.py digits")):
            continue
        short = " --max_steps 2 --batch_size 8" if " train.py " in line else ""
        done = subprocess.run(["bash", "-c", line + short], cwd=workplace, env=environment, capture_output=True,
                              text=True, check=False)  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran >= 9
    assert (workplace / "predictions" / "pred.csv").is_file()
    assert (workplace / "figures" / "latent_by_class.png").is_file()
    assert (workplace / "runs" / "target_usps_paper_seed0" / "result.json").is_file()


def test_the_figures_and_files_that_the_readme_names_are_there() -> None:
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (PROJECT / target).is_file(), target
    for script in set(re.findall(r"(?:python|bash) (\w+\.(?:py|sh))", README)):
        assert (PROJECT / script).is_file(), script


def test_no_placeholder_is_left() -> None:
    assert not re.findall(r"@[A-Z_]+@", README)


@pytest.mark.parametrize("target", ["svhn", "usps"])
def test_a_fresh_clone_labels_a_folder_with_the_shipped_checkpoint(
    target: str, demo_data: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    command = ["bash", str(PROJECT / "inference.sh"), str(demo_data / target / "data"), str(tmp_path)]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"dann_{target}.pt" in done.stderr
    predicted = pd.read_csv(tmp_path / "pred.csv", dtype=str).set_index("image_name")["label"]
    tables = [pd.read_csv(demo_data / target / f"{split}.csv", dtype=str) for split in ("train", "val")]
    wanted = pd.concat(tables).set_index("image_name")["label"].reindex(predicted.index)
    assert (predicted == wanted).mean() > 0.6  # sensible answers on digits that it was never trained on

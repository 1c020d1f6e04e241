"""The commands that the README prints work as printed, on demo data."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import inference
import train

PROJECT = Path(__file__).resolve().parent.parent
README = (PROJECT / "README.md").read_text(encoding="utf-8")
ADAPTATION = (PROJECT / "ADAPTATION.md").read_text(encoding="utf-8")


def lines_of_code(page: str) -> list[str]:
    """Every line of a page's plain code blocks, without its comment."""
    blocks = re.findall(r"^```\n(.*?)^```", page, flags=re.M | re.S)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]


def commands() -> list[str]:
    """Every line of the README's plain code blocks that runs a script, in its order."""
    return [line for line in lines_of_code(README) if line.startswith(("python ", "bash "))]


def inline_commands() -> list[str]:
    """Complete commands amid the text of both pages: not those cut with an ellipsis."""
    found = re.findall(r"`(python [^`]+)`", README + ADAPTATION)
    return [line for line in found if "..." not in line]


def leaf(kind: int, place: Path, photo: bool, rng: np.random.Generator) -> None:
    """Draw an ash (a bar) or a birch (a disk): black on white as scanned, or pale on dark and noisy as a photo."""
    height, width = rng.integers(36, 60, 2)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    shape = (abs(x) < 0.25) & (abs(y) < 0.8) if kind == 0 else x**2 + y**2 < 0.5
    ground, ink = (70, 170) if photo else (245, 30)
    pixels = np.where(shape, ink, ground)[..., None] + rng.normal(0, 20 if photo else 5, (height, width, 3))
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place)


def make_leaves(root: Path) -> dict[str, str]:
    """The folders of the README's example; returns the class of each photo by its name."""
    rng, truth = np.random.default_rng(0), {}
    for i in range(40):
        name = ("ash", "birch")[i % 2]
        leaf(i % 2, root / "scans" / ("train" if i < 30 else "val") / name / f"{i:02d}.jpg", photo=False, rng=rng)
        photo = f"{'garden' if i < 20 else 'park/south'}/{i:02d}.jpg"
        leaf(i % 2, root / "photos" / photo, photo=True, rng=rng)
        truth[photo] = name
    return truth


@pytest.fixture(scope="module")
def workplace(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project beside demo data, with a stand-in for gdown that has no network."""
    home = tmp_path_factory.mktemp("readme") / "project"
    shutil.copytree(PROJECT, home, ignore=shutil.ignore_patterns(".*", "data", "demo", "runs", "tests", "results"))
    make_leaves(home / "my_data")
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
    assert ran >= 12
    assert (workplace / "predictions" / "pred.csv").is_file()
    assert (workplace / "figures" / "latent_by_class.png").is_file()
    assert (workplace / "runs" / "target_usps_paper_seed0" / "result.json").is_file()


def test_the_example_of_the_readme_turns_two_folders_into_a_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two printed commands, in a folder that holds nothing but my_data; only the length is cut."""
    truth = make_leaves(tmp_path / "my_data")
    monkeypatch.chdir(tmp_path)
    training, prediction = (shlex.split(line)[2:] for line in commands() if " my_data" in line)
    outcome = train.main([*training, "--max_steps", "40", "--batch_size", "16", "--precision", "fp32"])
    assert outcome["source_val_accuracy"] > 0.9
    assert outcome["target_val_accuracy"] is None
    inference.main(prediction)
    table = pd.read_csv("leaves.csv").set_index("image_name")
    assert table.columns.tolist() == ["label", "p_ash", "p_birch", "confidence"]
    assert (table["label"] == pd.Series(truth).reindex(table.index)).mean() > 0.8
    assert len(table) == len(truth)


@pytest.mark.parametrize("line", sorted({*commands(), *inline_commands()}))
def test_every_command_of_the_pages_is_one_that_its_script_takes(line: str) -> None:
    words = shlex.split(line.replace("$data_dir", "data"))
    if words[0] == "bash":
        assert (PROJECT / words[1]).is_file()
        return
    parser = importlib.import_module(words[1].removesuffix(".py")).build_parser()
    parser.parse_args(words[2:])  # raises UserError for a flag or a value that does not exist


def test_the_second_kaggle_line_finds_the_data_wherever_the_archive_puts_it(tmp_path: Path) -> None:
    first, second = (line for line in lines_of_code(README) if "kaggle" in line)
    assert first.startswith("kaggle datasets download yuna1117/digits-dataset --unzip -p data/kaggle")
    for layout in ("", "digits", "some/where else"):
        home = tmp_path / str(len(layout))
        (home / "data" / "kaggle" / layout / "mnistm" / "data").mkdir(parents=True)
        done = subprocess.run(["bash", "-c", f'{second}; test -d "$data_dir/mnistm/data"'], cwd=home, check=False)
        assert done.returncode == 0


def test_the_figures_and_files_that_the_readme_names_are_there() -> None:
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", README + ADAPTATION):
        assert (PROJECT / target).is_file(), target
    for script in set(re.findall(r"(?:python|bash) (\w+\.(?:py|sh))", README + ADAPTATION)):
        assert (PROJECT / script).is_file(), script


def test_the_citation_names_the_version_and_the_licence_of_the_project() -> None:
    citation, project = ((PROJECT / name).read_text(encoding="utf-8") for name in ("CITATION.cff", "pyproject.toml"))
    version = re.search(r'^version = "(.+)"', project, flags=re.M)
    assert version is not None
    assert f"version: {version[1]}\n" in citation
    assert "license: MIT\n" in citation
    assert (PROJECT / "LICENSE").read_text().startswith("MIT License")


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

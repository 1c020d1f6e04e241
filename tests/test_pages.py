"""The pages say what is so: their commands run, their flags, files and targets exist, and --help reads well."""

import argparse
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

import config
import inference
import prepare_data
import train

PROJECT = Path(__file__).resolve().parent.parent
PAGES = {
    name: (PROJECT / name).read_text(encoding="utf-8")
    for name in ("README.md", "ADAPTATION.md", "checkpoint/README.md", "lab/README.md", "tests/README.md")
    if (PROJECT / name).is_file()
}
SCRIPTS = [
    path.relative_to(PROJECT).as_posix()
    for path in sorted([*PROJECT.glob("*.py"), *PROJECT.glob("lab/*.py")])
    if "\ndef build_parser" in path.read_text(encoding="utf-8") and "__main__" in path.read_text(encoding="utf-8")
]
OURS = ("python ", ".venv/bin/python ", "bash ", "torchrun ", "make ")
SHORT = ["--max_steps", "2", "--batch_size", "8", "--precision", "fp32"]
NO_DOWNLOAD = ["--weights", "none"]  # for a backbone
LONG = ("make ", "reproduce.sh", "benchmark.py", "prepare_data.py digits", "pytest")  # hours, a network, or this test


def code_lines(page: str) -> list[str]:
    """The lines of a page's blocks of shell, each whole and without its comment."""
    blocks = re.findall(r"^```(?:bash|sh)?\n(.*?)^```", PAGES.get(page, ""), flags=re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+# .*", "", line).strip() for line in lines]


def commands(page: str) -> list[str]:
    """The commands in a page's blocks, in their order."""
    return [line for line in code_lines(page) if line.startswith(OURS)]


def all_commands() -> list[str]:
    """Those of every page, and the complete ones amid the text: not those cut with an ellipsis."""
    inline = [line for text in PAGES.values() for line in re.findall(r"`([^`\n]+)`", text) if line.startswith(OURS)]
    return sorted(
        {*(line for page in PAGES for line in commands(page)), *(line for line in inline if "..." not in line)}
    )


def build_parser(script: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = importlib.import_module(script[:-3].replace("/", ".")).build_parser()
    return parser


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Every script's parser and those of its commands, by what one types."""
    found = {script: build_parser(script) for script in SCRIPTS}
    for name, parser in list(found.items()):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                found.update({f"{name} {command}": sub for command, sub in action.choices.items()})
    return found


@pytest.mark.parametrize("line", all_commands())
def test_every_command_of_the_pages_is_one_that_its_script_takes(line: str) -> None:
    words = shlex.split(re.split(r" [|;>&]", line)[0])
    if words[0] == "torchrun":
        words = words[next(i for i, word in enumerate(words) if word.endswith(".py")) - 1 :]
    if words[0] == "make":
        targets = set(re.findall(r"^(\w+):", (PROJECT / "Makefile").read_text(), flags=re.M))
        assert targets >= {word for word in words[1:] if "=" not in word}
    elif words[0] == "bash" or words[1] == "-m":
        files = [word.split("::")[0] for word in words if re.search(r"\.(py|sh)\b", word)]
        assert all((PROJECT / file).is_file() for file in files)
    elif "--help" not in words:
        args = build_parser(words[1]).parse_args(words[2:])  # raises UserError for a flag or value that does not exist
        if words[1] == "train.py":
            config.read_settings(args)


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_of_a_page_exists(page: str) -> None:
    known = {flag for parser in parsers().values() for action in parser._actions for flag in action.option_strings}
    text = re.sub(r"\b(torchrun|kaggle|pip|git|pytest)\b.*?(?=\w+\.py|`|$)", "", PAGES[page], flags=re.M)  # not ours
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - known == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_file_of_ours_that_a_page_names_is_there(page: str) -> None:
    links = [target.split("#")[0] for target in re.findall(r"\]\(((?!https?:)[^)]+)\)", PAGES[page])]
    names = re.findall(r"`([\w/]+\.(?:py|sh|md))\b[^`\n]*`", PAGES[page])
    homes = (PROJECT, (PROJECT / page).parent)
    assert [name for name in links + names if name and not any((home / name).exists() for home in homes)] == []


@pytest.mark.parametrize("page", ["README.md"])
def test_the_readme_has_150_lines_at_most_and_no_line_of_prose_is_wider_than_120_columns(page: str) -> None:
    assert len(PAGES[page].splitlines()) <= 150
    prose = re.sub(r"<!-- (\w+): begin.*?<!-- \1: end -->", "", PAGES[page], flags=re.S)  # what tables.py writes
    assert [line for line in prose.splitlines() if len(line) > 120 and not line.startswith("|")] == []


def test_the_citation_states_the_version_of_the_project() -> None:
    version = re.findall(r'^version = "(.+)"', (PROJECT / "pyproject.toml").read_text(), flags=re.M)
    assert re.findall(r"^version: (.+)", (PROJECT / "CITATION.cff").read_text(), flags=re.M) == version


@pytest.mark.parametrize("name", parsers())
def test_help_opens_with_the_docstring_and_explains_every_flag_in_80_columns(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parser, script = parsers()[name], name.split()[0]
    shown = parser.format_help()
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    assert f"    python {script} " in (parser.description or "")
    if name == script:
        doc = importlib.import_module(script[:-3].replace("/", ".")).__doc__ or ""
        assert f"\n\n{doc.strip()}\n" in shown
    assert [
        action.dest
        for action in parser._actions
        if not action.help and not isinstance(action, argparse._SubParsersAction)
    ] == []


@pytest.mark.parametrize("script", ["train.py", "inference.py", "tsne.py"])
def test_help_begins_with_the_three_flags_that_one_needs_first(script: str) -> None:
    parser = build_parser(script)
    usage, *_ = parser.format_help().split("\n\n")
    flags = re.findall(r"--\w+", usage)
    first = next(group for group in parser._action_groups if group.title == "needed first")
    assert flags == [action.option_strings[-1] for action in first._group_actions]
    assert len(flags) == 3
    assert {action.option_strings[-1] for action in parser._actions if action.required} <= set(flags)


# Slow: the commands run


def draw_leaf(kind: int, place: Path, photo: bool, rng: np.random.Generator) -> None:
    """An ash (a bar) or a birch (a disk): black on white as scanned, or pale on dark and noisy as a photo."""
    height, width = rng.integers(36, 60, 2)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    shape = (abs(x) < 0.25) & (abs(y) < 0.8) if kind == 0 else x**2 + y**2 < 0.5
    ground, ink = (70, 170) if photo else (245, 30)
    pixels = np.where(shape, ink, ground)[..., None] + rng.normal(0, 20 if photo else 5, (height, width, 3))
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place)


def provide(home: Path, line: str) -> pd.Series:
    """Leaves in the folders of a training command that are not there yet; the class of each image of the target."""
    args = build_parser("train.py").parse_args(shlex.split(line)[2:])
    rng, truth = np.random.default_rng(0), {}
    source, target = (home / args.data_root / str(name) for name in (args.source_file, args.target_file))
    if source.exists() or target.exists():
        return pd.Series(dtype=str)
    for i in range(40):
        name = ("ash", "birch")[i % 2]
        draw_leaf(i % 2, source / ("train" if i < 30 else "val") / name / f"{i:02d}.jpg", False, rng)
        photo = f"{'garden' if i < 20 else 'park/south'}/{i:02d}.jpg"
        draw_leaf(i % 2, target / photo, True, rng)
        truth[photo] = name
    return pd.Series(truth)


def of_own_data() -> list[str]:
    """The README's training command whose source is a folder of the reader's own, and the prediction below it."""
    lines = commands("README.md")
    first = next(i for i, line in enumerate(lines) if " train.py " in line and "--source_file" in line)
    return [lines[first], next(line for line in lines[first:] if " inference.py " in line)]


@pytest.mark.slow
def test_every_command_of_the_readme_runs_in_its_order(tmp_path: Path) -> None:
    """Only the length of the trainings is cut, and what takes hours or a network is left out."""
    home, tools = tmp_path / "project", tmp_path / "bin"
    shutil.copytree(PROJECT, home, ignore=shutil.ignore_patterns(".*", "data", "demo", "runs", "tests"))
    prepare_data.main(["demo", "--out", str(home / "demo" / "data"), "--scale", "0.05"])
    (home / "data").mkdir()
    (home / "data" / "digits").symlink_to(home / "demo" / "data")
    tools.mkdir()
    whole = home / "checkpoint" / "dann_usps.pt"
    for name, text in (("python", f'exec "{sys.executable}" "$@"'), ("gdown", f'cp "{whole}" "$3"')):
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    lines = [line for line in commands("README.md") if not any(long in line for long in LONG)]
    for line in lines:
        training = " train.py " in line
        more = (SHORT + NO_DOWNLOAD * ("--arch" in line)) * training
        if training and line.startswith("python "):
            provide(home, line.replace("$data_dir", "demo/data"))
        done = subprocess.run(
            ["bash", "-c", f"{line} {shlex.join(more)}"],
            cwd=home,
            env=os.environ | {"data_dir": "demo/data", "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    scripts = {word for line in lines for word in line.split() if word.endswith(".py")}
    assert scripts >= {"train.py", "inference.py"}


@pytest.mark.slow
def test_two_folders_of_ones_own_become_a_classifier_by_the_commands_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that holds nothing but the images; the length is cut, and no pretrained network is at hand."""
    training, prediction = of_own_data()
    backbone, instead = "--arch resnet18 --freeze", "--size 32"
    assert re.search(f"`{instead}` in place of\\s+`{backbone}`", PAGES["README.md"])
    training = training.replace(backbone, instead)
    truth = provide(tmp_path, training)
    monkeypatch.chdir(tmp_path)
    short = ["--max_steps", "40", "--batch_size", "16", "--precision", "fp32"]
    outcome = train.main([*shlex.split(training)[2:], *short])
    assert outcome["source_val_accuracy"] > 0.9
    assert outcome["target_val_accuracy"] is None
    args = shlex.split(prediction)[2:]
    inference.main(args)
    out = Path(args[args.index("--out_path") + 1])
    table = pd.read_csv(out if out.suffix == ".csv" else out / "pred.csv").set_index("image_name")
    assert set(table.index) == set(truth.index)
    assert (table["label"] == truth.reindex(table.index)).mean() > 0.8

"""Nothing lost, nothing let in: kills at random moments, and files and arguments that nobody would write.

`make test` runs a short version, `make soak` (SOAK=1) the long one; the counts stand in the README's table.
"""

import io
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import same_tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import inference
import prepare_data
import train
import tsne
from checkpoint import build_network, load_checkpoint
from dataset import class_names, encode_labels, list_csv, read_image, read_plain_png
from model import DANN
from utils import UserError

SOAK = bool(os.environ.get("SOAK"))
KILLS = 24 if SOAK else 3
CASES = 4000 if SOAK else 120  # of each kind of hostile input
PROJECT = Path(train.__file__).parent
fuzzing = settings(
    max_examples=CASES, deadline=None, derandomize=not SOAK, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


# Kills


def command(data: Path, save_dir: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, str(PROJECT / "train.py"), "--data_root", str(data), "--train_mode", "dann"),
        *("--target_file", "usps", "--save_dir", str(save_dir), "--run_name", "run", "--max_steps", "60"),
        *("--val_period", "2", "--batch_size", "16", "--device", "cpu", *more),
    ]


@pytest.mark.parametrize("recipe", ["paper", "strong"])
def test_a_run_killed_at_random_moments_ends_with_the_weights_of_one_never_killed(
    recipe: str, small_data: Path, tmp_path: Path
) -> None:
    """Saving takes most of such short steps' time, so that many kills fall into it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(small_data, tmp_path / "whole", "--recipe", recipe), check=True, env=environment)
    rng, kills = random.Random(recipe), 0
    while kills < KILLS:
        more = ["--recipe", recipe] + ["--resume"] * (kills > 0)
        process = subprocess.Popen(command(small_data, tmp_path / "cut", *more), env=environment)
        last = tmp_path / "cut" / "run" / "last.pt"
        before = last.stat().st_mtime_ns if last.exists() else 0
        while process.poll() is None and (last.stat().st_mtime_ns if last.exists() else 0) == before:
            time.sleep(0.01)  # until a first checkpoint of this process: kills of mere imports test nothing
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        kills += 1
        assert process.wait() in (0, -9)  # done, or killed: nothing else may end it
        if process.returncode == 0:  # it was faster: start over, so that the kills go on
            assert load_checkpoint(last)["step"] == 60
            for file in (tmp_path / "cut" / "run").iterdir():
                file.unlink()
            (tmp_path / "cut" / "run").rmdir()
            continue
        if last.exists():
            load_checkpoint(last)  # whole, whenever the kill came
    subprocess.run(command(small_data, tmp_path / "cut", "--recipe", recipe, "--resume"), check=True, env=environment)
    whole, cut = (load_checkpoint(tmp_path / name / "run" / "last.pt") for name in ("whole", "cut"))
    assert same_tensors(whole["model"], cut["model"])
    assert whole["step"] == cut["step"] == 60
    assert {path.name for path in (tmp_path / "cut" / "run").iterdir() if not path.name.startswith(".")} == {
        path.name for path in (tmp_path / "whole" / "run").iterdir()
    }


# Hostile files

PARSERS = {
    "train": train.build_parser(),
    "inference": inference.build_parser(),
    "tsne": tsne.build_parser(),
    "prepare_data": prepare_data.build_parser(),
}
FLAGS = sorted({flag for p in PARSERS.values() for action in p._actions for flag in action.option_strings})
VALUES = [
    "0",
    "-1",
    "nan",
    "inf",
    "1e400",
    "999999999999999999999999",
    "x",
    "dann",
    "sorce",
    "usps",
    "..",
    "/",
    "strong",
    "teacher",
    "0x10",
    "1.5",
] + [""]
CELLS = ["image_name", "label", "a.png", "../x", "/etc/passwd", "3", "3.0", "", " ", '"', "nan"]
FORMATS = [("RGB", "PNG"), ("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("RGB", "JPEG"), ("L", "GIF"), ("RGB", "BMP")]


def as_csv(rows: list[list[str]]) -> bytes:
    return "\n".join(",".join(row) for row in [["image_name", "label"], *rows]).encode("utf-8", "replace")


def refusal_of(call: Callable[[], object]) -> str:
    """What a UserError says, or nothing where the call went well; any other exception is a failure of the test."""
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


row = st.lists(st.one_of(st.sampled_from(CELLS), st.text(max_size=12)), max_size=4)


@fuzzing
@given(
    content=st.one_of(
        st.binary(max_size=300),
        st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.lists(row, max_size=6).map(as_csv),
    )
)
def test_any_csv_is_read_or_refused_in_one_sentence(content: bytes, tmp_path: Path) -> None:
    csv = tmp_path / "train.csv"
    csv.write_bytes(content)

    def read() -> None:
        listing = list_csv(csv, with_labels=True)
        assert all(path.resolve().is_relative_to(tmp_path.resolve()) for path in listing.paths)
        if listing.labels is not None:
            encode_labels(listing, class_names(listing.labels))

    refusal = refusal_of(read)
    assert str(csv) in refusal or not refusal


@fuzzing
@given(
    words=st.lists(st.one_of(st.sampled_from(FLAGS), st.sampled_from(VALUES), st.text(max_size=8)), max_size=12),
    script=st.sampled_from(sorted(PARSERS)),
)
def test_any_arguments_are_taken_or_refused_in_one_sentence(words: list[str], script: str) -> None:
    """Parsing only: no script may do anything before its arguments are known to be sound."""

    def parse() -> None:
        try:
            if script == "train":
                train.parse_args(["--data_root", "d", "--train_mode", "dann", "--target_file", "t", *words])
            else:
                PARSERS[script].parse_args(words)
        except SystemExit as end:  # --help
            if end.code:
                raise

    refusal = refusal_of(parse)
    assert len(refusal.splitlines()) <= 1 or len(" ".join(words).splitlines()) > 1


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut, doubled or overwritten with what tends to hurt."""
    out = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out))
        kind = rng.randrange(5)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff"])
        elif kind == 2:
            del out[at : at + rng.randint(1, 40)]
        elif kind == 3:
            out[at:at] = out[at : at + rng.randint(1, 40)]
        else:
            out = out[: max(1, at)]
        out = out or bytearray(b"x")
    return bytes(out)


def test_any_image_is_read_or_named_and_the_plain_reader_agrees_with_pillow(tmp_path: Path) -> None:
    rng, pixels = random.Random(0), np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    seeds = []
    for mode, form in FORMATS:
        box = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(box, form)
        seeds.append(box.getvalue())
    file, read = tmp_path / "x.png", 0
    for _ in range(CASES):
        file.write_bytes(mutated(rng.choice(seeds), rng))
        found = read_image(file, 28)
        assert isinstance(found, str) or (found.shape == (28, 28, 3) and found.dtype == np.uint8)
        plain = read_plain_png(file, 28)
        if plain is not None:
            assert not isinstance(found, str)
            assert np.array_equal(np.broadcast_to(plain, (28, 28, 3)), found)
        read += not isinstance(found, str)
    assert 0 < read < CASES


def test_any_checkpoint_is_loaded_or_refused_in_one_sentence(dann_run: Path, tmp_path: Path) -> None:
    rng, content = random.Random(1), (dann_run / "last.pt").read_bytes()
    other = io.BytesIO()
    torch.save({"model": DANN(3).state_dict(), "model_args": {"num_classes": 4}, "args": {}}, other)
    file, refused = tmp_path / "x.pt", 0
    for _ in range(max(20, CASES // 4)):  # each takes some milliseconds
        file.write_bytes(mutated(rng.choice([content, content, other.getvalue()]), rng))
        refusal = refusal_of(lambda: build_network(file, load_checkpoint(file), torch.device("cpu")))
        refused += bool(refusal)
        assert str(file) in refusal or not refusal
        assert "\n" not in refusal
    assert refused > 10

"""Demo data once a session, short runs on it, and helpers that several test files use."""

import codecs
import contextlib
import io
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import plots
import prepare_data
import train
from runs import Run
from utils import run_script

QUICK = ["--max_steps", "12", "--batch_size", "16", "--val_period", "6", "--precision", "fp32", "--device", "cpu"]


@pytest.fixture(scope="session", autouse=True)
def short_comparison() -> Iterator[None]:
    """What an adapted run is held against trains for two steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "SOURCE_STEPS", 2)
        yield


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded images go to a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of the demo data, seed 0. Read only."""
    root = tmp_path_factory.mktemp("demo") / "data"
    prepare_data.main(["demo", "--out", str(root)])
    return root


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three domains of 40 + 20 distinguishable images each, ten classes, svhn without labels in train. Read only."""
    root = tmp_path_factory.mktemp("small")
    for i, domain in enumerate(("mnistm", "usps", "svhn")):
        write_domain(root / domain, counts={"train": 40, "val": 20}, seed=i, labelled=domain != "svhn")
    return root


@pytest.fixture(scope="session")
def dann_run(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a short dann run on `small_data`, figures and all. Read only."""
    return Path(quick_run(small_data, tmp_path_factory.mktemp("runs"))["folder"])


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw nothing: the figures take most of the time of a short run."""
    for name in ("draw_curves", "draw_confusion", "draw_mistakes"):
        monkeypatch.setattr(plots, name, lambda *_: None)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Those that are drawn."""
    drawn: list[Figure] = []
    savefig = Figure.savefig

    def kept(figure: Figure, *given: Any, **more: Any) -> None:
        drawn.append(figure)
        savefig(figure, *given, **more)

    monkeypatch.setattr(Figure, "savefig", kept)
    return drawn


def quick_run(root: Path, save_dir: Path, mode: str = "dann", target: str = "usps", *more: str) -> dict[str, Any]:
    """Result of a short training in this process."""
    arguments = ["--data_root", str(root), "--save_dir", str(save_dir), "--train_mode", mode, "--target_file", target]
    return train.main([*arguments, *QUICK, *more])


def stripes(label: int, rng: np.random.Generator, size: int = 28) -> np.ndarray:
    """An image whose stripe at row 2 * label + 4 shows its class: uint8 [size, size, 3]."""
    pixels = rng.integers(0, 80, (size, size, 3), dtype=np.uint8)
    pixels[2 * label + 3 : 2 * label + 6] += 150
    return pixels


def write_domain(folder: Path, counts: dict[str, int], seed: int = 0, labelled: bool = True, classes: int = 10) -> None:
    """Write a domain of the given layout; only val has labels where `labelled` is False."""
    rng = np.random.default_rng(seed)
    (folder / "data").mkdir(parents=True)
    number = 0
    for split, count in counts.items():
        with_label = labelled or split == "val"
        lines = ["image_name,label" if with_label else "image_name"]
        for i in range(count):
            name = f"{number:04d}.png"
            Image.fromarray(stripes(i % classes, rng)).save(folder / "data" / name)
            lines.append(f"{name},{i % classes}" if with_label else name)
            number += 1
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of this process, which is not root until the test ends: root may read and write whatever its mode."""
    if not hasattr(os, "geteuid"):
        pytest.skip("a system without users by number")
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        if os.geteuid():
            yield Path(folder)
            return
        codecs.lookup("utf-8-sig")  # Python's own files may be root's alone, and some are read where they are needed
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(0)


def ended(script: ModuleType | SimpleNamespace, *argv: object) -> tuple[int, str, str]:
    """Exit code, output and errors of a script, run in this process as its last line runs it."""
    out, error = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, [f"{script.__name__}.py"]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), pytest.raises(SystemExit) as end:
            run_script(partial(script.main, [str(word) for word in argv]))
    finally:
        sys.argv = before
    return int(end.value.code or 0), out.getvalue(), error.getvalue()


@contextlib.contextmanager
def in_step(number: int, act: Callable[[], object]) -> Iterator[None]:
    """Let `act` happen in the training step of that number, from 1, before its update."""
    seed_step = train.seed_step

    def acting(seed: int, step: int) -> None:
        seed_step(seed, step)
        if step == number - 1:
            act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "seed_step", acting)
        yield


def ctrl_c_in_step(number: int) -> contextlib.AbstractContextManager[None]:
    """Press Ctrl-C in the training step of that number, from 1."""
    return in_step(number, partial(signal.raise_signal, signal.SIGINT))


@contextlib.contextmanager
def after_each_step(act: Callable[[Run], object]) -> Iterator[None]:
    """Let `act` see and change a run after each update."""
    add = train.Meter.add

    def acting(meter: train.Meter, *args: Any) -> None:
        act(meter.run)
        add(meter, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Meter, "add", acting)
        yield


def same_state(a: Any, b: Any) -> bool:
    """Whether all that two checkpoints go on from is identical to the bit, but for what a clock says."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        timed = {"seconds", "training_seconds"}
        return a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a.keys() - timed)
    if isinstance(a, list):
        return len(a) == len(b) and all(same_state(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state_dicts are identical to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)

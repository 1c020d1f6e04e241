"""Run folders: what a run is between two validations, how it is kept on disk, and how it is gone on from."""

import argparse
import contextlib
import errno
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from checkpoint import check_weights
from dataset import Domain
from metrics import Answers
from model import DANN
from parallel import Ranks
from records import read_json
from strong import Teacher
from utils import UserError, remove_parts, save_checkpoint, versions


@dataclass
class Data:
    """What a mode reads: `labelled` trains G_y, `unlabelled` (dann only) has no label, the rest is for measuring.

    target_sample: of a target without a labelled val set, images on which what needs no label is measured.
    """

    classes: list[str]
    labelled: Domain
    unlabelled: Domain | None
    source_val: Domain | None
    target_val: Domain | None
    target_sample: Domain | None = None


@dataclass
class Run:
    """State of a run between two validations; what `last.pt` holds and `--resume` restores."""

    args: argparse.Namespace
    folder: Path
    data: Data
    net: DANN
    optimizer: torch.optim.Optimizer
    precision: torch.dtype
    total_steps: int
    teacher: Teacher | None = None
    ranks: Ranks = field(default_factory=Ranks)
    step: int = 0
    seconds_before: float = 0.0  # of the runs that this one resumes
    training_seconds: float = 0.0
    images_seen: int = 0
    distance_before: float | None = None
    kept: list[dict[str, Any]] = field(default_factory=list)  # beside last.pt: {score, step, name}
    measured: dict[str, Answers | None] = field(default_factory=dict)  # of both val sets, at the last validation
    measured_step: int = -1
    fingerprint: int = 0  # of the data, see there

    @property
    def predictor(self) -> DANN:
        """The network that predicts: the teacher's average where there is a teacher."""
        return self.teacher.net if self.teacher else self.net


def open_folder(args: argparse.Namespace) -> Path:
    """Folder of this run, not yet made: a default name that exists gets -2, -3; a given one is refused."""
    folder = args.save_dir / args.run_name
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"run folder {folder}: {place} is a file; choose another --save_dir or --run_name.")
    if args.resume or not folder.exists():
        return folder
    if not args.default_name:
        raise UserError(
            f"run folder {folder} exists and is not overwritten; choose another --run_name, or go on in it "
            "with --resume."
        )
    number = 2
    while (args.save_dir / f"{args.run_name}-{number}").exists():
        number += 1
    return args.save_dir / f"{args.run_name}-{number}"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process; UserError when another process holds it.

    The lock is the operating system's and ends with its process, so a killed run never blocks the next one. Where the
    system has no such lock (Windows) nothing is checked.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise UserError(f"run folder {folder} is in use by another run; wait for it or stop it.") from error
            # else a disk without locks, as some of a network are: nothing is checked
        remove_parts(folder)
        yield
    finally:
        os.close(descriptor)


def make_folder(folder: Path, resume: bool) -> None:
    """Make a run's folder; UserError when another run has taken the name since `open_folder` looked."""
    try:
        folder.mkdir(parents=True, exist_ok=resume)
    except FileExistsError as error:
        raise UserError(f"run folder {folder} was made by another run just now; start this one again.") from error


def plain_args(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments as plain values, for args.json, checkpoints and results."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(args).items()
        if name not in ("resume", "default_name")
    }


STEP_FILE = re.compile(r"step\d{7,}\.pt")
# May differ when a run is gone on with. When it validates does not touch the weights, only what --select chooses from.
IRRELEVANT = {"num_workers", "save_dir", "data_root", "run_name", "device", "tensorboard"}


def check_same_run(folder: Path, args: argparse.Namespace) -> None:
    """UserError when --resume asks for another run than the folder holds."""
    before, now = read_json(folder / "args.json"), plain_args(args)
    free = IRRELEVANT | ({"val_period"} if args.select == "last" else set())
    other = [name for name, value in now.items() if name not in free and (before.get(name) or None) != (value or None)]
    if other:
        names = ", ".join(f"{name} (was {before.get(name)}, is {now[name]})" for name in other)
        raise UserError(
            f"--resume: the run in {folder} was started with other arguments: {names}; give the same ones "
            "or another --run_name."
        )


def restore(run: Run, checkpoint: dict[str, Any]) -> None:
    """Take up weights, optimizer and counters of a checkpoint; UserError when it cannot be gone on from."""
    path, state = run.folder / "last.pt", checkpoint["resume"]
    if state is None or not isinstance(checkpoint["args"], dict) or checkpoint["args"]["classes"] != run.data.classes:
        raise UserError(
            f"{path} cannot be gone on from: it is of other classes or holds no optimizer; use another --run_name."
        )
    try:
        check_weights(checkpoint["model"], run.net.arguments)
        run.net.load_state_dict(state["student"] if run.teacher else checkpoint["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        if run.teacher:
            run.teacher.net.load_state_dict(checkpoint["model"])
        run.step = int(checkpoint["step"])
        run.kept = [{"score": entry["score"] + 0, **at_step(int(entry["step"]))} for entry in state["kept"]]
        run.seconds_before, run.training_seconds = float(state["seconds"]), float(state["training_seconds"])
        run.images_seen, run.distance_before = int(state["images_seen"]), state["distance_before"]
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is of another network than this run's; use another --run_name.") from error
    if state.get("data", run.fingerprint) != run.fingerprint:
        raise UserError(
            f"{path} cannot be gone on from: the images or labels that it was trained on have changed; restore them or "
            "use another --run_name."
        )
    for file in run.folder.glob("step*.pt"):  # of a run killed between last.pt and the removal of what fell out
        if STEP_FILE.fullmatch(file.name) and file.name not in [entry["name"] for entry in run.kept]:
            file.unlink()


def at_step(step: int) -> dict[str, Any]:
    """Step and file name of a kept checkpoint: a name that is made here, as it will be deleted one day."""
    return {"step": step, "name": f"step{step:07d}.pt"}


def fingerprint(data: Data) -> int:
    """CRC-32 of the pixels and labels that a run trains on."""
    images = [domain.images for domain in (data.labelled, data.unlabelled) if domain is not None]
    crc = 0
    for tensor in (data.labelled.labels, *images):
        if tensor is not None:
            content: Any = tensor.contiguous().numpy()
            crc = zlib.crc32(content, crc)
    return crc


def make_checkpoint(run: Run, metrics: dict[str, Any], with_resume: bool) -> dict[str, Any]:
    resume = (
        {
            "optimizer": run.optimizer.state_dict(),
            "kept": run.kept,
            "seconds": metrics["seconds"],
            "training_seconds": run.training_seconds,
            "images_seen": run.images_seen,
            "distance_before": run.distance_before,
            "data": run.fingerprint,
            "student": run.net.state_dict() if run.teacher else None,
        }
        if with_resume
        else None
    )
    return {
        "model": run.predictor.state_dict(),
        "model_args": run.net.arguments,
        "args": {**plain_args(run.args), "classes": run.data.classes},
        "step": run.step,
        "metrics": metrics,
        "versions": versions(),
        "resume": resume,
    }


def save_run(run: Run, metrics: dict[str, Any], candidate: bool) -> None:
    """Write the kept checkpoints, then last.pt, and only then delete those that fell out of the top K.

    candidate: whether --select may choose this step; one that Ctrl-C added is none, or it would change the result.
    """
    dropped: list[dict[str, Any]] = []
    if candidate and run.args.topk and metrics["step"] not in [entry["step"] for entry in run.kept]:
        score = metrics["step"] if run.args.select == "last" else metrics[f"{run.args.select}_accuracy"]
        run.kept.append({"score": score, **at_step(run.step)})
        run.kept.sort(key=lambda entry: (-entry["score"], entry["step"]))
        run.kept, dropped = run.kept[: run.args.topk], run.kept[run.args.topk :]
        if any(entry["step"] == run.step for entry in run.kept):
            save_checkpoint(run.folder / f"step{run.step:07d}.pt", make_checkpoint(run, metrics, False))
    save_checkpoint(run.folder / "last.pt", make_checkpoint(run, metrics, True))
    for entry in dropped:
        (run.folder / entry["name"]).unlink(missing_ok=True)

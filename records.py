"""The records of a run and of results/: JSON files, what each must hold, and the log of a run."""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from model import ARCHITECTURES
from utils import UserError, atomic_path, naming


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as readable JSON, whole or not at all."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object from `path`; UserError when it is absent, no JSON, or lacks one of `keys`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no object")
        missing = [key for key in keys if key not in found]
        if missing:
            raise ValueError(f"it has no {missing[0]!r}")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); restore it or choose another run folder.") from error
    return found


# Checking what was read

MISSING = object()
NUMBER, SHARE = (-1e15, 1e15), (0, 1)  # no measure of ours is larger, and sums of larger ones overflow


def check_values(place: Path | str, value: Any, wanted: Any, key: str = "") -> None:
    """UserError that names file and key where `value`, read from JSON, is not `wanted` and cannot be reckoned with.

    wanted: (low, high) for a number in that range, `str` for a text, [wanted] for a list of such ([wanted, None]: with
    gaps), or a dict: key -> wanted. A key that ends in ? may be absent or null, * stands for every key that is there,
    # for the same where keys are numbers themselves.
    """
    if isinstance(wanted, dict) and isinstance(value, dict):
        for name, inner in wanted.items():
            bare = name.rstrip("?")
            for each in value if bare in ("*", "#") else [bare]:
                found, inside = value.get(each, MISSING), f"{key}.{each}".lstrip(".")
                if bare == "#" and not re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,15})?", each):
                    raise UserError(f"{place}: {key} has the key {json.dumps(each)}, not a number; restore the file.")
                if not (name.endswith("?") and (found is None or found is MISSING)):
                    check_values(place, found, inner, inside)
    elif isinstance(wanted, list) and isinstance(value, list):
        for i, found in enumerate(value):
            if found is not None or None not in wanted:
                check_values(place, found, wanted[0], f"{key}[{i}]")
    elif value is MISSING:
        raise UserError(f"{place}: {key} is missing; restore the file.")
    elif isinstance(wanted, tuple):
        if type(value) not in (int, float) or not wanted[0] <= value <= wanted[1]:
            words = f"a number from {wanted[0]:g} to {wanted[1]:g}"
            raise UserError(f"{place}: {key} is {in_short(value)}, not {words}; restore the file.")
    elif wanted is not str or not isinstance(value, str) or not value.isprintable():
        words = "a text" if wanted is str else in_short(wanted)
        raise UserError(f"{place}: {key} is {in_short(value)}, not {words}; restore the file.")


def in_short(value: Any) -> str:
    """A value as JSON writes it, cut where it is long; of what holds others only what it is."""
    if value is not None and not isinstance(value, (str, int, float)):
        return "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else "no plain value"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


# What a result.json and a benchmark's json must hold, see check_values; null is what a run did not measure.
COUNT, DISTANCE = (0, 1e15), (-2, 2)
RESULT = {
    "target_val_accuracy?": SHARE,
    "source_val_accuracy?": SHARE,
    "proxy_a_distance": {"untrained?": DISTANCE, "trained?": DISTANCE},
    "signs?": {"*?": NUMBER},
    "losses?": {"*?": NUMBER},
}
COMPARED = {
    **RESULT,
    "seconds": COUNT,
    "images_per_second": COUNT,
    "checkpoint": str,
    "args": {"train_mode": str, "target_file?": str},
}
CITED = {
    **RESULT,
    "target_val_accuracy": SHARE,
    "seconds": COUNT,
    "seed": COUNT,
    "select": str,
    "device": str,
    "versions": {"torch": str},
    "images": {"target_val": (1, 1e15)},
    "args": {"recipe": str, "arch": str, "train_mode": str, "target_file": str, "without?": [str]},
}
BENCHMARK = {
    "*": {"device": str, "repeats": COUNT},
    "training?": {
        f"{arch}?": dict.fromkeys(
            (
                *("images_per_second", "times_plain", "share_of_bare", "share_of_matrix_rate", "matrix_gflops"),
                *("floor_images_per_second", "floor_of_operations_alone"),
            ),
            COUNT,
        )
        for arch in ARCHITECTURES
    },
    "prediction?": {
        f"{arch}?": dict.fromkeys(
            ("images", "images_per_second", "times_one_by_one", "share_of_decode_and_forward"), COUNT
        )
        for arch in ARCHITECTURES
    },
    "start?": {
        "images": {"*": COUNT},
        **dict.fromkeys(
            (
                *("launch_to_first_step_seconds", "import_train_seconds", "import_torch_seconds", "read_seconds"),
                *("untrained_network_measured_seconds", "first_step_seconds"),
                *("peak_memory_megabytes", "peak_above_raw_megabytes", "raw_train_megabytes"),
            ),
            NUMBER,
        ),
    },
    "growth?": {"largest_over_smallest": COUNT, "images_per_second": {"#": COUNT}},
    "accuracy?": {"steps": COUNT, "seconds_to?": {"#": [COUNT, None]}},
}
# What `make soak` counts; MEMORY where the system tells it. A soak without one of KINDS was a part of it.
HOSTILE = {
    **{name: name for name in ("CSVs", "argument lists", "command lines", "images", "checkpoints")},
    "runs of train.py": "runs of `train.py`",
    "runs of tsne.py": "runs of `tsne.py`",
}
KINDS = (
    *("kills of recipe paper", "kills of recipe strong", "of them while writing a file"),
    *(*HOSTILE, *(f"{name} refused" for name in HOSTILE)),
    *("rows of the longest CSV", "pairs of predictions into one file"),
)
MEMORY = ("images predicted", "peak memory in MB", "bytes more an image")
SOAK = {
    "counts": {"*?": COUNT, **dict.fromkeys(KINDS, COUNT)},
    "seconds": COUNT,
    "device": str,
    "versions": {"torch": str},
    "command": str,
}
METRICS = {
    **{name: NUMBER for name in ("step", "seconds?", "lambda?", "L_y?", "L_d?")},
    **{f"{name}_accuracy?": SHARE for name in ("domain", "source_val", "target_val")},
    "top_class_share?": SHARE,
    "diversity?": (-1, 100),
}


# The log of a run


def summary_writer() -> Any:
    """TensorBoard's writer class; UserError where the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "--tensorboard needs the package tensorboard; run pip install tensorboard, or leave the flag out: "
            "metrics.jsonl has the same numbers."
        ) from error
    return SummaryWriter


class RunLog:
    """metrics.jsonl of a run folder: one line per validation, flushed as it is written.

    `keep_until` drops the lines after that step, which a resumed run will write again. `tensorboard`: the same numbers
    go to event files in the folder tensorboard beside it, written anew from the lines that are kept.
    """

    def __init__(self, path: Path, keep_until: int, tensorboard: bool = False) -> None:
        self.path = path
        self.lines = [line for line in read_metrics(path) if line["step"] <= keep_until]
        with atomic_path(path) as part:
            part.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8")
        self.board = None
        if tensorboard:
            events = path.parent / "tensorboard"
            shutil.rmtree(events, ignore_errors=True)
            self.board = summary_writer()(str(events))
            for line in self.lines:
                self.show(line)

    def write(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        with naming(self.path):
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
            os.fsync(self.file.fileno())  # on the disk before the checkpoint that counts on it
        self.show(line)

    def show(self, line: dict[str, Any]) -> None:
        """Put the numbers of a line on the board, where there is one."""
        if self.board:
            for name, value in line.items():
                if name != "step" and value is not None:
                    self.board.add_scalar(name, value, line["step"])
            self.board.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of a full disk, which `write` has told
            self.file.close()
        if self.board:
            self.board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl up to the first that is none, such as a last one that a killed run left half written.

    Raises UserError for a line with anything but numbers where numbers belong: that is no half of a line.
    """
    lines: list[dict[str, Any]] = []
    if path.exists():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                break
            if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                break
            check_values(f"{path} line {len(lines) + 1}", line, METRICS)
            lines.append(line)
    return lines

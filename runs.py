"""A run on disk: its folder and lock, its JSON files and log, its checkpoints, and how it is resumed.

A run folder holds args.json, metrics.jsonl, last.pt, the figures and, once all is done, result.json. A checkpoint is
{model, model_args, args, step, metrics, versions, resume}, tensors and plain values only: `model` is the flat
state_dict that predicts, `model_args` builds the network, `args["classes"]` names its classes, `resume` holds what to
continue needs besides. Checkpoints of the published implementation, whole pickled modules, are read too, without
running code from them.
"""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import time
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache import facts_of
from dataset import Domain
from losses import ClassPriors, Teacher
from model import DANN, MAX_SIZE, MIN_SIZE, SOURCE, TARGET
from utils import UserError, atomic_path, naming, note, remove_parts, user_path, versions

MAX_BYTES = 2 << 30  # an archive that unpacks to more, and to more than its file has, is made to fill the memory
ONCE = ("test", "train")  # splits of the target that --eval_split measures on once, at the end
KEYS = {"model", "model_args", "args", "step", "metrics", "versions", "resume"}
NUMBER: tuple[type, ...] = (int, float)
MAYBE: tuple[type, ...] = (int, float, type(None))


@dataclass
class Run:
    """State of a run between two validations; what `last.pt` holds and `--resume` restores."""

    folder: Path
    args: dict[str, Any]  # plain values, with `classes`: what args.json and the checkpoints state
    net: DANN
    optimizer: torch.optim.Optimizer
    total_steps: int
    teacher: Teacher | None = None
    priors: ClassPriors | None = None
    source_only: DANN | None = None  # trained on the source alone, see train.py
    fingerprint: str = ""  # of the data, see there
    precision: torch.dtype = torch.float32  # of the training step
    began: float = field(default_factory=time.monotonic)
    step: int = 0
    interrupted: bool = False  # by Ctrl-C
    seconds_before: float = 0.0  # of the runs that this one resumes
    training_seconds: float = 0.0
    images_seen: int = 0
    untrained: DANN | None = None  # as it began, to the first validation
    distance_before: float | None = None  # proxy A-distance of its features
    kept: list[dict[str, Any]] = field(default_factory=list)  # beside last.pt: {score, step, name}

    def __post_init__(self) -> None:
        """scaler: keeps the gradients of float16 within its range, by a factor; without float16 it does nothing."""
        self.scaler = torch.amp.GradScaler(self.net.device.type, enabled=self.precision == torch.float16)

    @property
    def predictor(self) -> DANN:
        """The network that predicts: the teacher's average where there is a teacher."""
        return self.teacher.net if self.teacher else self.net

    def seconds(self) -> float:
        """Wall-clock time of this run so far, with that of the runs that it resumes."""
        return self.seconds_before + time.monotonic() - self.began


# The folder


@contextlib.contextmanager
def claimed(save_dir: Path, name: str, resume: bool, numbered: bool) -> Iterator[Path]:
    """The folder of this run, made and locked; one without any file in it is removed at the end.

    Where it exists, with `numbered`, the name gets -2, -3, else it is refused. UserError too for one that another run
    is using.
    """
    folder, number, fresh = save_dir / name, 1, not save_dir.exists()
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"run folder {folder}: {place} is a file; choose another --save_dir or --run_name.")
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=resume)  # of two runs that start at once, one alone makes it
            break
        except FileExistsError:
            if not numbered:
                raise UserError(
                    f"run folder {folder} exists and is not overwritten; choose another --run_name, or continue it "
                    "with --resume."
                ) from None
            number += 1
            folder = save_dir / f"{name}-{number}"
    if number > 1:
        note(f"{save_dir / name} exists and is not overwritten; this run is {folder}.")
    try:
        with locked(folder):
            yield folder
    finally:
        with contextlib.suppress(OSError):  # what has a file in it stays
            folder.rmdir()
            if fresh:
                save_dir.rmdir()


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


# JSON files


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as readable JSON, whole or not at all."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path, **kinds: tuple[type, ...] | type) -> dict[str, Any]:
    """Read a JSON object; UserError when it is absent, no JSON, or a key of `kinds` is missing or of another kind."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable as JSON ({error}); restore it or name another run.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object; restore it or choose another run folder.")
    check_kinds(path, found, **kinds)
    return found


def check_kinds(place: Path | str, found: dict[str, Any], **kinds: tuple[type, ...] | type) -> None:
    """UserError that names file and key where a value of `found` is missing or not of the kind that is stated."""
    for key, kind in kinds.items():
        if key not in found:
            raise UserError(f"{place} has no {key}; restore the file.")
        value = found[key]
        if not isinstance(value, kind) or value is True or (isinstance(value, (int, float)) and not abs(value) < 1e15):
            raise UserError(f"{place}: {key} cannot be {json.dumps(value)[:40]}; restore the file.")


# A result in words


def in_words(result: dict[str, Any]) -> list[str]:
    """What result.json says, a sentence each: what was trained, how good it is, what the distance did, warnings."""
    args, images = result["args"], result["images"]
    source, target, mode = args["source_file"], args["target_file"], args["train_mode"]
    labelled = f"{images['labelled_train']:,} labelled images"
    what = {
        "source": f"trained on {source} alone ({labelled})",
        "dann": f"adapted from {source} ({labelled}) to {target} ({images.get('unlabelled_train') or 0:,} images, no "
        "label used)",
        "target": f"trained on the labels of {source} and {target}" if args.get("with_source") else
        f"trained on the labels of {target} ({labelled})",
    }[mode]  # fmt: skip
    views = (
        f", views of {args['views']}" if args["recipe"] == "strong" and "augmentation" not in args["without"] else ""
    )
    lines = [
        f"{mode}: {what}; recipe {args['recipe']}{views}, network {args['arch']}, seed {result['seed']}, "
        f"{result['steps']:,} steps in {result['seconds']:.0f} s on {result['device']}",
        f"accuracy: {accuracy_in_words(result)}",
    ]
    if mode != "target" or args.get("with_source"):  # else no source was read
        lines.append(f"domains: {distance_in_words(result['proxy_a_distance'])}")
    if result.get("class_priors"):
        lines.append(priors_in_words(result["class_priors"]))
    return lines + ([f"warning: {sentence}" for sentence in result["warnings"]] or ["warnings: none"])


def with_error(accuracy: float, count: int | None) -> str:
    """An accuracy of `count` images with its binomial standard error, which 0 and 1 do not tell."""
    error = f" ± {math.sqrt(accuracy * (1 - accuracy) / count):.3f}" if count and 0 < accuracy < 1 else ""
    return f"{accuracy:.4f}{error}{f' (n = {count:,})' if count else ''}"


def accuracy_in_words(result: dict[str, Any]) -> str:
    """The accuracies with their binomial error, or why there is none on the target."""
    args, images, found = result["args"], result["images"], []
    if args["target_file"] is None:
        found.append("none on a target, as --target_file named none")
    elif all(result.get(f"target_{split}_accuracy") is None for split in ("val", *ONCE)):
        whole = ", or use --eval_split train where all images have labels" if args["train_mode"] != "target" else ""
        found.append(
            f"none on {args['target_file']}, which has no labels to measure by (label fifty images for its val{whole})"
        )
    for domain, split in (*(("target", split) for split in (*ONCE, "val")), ("source", "val")):
        accuracy, count = result.get(f"{domain}_{split}_accuracy"), images.get(f"{domain}_{split}")
        if accuracy is not None:
            whole = ", all of it" if (domain, split) == ("target", "train") else ""
            found.append(f"{with_error(accuracy, count)} on {args[f'{domain}_file']} {split}{whole}")
    return (
        f"{', '.join(found)}; {result['checkpoint']} of step {result['selected_step']:,}, --select {result['select']}"
    )


def distance_in_words(distance: dict[str, float | None]) -> str:
    """What training did to the proxy A-distance."""
    before, after = distance.get("untrained"), distance.get("trained")
    if after is None:
        return "their distance was not measured, which takes a val of the source, and 10 images or more of each domain"
    if before is None:
        return f"proxy A-distance {after:.2f} after training (0 alike, 2 apart)"
    moved = (
        "closer" if after < before - 0.1 else "further apart" if after > before + 0.1 else "neither closer nor apart"
    )
    return f"{moved}, proxy A-distance {before:.2f} before training, {after:.2f} after (0 alike, 2 apart)"


def priors_in_words(priors: dict[str, dict[str, Any]], most: int = 5) -> str:
    """The class priors in a line, of the classes that differ most."""
    if any(each["target_estimated"] is None for each in priors.values()):
        return (
            "class priors: not estimated, as a network trained on the source alone is unsure of the target; source "
            "images were drawn from all classes alike"
        )
    names = sorted(priors, key=lambda name: -abs(priors[name]["target_estimated"] - priors[name]["source"]))[:most]
    each = [
        f"{name} {priors[name]['source']:.3f} -> {priors[name]['target_estimated']:.3f}"
        + (f" (val {priors[name]['target_val']:.3f})" if priors[name]["target_val"] is not None else "")
        for name in names
    ]
    wrong = "where you know better, train again with --without priors"
    return f"class priors, source -> target as estimated, where they differ most: {', '.join(each)}; {wrong}"


# The log


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
                if name != "step" and isinstance(value, NUMBER):
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
            except (ValueError, RecursionError):
                break
            if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                break
            numbers = {name: MAYBE for name in line if name != "target_priors"}
            check_kinds(f"{path} line {len(lines) + 1}", line, **numbers)
            lines.append(line)
    return lines


# Checkpoints


class PickledModule:
    """Stand-in for each module class that a published file names: it only holds the attributes, it runs nothing."""

    _parameters: dict[str, Tensor]
    _buffers: dict[str, Tensor]
    _modules: dict[str, "PickledModule"]


# What the published files name, and nothing else; `src.dann.CNNModel` is their own class (torch 1.12).
PUBLISHED_CLASSES = ["src.dann.CNNModel"] + [
    f"torch.nn.modules.{name}"
    for name in [
        "container.Sequential",
        "conv.Conv2d",
        "batchnorm.BatchNorm2d",
        "batchnorm.BatchNorm1d",
        "pooling.MaxPool2d",
        "activation.ReLU",
        "dropout.Dropout2d",
        "dropout.Dropout",
        "linear.Linear",
    ]
]
PUBLISHED_PARTS = {
    "feature": "feature_extractor",
    "class_classifier": "label_classifier",
    "domain_classifier": "domain_classifier",
}


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint {model, model_args, args, step, metrics, versions, resume} whole or not at all."""
    content = io.BytesIO()
    torch.save(checkpoint, content)  # into memory: on a full disk torch would end in a RuntimeError about positions
    with atomic_path(path) as part:
        part.write_bytes(content.getbuffer())


def make_checkpoint(run: Run, metrics: dict[str, Any], with_resume: bool) -> dict[str, Any]:
    resume = {
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "kept": run.kept,
        "seconds": metrics["seconds"],
        "training_seconds": run.training_seconds,
        "images_seen": run.images_seen,
        "distance_before": run.distance_before,
        "data": run.fingerprint,
        "class_priors": run.priors.state_dict() if run.priors else None,
        "student": run.net.state_dict() if run.teacher else None,
    }
    return {
        "model": run.predictor.state_dict(),
        "model_args": run.net.arguments,
        "args": run.args,
        "step": run.step,
        "metrics": metrics,
        "versions": versions(),
        "resume": resume if with_resume else None,
    }


def save_run(run: Run, metrics: dict[str, Any], select: str, topk: int, candidate: bool) -> None:
    """Write the `topk` kept checkpoints, then last.pt, and only then delete those that fell out of the top K.

    candidate: whether `select` may choose this step; one that Ctrl-C added is none, or it would change the result.
    """
    dropped: list[dict[str, Any]] = []
    if candidate and topk and metrics["step"] not in [entry["step"] for entry in run.kept]:
        score = metrics["step" if select == "last" else f"{select}_accuracy" if select.endswith("_val") else select]
        run.kept.append({"score": score, **at_step(run.step)})
        run.kept.sort(key=lambda entry: (-entry["score"], entry["step"]))
        run.kept, dropped = run.kept[:topk], run.kept[topk:]
        if any(entry["step"] == run.step for entry in run.kept):
            save_checkpoint(run.folder / at_step(run.step)["name"], make_checkpoint(run, metrics, False))
    save_checkpoint(run.folder / "last.pt", make_checkpoint(run, metrics, True))
    for entry in dropped:
        (run.folder / entry["name"]).unlink(missing_ok=True)


def at_step(step: int) -> dict[str, Any]:
    """Step and file name of a kept checkpoint: a name that is made here, as it will be deleted one day."""
    return {"step": step, "name": f"step{step:07d}.pt"}


def resolve_checkpoint(path: Path) -> Path:
    """File behind `--checkpoint`: a file itself; of a run folder the selected one, else last.pt.

    Raises UserError when nothing is there.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        why = "is no regular file" if path.exists() else "does not exist"
        raise UserError(f"--checkpoint {path} {why}; name a run folder or a checkpoint file.")
    names = []
    if (path / "result.json").is_file():
        names.append(Path(read_json(path / "result.json", checkpoint=str)["checkpoint"]).name)
    for name in [*names, "last.pt"]:
        if (path / name).is_file():
            return path / name
    alone = sorted(path.glob("*.pt"))
    if len(alone) == 1:
        return alone[0]
    there = ", ".join(file.name for file in alone) or "no .pt file"
    runs = sorted(file.parent.name for file in path.glob("*/last.pt"))
    some = f"{', '.join(runs[:4])}{', ...' if len(runs) > 4 else ''}"
    which = f"one of the runs in it ({some})" if runs else "one checkpoint file"
    raise UserError(f"--checkpoint {path} holds no last.pt ({there}); name {which}.")


CHECKPOINT: dict[str, Any] = dict(type=user_path, required=True, metavar="PATH", help="run folder or checkpoint file")
OTHER_FILES = {  # their first bytes -> what they are
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"%PDF": "a PDF",
    b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "an array of NumPy",
}


def check_kind(path: Path, start: bytes) -> None:
    """UserError for a file that is none of torch's by its first bytes; says what it is where they say."""
    if start.startswith((b"PK", b"\x80\x02")):  # archives, and the pickles that torch wrote before
        return
    if not start:
        raise UserError(f"{path} is empty; fetch or train it again.")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of git-lfs and no checkpoint; fetch the file itself with git lfs pull.")
    if start.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n").startswith(b"<"):  # behind the marks of UTF-8 and UTF-16
        raise UserError(f"{path} is a web page and no checkpoint, as a failed download leaves; fetch it again.")
    text = start.startswith((b"\xff\xfe", b"\xfe\xff")) or not re.search(rb"[\0-\x08\x0e-\x1f]", start)
    kind = next((kind for magic, kind in OTHER_FILES.items() if start.startswith(magic)), "text" if text else "")
    raise foreign(path, f"is {kind} and no checkpoint" if kind else "is no checkpoint of this program")


def foreign(path: Path, what: str) -> UserError:
    return UserError(f"{path} {what}; use one of train.py or of download.sh.")


def check_archive(path: Path) -> None:
    """UserError for an archive of another program, or a compressed one, as torch writes none, of over MAX_BYTES."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())  # torch reads what the index says
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    if "data.pkl" not in names or "constants.pkl" in names:  # the latter: TorchScript
        raise foreign(path, "is an exported model or another archive and no checkpoint")
    if size > max(MAX_BYTES, path.stat().st_size):
        raise UserError(f"{path} unpacks to {size:,} bytes, more than {MAX_BYTES:,}: no checkpoint of this program.")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours or of the published implementation into our format, on the CPU.

    Only tensors and plain values are read. Raises UserError for a file that is damaged, names any other class, or is
    no checkpoint of this program.
    """
    with naming(path), path.open("rb") as file:
        check_kind(path, file.read(512))
    try:
        check_archive(path)
        stand_ins: list[Any] = [(PickledModule, name) for name in PUBLISHED_CLASSES]
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's doubts about a file that it then refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # torch and pickle raise nearly anything on a damaged file
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            raise foreign(path, f"holds more than tensors and plain values ({named[1]}) and was not read") from error
        raise UserError(f"{path} is damaged, or no checkpoint of this program; fetch or train it again.") from error
    if isinstance(content, PickledModule):
        return _from_published(path, content)
    if not isinstance(content, dict) or not set(content) >= KEYS:
        raise foreign(path, "is not a checkpoint of this program")
    return content


def _flatten(module: PickledModule, prefix: str) -> dict[str, Tensor]:
    """Tensors of a stand-in, children numbered in their order: the state_dict of a plain nn.Sequential."""
    named = {**module._parameters, **module._buffers}
    tensors = {prefix + name: value.detach() for name, value in named.items() if value is not None}
    for i, child in enumerate(module._modules.values()):
        tensors.update(_flatten(child, f"{prefix}{i}."))
    return tensors


def _from_published(path: Path, module: PickledModule) -> dict[str, Any]:
    try:
        state: dict[str, Tensor] = {}
        for theirs, ours in PUBLISHED_PARTS.items():
            state.update(_flatten(module._modules[theirs], f"{ours}."))
        num_classes = int(state["label_classifier.7.weight"].shape[0])
    except (AttributeError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise UserError(
            f"{path} is a pickled module of another architecture than the published one; "
            "use a checkpoint of train.py or of download.sh."
        ) from error
    return weights_only(state, {"num_classes": num_classes, "arch": "published", "size": 28, "norm": "shared"})


def weights_only(state: dict[str, Tensor], model_args: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of weights of which no run is known; its classes are called 0, 1, 2 ..."""
    return {
        "model": state,
        "model_args": model_args,
        "args": {"classes": [str(k) for k in range(model_args["num_classes"])]},
        "step": 0,
        "metrics": {},
        "versions": {},
        "resume": None,
    }


def check_weights(state: dict[str, Tensor], model_args: dict[str, Any]) -> None:
    """ValueError for weights that are not those of the stated network, before memory is taken for one of any size."""
    size, predict_as = model_args.get("size", 28), model_args.get("predict_as", TARGET)
    if type(size) is not int or not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"its size is not {MIN_SIZE} to {MAX_SIZE}")
    if type(predict_as) is not int or predict_as not in (SOURCE, TARGET):
        raise ValueError("it predicts as no domain")
    with torch.device("meta"):  # shapes alone
        wanted = DANN(**model_args).state_dict()
    if not isinstance(state, dict) or state.keys() != wanted.keys():
        other = sorted(map(repr, set(state) ^ wanted.keys())) if isinstance(state, dict) else ["no dictionary"]
        raise ValueError(f"{len(other)} names of weights differ, such as {other[0]}")
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.shape != wanted[name].shape:
            shape = list(value.shape) if isinstance(value, Tensor) else "no tensor"
            raise ValueError(f"{name} is {shape}, not {list(wanted[name].shape)}")
        if not value.isfinite().all() or ("running_var" in name and value.min() < 0):
            raise ValueError(f"{name} holds a number that is not finite, or a variance below 0")


def build_network(path: Path, checkpoint: dict[str, Any], device: torch.device) -> tuple[DANN, list[str]]:
    """Network of a checkpoint in evaluation mode on `device`, and its class names.

    Raises UserError when the weights do not fit the architecture that the file states, or are no finite numbers.
    """
    try:
        check_weights(checkpoint["model"], checkpoint["model_args"])
        net = DANN(**checkpoint["model_args"])
        net.load_state_dict(checkpoint["model"])
        classes = checkpoint["args"]["classes"] if isinstance(checkpoint["args"], dict) else None
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ValueError("the class names are no list of words")
        if len(classes) != checkpoint["model_args"]["num_classes"]:
            raise ValueError(f"{len(classes)} class names for {checkpoint['model_args']['num_classes']} classes")
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
        raise UserError(
            f"{path}: the weights do not fit the network that the file states "
            f"({(str(error).splitlines() or ['?'])[0][:160].rstrip('.:')}); train or fetch it again."
        ) from error
    return net.to(device).eval(), classes


# Resuming


STEP_FILE = re.compile(r"step\d{7,}\.pt")
# May differ when a run is resumed. When it validates does not touch the weights, only what --select chooses from.
IRRELEVANT = {"eval_split", "num_workers", "save_dir", "data_root", "run_name", "device", "tensorboard"}


def check_same_run(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """UserError when --resume asks for another run than the folder holds.

    before, now: the arguments as plain values, those of its args.json and those of this call.
    """
    free = IRRELEVANT | ({"val_period"} if now["select"] == "last" else set())
    free |= {"views"} if now["views"] is None else set()  # by the classes
    other = [name for name, value in now.items() if name not in free and (before.get(name) or None) != (value or None)]
    if other:
        names = ", ".join(f"{name} (was {before.get(name)}, is {now[name]})" for name in other)
        raise UserError(
            f"--resume: the run in {folder} was started with other arguments: {names}; give the same ones "
            "or another --run_name."
        )


def restore(run: Run, checkpoint: dict[str, Any]) -> None:
    """Take up weights, optimizer and counters of a checkpoint; UserError when it cannot be resumed."""
    path, state = run.folder / "last.pt", checkpoint["resume"]
    args = checkpoint["args"]
    if state is None or not isinstance(args, dict) or args["classes"] != run.args["classes"]:
        raise UserError(
            f"{path} cannot be resumed: it is of other classes or holds no optimizer; use another --run_name."
        )
    try:
        check_weights(checkpoint["model"], run.net.arguments)
        run.net.load_state_dict(state["student"] if run.teacher else checkpoint["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):
            run.scaler.load_state_dict(state["scaler"])
        if run.teacher:
            run.teacher.net.load_state_dict(checkpoint["model"])
        if run.priors:
            run.priors.load_state_dict(state["class_priors"])
        run.step, run.args["views"] = int(checkpoint["step"]), args["views"]
        run.kept = [{"score": entry["score"] + 0, **at_step(int(entry["step"]))} for entry in state["kept"]]
        run.seconds_before, run.training_seconds = float(state["seconds"]), float(state["training_seconds"])
        run.images_seen, run.distance_before = int(state["images_seen"]), state["distance_before"]
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is of another network than this run's; use another --run_name.") from error
    if state.get("data") != run.fingerprint:
        raise UserError(
            f"{path} cannot be resumed: the images or labels that it was trained on have changed; restore them or use "
            "another --run_name."
        )
    for file in run.folder.glob("step*.pt"):  # of a run killed between last.pt and the removal of what fell out
        if STEP_FILE.fullmatch(file.name) and file.name not in [entry["name"] for entry in run.kept]:
            file.unlink()


def fingerprint(domains: Iterable[Domain | None]) -> str:
    """A hash of the labels and of the images' checksums that a run trains on."""
    found = hashlib.sha256()
    for domain in filter(None, domains):
        sums = facts_of(np.asarray(domain.images))["checksum"] if domain.checksums is None else domain.checksums
        found.update(sums.tobytes() + (b"" if domain.labels is None else domain.labels.numpy().tobytes()))
    return found.hexdigest()

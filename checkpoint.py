"""Read checkpoints: our own, and the whole pickled modules of the published implementation, without running their code.

A checkpoint of ours is {model, model_args, args, step, metrics, versions, resume}, tensors and plain values only:
`model` is the flat state_dict that predicts, `model_args` builds the network, `args["classes"]` names its classes.
"""

import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import DANN, SOURCE, TARGET
from records import read_json
from utils import UserError

MAX_BYTES = 2 << 30  # a checkpoint that unpacks to more is taken for an archive made to fill the memory
KEYS = {"model", "model_args", "args", "step", "metrics", "versions", "resume"}


class PickledModule:
    """Stand-in for each module class that a published file names: it only holds the attributes, it runs nothing."""

    _parameters: dict[str, Tensor]
    _buffers: dict[str, Tensor]
    _modules: dict[str, "PickledModule"]


# What the published files name, and nothing else; `src.dann.CNNModel` is their own class (torch 1.12).
PUBLISHED_CLASSES = ["src.dann.CNNModel"] + [
    f"torch.nn.modules.{name}"
    for name in (
        "container.Sequential",
        "conv.Conv2d",
        "batchnorm.BatchNorm2d",
        "batchnorm.BatchNorm1d",
        "pooling.MaxPool2d",
        "activation.ReLU",
        "dropout.Dropout2d",
        "dropout.Dropout",
        "linear.Linear",
    )
]
PUBLISHED_PARTS = {
    "feature": "feature_extractor",
    "class_classifier": "label_classifier",
    "domain_classifier": "domain_classifier",
}


def resolve_checkpoint(path: Path) -> Path:
    """File behind `--checkpoint`: a file itself; of a run folder the selected one, else last.pt.

    Raises UserError when nothing is there.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"--checkpoint {path} does not exist; name a run folder or a checkpoint file.")
    names = []
    if (path / "result.json").is_file():
        names.append(Path(str(read_json(path / "result.json", "checkpoint")["checkpoint"])).name)
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


def check_size(path: Path) -> None:
    """UserError for an empty file, or one that would unpack to more than MAX_BYTES: torch reads what its index says."""
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path} is empty; fetch or train it again.")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = max(size, sum(entry.file_size for entry in archive.infolist()))
    if size > MAX_BYTES:
        raise UserError(f"{path} unpacks to {size:,} bytes, more than {MAX_BYTES:,}: no checkpoint of this program.")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours or of the published implementation into our format, on the CPU.

    Only tensors and plain values are read. Raises UserError for a file that is damaged, names any other class, or is
    no checkpoint of this program.
    """
    try:
        check_size(path)
        with torch.serialization.safe_globals([(PickledModule, name) for name in PUBLISHED_CLASSES]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors and plain values and was not read ({_first_reason(error)}); "
            "use a checkpoint of train.py or of download.sh."
        ) from error
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        IndexError,
        AssertionError,
        RecursionError,
        struct.error,
    ) as error:
        raise UserError(
            f"{path} is not a readable checkpoint ({_first_reason(error)}); fetch or train it again."
        ) from error
    if isinstance(content, PickledModule):
        return _from_published(path, content)
    if not isinstance(content, dict) or not set(content) >= KEYS:
        raise UserError(f"{path} is not a checkpoint of this program; use one of train.py or of download.sh.")
    return content


def _first_reason(error: Exception) -> str:
    """The sentence of torch's message that names the cause, without its advice to read the file none the less."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line or "nsupported" in line]
    line = (named or lines or [type(error).__name__])[0].removeprefix("WeightsUnpickler error: ")
    return line.split(". ")[0][:160].rstrip(".:")


def _flatten(module: PickledModule, prefix: str) -> dict[str, Tensor]:
    """Tensors of a stand-in, children numbered in their order: the state_dict of a plain nn.Sequential."""
    named = {**module._parameters, **module._buffers}
    tensors = {prefix + name: value.detach() for name, value in named.items() if value is not None}
    for i, child in enumerate(module._modules.values()):
        tensors.update(_flatten(child, f"{prefix}{i}."))
    return tensors


def _from_published(path: Path, module: PickledModule) -> dict[str, Any]:
    try:
        state: dict[str, Tensor] = OrderedDict()
        for theirs, ours in PUBLISHED_PARTS.items():
            state.update(_flatten(module._modules[theirs], f"{ours}."))
        for name in [name for name in state if name.startswith("feature_extractor.") and "running_" in name]:
            state[f"{name}_s"] = state[f"{name}_t"] = state.pop(name)  # one set of statistics, for both domains
            state.pop(f"{name.rsplit('.', 1)[0]}.num_batches_tracked", None)
        num_classes = int(state["label_classifier.7.weight"].shape[0])
    except (AttributeError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise UserError(
            f"{path} is a pickled module of another architecture than the published one; "
            "use a checkpoint of train.py or of download.sh."
        ) from error
    return weights_only(state, {"num_classes": num_classes, "arch": "published", "size": 28})


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
    if type(size) is not int or size not in range(8, 257):
        raise ValueError("its size is not 8 to 256")
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
            f"({_first_reason(error)}); train or fetch it again."
        ) from error
    return net.to(device).eval(), classes

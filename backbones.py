"""Pretrained networks of torchvision and timm as backbones: their names, weights and preprocessing.

A backbone is one of their classification networks without its head, images [B, 3, H, W] -> features [B, C]. It is
called as torchvision calls it, `resnet50`, or behind `timm:` as timm does, `timm:convnext_tiny`. Both packages are
imported where such a name is used; timm need not be installed.
"""

import contextlib
import difflib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils import UserError

TIMM = "timm:"
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")  # as Pillow calls them
WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which training programs keep the weights


@dataclass(frozen=True)
class Preprocessing:
    """What pretrained weights want of an image: values in 0..1 less `mean`, over `deviation`, by channel; its middle.

    size: side in pixels that they were trained or measured at. crop: side of the square taken out of the middle, as a
    part of the image's shorter side. interpolation: by which that square is resized. ValueError for what cannot be.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    size: int
    crop: float
    interpolation: str

    def __post_init__(self) -> None:
        numbers = [*self.mean, *self.deviation, self.crop]
        if len(self.mean) != 3 or len(self.deviation) != 3 or not all(abs(value) < 1e3 for value in numbers):
            raise ValueError("the preprocessing has no mean and deviation of three channels")
        if min(self.deviation) <= 0 or not 0 < self.crop <= 1 or self.interpolation not in INTERPOLATIONS:
            raise ValueError("the preprocessing has a deviation, crop or interpolation that cannot be")


# Names


def import_timm(arch: str) -> Any:
    """The package timm; UserError where it is not installed."""
    try:
        import timm
    except ImportError as error:
        raise UserError(f"--arch {arch} needs the package timm; run pip install timm.") from error
    return timm


def known(arch: str) -> bool:
    """Whether torchvision, or timm for a name behind `timm:`, has a classification network of that name."""
    if arch.startswith(TIMM):
        name = arch.removeprefix(TIMM)
        return ":" not in name and import_timm(arch).is_model(name)  # hf-hub: would look on the network
    return arch in torchvision_names()


def nearest(arch: str, others: tuple[str, ...] = ()) -> list[str]:
    """The names that are most like an unknown one, of its library and of `others`."""
    if arch.startswith(TIMM):
        return difflib.get_close_matches(arch, [TIMM + name for name in import_timm(arch).list_models()], cutoff=0.5)
    with contextlib.suppress(UserError):
        if arch in import_timm(arch).list_models():
            return [TIMM + arch]
    return difflib.get_close_matches(arch.lower(), [*others, *torchvision_names()], cutoff=0.5)


@lru_cache(maxsize=1)
def torchvision_names() -> tuple[str, ...]:
    from torchvision import models

    return tuple(models.list_models(module=models))  # those of submodules segment, detect and so on


@lru_cache
def preprocessing_of(arch: str) -> Preprocessing:
    """As the metadata of the weights state it that `--weights default` takes."""
    if arch.startswith(TIMM):
        timm = import_timm(arch)
        stated = timm.get_pretrained_cfg(arch.removeprefix(TIMM))
        found = timm.data.resolve_data_config(pretrained_cfg=stated.to_dict() if stated else {})
        mean, deviation, crop = found["mean"], found["std"], found["crop_pct"]
        size, interpolation = found["input_size"][-1], found["interpolation"]
    else:
        from torchvision import models

        wanted = models.get_model_weights(arch).DEFAULT.transforms()
        mean, deviation, crop = wanted.mean, wanted.std, wanted.crop_size[0] / wanted.resize_size[0]
        size, interpolation = wanted.crop_size[0], wanted.interpolation.value
    known_one = interpolation if interpolation in INTERPOLATIONS else "bilinear"  # timm has `random`, too
    return Preprocessing(tuple(mean), tuple(deviation), size, min(1.0, crop), known_one)


def address(arch: str) -> str | None:
    """Where the library has the weights of `--weights default`, where it has any."""
    if arch.startswith(TIMM):
        stated = import_timm(arch).get_pretrained_cfg(arch.removeprefix(TIMM))
        if not stated or not stated.hf_hub_id:
            return (stated and stated.url) or None
        return f"model.safetensors of {stated.hf_hub_id} on the Hugging Face hub"
    from torchvision import models

    return str(models.get_model_weights(arch).DEFAULT.url)


# Networks


def backbone(arch: str, weights: str | None = None) -> nn.Module:
    """Network of that name without its head, images float [B, 3, H, W] -> features [B, C].

    weights: `default`, those of the library, which downloads them; a file; `none` or None: random ones. Raises
    UserError where they cannot be had or are of another network.
    """
    model, head = with_head(arch, pretrained=weights == "default")
    if weights not in (None, "none", "default"):
        load_weights(model, head, arch, Path(weights))
    if arch.startswith(TIMM):
        model.reset_classifier(0)  # type: ignore[operator]
        split_batchnorms(model, import_timm(arch).layers.BatchNormAct2d)
    else:
        model.set_submodule(head[0], nn.Identity())
    return model


def with_head(arch: str, pretrained: bool) -> tuple[nn.Module, tuple[str, ...]]:
    """The whole network, and the names of the layers that answer with a class: one, in few of timm's two."""
    try:
        model = create(arch, pretrained)
    except NotImplementedError:  # sizes computed by tensors, which `meta` has not, where runs.py asks for shapes alone
        with torch.device("cpu"):
            model = create(arch, pretrained)
    except Exception as error:
        if not pretrained:
            raise
        why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"--weights default: the weights of {arch} could not be loaded ({why}); give a file by --weights FILE"
            f"{f', {where}, fetched where there is a network' if (where := address(arch)) else ''}, or --weights none "
            "for random ones."
        ) from error
    if arch.startswith(TIMM):
        stated: Any = model.pretrained_cfg
        names = stated.get("classifier") or "head"
        return model, (names,) if isinstance(names, str) else tuple(names)
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    outputs = {name: getattr(layer, "out_features", getattr(layer, "out_channels", 0)) for name, layer in layers}
    return model, ([name for name, count in outputs.items() if count == 1000][-1],)


def create(arch: str, pretrained: bool) -> nn.Module:
    if arch.startswith(TIMM):
        return import_timm(arch).create_model(arch.removeprefix(TIMM), pretrained=pretrained)
    from torchvision import models

    more: dict[str, Any] = {}
    if arch in ("googlenet", "inception_v3"):  # built as their weights want it, with or without them
        more = {"transform_input": True} if pretrained else {"transform_input": True, "aux_logits": False}
        more["init_weights"] = not pretrained
    if arch.startswith("vit_"):
        more = {"image_size": preprocessing_of(arch).size}
    model = models.get_model(arch, weights="DEFAULT" if pretrained else None, **more)
    for name in ("aux1", "aux2", "AuxLogits"):  # the weights bring them, and a checkpoint has no place for them
        if hasattr(model, name):
            setattr(model, name, None)
            model.aux_logits = False
    return model


def split_batchnorms(model: nn.Module, kind: type[nn.Module]) -> None:
    """Put torch's BatchNorm, and behind it what else it did, in the place of each of timm's, in one layer with ReLU."""
    for name, child in model.named_children():
        if not isinstance(child, kind):
            split_batchnorms(child, kind)
            continue
        old: Any = child
        plain = nn.BatchNorm2d(old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats)
        plain.load_state_dict(old.state_dict())
        setattr(model, name, nn.Sequential(plain, old.drop, old.act))


def width(model: nn.Module, arch: str, size: int) -> int:
    """C, the length of the features of images of that size; UserError where the network does not take them."""
    shapes = {name: value.to("meta") for name, value in [*model.named_parameters(), *model.named_buffers()]}
    training = model.training
    try:
        features = torch.func.functional_call(model.eval(), shapes, torch.empty(2, 3, size, size, device="meta"))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        why = (str(error).splitlines() or ["?"])[0].rstrip(".")[:160]
        own = preprocessing_of(arch).size
        raise UserError(f"--size {size} is none that --arch {arch} takes ({why}); leave it out for {own}.") from error
    finally:
        model.train(training)
    if features.ndim != 2:
        raise UserError(f"--arch {arch} gives no vector of features (but {list(features.shape)}); use another one.")
    return features.shape[1]


# Weights in a file


def load_weights(model: nn.Module, head: tuple[str, ...], arch: str, file: Path) -> None:
    """Load weights for all but the head; UserError that names what does not fit where they are of another network.

    A file that calls its weights otherwise is taken in its order where every shape agrees.
    """
    wanted = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    found = {name: value for name, value in read_weights(file).items() if not name.endswith("num_batches_tracked")}
    in_head = (*(f"{name}." for name in head), "aux", "AuxLogits")
    body = [name for name in wanted if not name.startswith(in_head)]
    if not set(body) & found.keys() and len(found) == len(wanted):
        found = dict(zip(wanted, found.values(), strict=True))
    wrong = [
        f"{name} is {list(found[name].shape)}, not {list(wanted[name].shape)}"
        for name in body
        if name in found and found[name].shape != wanted[name].shape
    ]
    wrong += [f"it has no {name}" for name in body if name not in found]
    wrong += [f"{name} is none of {arch}'s" for name in found if name not in wanted and not name.startswith(in_head)]
    if wrong:
        raise UserError(
            f"--weights {file} is of another network than --arch {arch}: {wrong[0]}"
            f"{f', and {len(wrong) - 1} more such differences' if len(wrong) > 1 else ''}; name the file's own network."
        )
    model.load_state_dict({name: found[name] for name in body}, strict=False)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Tensors of a state_dict by name, .safetensors or of torch.save, without running code; UserError for others."""
    if not file.is_file():
        raise UserError(f"--weights {file} is no file; name one, or use default or none.")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise UserError(f"--weights {file} needs the package safetensors; run pip install safetensors.") from error
    except Exception as error:  # torch, pickle and safetensors raise nearly anything on a damaged file
        raise UserError(
            f"--weights {file} is not readable as weights ({type(error).__name__}): damaged, or more than tensors; "
            "fetch it again, or save a state_dict."
        ) from error
    for key in WRAPPERS:
        found = found[key] if isinstance(found, dict) and isinstance(found.get(key), dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"--weights {file} holds no state_dict, tensors by name; save one by torch.save.")
    return {str(name).removeprefix("module."): value for name, value in found.items()}

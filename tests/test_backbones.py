"""Networks of torchvision and timm take the place of ours in every script; random weights, nothing is downloaded."""

import json
import re
import shutil
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import QUICK, after_each_step, ctrl_c_in_step, ended, quick_run, same_state, same_tensors
from PIL import Image
from torch import Tensor, nn
from torchvision import models

import backbones
import export
import inference
import plots
import train
import tsne
from backbones import Preprocessing, backbone, preprocessing_of, width
from config import read_settings
from dataset import Batches, Domain, as_input, read_image
from model import DANN, SOURCE, TARGET, DomainBatchNorm
from runs import build_network, load_checkpoint
from utils import Ranks, UserError

CPU = torch.device("cpu")
ARCH = "mobilenet_v3_small"
TINY = ("--arch", ARCH, "--weights", "none", "--size", "32", "--max_steps", "2", "--val_period", "1", "-bs", "4")
FROZEN = (*TINY, "--freeze", "--arch", "squeezenet1_1")  # others have no features of random weights at this size


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, no_figures: None) -> None:
    """Whoever asks the network is told that there is none, and shown as a failure where a test counts on silence."""

    def absent(*_: Any) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "create_connection", absent)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains of photos of several shapes in folders by class, sort by colour; one class has a single image."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for k, domain in enumerate(("mnistm", "usps")):
        for split, count in (("train", 6), ("val", 3)):
            for c, name in enumerate(("ash", "birch", "oak")):
                folder = root / domain / split / name
                folder.mkdir(parents=True)
                for i in range(1 if name == "oak" and k == 0 and split == "train" else count):
                    pixels = rng.integers(0, 90, (40 + 5 * i, 60 - 5 * i, 3), dtype=np.uint8)
                    pixels[..., c] += 100 + 40 * k
                    Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def frozen_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_curves", "draw_confusion", "draw_mistakes"):
            patch.setattr(plots, name, lambda *_: None)
        return Path(quick_run(photos, tmp_path_factory.mktemp("runs"), "dann", "usps", *FROZEN)["folder"])


def state(folder: Path) -> dict[str, Tensor]:
    return load_checkpoint(folder / "last.pt")["model"]


# The networks


@pytest.mark.parametrize("arch", ["squeezenet1_1", "mobilenet_v2", "resnet18", "regnet_y_400mf", "swin_t", "googlenet"])
def test_a_backbone_is_a_network_without_its_head_that_gives_a_vector_an_image(arch: str) -> None:
    with torch.device("meta"):  # as a checkpoint's shapes are asked for
        body = backbone(arch)
        assert not any(getattr(layer, "out_features", 0) == 1000 for layer in body.modules())
        assert width(body, arch, 64) == {"resnet18": 512, "squeezenet1_1": 512}.get(arch, width(body, arch, 96))


@pytest.mark.parametrize("arch", ["googlenet", "inception_v3"])
def test_auxiliary_classifiers_of_downloaded_weights_are_gone_as_they_are_from_a_checkpoint(
    arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought = getattr(models, arch)(aux_logits=True, init_weights=False).state_dict()
    monkeypatch.setattr(models.get_model_weights(arch), "get_state_dict", lambda *_, **__: brought)
    body = backbone(arch, "default")
    with torch.device("meta"):
        assert body.state_dict().keys() == backbone(arch).state_dict().keys() < brought.keys()
    assert body.train()(torch.zeros(2, 3, 96, 96)).shape == (2, width(body, arch, 96))


def test_every_classification_network_of_torchvision_has_preprocessing_and_a_name_that_is_known() -> None:
    names = backbones.torchvision_names()
    assert len(names) >= 80
    for name in names:
        assert backbones.known(name)
        found = preprocessing_of(name)
        assert found.mean == pytest.approx((0.485, 0.456, 0.406)) or found.mean == (0.5, 0.5, 0.5)
        assert Preprocessing(**asdict(found)) == found
    assert (preprocessing_of("resnet18").size, preprocessing_of("resnet18").crop) == (224, 0.875)
    assert preprocessing_of("inception_v3").size == 299
    assert preprocessing_of("efficientnet_b0").interpolation == "bicubic"


def build(norm: str = "domain", frozen: bool = False) -> DANN:
    torch.manual_seed(0)
    return DANN(3, "resnet18", 32, norm=norm, preprocessing=asdict(preprocessing_of("resnet18")), frozen=frozen)


def images(count: int = 4) -> Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_images_get_the_mean_and_deviation_of_the_weights() -> None:
    from torchvision.models import ResNet18_Weights

    wanted = ResNet18_Weights.DEFAULT.transforms(crop_size=32, resize_size=32)(images())
    torch.testing.assert_close(build().preprocess(images()), wanted, atol=1e-5, rtol=1e-5)


def test_a_whole_backbone_keeps_the_statistics_of_its_weights_and_random_ones_get_those_of_the_domains(
    photos: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "resnet18.pth"
    torch.manual_seed(0)
    torch.save(models.resnet18().state_dict(), weights)
    kept = {}
    for given in (str(weights), "none"):
        run = quick_run(photos, tmp_path / "runs", "dann", "usps", *TINY, "--arch", "resnet18", "--weights", given)
        found = load_checkpoint(Path(run["folder"]) / "last.pt")["model"]
        kept[given] = {name: value for name, value in found.items() if name.endswith("running_mean")}
    moved = [name for name, value in kept[str(weights)].items() if value.abs().max() > 0]
    assert [name.split(".")[1] for name in moved] == ["bottleneck"] * 2
    assert all(value.abs().max() > 0 for value in kept["none"].values())


def test_each_domain_begins_with_the_statistics_of_the_weights_and_moves_its_own_alone() -> None:
    torch.manual_seed(0)
    body = backbone("resnet18")
    for layer in body.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_()  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in body.named_buffers() if name.endswith("running_mean")}
    mean = "running_mean"
    net = DANN(3, "resnet18", 32, preprocessing=asdict(preprocessing_of("resnet18")), body=body)
    pairs = {n: layer for n, layer in net.feature_extractor[0].named_modules() if isinstance(layer, DomainBatchNorm)}
    assert len(pairs) == len(before) == 20
    for name, pair in pairs.items():
        for layer in (pair.source, pair.target):
            assert torch.equal(layer.get_buffer(mean), before[f"{name}.running_mean"])
        assert pair.source.weight is pair.target.weight
    net.train().features(images(), TARGET)
    for name, pair in pairs.items():
        assert torch.equal(pair.source.get_buffer(mean), before[f"{name}.running_mean"])
        assert not torch.equal(pair.target.get_buffer(mean), before[f"{name}.running_mean"])
    assert not any(isinstance(layer, DomainBatchNorm) for layer in build("shared").modules())


def test_heads_learn_at_ten_times_the_rate_of_the_backbone_and_a_frozen_one_is_not_learnt() -> None:
    recipe = train.config.RECIPES["tuned"]
    for frozen in (False, True):
        net = build(frozen=frozen)
        groups = train.build_optimizer(net, "dann", recipe).param_groups
        held = [{id(p) for p in group["params"]} for group in groups]
        body = {id(p) for p in net.feature_extractor[0].parameters()}
        assert held[0] == {id(p) for p in net.parameters()} - body
        assert held[1:] == ([] if frozen else [body])
        assert [group.get("rate", 1.0) for group in groups] == ([1.0] if frozen else [1.0, 0.1])


def test_each_group_gets_its_rate_in_every_step(photos: Path, tmp_path: Path) -> None:
    seen: list[list[float]] = []
    with after_each_step(lambda run: seen.append([group["lr"] for group in run.optimizer.param_groups])):
        quick_run(photos, tmp_path, "source", "usps", *TINY)
    assert all(slow == pytest.approx(fast / 10) for fast, slow in seen)
    assert seen[0] != seen[1]


# Weights


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def test_weights_of_a_file_are_those_of_the_network_whatever_its_head_and_names(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    for number, (key, prefix) in enumerate(((None, ""), ("state_dict", "module."), (None, "renamed_"))):
        torch.manual_seed(number)
        trained = resnet18(num_classes=1000 if prefix == "renamed_" else 7)
        content: Any = {
            f"{prefix}{name.replace('.', '_') if prefix == 'renamed_' else name}": value
            for name, value in trained.state_dict().items()
        }
        body = backbone("resnet18", str(saved(tmp_path / "x.pth", {key: content} if key else content)))
        trained.fc = nn.Identity()
        assert same_tensors(
            {n: v for n, v in body.state_dict().items() if "num_batches" not in n},
            {n: v for n, v in trained.state_dict().items() if "num_batches" not in n},
        )


def test_safetensors_are_read_where_the_package_is_installed(tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors.torch")
    body = backbone("squeezenet1_1")
    package.save_file({name: value + 1 for name, value in body.state_dict().items()}, tmp_path / "x.safetensors")
    found = backbone("squeezenet1_1", str(tmp_path / "x.safetensors")).state_dict()
    assert all(torch.equal(found[name], value + 1) for name, value in body.state_dict().items())


class Foreign:
    pass


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("resnet34", r"layer1\.2"),  # all that resnet18 needs is in it
        ("squeezenet1_1", "conv1"),
        ({"conv1.weight": torch.zeros(64, 3, 3, 3)}, "conv1"),
        ({"a": 1}, "state_dict"),
        ({"a": Foreign()}, "weights"),
        (b"", "weights"),
        (None, "no file"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_an_image_is_read(
    content: Any, named: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "load_data", None)
    file = tmp_path / "x.pth"
    if isinstance(content, str):
        content = backbone(content).state_dict()
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        saved(file, content)
    words = ("--data_root", photos, "--train_mode", "dann", "--target_file", "usps", "--save_dir", tmp_path / "runs")
    code, _, errors = ended(train, *words, "--arch", "resnet18", "--weights", file)
    assert code == 2
    assert str(file) in errors
    assert re.search(named, errors)
    assert errors.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--arch", "resnet18"), "--weights none"),  # there is no network
        (("--arch", "alexnet", "--weights", "none", "--size", "32"), "--size 32 .*224"),
        (("--arch", "vit_b_32", "--weights", "none", "--size", "64"), "--size 64 .*224"),
        (("--arch", "timm:resnet18"), "pip install timm"),
        (("--arch", "resnet18", "--weights", "x.safetensors"), "x.safetensors"),
    ],
)
def test_what_a_backbone_cannot_is_said_in_one_sentence(
    words: tuple[str, ...], named: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise OSError("no network\nin this test")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", absent)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", absent)
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    monkeypatch.chdir(tmp_path)
    Path("x.safetensors").write_bytes(b"x")
    data = ("--data_root", photos, "--train_mode", "dann", "--target_file", "usps", "--save_dir", tmp_path / "runs")
    code, _, errors = ended(train, *data, *words)
    assert code == 2
    assert re.search(named, errors)
    assert errors.count("\n") == 1
    assert not (tmp_path / "runs").exists()


# Runs


@pytest.mark.parametrize("freeze", [(), ("--freeze",)])
@pytest.mark.parametrize("mode", ["source --balance", "dann", "target --balance", "target --with_source"])
def test_a_backbone_trains_in_every_mode_and_a_frozen_one_keeps_its_weights(
    mode: str, freeze: tuple[str, ...], photos: Path, tmp_path: Path
) -> None:
    word, *more = mode.split()
    found = quick_run(photos, tmp_path, word, "usps", *TINY, *freeze, *more)
    torch.manual_seed(0)
    trained = state(Path(found["folder"]))
    settings = train.read_settings(
        train.build_parser().parse_args(["--data_root", "x", "--train_mode", "source", *QUICK, *TINY])
    )
    body = train.pretrained(settings)
    assert body is not None
    name, start = next(iter(body.named_parameters()))
    kept = torch.equal(trained[f"feature_extractor.backbone.{name}"], start)
    assert kept == bool(freeze)
    assert found["target_val_accuracy"] is not None
    assert load_checkpoint(Path(found["folder"]) / "last.pt")["model_args"]["preprocessing"]["crop"] == 0.875


def test_strong_trains_a_backbone_on_mirrored_views(photos: Path, tmp_path: Path) -> None:
    words = (*TINY, "--recipe", "strong")
    first, second = (quick_run(photos, tmp_path, "dann", "usps", *words, *more) for more in ((), ("--mirror",)))
    assert first["losses"]["L_u"] is not None
    assert not same_tensors(*(state(Path(each["folder"])) for each in (first, second)))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that pass a frozen backbone."""
    sizes: list[int] = []
    features = DANN.backbone_features

    def counting(net: DANN, x: Tensor) -> Tensor:
        sizes.append(len(x))
        return features(net, x)

    monkeypatch.setattr(DANN, "backbone_features", counting)
    return sizes


def test_a_frozen_backbone_sees_every_image_once(
    photos: Path, tmp_path: Path, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DANN, "preprocess", lambda net, x: x.float() / 255)
    words = (*FROZEN, "--cache", "none")
    quick_run(photos, tmp_path, "dann", "usps", *words)
    assert sum(seen) == 13 + 18 + 9 + 9
    (tmp_path / "mnistm").symlink_to(photos / "mnistm")
    (tmp_path / "usps").symlink_to(photos / "usps" / "train")  # no val: what is measured is measured on train
    seen.clear()
    quick_run(tmp_path, tmp_path, "dann", "usps", *words)
    assert sum(seen) == 13 + 18 + 9


def test_features_are_kept_for_the_next_run_of_the_same_images_and_weights(
    photos: Path, tmp_path: Path, seen: list[int]
) -> None:
    data = shutil.copytree(photos, tmp_path / "data")
    words = (*FROZEN, "--cache", str(tmp_path / "cache"))

    def run(*more: str) -> dict[str, Tensor]:
        seen.clear()
        return state(Path(quick_run(data, tmp_path, "dann", "usps", *words, *more)["folder"]))

    first = run()
    assert sum(seen) == 13 + 18 + 9 + 9
    assert same_tensors(run(), first)
    assert not seen
    assert not same_tensors(run("--seed", "1"), first)  # of other random weights
    assert sum(seen) == 13 + 18 + 9 + 9
    image = next((data / "usps" / "val").rglob("*.png"))
    Image.open(image).rotate(90).save(image)
    run("--seed", "1")
    assert sum(seen) == 9
    damaged = next((tmp_path / "cache").glob("features-usps-train*"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    again = run("--seed", "1")
    assert sum(seen) == 18
    assert same_tensors(again, run("--seed", "1", "--cache", "none"))


def test_the_features_of_a_frozen_backbone_are_what_prediction_computes(frozen_run: Path, photos: Path) -> None:
    net, _ = build_network(frozen_run, load_checkpoint(frozen_run / "last.pt"), CPU)
    x = images()
    with torch.no_grad():
        for domain in (SOURCE, TARGET):
            torch.testing.assert_close(net(net.backbone_features(x), domain), net(x, domain))


@pytest.mark.parametrize("splits", [("train", "val"), ("train",)], ids=["a val of the same names", "no val"])
def test_the_features_of_the_images_that_the_target_is_measured_on_are_their_own(
    splits: tuple[str, ...], photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "mnistm").symlink_to(photos / "mnistm")
    for k, split in enumerate(splits):
        (tmp_path / "usps" / split).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (40, 40), (20 * i, 90 * k, 0)).save(tmp_path / "usps" / split / f"{i}.png")
    words = ["--data_root", str(tmp_path), "--train_mode", "dann", "--target_file", "usps", *FROZEN]
    asked = read_settings(train.build_parser().parse_args(words))
    data = train.load_data(asked)
    net = train.start_run(asked, tmp_path, data, CPU, Ranks(rank=1)).net
    sample = data.on_target
    assert sample is not None
    assert sample.features is not None
    with torch.no_grad():
        torch.testing.assert_close(sample.features, net.backbone_features(as_input(sample.images[:])))


def test_a_frozen_run_validates_on_all_of_the_sources_val_and_reads_no_image_for_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "SAMPLE_IMAGES", 2)
    monkeypatch.setattr(Domain, "some", None)
    found = quick_run(photos, tmp_path, "dann", "usps", *FROZEN)
    assert [line["source_val_accuracy"] is None for line in found["validations"]] == [False, False]


@pytest.mark.parametrize("words", [TINY, FROZEN], ids=["whole", "frozen"])
def test_a_backbone_is_resumed_to_the_bit_without_its_weights(
    words: tuple[str, ...], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "sure_of_target", lambda *_: True)
    whole = Path(quick_run(photos, tmp_path, "dann", "usps", *words, "--run_name", "whole")["folder"])
    with ctrl_c_in_step(1):
        assert quick_run(photos, tmp_path, "dann", "usps", *words, "--run_name", "half")["interrupted"]
    monkeypatch.setattr(train, "against_source_only", lambda *_: None)
    monkeypatch.setattr(train, "pretrained", None)
    half = Path(quick_run(photos, tmp_path, "dann", "usps", *words, "--run_name", "half", "--resume")["folder"])
    first, second = (load_checkpoint(folder / "last.pt") for folder in (whole, half))
    assert same_tensors(first["model"], second["model"])
    assert same_state(first["resume"]["optimizer"], second["resume"]["optimizer"])


def test_a_checkpoint_predicts_draws_and_exports_and_never_downloads(
    frozen_run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    create = backbones.create

    def asking(arch: str, pretrained: bool) -> nn.Module:
        asked.append(pretrained)
        return create(arch, False)

    monkeypatch.setattr(backbones, "create", asking)
    found = inference.main(
        ["--checkpoint", str(frozen_run), "--test_loc", str(photos / "usps" / "val"), "--out_path", str(tmp_path)]
    )
    assert found["count"] == 9
    drawn = tsne.main(["--checkpoint", str(frozen_run), "--data_root", str(photos), "--out_path", str(tmp_path)])
    result = json.loads((frozen_run / "result.json").read_text())
    assert drawn["accuracy"]["usps"] == pytest.approx(result["target_val_accuracy"])
    export.main(["--checkpoint", str(frozen_run), "--out_path", str(tmp_path / "x.pt2")])
    assert asked
    assert not any(asked)


@pytest.mark.parametrize(
    "change",
    [
        {"arch": "resnet999"},
        {"arch": "resnet18"},
        {"preprocessing": None},
        {"preprocessing": {"mean": (0, 0, 0)}},
        {"preprocessing": {**asdict(preprocessing_of("resnet18")), "deviation": (0.0, 1.0, 1.0)}},
        {"preprocessing": {**asdict(preprocessing_of("resnet18")), "crop": float("nan")}},
        {"preprocessing": {**asdict(preprocessing_of("resnet18")), "interpolation": "mode"}},
        {"size": 8000},
    ],
)
def test_a_checkpoint_of_a_backbone_that_cannot_be_is_refused(change: dict[str, Any], frozen_run: Path) -> None:
    checkpoint = load_checkpoint(frozen_run / "last.pt")
    checkpoint["model_args"] |= change
    with pytest.raises(UserError, match=r"last\.pt"):
        build_network(frozen_run / "last.pt", checkpoint, CPU)


def test_timm_gives_a_backbone_where_it_is_installed(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    arch = "timm:test_efficientnet"
    found = quick_run(photos, tmp_path, "dann", "usps", *TINY, "--arch", arch)
    net, _ = build_network(Path(found["folder"]), load_checkpoint(Path(found["folder"]) / "last.pt"), CPU)
    kinds = {type(layer) for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)}
    assert kinds == {nn.BatchNorm2d}  # timm's, in one layer with ReLU, would lose it as SyncBatchNorm
    body = net.feature_extractor[0]
    whole, _ = backbones.with_head(arch, pretrained=False)
    whole.reset_classifier(0)  # type: ignore[operator]
    again = backbone(arch)
    for theirs, ours in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        ours.copy_(theirs)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), whole.eval()(x))
    assert any(isinstance(layer, DomainBatchNorm) for layer in body.modules())
    assert backbones.known("timm:resnet18.a1_in1k")
    assert not backbones.known("timm:hf-hub:someone/something")
    assert "timm:resnet18" in backbones.nearest("timm:resnet1O")


# Photos


def test_a_photo_becomes_the_middle_square_that_the_weights_were_trained_on(tmp_path: Path) -> None:
    from torchvision.models import EfficientNet_B0_Weights

    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (12, 9, 3), dtype=np.uint8)).resize((400, 530))
    smooth.save(tmp_path / "x.png")
    wanted = EfficientNet_B0_Weights.DEFAULT.transforms()
    theirs = (wanted(smooth).permute(1, 2, 0) * torch.tensor(wanted.std) + torch.tensor(wanted.mean)) * 255
    ours = read_image(tmp_path / "x.png", 224, preprocessing_of("efficientnet_b0"))
    assert isinstance(ours, np.ndarray)
    assert np.abs(ours.astype(float) - theirs.numpy()).mean() < 1.5


@pytest.mark.parametrize("kind", ["cmyk", "rotated", "panorama", "tall", "huge", "one pixel"])
def test_any_photo_becomes_a_square_upright_and_in_its_colours(kind: str, tmp_path: Path) -> None:
    sizes = {"panorama": (3000, 20), "tall": (20, 3000), "huge": (10000, 10000), "one pixel": (1, 1)}
    photo = Image.new("RGB", sizes.get(kind, (80, 60)), (200, 30, 60))
    more: dict[str, Any] = {}
    if kind == "cmyk":
        photo = photo.convert("CMYK")
    if kind == "rotated":  # a phone held upright: stored on its side, to be turned by a quarter
        photo.paste((20, 30, 220), (0, 0, 80, 30))
        exif = Image.Exif()
        exif[0x0112] = 6
        more = {"exif": exif}
    photo.save(tmp_path / "x.jpg", quality=95, **more)
    pixels = read_image(tmp_path / "x.jpg", 32, preprocessing_of("resnet18"))
    assert isinstance(pixels, np.ndarray)
    assert pixels.shape == (32, 32, 3)
    red = pixels[:, :10] if kind == "rotated" else pixels
    assert np.abs(red.reshape(-1, 3).astype(int) - (200, 30, 60)).max() < 25
    if kind == "rotated":
        assert (pixels[:, 22:, 2] > 150).all()


# Class priors


def test_balance_draws_the_classes_alike_and_every_image_of_a_class() -> None:
    labels = torch.tensor([0] * 90 + [1] * 9 + [2])
    domain = Domain(torch.zeros(100, 2, 2, 3, dtype=torch.uint8), labels, [str(i) for i in range(100)])
    batches = Batches(domain, 32, 0, SOURCE, CPU, balance=True)
    drawn = torch.cat([batches.indices(step) for step in range(100)])
    assert (labels[drawn].bincount() / len(drawn) - 1 / 3).abs().max() < 0.03
    assert drawn.bincount()[90:99].min() > 60
    again = Batches(domain, 32, 0, SOURCE, CPU, balance=True)
    assert torch.equal(again.indices(7), batches.indices(7))

"""Checkpoints are read without running their code; the published ones predict what they predicted."""

import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from torch import nn

import checkpoint
from checkpoint import build_network, load_checkpoint, resolve_checkpoint
from utils import UserError, save_checkpoint


class Published(nn.Module):
    """The published class as DESIGN states it, rebuilt to write files like the published ones."""

    def __init__(self) -> None:
        super().__init__()
        self.feature = nn.Sequential(
            nn.Conv2d(3, 64, 5),
            nn.BatchNorm2d(64),
            nn.MaxPool2d(2),
            nn.ReLU(True),
            nn.Conv2d(64, 50, 5),
            nn.BatchNorm2d(50),
            nn.Dropout2d(),
            nn.MaxPool2d(2),
            nn.ReLU(True),
        )
        self.class_classifier = nn.Sequential()
        for name, layer in (
            ("c_fc1", nn.Linear(800, 100)),
            ("c_bn1", nn.BatchNorm1d(100)),
            ("c_relu1", nn.ReLU(True)),
            ("c_drop1", nn.Dropout()),
            ("c_fc2", nn.Linear(100, 100)),
            ("c_bn2", nn.BatchNorm1d(100)),
            ("c_relu2", nn.ReLU(True)),
            ("c_fc3", nn.Linear(100, 10)),
        ):
            self.class_classifier.add_module(name, layer)
        self.domain_classifier = nn.Sequential()
        for name, layer in (
            ("d_fc1", nn.Linear(800, 100)),
            ("d_bn1", nn.BatchNorm1d(100)),
            ("d_relu1", nn.ReLU(True)),
            ("d_fc2", nn.Linear(100, 2)),
        ):
            self.domain_classifier.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.class_classifier(self.feature(x).flatten(1))


def save_as_published(path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str = "CNNModel") -> None:
    """Pickle a whole module under the name `src.dann.<name>`, and forget that module again."""
    package, home = types.ModuleType("src"), types.ModuleType("src.dann")
    kind = type(name, (type(module),), {"__module__": "src.dann"})
    setattr(home, name, kind)
    module.__class__ = kind
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "src", package)
        patch.setitem(sys.modules, "src.dann", home)
        torch.save(module, path)


def trained(module: nn.Module) -> nn.Module:
    """The module with BatchNorm statistics that are not the initial ones."""
    module.train()
    torch.manual_seed(1)
    for _ in range(3):
        module(torch.rand(8, 3, 28, 28) * 2 - 1)
    return module.eval()


def test_a_published_file_predicts_what_the_pickled_module_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module = trained(Published())
    save_as_published(tmp_path / "ep1_svhn_acc=0.5.pt", monkeypatch, module)
    images = torch.randint(0, 256, (16, 3, 28, 28), dtype=torch.uint8)
    with torch.no_grad():
        wanted = module(images.float() / 127.5 - 1)
    net, classes = build_network(tmp_path, load_checkpoint(tmp_path / "ep1_svhn_acc=0.5.pt"), torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(net(images), wanted)
    assert classes == [str(k) for k in range(10)]
    assert "src.dann" not in sys.modules


def test_reading_a_published_file_runs_none_of_its_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_as_published(tmp_path / "x.pt", monkeypatch, Published())
    monkeypatch.setattr(nn.Module, "__setstate__", lambda *_: pytest.fail("ran code of a module"))
    monkeypatch.setattr(nn.Conv2d, "__init__", lambda *_: pytest.fail("ran code of a module"))
    assert load_checkpoint(tmp_path / "x.pt")["model_args"]["arch"] == "published"


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (Path("evil-was-here"), "x"))


@pytest.mark.parametrize("content", [Evil(), {"model": Evil()}, {"model": {}, "resume": [Evil()]}])
def test_a_pickle_that_names_anything_else_is_refused_and_not_run(
    content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, "evil.pt")
    with pytest.raises(UserError, match=r"evil.pt holds more than tensors and plain values and was not read \(.*\)"):
        load_checkpoint(Path("evil.pt"))
    (tmp_path / "old.pt").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError):
        load_checkpoint(Path("old.pt"))
    assert not Path("evil-was-here").exists()


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.feature = nn.Linear(2, 2)


def test_a_pickled_module_of_another_class_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_as_published(tmp_path / "x.pt", monkeypatch, Other(), "OtherModel")
    with pytest.raises(UserError, match=r"src\.dann\.OtherModel"):
        load_checkpoint(tmp_path / "x.pt")


def test_a_published_class_of_another_architecture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_as_published(tmp_path / "x.pt", monkeypatch, Other())
    with pytest.raises(UserError, match="another architecture than the published one"):
        load_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"<html>" * 99,
        lambda data: data[:400] + bytes(200) + data[600:],
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_sentence(damage: Any, dann_run: Path, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(damage((dann_run / "last.pt").read_bytes()))
    with pytest.raises(UserError) as refusal:
        load_checkpoint(tmp_path / "x.pt")
    assert str(refusal.value).startswith(f"{tmp_path / 'x.pt'} ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [{"model": {}}, [1, 2], torch.zeros(3)])
def test_a_torch_file_that_is_no_checkpoint_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match="is not a checkpoint of this program"):
        load_checkpoint(tmp_path / "x.pt")


def test_weights_that_do_not_fit_their_network_are_refused(dann_run: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(dann_run / "last.pt")
    for change in ({"num_classes": 7}, {"arch": "published"}, {"arch": "x"}, {"depth": 3}):
        wrong = {**checkpoint, "model_args": {**checkpoint["model_args"], **change}}
        with pytest.raises(UserError, match="the weights do not fit the network"):
            build_network(tmp_path / "x.pt", wrong, torch.device("cpu"))


def test_a_checkpoint_holds_tensors_and_plain_values_only(dann_run: Path) -> None:
    content = torch.load(dann_run / "last.pt", weights_only=True)
    assert set(content) == {"model", "model_args", "args", "step", "metrics", "versions", "resume"}
    assert content["args"]["classes"] == [str(k) for k in range(10)]


def test_a_run_folder_stands_for_the_checkpoint_that_its_result_selected(dann_run: Path, tmp_path: Path) -> None:
    assert resolve_checkpoint(dann_run) == dann_run / "last.pt"
    (tmp_path / "last.pt").touch()
    (tmp_path / "step0000003.pt").touch()
    assert resolve_checkpoint(tmp_path).name == "last.pt"
    (tmp_path / "result.json").write_text('{"checkpoint": "step0000003.pt"}')
    assert resolve_checkpoint(tmp_path).name == "step0000003.pt"


def test_a_path_without_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; name a run folder or a checkpoint file"):
        resolve_checkpoint(tmp_path / "x")
    with pytest.raises(UserError, match=r"holds no last.pt \(no .pt file\)"):
        resolve_checkpoint(tmp_path)


def test_an_interrupted_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "x.pt", {"step": 1})

    def full_disk(content: Any, file: IO[bytes]) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "x.pt", {"step": 2})
    assert torch.load(tmp_path / "x.pt") == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]


def test_an_archive_that_would_fill_the_memory_is_refused_before_it_is_unpacked(
    dann_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "MAX_BYTES", 20 << 20)
    bomb = tmp_path / "bomb.pt"
    with (
        zipfile.ZipFile(dann_run / "last.pt") as whole,
        zipfile.ZipFile(bomb, "w", compression=zipfile.ZIP_DEFLATED, compresslevel=1) as packed,
    ):
        for entry in whole.infolist():
            content = whole.read(entry)
            if entry.filename.endswith("data/0"):
                with packed.open(entry.filename, "w", force_zip64=True) as file:
                    file.write(bytes(30 << 20))  # zeros: a few kB in the file
            else:
                packed.writestr(entry.filename, content)
    assert bomb.stat().st_size < 20 << 20
    with pytest.raises(UserError, match=r"bomb.pt unpacks to 3\d,\d+,\d+ bytes, more than 20,971,520"):
        load_checkpoint(bomb)

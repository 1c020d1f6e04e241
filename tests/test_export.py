"""An exported file predicts what the checkpoint does, without this repository."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import export
from checkpoint import build_network, load_checkpoint
from model import DANN
from utils import UserError


def test_a_pt2_file_predicts_the_same_in_a_process_that_knows_nothing_of_us(dann_run: Path, tmp_path: Path) -> None:
    outcome = export.main(["--checkpoint", str(dann_run), "--out_path", str(tmp_path / "model.pt2")])
    assert outcome["difference"] <= 1e-4
    images = torch.randint(0, 256, (7, 3, 28, 28), dtype=torch.uint8)
    torch.save(images, tmp_path / "images.pt")
    script = (
        "import torch; extra = {'classes.json': ''}\n"
        "model = torch.export.load('model.pt2', extra_files=extra).module()\n"
        "torch.save({'p': model(torch.load('images.pt')), 'classes': str(extra['classes.json'])}, 'out.pt')\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    found = torch.load(tmp_path / "out.pt")
    net, classes = build_network(dann_run, load_checkpoint(dann_run / "last.pt"), torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(found["p"], net(images).softmax(1), rtol=0, atol=1e-4)
    assert json.loads(found["classes"]) == classes == outcome["classes"]


def test_the_published_network_is_exported_too(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (export.EXAMPLE, 3, 28, 28), dtype=torch.uint8)
    predictor = export.Predictor(DANN(arch="published").eval())
    assert export.write_pt2(tmp_path / "model.pt2", predictor, images, list("0123456789")) <= 1e-4


def test_an_onnx_file_predicts_the_same_where_the_packages_are_installed(dann_run: Path, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    outcome = export.main(["--checkpoint", str(dann_run), "--out_path", str(tmp_path / "model.onnx")])
    assert outcome["difference"] <= 1e-4
    assert (tmp_path / "model.onnx").stat().st_size > 10_000


def test_without_the_onnx_packages_one_sentence_says_what_to_install(
    dann_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match="run pip install onnx onnxscript onnxruntime"):
        export.main(["--checkpoint", str(dann_run), "--out_path", str(tmp_path / "model.onnx")])
    assert not list(tmp_path.iterdir())


def test_another_ending_is_refused(dann_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must be a file that ends in \.pt2 or \.onnx"):
        export.main(["--checkpoint", str(dann_run), "--out_path", str(tmp_path / "model.bin")])


def test_a_file_that_predicts_something_else_is_not_written(
    dann_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="would not predict what the checkpoint does"):
        export.main(["--checkpoint", str(dann_run), "--out_path", str(tmp_path / "model.pt2")])
    assert not list(tmp_path.iterdir())

"""An exported file predicts what the checkpoint does, without this repository."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ended

import export
from model import DANN
from runs import build_network, load_checkpoint


@pytest.mark.slow
def test_a_pt2_file_predicts_the_same_in_a_process_that_knows_nothing_of_us(dann_run: Path, tmp_path: Path) -> None:
    outcome = export.main(["--checkpoint", str(dann_run), "--out_path", str(tmp_path / "model.pt2")])
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


@pytest.mark.parametrize(("arch", "norm"), [("small", "domain"), ("published", "domain"), ("small", "shared")])
def test_each_network_is_exported_and_predicts_what_it_did(arch: str, norm: str, tmp_path: Path) -> None:
    predictor = torch.nn.Sequential(DANN(arch=arch, norm=norm).eval(), torch.nn.Softmax(1))
    images = torch.randint(0, 256, (export.EXAMPLE, 3, 28, 28), dtype=torch.uint8)
    export.write_pt2(tmp_path / "model.pt2", predictor, images, list("0123456789"))
    more = torch.randint(0, 256, (9, 3, 28, 28), dtype=torch.uint8)
    again = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(again(more), predictor(more), rtol=0, atol=1e-4)


def test_an_onnx_file_is_written_where_the_packages_are_installed(dann_run: Path, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    export.main(["--checkpoint", str(dann_run), "--out_path", str(tmp_path / "model.onnx")])
    assert (tmp_path / "model.onnx").stat().st_size > 10_000


def write_another(path: Path, predictor: Any, images: torch.Tensor, classes: list[str]) -> float:
    path.write_text("x")
    return export.compare(predictor(images) + 0.01, predictor(images))


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("model.onnx", r"--out_path.*pip install onnx"),  # the package is missing
        ("model.bin", r"--out_path .*model\.bin"),
        ("model.pt2", r"--out_path.*0\.01"),  # it would predict something else
    ],
)
def test_a_refusal_names_the_flag_and_writes_none(
    name: str, names: str, dann_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(export.FORMATS, ".pt2", write_another)
    code, _, error = ended(export, "--checkpoint", dann_run, "--out_path", tmp_path / name)
    assert code == 2
    assert re.search(names, error)
    assert not list(tmp_path.iterdir())

"""The training step names no device and never waits for one; bfloat16 learns what float32 learns."""

from pathlib import Path

import pytest
import torch
from strong import Teacher

import train
from augment import views
from dataset import Batches, Domain
from losses import Step, train_step
from model import DANN

META = torch.device("meta")  # has shapes and no values: any .item(), and any tensor of another device, is an error


@pytest.mark.parametrize("arch", ["small", "published"])
@pytest.mark.parametrize("strong", [False, True])
def test_a_whole_step_runs_where_its_data_is_without_reading_a_value(arch: str, strong: bool) -> None:
    net = DANN(10, arch).to(META).train()
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, foreach=True)
    x_s, x_t = (torch.empty(8, 3, 28, 28, dtype=torch.uint8, device=META) for _ in range(2))
    y_s = torch.empty(8, dtype=torch.int64, device=META)
    pseudo = None
    if strong:
        teacher = Teacher(net, 0.99, 0.85)
        pseudo = teacher.label(x_t)
        x_s, x_t = views(x_s, paste=True), views(x_t, paste=False)
    losses = Step(net)(x_s, y_s, x_t, 0.5, pseudo, 0.5)
    train_step(optimizer, losses)
    if strong:
        teacher.follow(net, 3)
        teacher.meet_source([x_s])
    assert {value.device.type for value in losses.values()} == {"meta"}
    assert all(p.grad is not None and p.grad.device.type == "meta" for p in parameters)


def test_batches_lie_on_the_training_device() -> None:
    domain = Domain(torch.zeros(20, 28, 28, 3, dtype=torch.uint8), torch.zeros(20, dtype=torch.int64), [])
    batches = Batches(domain, 8, 0, 0, META)
    assert batches.images.device.type == "meta"
    assert batches.images.dtype == torch.uint8
    x, y = batches(1)
    assert y is not None
    assert x.device.type == y.device.type == "meta"
    assert x.shape == (8, 3, 28, 28)


def test_bfloat16_and_float32_reach_the_same_accuracy(demo_data: Path, tmp_path: Path) -> None:
    """Within the noise of a seed; losses, BatchNorm statistics, weights and optimizer stay float32."""
    found = {}
    for precision in ("bf16", "fp32"):
        found[precision] = train.main(
            ["--data_root", str(demo_data), "--train_mode", "dann", "--target_file", "usps", "--device", "cpu"]
            + ["--save_dir", str(tmp_path), "--max_steps", "120", "-bs", "64", "--precision", precision]
            + ["--run_name", precision]
        )
        assert found[precision]["precision"] == {"bf16": "bfloat16", "fp32": "float32"}[precision]
    for key in ("target_val_accuracy", "source_val_accuracy"):
        assert found["bf16"][key] == pytest.approx(found["fp32"][key], abs=0.08), key
    checkpoint = torch.load(tmp_path / "bf16" / "last.pt")
    assert {value.dtype for value in checkpoint["model"].values()} == {torch.float32}
    state = checkpoint["resume"]["optimizer"]["state"].values()
    assert {value.dtype for entry in state for value in entry.values()} == {torch.float32}

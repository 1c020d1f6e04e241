"""Two processes on the CPU: one set of weights, the gradients of one process, and no rank that outlives another."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import same_tensors

import train
from dataset import Batches, Domain
from losses import Step
from model import DANN

PROJECT = Path(train.__file__).parent


def torchrun(*command: str, cwd: Path = PROJECT, timeout: int = 240) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port), *command],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_the_ranks_shares_make_up_the_batch() -> None:
    images = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(40, 28, 28, 3)
    domain = Domain(images, torch.arange(40), [])
    cpu = torch.device("cpu")
    whole = Batches(domain, 12, 0, 0, cpu)
    shares = [Batches(domain, 12, 0, 0, cpu, rank, 3) for rank in range(3)]
    for step in range(7):
        _, labels = whole(step)
        parts = [share(step)[1] for share in shares]
        assert labels is not None
        assert all(part is not None and len(part) == 4 for part in parts)
        assert sorted(torch.cat([part for part in parts if part is not None]).tolist()) == sorted(labels.tolist())


@pytest.fixture(scope="module")
def two_ranks(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of 120 steps of `dann` on the demo data, by two processes."""
    save_dir = tmp_path_factory.mktemp("two")
    done = torchrun(
        *(str(PROJECT / "train.py"), "--data_root", str(demo_data), "--train_mode", "dann", "--target_file", "usps"),
        *("--device", "cpu", "--save_dir", str(save_dir), "--run_name", "two", "--max_steps", "120", "-bs", "64"),
    )
    assert done.returncode == 0, done.stderr
    return save_dir / "two"


def test_two_processes_reach_the_accuracy_of_one(two_ranks: Path, demo_data: Path, tmp_path: Path) -> None:
    one = train.main(
        ["--data_root", str(demo_data), "--train_mode", "dann", "--target_file", "usps", "--device", "cpu"]
        + ["--save_dir", str(tmp_path), "--max_steps", "120", "-bs", "64"]
    )
    two = train.read_json(two_ranks / "result.json")
    assert two["processes"] == 2
    assert two["target_val_accuracy"] == pytest.approx(one["target_val_accuracy"], abs=0.12)
    assert two["source_val_accuracy"] == pytest.approx(one["source_val_accuracy"], abs=0.12)
    assert [line.name for line in two_ranks.parent.iterdir()] == ["two"]  # rank 1 made no folder of its own


@pytest.mark.parametrize("batchnorm", ["none", "synced"])
def test_ranks_end_with_equal_weights_and_a_step_has_the_gradients_of_one_process(
    batchnorm: str, tmp_path: Path
) -> None:
    """Without BatchNorm, and with BatchNorm over all ranks, which then keeps the statistics of one process too."""
    script = tmp_path / "step.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import torch
            from model import DANN, DomainBatchNorm2d
            from losses import Step
            from parallel import join, synced

            def build():
                torch.manual_seed(0)
                net = DANN(10)
                for module in net.modules():
                    if isinstance(module, torch.nn.Dropout2d):
                        module.p = 0.0
                    if isinstance(module, DomainBatchNorm2d) and "{batchnorm}" == "none":
                        module.forward = lambda x: x
                        module.requires_grad_(False)
                return net

            generator = torch.Generator().manual_seed(1)
            x, x_t = (torch.randint(0, 256, (8, 3, 28, 28), generator=generator).byte() for _ in range(2))
            y = torch.randint(0, 10, (8,), generator=generator)
            with join(torch.device("cpu")) as ranks:
                net = build()
                step = Step(net)
                if ranks.world > 1 and "{batchnorm}" == "synced":
                    step = synced(step)
                step = ranks.wrap(step)
                mine = slice(ranks.rank, None, ranks.world)
                losses = step(x[mine], y[mine], x_t[mine], 0.5)
                (losses["L_y"] + losses["L_d"]).backward()
                grads = {{name: p.grad for name, p in net.named_parameters() if p.grad is not None}}
                optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
                optimizer.step()
                state = {{"grads": grads, "weights": net.state_dict()}}
                torch.save(state, r"{tmp_path}/" + str(ranks.world) + "_" + str(ranks.rank) + ".pt")
            """
        )
    )
    done = torchrun(str(script))
    assert done.returncode == 0, done.stderr
    alone = subprocess.run([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(PROJECT)}, timeout=120)
    assert alone.returncode == 0
    first, second, one = (torch.load(tmp_path / f"{name}.pt") for name in ("2_0", "2_1", "1_0"))
    assert same_tensors(first["weights"], second["weights"])
    assert first["grads"].keys() == one["grads"].keys()
    for what in ("grads", "weights"):
        for name, value in one[what].items():
            torch.testing.assert_close(first[what][name], value, rtol=1e-3, atol=1e-5, msg=f"{what} {name}")


def test_when_one_rank_fails_the_other_ends_too(tmp_path: Path) -> None:
    script = tmp_path / "fail.py"
    script.write_text(
        "import sys, time, torch\nfrom parallel import join\n"
        "with join(torch.device('cpu')) as ranks:\n"
        "    sys.exit(3) if ranks.rank else time.sleep(200)\n"
    )
    assert torchrun(str(script), timeout=100).returncode != 0


def test_a_batch_that_cannot_be_split_is_refused(demo_data: Path, tmp_path: Path) -> None:
    done = torchrun(
        *(str(PROJECT / "train.py"), "--data_root", str(demo_data), "--train_mode", "dann", "--target_file", "usps"),
        *("--save_dir", str(tmp_path / "runs"), "-bs", "63"),
    )
    assert done.returncode != 0
    assert "--batch_size 63 cannot be split over 2 processes" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_one_process_needs_no_wrapper() -> None:
    step = Step(DANN())
    assert train.ALONE.wrap(step) is step

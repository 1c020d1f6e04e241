"""benchmark.py measures what it says, on anything laid out like the digits; how fast is not asserted."""

import json
from pathlib import Path

import benchmark
import pytest
import torch
from benchmark import ByteCounter, alternate, medians
from tables import speed_tables

from dataset import Domain
from runs import Data


def test_what_is_compared_alternates_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []

    def measure(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    found = alternate({"ours": lambda: measure("ours"), "plain": lambda: measure("plain")}, 3)
    assert calls == ["ours", "plain"] * 4
    assert found == {"ours": [3.0, 5.0, 7.0], "plain": [4.0, 6.0, 8.0]}
    assert medians(found) == {"ours": 5.0, "plain": 6.0}


def test_bytes_are_those_of_every_input_and_output_and_of_no_view() -> None:
    a = torch.ones(1000)
    with ByteCounter() as counter:
        (a + a).view(10, 100).t()
    assert counter.bytes == 3 * 4000


def test_operations_of_the_published_step_are_those_counted_by_hand() -> None:
    """A multiplication and an addition are two; the gradient of the images is not asked for."""
    count = 4
    images = torch.zeros(count, 28, 28, 3, dtype=torch.uint8)
    half = Domain(images, torch.arange(count), ["x.png"] * count)
    step = benchmark.BareStep(Data(list("0123456789"), half, half, None, None), "published", torch.device("cpu"))
    step.count = count
    first, second = 2 * 64 * 24**2 * 3 * 5**2, 2 * 50 * 8**2 * 64 * 5**2
    label = 2 * (800 * 100 + 100 * 100 + 100 * 10)  # of the source's images alone: half of a step's
    domain = 2 * (800 * 100 + 100 * 2)
    with benchmark.operation_counter() as counter:
        step.step()
    each = counter.get_total_flops() / (2 * count)
    assert each == 2 * first + 3 * second + 3 * label / 2 + 3 * domain


def test_the_plain_recipe_is_the_network_of_the_bare_step_with_the_steps_of_a_dataloader(small_data: Path) -> None:
    plain = benchmark.PlainTraining(small_data, "small", torch.device("cpu"))
    benchmark.PLAIN_BATCH, before = 16, benchmark.PLAIN_BATCH
    try:
        plain.source, plain.target = (benchmark.plain_batches(small_data, name, 16) for name in ("mnistm", "usps"))
        weights = [p.detach().clone() for p in plain.net.parameters()]
        assert plain.rate(1) > 0
    finally:
        benchmark.PLAIN_BATCH = before
    assert all(not torch.equal(p, old) for p, old in zip(plain.net.parameters(), weights, strict=True))


def test_a_benchmark_ends_in_a_json_from_which_the_table_is_made(
    demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "PlainTraining", None)  # here: the plain recipe runs in processes of its own
    flags = ["--data_root", str(demo_data), "--out", str(tmp_path), "--device", "cpu"]
    flags += ["--repeats", "1", "--steps", "2", "--images", "40"]
    found = benchmark.main([*flags, "--parts", "training", "start"])
    kept = found["training"]
    found = benchmark.main([*flags, "--parts", "prediction"])
    assert found["training"] == kept  # parts that are not run keep what the file says of them
    assert found == json.loads((tmp_path / "benchmark-cpu.json").read_text())
    for arch in ("small", "published"):
        m = found["training"][arch]
        assert m["times_plain"] == pytest.approx(m["images_per_second"] / m["plain_images_per_second"], abs=0.01)
        assert 0 < m["share_of_matrix_rate"] < 1.2
        assert found["prediction"][arch]["images"] == 40
    assert found["prediction"]["published"]["trained_for_steps"] == 20  # untrained, it would be in doubt of everything
    start = found["start"]
    assert start["images"].keys() == {"labelled", "unlabelled", "source_val", "target_val"}
    assert start["launch_to_first_step_seconds"] > start["read_seconds"] > 0
    assert "python benchmark.py" in found["start"]["command"]
    table = "\n".join(speed_tables(tmp_path))
    assert "prediction of 40 PNGs, `small`" in table
    assert "launch to the end of the first training step" in table

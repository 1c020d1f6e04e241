"""Exit codes, atomic files, devices, interrupts, progress and processes; and the rules that every module keeps."""

import argparse
import ast
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
from conftest import QUICK, ended, quick_run, same_tensors

import utils
from backbones import backbone
from dataset import Batches, Domain
from losses import Objective
from model import DANN
from runs import load_checkpoint, read_json
from utils import InterruptFlag, Progress, Ranks, UserError, atomic_path, choose_device, choose_precision

PROJECT = Path(utils.__file__).parent
SCRIPTS = {"train", "inference", "tsne", "export", "report", "prepare_data"}
LIBRARIES = {
    "backbones",
    "config",
    "model",
    "losses",
    "augment",
    "cache",
    "listing",
    "dataset",
    "metrics",
    "runs",
    "plots",
    "latent",
    "page",
    "utils",
}
CPU = torch.device("cpu")
CONVOLUTIONS = ("conv1.weight", "layer1.0.conv2.weight", "layer4.1.conv2.weight")  # of resnet18


# How a script ends


def raising(error: BaseException) -> Callable[[list[str]], NoReturn]:
    def main(argv: list[str]) -> NoReturn:
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "names"),
    [
        (lambda _: {}, 0, ""),
        (lambda _: {"left_out": {"x.png": "why"}}, 1, ""),
        (lambda _: {"interrupted": True}, 130, ""),
        (raising(KeyboardInterrupt()), 130, "script.py"),
        (raising(UserError("one\nsentence.")), 2, "script.py"),
        (raising(OSError(28, "No space left on device", "/x")), 2, "/x"),
        (raising(MemoryError()), 2, "--batch_size"),
    ],
)
def test_the_exit_code_says_how_it_ended_and_one_line_why(
    main: Callable[[list[str]], dict], code: int, names: str
) -> None:
    found, _, errors = ended(SimpleNamespace(__name__="script", main=main))
    assert found == code
    assert len(errors.strip().splitlines()) == bool(names)
    assert names in errors


def test_a_fault_of_ours_shows_its_traceback_and_does_not_count_as_done() -> None:
    code, _, errors = ended(SimpleNamespace(__name__="script", main=raising(ZeroDivisionError())))
    assert code == 2
    assert "Traceback" in errors


def test_the_first_ctrl_c_raises_a_flag_and_the_second_interrupts_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)

    def twice() -> None:
        with InterruptFlag() as interrupt:
            assert not interrupt.raised
            signal.raise_signal(signal.SIGINT)
            assert interrupt.raised
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        twice()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_number_out_of_its_bounds_or_none_is_refused_as_it_was_written() -> None:
    whole, above = utils.bounded(int, 2, 9), utils.bounded(float, 2, 9, exclusive=True)
    assert (whole("2"), whole("9"), above("2.5"), above("9")) == (2, 9, 2.5, 9)
    for parse, others in ((whole, ("1", "2.5", "1e400")), (above, ("2", "1e400"))):
        for text in (*others, "10", "nan", "inf", "x", "", "9" * 24):
            with pytest.raises(argparse.ArgumentTypeError, match=f"^'{text}'"):
                parse(text)


# Files, devices, progress


def test_an_atomic_file_is_whole_or_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.txt"
    with atomic_path(path) as part:
        part.write_text("first")
        assert not path.exists()

    def write_half() -> None:
        with atomic_path(path) as part:
            part.write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        write_half()
    assert path.read_text() == "first"
    assert [file.name for file in path.parent.iterdir()] == ["x.txt"]


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    there = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available()}
    missing = next(name for name, here in there.items() if not here)
    with pytest.raises(UserError, match=rf"--device {missing} .*\bcpu\b"):
        choose_device(missing)


@pytest.mark.parametrize(("flags", "precision"), [("fma avx512_bf16", torch.bfloat16), ("fma avx2", torch.float32)])
def test_precision_is_as_asked_and_by_default_what_the_hardware_computes(
    flags: str, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(utils, "cpuinfo", lambda: f"flags : {flags}\n")
    assert choose_precision("auto", CPU) is precision
    assert choose_precision("fp32", CPU) is torch.float32
    assert choose_precision("bf16", CPU) is torch.bfloat16
    assert choose_precision("fp16", CPU) is torch.float16
    assert choose_precision("auto", torch.device("mps")) is torch.float32
    for native, wanted in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert choose_precision("auto", torch.device("cuda")) is wanted


def test_progress_prints_plain_lines_with_rate_and_time_left_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = Progress(100, "read", "images", every=0.0)
    progress.update(25, lambda: "loss 1.0")
    progress.close()
    line = capsys.readouterr().err
    assert re.fullmatch(r"read: 25/100 images, [\d.]+ images/s, \d+ s left, loss 1.0\n", line)


@pytest.mark.parametrize(
    ("load", "cores", "threads", "asked", "left"),
    [(4.0, 2, 2, None, 1), (32.0, 16, 16, None, 8), (2.2, 2, 2, None, 2), (4.0, 2, 2, "2", 2), (4.0, 2, 1, None, 1)],
)
def test_where_others_keep_the_cores_busy_a_run_goes_on_with_its_part_of_them_and_says_so(
    load: float, cores: int, threads: int, asked: str | None, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [threads]
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("torch.get_num_threads", lambda: now[-1])
    monkeypatch.setattr("torch.set_num_threads", now.append)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    said = utils.share_cores(torch.device("cpu"))
    assert now[-1] == left
    assert (said is None) == (left == threads)


def test_the_randomness_of_a_step_is_a_function_of_seed_and_step() -> None:
    def draw(seed: int, step: int) -> float:
        utils.seed_step(seed, step)
        return torch.rand(()).item()

    assert draw(0, 5) == draw(0, 5)
    assert len({draw(seed, step) for seed in range(5) for step in range(20)}) == 100


# Several processes


def test_the_ranks_shares_make_up_the_batch() -> None:
    domain = Domain(torch.zeros(40, 28, 28, 3, dtype=torch.uint8), torch.arange(40), [])
    whole = Batches(domain, 12, 0, 0, CPU)
    shares = [Batches(domain, 12, 0, 0, CPU, Ranks(rank, 3)) for rank in range(3)]
    for step in range(7):
        parts = [share(step)[1] for share in shares]
        assert all(part is not None and len(part) == 4 for part in parts)
        together, labels = torch.cat([part for part in parts if part is not None]), whole(step)[1]
        assert labels is not None
        assert sorted(together.tolist()) == sorted(labels.tolist())


def test_one_process_needs_no_wrapper() -> None:
    objective, alone = Objective(DANN()), Ranks()
    assert alone.wrap(objective) is objective
    assert alone.any(True, CPU, 3) is True
    assert alone.any(False, CPU, 3) is False
    assert alone.from_main(lambda: "x") == "x"
    assert alone.main_first(lambda: "x") == "x"
    assert alone.gather(torch.ones(2)).tolist() == [1, 1]


RUN: dict[str, Any] = {
    "env": {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)},
    "text": True,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.PIPE,
}


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launched(*flags: str) -> list[str]:
    """The beginning of a command that starts several processes."""
    return [sys.executable, "-m", "torch.distributed.run", *flags]


def torchrun(*command: str, timeout: int = 240) -> subprocess.CompletedProcess[str]:
    """A command as two processes on the CPU."""
    words = launched("--nproc-per-node", "2", "--master-port", free_port())
    return subprocess.run([*words, *command], timeout=timeout, check=False, **RUN)


def train_by_two(*words: str) -> subprocess.CompletedProcess[str]:
    return torchrun(str(PROJECT / "train.py"), "--train_mode", "dann", "--target_file", "usps", *QUICK, *words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "flags"), [("dann", ()), ("dann", ("--recipe", "paper")), ("target", ("--with_source",))]
)
def test_two_processes_reach_the_accuracy_of_one(
    mode: str, flags: tuple[str, ...], demo_data: Path, tmp_path: Path
) -> None:
    more = ["--train_mode", mode, "--max_steps", "100", "--batch_size", "32", *flags]
    done = train_by_two("--data_root", str(demo_data), "--save_dir", str(tmp_path / "two"), "--run_name", "x", *more)
    assert done.returncode == 0, done.stderr
    assert [file.name for file in (tmp_path / "two").iterdir()] == ["x"]  # rank 1 made no folder of its own
    one, two = quick_run(demo_data, tmp_path, mode, "usps", *more), read_json(tmp_path / "two" / "x" / "result.json")
    assert two["processes"] == 2
    for name in ("target_val_accuracy", "source_val_accuracy"):
        assert two[name] == pytest.approx(one[name], abs=0.12)


STEP = """
    import torch
    from losses import Objective, total
    from model import DANN, DomainBatchNorm
    from utils import join_ranks

    torch.manual_seed(0)
    net = DANN(10)
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0
        if isinstance(module, DomainBatchNorm):  # on the CPU it sees the share of its rank
            module.forward = lambda x: x
            module.requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    x, x_t = (torch.randint(0, 256, (8, 3, 28, 28), generator=generator).byte() for _ in range(2))
    y = torch.randint(0, 10, (8,), generator=generator)
    with join_ranks(torch.device("cpu")) as ranks:
        mine = slice(ranks.rank, None, ranks.world)
        objective = ranks.wrap(Objective(net))
        total(objective(x[mine], y[mine], x_t[mine], 0.5)[0]).backward()
        gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        torch.save(gradients, f"FOLDER/{ranks.world}_{ranks.rank}.pt")
"""


@pytest.mark.slow
def test_a_step_of_two_processes_has_the_gradients_of_one(tmp_path: Path) -> None:
    script = tmp_path / "step.py"
    script.write_text(textwrap.dedent(STEP).replace("FOLDER", str(tmp_path)))
    done = torchrun(str(script))
    assert done.returncode == 0, done.stderr
    subprocess.run([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(PROJECT)}, check=True)
    first, second, one = (torch.load(tmp_path / f"{name}.pt") for name in ("2_0", "2_1", "1_0"))
    assert same_tensors(first, second)
    assert first.keys() == one.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(first[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


FAILING = """
    import torch
    from utils import UserError, join_ranks, run_script

    def main():
        with join_ranks(torch.device("cpu")) as ranks:
            ranks.any(False, torch.device("cpu"), 0)
            if ranks.main:
                raise UserError("the disk is full")
        return {}

    run_script(main)
"""


@pytest.mark.slow
def test_what_ends_rank_0_alone_is_said_in_its_one_sentence(tmp_path: Path) -> None:
    script = tmp_path / "step.py"
    script.write_text(textwrap.dedent(FAILING))
    done = torchrun(str(script))
    assert done.returncode != 0
    assert "the disk is full" in done.stderr
    assert "RuntimeError" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("freeze", [(), ("--freeze",)])
def test_two_processes_train_a_backbone_or_its_heads_alone(
    freeze: tuple[str, ...], small_data: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "weights.pth"
    torch.save(backbone("resnet18").state_dict(), weights)
    words = ("--arch", "resnet18", "--weights", str(weights), "--size", "32", "--max_steps", "2", *freeze)
    done = train_by_two("--data_root", str(small_data), "--save_dir", str(tmp_path), "--run_name", "x", *words)
    assert done.returncode == 0, done.stderr
    trained, start = load_checkpoint(tmp_path / "x" / "last.pt")["model"], torch.load(weights)
    kept = [torch.equal(trained[f"feature_extractor.backbone.{name}"], start[name]) for name in CONVOLUTIONS]
    assert kept == [bool(freeze)] * len(CONVOLUTIONS)
    assert read_json(tmp_path / "x" / "result.json")["processes"] == 2


COUNTED = """
    import os
    import dataset, model, train
    from utils import run_script

    def counted(name, inner):
        def outer(*given):
            with open(f"FOLDER/{name}{os.environ['RANK']}", "a") as file:
                print(file=file)
            return inner(*given)
        return outer

    dataset.read_image = counted("decoded", dataset.read_image)
    model.DANN.backbone_features = counted("features", model.DANN.backbone_features)
    run_script(train.main)
"""


@pytest.mark.slow
def test_of_two_processes_one_decodes_and_computes_the_features_that_both_then_read(
    small_data: Path, tmp_path: Path
) -> None:
    script = tmp_path / "counted.py"
    script.write_text(textwrap.dedent(COUNTED).replace("FOLDER", str(tmp_path)))
    words = ["--data_root", str(small_data), "--train_mode", "dann", "--target_file", "usps"]
    words += [*QUICK, "--max_steps", "2"]
    words += ["--arch", "resnet18", "--weights", "none", "--freeze", "--size", "32", "--save_dir", str(tmp_path)]
    done = torchrun(str(script), *words, "--cache", str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert {file.name for file in tmp_path.glob("[df]*[01]") if file.is_file()} == {"decoded0", "features0"}
    done = torchrun(str(script), *words, "--cache", "none")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "decoded1").stat().st_size == (tmp_path / "decoded0").stat().st_size / 2


@pytest.mark.slow
def test_two_nodes_of_one_process_make_one_run_and_it_names_the_command_of_the_first(
    small_data: Path, tmp_path: Path
) -> None:
    words = ["--data_root", str(small_data), "--train_mode", "dann", "--target_file", "usps", *QUICK]
    words += ["--save_dir", str(tmp_path), "--run_name", "x"]
    first = ["--nnodes", "2", "--node-rank", "0", "--master-addr", "127.0.0.1", "--master-port", free_port()]
    first += ["--nproc-per-node", "1"]
    second = [{"0": "1"}.get(word, word) for word in first]
    nodes = [
        subprocess.Popen([*launched(*flags), str(PROJECT / "train.py"), *words], **RUN) for flags in (first, second)
    ]
    told = [node.communicate(timeout=240) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], told
    result = read_json(tmp_path / "x" / "result.json")
    assert (result["processes"], result["command"]) == (2, shlex.join(["torchrun", *first, "train.py", *words]))
    assert told[1][0] == ""  # the second node says nothing


@pytest.mark.slow
def test_an_image_that_is_missing_ends_both_processes_in_one_sentence(small_data: Path, tmp_path: Path) -> None:
    data = shutil.copytree(small_data, tmp_path / "data")
    image = next((data / "usps" / "data").iterdir())
    image.unlink()
    done = train_by_two("--data_root", str(data), "--save_dir", str(tmp_path / "runs"))
    assert done.returncode != 0
    assert done.stderr.count(str(image)) == 1
    assert "exitcode  : 2" in done.stderr  # as torchrun reports it
    assert "Error: " not in done.stderr.replace("ChildFailedError: ", "")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_when_one_rank_fails_the_other_ends_too(tmp_path: Path) -> None:
    script = tmp_path / "fail.py"
    script.write_text(
        "import sys, time, torch\nfrom utils import join_ranks\n"
        "with join_ranks(torch.device('cpu')) as ranks:\n"
        "    sys.exit(3) if ranks.rank else time.sleep(200)\n"
    )
    assert torchrun(str(script), timeout=100).returncode != 0


@pytest.mark.slow
def test_a_batch_that_cannot_be_split_ends_every_process(small_data: Path, tmp_path: Path) -> None:
    done = train_by_two("--data_root", str(small_data), "--save_dir", str(tmp_path / "runs"), "-bs", "15")
    assert done.returncode != 0
    assert "--batch_size 15" in done.stderr
    assert not (tmp_path / "runs").exists()


# The house


def parsed(module: str) -> ast.Module:
    return ast.parse((PROJECT / f"{module}.py").read_text())


def imports(module: str) -> set[str]:
    """Top-level names that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_the_modules_are_those_of_the_design_and_no_library_needs_a_script_the_laboratory_or_itself() -> None:
    assert {file.stem for file in PROJECT.glob("*.py")} == SCRIPTS | LIBRARIES
    needs = {module: imports(module) for module in SCRIPTS | LIBRARIES}
    assert not any("lab" in names for names in needs.values())
    assert not any(needs[module] & SCRIPTS for module in LIBRARIES)
    left = set(needs)
    while free := {module for module in left if not needs[module] & left}:
        left -= free
    assert left == set(), "these import each other in a circle"


@pytest.mark.parametrize("module", sorted(SCRIPTS | LIBRARIES))
def test_nothing_runs_at_import(module: str) -> None:
    """Only imports, definitions and constants stand at the top level."""
    for node in parsed(module).body:
        plain = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        guard = isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
        assert isinstance(node, plain) or docstring or guard, ast.unparse(node)


def test_no_private_part_of_torch_is_used() -> None:
    private = re.compile(r"torch\._C|torch\.ops\.|_foreach_|torch\.utils\._|\._is_")
    product = [*PROJECT.glob("*.py"), *PROJECT.glob("data_tools/*.py")]
    assert [file.name for file in product if private.search(file.read_text())] == []


def test_importing_the_scripts_leaves_matplotlib_as_it_was() -> None:
    code = (
        "import sys, matplotlib\n"
        "before = matplotlib.rcParams.copy()\n"
        f"import {', '.join(sorted(SCRIPTS))}\n"
        "assert before == matplotlib.rcParams.copy()\n"  # with the backend
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


def test_a_training_starts_without_the_libraries_that_its_end_needs() -> None:
    code = "import sys, train; assert not {'sklearn', 'scipy', 'pandas', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)

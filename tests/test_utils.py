"""Exit codes, atomic files, devices and progress of every script."""

import ast
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from records import read_metrics

import utils
from utils import Progress, UserError, atomic_path, choose_device, choose_precision

PROJECT = Path(utils.__file__).parent
SCRIPTS = sorted(file.name for file in PROJECT.glob("*.py") if "run_script(main)\n" in file.read_text())


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_opens_with_the_purpose_of_the_script(script: str) -> None:
    done = subprocess.run(
        [sys.executable, script, "--help"],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        check=False,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert done.returncode == 0
    assert ast.get_docstring(ast.parse((PROJECT / script).read_text())).splitlines()[0] in done.stdout  # type: ignore[union-attr]
    assert not re.search("@[A-Z_]+@", done.stdout)  # no placeholder left


@pytest.mark.parametrize("module", sorted(file.stem for file in PROJECT.glob("*.py")))
def test_nothing_runs_at_import(module: str) -> None:
    """Only imports, definitions, constants and matplotlib's choice of backend stand at the top level."""
    for node in ast.parse((PROJECT / f"{module}.py").read_text()).body:
        plain = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        guard = isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
        backend = isinstance(node, ast.Expr) and ast.unparse(node) == "matplotlib.use('Agg')"
        assert isinstance(node, plain) or docstring or guard or backend, ast.unparse(node)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("return {}", 0),
        ("return {'left_out': {'x.png': 'why'}}", 1),
        ("raise utils.UserError('one sentence.')", 2),
        ("raise OSError(28, 'No space left on device', '/x')", 2),
        ("raise KeyboardInterrupt", 130),
        ("return {'interrupted': True}", 130),
    ],
)
def test_the_exit_code_says_how_it_ended(body: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import utils\ndef main():\n    {body}\nutils.run_script(main)"],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        check=False,
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    if code == 2:
        assert done.stderr.count("\n") == 1


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


def test_a_half_written_last_line_of_the_log_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}]


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    missing = next(
        name
        for name, there in (("mps", torch.backends.mps.is_available()), ("cuda", torch.cuda.is_available()))
        if not there
    )
    with pytest.raises(UserError, match=f"--device {missing} is not available on this machine; use --device auto or"):
        choose_device(missing)


def test_precision_is_as_asked_and_float32_where_bfloat16_would_be_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert choose_precision("fp32", cpu) is torch.float32
    assert choose_precision("bf16", cpu) is torch.bfloat16
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: False, raising=False)
    assert choose_precision("auto", cpu) is torch.float32
    assert choose_precision("auto", torch.device("mps")) is torch.float32


def test_progress_prints_plain_lines_with_rate_and_time_left_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = Progress(100, "read", "images", every=0.0)
    progress.update(25, lambda: "loss 1.0")
    progress.close()
    line = capsys.readouterr().err
    assert line.startswith("read: 25/100 images, ")
    assert " images/s, " in line
    assert line.endswith(" s left, loss 1.0\n")


def test_the_randomness_of_a_step_is_a_function_of_seed_and_step() -> None:
    def draw(seed: int, step: int) -> float:
        utils.seed_step(seed, step)
        return torch.rand(()).item()

    assert draw(0, 5) == draw(0, 5)
    assert len({draw(seed, step) for seed in range(5) for step in range(20)}) == 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries decide for themselves")
def test_what_a_step_frees_is_kept_for_the_next_instead_of_going_back_to_the_system_page_by_page() -> None:
    code = (
        "import resource, sys, torch, utils\n"
        "if sys.argv[1] == 'kept': utils.keep_freed_memory()\n"
        "def step(): return [torch.ones(7_000_000) for _ in range(5)]\n"  # 28 MB each
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(12): step()\n"  # what it starts with is in pieces
        "before = faults()\n"
        "for _ in range(5): step()\n"
        "print(faults() - before)"
    )
    small_pieces = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}  # glibc's own, held fixed
    kept, usual = (
        int(
            subprocess.run(
                [sys.executable, "-c", code, word],
                cwd=PROJECT,
                check=True,
                capture_output=True,
                env={**os.environ, **small_pieces},
            ).stdout
        )
        for word in ("kept", "usual")
    )
    assert 10 * kept < usual

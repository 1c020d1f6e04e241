"""What every script needs: errors in one sentence, seed, device, precision, processes, atomic files, progress."""

import argparse
import contextlib
import errno
import io
import os
import platform
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
T = TypeVar("T")
ASK_GPU = 50  # steps between two questions to a GPU (is a loss finite? has a rank been interrupted?): each waits for it


class UserError(Exception):
    """Something the user can mend: one sentence that says what is wrong, where, and what to do. Exit code 2.

    A name with a line break in it does not break the sentence in two.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(" ".join(sentence.splitlines()))


class Parser(argparse.ArgumentParser):
    """ArgumentParser that opens --help with the docstring as it stands and reports a bad flag as a UserError."""

    def __init__(self, **kwargs: Any) -> None:
        # without abbreviations a mistyped flag is refused, not guessed
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help.")


def bounded(kind: Callable[[str], Any], low: float, high: float = float("inf"), exclusive: bool = False) -> Any:
    """An argparse `type` that accepts numbers of `kind` in [low, high], or (low, high] with `exclusive`."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except (ValueError, OverflowError):
            value = float("nan")
        if not low <= value <= high or (exclusive and value == low) or value == float("inf"):
            whole = "a whole number" if kind is int else "a number"
            above = f"above {low:,}" if exclusive else f"of at least {low:,}"
            upper = "" if high == float("inf") else f" and at most {high:,}"
            raise argparse.ArgumentTypeError(f"{text!r} is not {whole} {above}{upper}")
        return value

    return parse


SEED = bounded(int, 0, 2**31 - 1)


def user_path(text: str) -> Path:
    """An argparse `type`: a path, `~` expanded, as no shell does behind an equals sign."""
    return Path(os.path.expanduser(text))  # ~nobody, whose home is not known, stays as it is


def note(sentence: str) -> None:
    """Tell the user, on stderr, what is no error and yet not as it seems."""
    print(f"note: {' '.join(sentence.splitlines())}", file=sys.stderr, flush=True)


REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST), "choose another folder"),
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
}


def run_script(main: Callable[[], dict[str, Any]]) -> NoReturn:
    """Run a script's `main` and turn its outcome into the exit code: 0 done, 1 something left out, 2 refused or failed.

    An interrupted script ends with 130, the shell's code for Ctrl-C. `main` names what it left out in `left_out`.
    """
    script = Path(sys.argv[0]).name
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, `>&-`
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text
    warnings.showwarning = lambda message, *where: note(str(message))  # those of a library that no module knows of
    try:
        outcome = main()
        sys.stdout.flush()
    except UserError as error:
        print(f"{script}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{script}: interrupted.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader has left (`| head`): this ends like any Unix program, and --resume continues
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:  # full disk, read-only folder, vanished file
        where = f"{error.filename}: " if error.filename else ""
        remedy = REMEDIES.get(error.errno or 0, "see that the place is there")
        said = f"{where}{error.strerror or error}; nothing was left half written; {remedy} and start again"
        print(f"{script}: {UserError(f'{said} (a training with --resume).')}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:  # each allocator has words of its own
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error):
            print(f"{script}: the memory is used up; use a smaller --batch_size or another --device.", file=sys.stderr)
        else:  # a fault of ours: its traceback is what a report needs, but 1 would say "done"
            traceback.print_exc()
        sys.exit(2)
    sys.exit(130 if outcome.get("interrupted") else 1 if outcome.get("left_out") else 0)


def seed_step(seed: int, step: int) -> None:
    """Seed the generators of every device so that all randomness of a step is a function of (seed, step) alone.

    A resumed run then needs no generator state. The multiplier keeps the streams of neighbouring seeds apart.
    """
    torch.manual_seed((seed * 1_000_003 + step) % 2**63)


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is cuda, else mps, else cpu. Raises UserError when it is not there."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if name == "cuda":  # TF32 would make float32 prediction differ from the CPU's
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if not available[name]:
        here = ", ".join(kind for kind, there in available.items() if there)
        raise UserError(f"--device {name} is not available on this machine; use --device auto or one of: {here}.")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the forward pass: `auto` is bfloat16 where the hardware multiplies it.

    Else it is float16 on an NVIDIA GPU, and float32 elsewhere.
    """
    if name == "auto" and device.type == "cuda":
        name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    elif name == "auto":  # where bfloat16 is emulated, it is slower than float32
        native = device.type == "cpu" and re.search(r"\b(avx512_bf16|amx_bf16)\b", cpuinfo())
        name = "bf16" if native else "fp32"
    return PRECISIONS[name]


def cpuinfo() -> str:
    """What Linux says of the processor; nothing on other systems."""
    with contextlib.suppress(OSError):
        return Path("/proc/cpuinfo").read_text()
    return ""


def memory_of_machine() -> int | None:
    """Bytes of main memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def versions() -> dict[str, str]:
    """Versions and machine that a result depends on."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def shown(value: float | None, digits: int = 4) -> str:
    """A number for people; a dash for what was not measured."""
    return "-" if value is None else f"{value:.{digits}f}"


def describe_device(device: torch.device) -> str:
    """Device in words: its type, the processor's name where one is known, and the thread count on the CPU."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    if device.type == "mps":
        return "mps"
    named = re.search(r"model name\s*:\s*(.+)", cpuinfo())
    name = named[1].strip() if named else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"cpu ({name}, {threads} thread{'s' * (threads > 1)}, {torch.backends.cpu.get_cpu_capability()})"


# Files


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it, flushed to disk, when the block ends without an error.

    An OSError names `path`, whatever the system called it.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        part = Path(name)
        try:
            yield part
            umask = os.umask(0)
            os.umask(umask)
            part.chmod(0o666 & ~umask)  # mkstemp's 0600 would keep colleagues out
            flush_to_disk(part)
            os.replace(part, path)
            flush_to_disk(path.parent)  # a new name lives in its folder, which has a cache of its own
        finally:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of the block name `path`: a write to a full disk names no file, a temporary one means nothing."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, would survive a power cut."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folder
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some disks of a network flush no folder
            raise
    finally:
        os.close(descriptor)


def remove_parts(folder: Path, idle: float = 0) -> None:
    """Remove what processes that were killed while writing left in a folder.

    idle: seconds without a write, after which a file is taken for such a one where others write, too.
    """
    for file in folder.iterdir():
        if re.fullmatch(r"\..+(\.\w+)\.[a-z0-9_]{8}\1", file.name):  # as atomic_path names them
            with contextlib.suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime >= idle:
                    file.unlink()


# Processes: torchrun --nproc-per-node N train.py ...


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is; one process is rank 0 of 1 and none of the methods then does anything.

    Every rank reads the data, rank 0 first, which keeps decoded images for the others, and takes its share of each
    batch; gradients are averaged, so that a step is that of the whole batch. BatchNorm sees the whole batch on CUDA; on
    the CPU it sees each rank's share, and the running statistics are rank 0's. Rank 0 alone validates and writes.
    """

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this rank writes."""
        return self.rank == 0

    @property
    def launcher(self) -> str:
        """What such processes are started by, as one types it: of several nodes, on the first one."""
        there, nodes = os.environ, ""
        if self.world == 1:
            return "python"
        if (count := int(there.get("GROUP_WORLD_SIZE", "1"))) > 1:
            nodes = f" --nnodes {count} --node-rank 0"
            nodes += f" --master-addr {there['MASTER_ADDR']} --master-port {there['MASTER_PORT']}"
        return f"torchrun{nodes} --nproc-per-node {there.get('LOCAL_WORLD_SIZE', self.world)}"

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, with its gradients averaged over the ranks in each backward pass."""
        if self.world == 1:
            return module
        on_cuda = any(parameter.is_cuda for parameter in module.parameters())
        return DistributedDataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(module) if on_cuda else module)

    def any(self, flag: bool, device: torch.device, step: int) -> bool:
        """Whether the flag is up on any rank; every rank must ask. To ask a GPU is to wait for it: every 50 steps."""
        if self.world == 1:
            return flag
        if device.type != "cpu" and step % ASK_GPU:
            return False
        raised = torch.tensor(int(flag), device=device)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return bool(raised.item())

    def gather(self, value: Tensor) -> Tensor:
        """The ranks' tensors of one shape, along their first dimension, on every rank."""
        if self.world == 1:
            return value
        every = [torch.empty_like(value) for _ in range(self.world)]
        dist.all_gather(every, value.contiguous())
        return torch.cat(every)

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` gives on rank 0, on every rank; where it fails every rank ends, and rank 0 says why."""
        if self.world == 1:
            return make()
        box: list[Any] = [False, None]
        try:
            if self.main:
                box = [True, make()]
        finally:
            dist.broadcast_object_list(box, src=0)
        if not box[0]:
            sys.exit(2)
        return box[1]

    def main_first(self, make: Callable[[], T]) -> T:
        """What `make` gives, on rank 0 and then on the others, which find what it wrote; where it fails as above."""
        made: list[T] = []
        self.from_main(lambda: made.append(make()))
        return made[0] if made else make()


ALONE = Ranks()


@contextlib.contextmanager
def join_ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that torchrun started, by what it put into the environment; alone without them."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # rank 0 decodes and validates while the others wait; a process that dies is noticed by torchrun
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=7))
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
        if device.type == "cpu":  # one that ends while gloo's threads still hold a gradient would be aborted by them
            with contextlib.suppress(RuntimeError):  # another has failed, and has said why
                dist.barrier()
    finally:
        dist.destroy_process_group()


# Progress and interrupts


def share_cores(device: torch.device) -> str | None:
    """Go on with fewer threads where more run than there are cores; a sentence that says so, None where all stays.

    Threads that wait for each other are many times slower then (lab/NOTES.md). The run keeps its part of the cores, by
    the load of the last minute, or as many threads as OMP_NUM_THREADS says.
    """
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if device.type != "cpu" or threads == 1 or load < 1.5 * cores or "OMP_NUM_THREADS" in os.environ:
        return None
    torch.set_num_threads(max(1, int(threads * cores / load)))
    return (
        f"other programs keep the {cores} cores busy (load {load:.1f}), so this run goes on with "
        f"{torch.get_num_threads()} of its {threads} threads; set OMP_NUM_THREADS to keep a number of them."
    )


class Progress:
    """Done, rate, time left, a loss or accuracy: a tqdm bar on a terminal, else a line about every `every` seconds.

    Without a label it shows nothing of them.
    """

    def __init__(self, total: int, label: str, unit: str, start: int = 0, every: float = 10.0) -> None:
        self.label, self.unit, self.total, self.every = label, unit, total, every if label else float("inf")
        self.done, self.start, self.began = start, start, time.monotonic()
        self.printed = self.began
        self.terminal = label != "" and sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            initial=start,
            desc=label,
            unit=unit,
            bar_format="{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} {unit}, "
            "{rate_noinv_fmt}, {remaining} left{postfix}",
            disable=not self.terminal,
            leave=False,
            dynamic_ncols=True,
            mininterval=0.2,
        )

    def update(self, count: int, note: Callable[[], str] | None = None) -> None:
        """Advance by `count`; `note` gives the loss or accuracy and is only called when it is shown."""
        self.done += count
        now = time.monotonic()
        if self.terminal:
            if note and now - self.printed > 0.5:
                self.bar.set_postfix_str(note(), refresh=False)
                self.printed = now
            self.bar.update(count)
        elif now - self.printed > self.every:
            rate = (self.done - self.start) / (now - self.began)
            left = (self.total - self.done) / rate if rate else float("nan")
            words = f", {note()}" if note else ""
            print(
                f"{self.label}: {self.done}/{self.total} {self.unit}, {rate:.1f} {self.unit}/s, "
                f"{left:.0f} s left{words}",
                file=sys.stderr,
                flush=True,
            )
            self.printed = now

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        self.bar.close()


class InterruptFlag:
    """Context in which the first Ctrl-C (or SIGTERM) only raises a flag, so that a step is never cut in half.

    The second Ctrl-C interrupts at once. Outside the main thread signals cannot be caught and the flag stays down.
    """

    def __init__(self) -> None:
        self.raised = False
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> "InterruptFlag":
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._catch) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _catch(self, number: int, frame: Any) -> None:
        if self.raised:
            raise KeyboardInterrupt
        self.raised = True

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

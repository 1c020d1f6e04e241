"""Measure speed and cost on this machine, beside the plain recipe.

    python benchmark.py --data_root data/digits

Writes results/benchmark-<device>.json. Nothing else should run meanwhile. About
15 minutes on 2 cores, 6 of them for the time to accuracy; --parts runs some of
it: training, prediction, start, growth, accuracy. Parts that are not run keep
what the file says of them. What is compared alternates within one run; every
number is a median over --repeats.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import flags
import torch
import torch.nn.functional as F
from PIL import Image
from records import RunLog, read_json, read_metrics, write_json
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

import inference
import train
from checkpoint import build_network, load_checkpoint
from dataset import Domain, domain_folder, list_split, read_images
from losses import adversarial_losses, train_step
from model import ARCHITECTURES, DANN, reverse_gradient
from plots import draw_time_to_accuracy
from runs import Data
from utils import DEVICES, SEED, Parser, bounded, choose_device, choose_precision, describe_device, run_script, versions

ROOT = Path(__file__).resolve().parent
PARTS = ("training", "prediction", "start", "growth", "accuracy")
PLAIN_BATCH = 100  # of the public implementation
WARM_UP = 5  # steps
MARKS = (0.82392, 0.95)  # the published DANN on USPS, and what a user would call good
QUICK_STEPS = 600  # a third of the recipe's: the learning rate falls sooner, and the marks are reached sooner


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument("--data_root", type=Path, required=True, metavar="DIR", help="the real digits: mnistm and usps")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "results", metavar="DIR", help="folder of the json (results)"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        metavar="PART",
        help=f"what to measure: {', '.join(PARTS)} (default: all)",
    )
    parser.add_argument(
        "--repeats", type=bounded(int, 1, 1000), default=5, metavar="N", help="of every measurement (default: 5)"
    )
    parser.add_argument(
        "--steps", type=bounded(int, 2, 10**6), default=60, metavar="N", help="training steps a measurement (60)"
    )
    parser.add_argument(
        "--images", type=bounded(int, 1, 10**7), default=20_000, metavar="N", help="images to predict (20,000)"
    )
    parser.add_argument("--seeds", nargs="+", type=SEED, default=[0, 1, 2], help="of the time to accuracy (0 1 2)")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="(default: auto)")
    return parser


def alternate(measures: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Call each of `measures` in turn, `repeats` times over, after one unmeasured round that warms up."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for round_ in range(repeats + 1):
        for name, measure in measures.items():
            value = measure()
            if round_:
                found[name].append(value)
                print(f"  {name} {round_}/{repeats}: {value:,.1f}", flush=True)
    return found


def medians(found: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(values), 2) for name, values in found.items()}


def synchronise(device: torch.device) -> None:
    """Wait for the device's queue, so that a clock read next tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


# The plain recipe: what a reader would write first


def plain_transform() -> Callable[[Image.Image], Tensor]:
    """What training and prediction of the plain recipe do to an image, one at a time: to [-1, 1]."""
    from torchvision import transforms

    return transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])


class PlainDataset(Dataset[tuple[Tensor, int]]):
    """One open, decode and transform an item."""

    def __init__(self, paths: list[Path], labels: list[int]) -> None:
        self.paths, self.labels, self.transform = paths, labels, plain_transform()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.open(self.paths[i]).convert("RGB")), self.labels[i]


def plain_batches(data_root: Path, domain: str, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of a DataLoader with a worker per core, as both loaders of the plain recipe share the cores."""
    listing = list_split(data_root, domain, "train", with_labels=True)
    assert listing is not None
    assert listing.labels is not None
    data = PlainDataset(listing.paths, [int(label) for label in listing.labels])
    workers = max(1, (os.cpu_count() or 1) // 2)
    loader = DataLoader(data, batch_size, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True)
    while True:
        yield from loader


class PlainTraining:
    """The plain training loop: float32, batches of 100 + 100 from files, Adam."""

    def __init__(self, data_root: Path, arch: str, device: torch.device) -> None:
        torch.manual_seed(0)
        self.net = DANN(10, arch).to(memory_format=torch.contiguous_format).to(device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3)
        self.device = device
        self.source, self.target = (plain_batches(data_root, name, PLAIN_BATCH) for name in ("mnistm", "usps"))

    def rate(self, steps: int) -> float:
        """Images a second, source and target counted."""
        began = time.perf_counter()
        for _ in range(steps):
            (x_s, y_s), (x_t, _) = next(self.source), next(self.target)
            x_s, y_s, x_t = x_s.to(self.device), y_s.to(self.device), x_t.to(self.device)
            f = self.net.feature_extractor(torch.cat([x_s, x_t]))
            d = torch.arange(2, device=self.device).repeat_interleave(PLAIN_BATCH)
            loss = F.cross_entropy(self.net.label_classifier(f[:PLAIN_BATCH]), y_s)
            loss = loss + F.cross_entropy(self.net.domain_classifier(reverse_gradient(f, 0.5)), d)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        synchronise(self.device)
        return 2 * PLAIN_BATCH * steps / (time.perf_counter() - began)


def plain_rate(data_root: Path, arch: str, device: torch.device, steps: int) -> float:
    """PlainTraining.rate, once warm."""
    plain = PlainTraining(data_root, arch, choose_device(device.type))  # which sets the precision of float32 products
    plain.rate(WARM_UP)
    return plain.rate(steps)


def in_new_process(rate: Callable[[], float]) -> float:
    """What `rate` returns in a process of its own, without utils.keep_freed_memory, as a plain script runs.

    A new one each time, as its speed differs by a tenth from process to process with the layout of its memory.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(rate).result()


# Our training step, whole and bare


def training_data(data_root: Path) -> Data:
    args = train.parse_args(["--data_root", str(data_root), "--train_mode", "dann", "--target_file", "usps"])
    data = train.load_data(args)
    return Data(data.classes, data.labelled, data.unlabelled, None, None)


def loop_rate(data: Data, arch: str, steps: int, device: torch.device) -> float:
    """Images a second of train.py's own loop, progress, schedules and logging included, once warm."""
    args = train.parse_args(
        ["--data_root", ".", "--train_mode", "dann", "--target_file", "usps", "--arch", arch, "--max_steps", str(steps)]
        + ["--val_period", str(steps), "--device", device.type]
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run = train.start_run(args, Path(folder), data, device)
        with contextlib.closing(RunLog(Path(folder) / "metrics.jsonl", 0)) as log:
            run.total_steps = WARM_UP
            train.train(run, log, time.monotonic())
            seen, seconds = run.images_seen, run.training_seconds
            run.total_steps += steps
            train.train(run, log, time.monotonic())
        return (run.images_seen - seen) / (run.training_seconds - seconds)


class BareStep:
    """Forward, backward and optimizer on one batch that lies in memory: what the loop cannot be faster than."""

    def __init__(self, data: Data, arch: str, device: torch.device) -> None:
        torch.manual_seed(0)
        recipe = flags.RECIPES["paper"]
        self.net, self.device = DANN(10, arch).to(device).train(), device
        self.optimizer = train.build_optimizer(self.net, "dann", recipe)
        self.precision, self.count = choose_precision("auto", device), recipe.batch_size
        assert data.unlabelled is not None
        assert data.labelled.labels is not None
        self.x_s, self.x_t = (
            domain.images[: self.count].to(device).permute(0, 3, 1, 2) for domain in (data.labelled, data.unlabelled)
        )
        self.y_s = data.labelled.labels[: self.count].to(device)

    def step(self) -> None:
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            found = adversarial_losses(self.net, self.x_s, self.y_s, self.x_t, 0.1)
        train_step(self.optimizer, found)

    def rate(self, steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            self.step()
        synchronise(self.device)
        return 2 * self.count * steps / (time.perf_counter() - began)


def operation_counter() -> FlopCounterMode:
    """torch's counter of multiplications and additions, which does not know the convolutions of model.Conv2d."""

    def convolution(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:  # all of them shapes
        return conv_flop_count(x, weight, out_shape)

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mkldnn_convolution: convolution})


class ByteCounter(TorchDispatchMode):
    """Counts the bytes of every operation's inputs and outputs, views left out: what goes through memory uncached."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return out


def matrix_rate(dtype: torch.dtype, device: torch.device, size: int = 2048) -> float:
    """Operations a second of a large matrix product, a multiplication and an addition counted as two."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    began = time.perf_counter()
    for _ in range(5):
        a @ b
    synchronise(device)
    return 5 * 2 * size**3 / (time.perf_counter() - began)


def copy_rate(device: torch.device, megabytes: int = 256) -> float:
    """Bytes a second, read and written, of copying a tensor that no cache holds."""
    a = torch.ones(megabytes << 18, device=device)
    b = a.clone()  # written once already: the first write of a page is the system's time
    began = time.perf_counter()
    for _ in range(4):
        b.copy_(a)
    synchronise(device)
    return 4 * 2 * 4 * a.numel() / (time.perf_counter() - began)


def measure_training(args: argparse.Namespace, data: Data, device: torch.device) -> dict[str, Any]:
    """The plain recipe, our loop and the bare step, alternating, for both networks; and the floor of the step."""
    found: dict[str, Any] = {}
    precision = choose_precision("auto", device)
    for arch in ARCHITECTURES:
        print(f"training, {arch}", flush=True)
        bare = BareStep(data, arch, device)
        plain = partial(plain_rate, args.data_root, arch, device, max(2, args.steps // 2))
        rates = alternate(
            {
                "plain_images_per_second": partial(in_new_process, plain),
                "images_per_second": partial(loop_rate, data, arch, args.steps, device),
                "bare_images_per_second": partial(bare.rate, args.steps),
                "matrix_gflops": lambda: matrix_rate(precision, device) / 1e9,
                "copy_gigabytes_per_second": lambda: copy_rate(device) / 1e9,
            },
            args.repeats,
        )
        counter, bytes_ = operation_counter(), ByteCounter()
        with counter:
            bare.step()
        with bytes_:
            bare.step()
        middle = medians(rates)
        images = 2 * bare.count
        flops, moved = counter.get_total_flops() / images, bytes_.bytes / images
        achieved = middle["bare_images_per_second"] * flops / 1e9
        found[arch] = {
            **middle,
            "times_plain": round(middle["images_per_second"] / middle["plain_images_per_second"], 2),
            "share_of_bare": round(
                statistics.median(
                    ours / best
                    for ours, best in zip(rates["images_per_second"], rates["bare_images_per_second"], strict=True)
                ),
                3,
            ),
            "precision": str(precision).removeprefix("torch."),
            "megaflops_an_image": round(flops / 1e6, 2),
            "megabytes_an_image": round(moved / 1e6, 3),
            "share_of_matrix_rate": round(achieved / middle["matrix_gflops"], 3),
            "floor_images_per_second": round(
                1 / (flops / middle["matrix_gflops"] / 1e9 + moved / middle["copy_gigabytes_per_second"] / 1e9)
            ),
            "floor_of_operations_alone": round(middle["matrix_gflops"] * 1e9 / flops),
        }
    return found


# Prediction


def one_by_one(net: DANN, paths: list[Path]) -> float:
    """Images a second of the plain prediction loop: open, transform, forward, one image at a time."""
    transform = plain_transform()
    net.eval()
    began = time.perf_counter()
    with torch.no_grad():
        for path in paths:
            x = transform(Image.open(path).convert("RGB"))[None].to(net.device)
            net.label_classifier(net.feature_extractor(x)).argmax(1).item()
    return len(paths) / (time.perf_counter() - began)


def measure_prediction(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """inference.py on a folder of PNGs beside the one-by-one loop, decoding alone and the forward pass alone."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as root:
        listing = list_split(args.data_root, "mnistm", "train", with_labels=False)
        assert listing is not None
        folder = Path(root, "images")
        folder.mkdir()
        for path in listing.paths[: args.images]:
            (folder / path.name).symlink_to(path.resolve())
        paths = sorted(folder.iterdir())
        for arch in ARCHITECTURES:
            print(f"prediction, {arch}, {len(paths)} images", flush=True)
            file, trained = ROOT / "checkpoint" / "dann_usps.pt", {}
            if arch != "small":  # no such checkpoint is shipped; an untrained one would leave every image in doubt
                steps = 10 * args.steps
                more = ["--arch", arch, "--max_steps", str(steps), "--run_name", arch, "--device", device.type]
                with contextlib.redirect_stdout(io.StringIO()):
                    train.main(train_flags(args, root, *more))
                file, trained = Path(root, arch, "last.pt"), {"trained_for_steps": steps}
            net, _ = build_network(file, load_checkpoint(file), device)
            pixels = read_images(paths, 28)[0]

            def ours(file: Path = file) -> float:
                began = time.perf_counter()
                with contextlib.redirect_stdout(io.StringIO()):
                    inference.main(
                        ["--checkpoint", str(file), "--test_loc", str(folder), "--out_path", f"{root}/pred.csv"]
                        + ["--device", device.type]
                    )
                return len(paths) / (time.perf_counter() - began)

            def decode() -> float:
                began = time.perf_counter()
                for start in range(0, len(paths), inference.CHUNK):
                    read_images(paths[start : start + inference.CHUNK], 28)
                return len(paths) / (time.perf_counter() - began)

            def forward(net: DANN = net, pixels: Tensor = pixels) -> float:
                began = time.perf_counter()
                for chunk in pixels.split(inference.CHUNK):
                    inference.predict_labels(net, chunk)
                return len(paths) / (time.perf_counter() - began)

            rates = alternate(
                {
                    "images_per_second": ours,
                    "one_by_one_images_per_second": partial(one_by_one, net, paths[:500]),
                    "decode_images_per_second": decode,
                    "forward_images_per_second": forward,
                },
                args.repeats,
            )
            middle = medians(rates)
            both = 1 / (1 / middle["decode_images_per_second"] + 1 / middle["forward_images_per_second"])
            found[arch] = {
                **middle,
                "images": len(paths),
                **trained,
                "times_one_by_one": round(middle["images_per_second"] / middle["one_by_one_images_per_second"], 2),
                "share_of_decode_and_forward": round(middle["images_per_second"] / both, 3),
            }
    return found


# Start-up, memory, growth


def seconds_of(code: str) -> float:
    """Wall seconds of a fresh interpreter that runs `code`."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    return time.perf_counter() - began


def train_flags(args: argparse.Namespace, save_dir: str, *more: str) -> list[str]:
    """Arguments of train.py for a `dann` run on USPS."""
    return [
        *("--data_root", str(args.data_root), "--train_mode", "dann", "--target_file", "usps"),
        *("--save_dir", save_dir, *more),
    ]


LAUNCH = """
import sys, time, train
marks = [time.monotonic()]

def marked(inner):
    def outer(*args, **kwargs):
        found = inner(*args, **kwargs)
        marks.append(time.monotonic())
        return found
    return outer

train.load_data, train.start_run, train.train_step = map(marked, (train.load_data, train.start_run, train.train_step))
train.main(sys.argv[1:])
marks.append(time.monotonic())
peak = "- 0"
if sys.platform == "linux":
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("MEASURED", *(b - a for a, b in zip(marks, marks[1:])), int(peak.split()[1]) * 1024)
"""
PHASES = ("read_seconds", "untrained_network_measured_seconds", "first_step_seconds", "validation_and_files_seconds")


def measure_start(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Where the seconds of a run of one step go, and its peak memory."""
    print("start-up and memory", flush=True)
    rates = alternate(
        {
            "import_torch_seconds": lambda: seconds_of("import torch"),
            "import_train_seconds": lambda: seconds_of("import train"),
        },
        args.repeats,
    )
    found: dict[str, list[float]] = {name: [] for name in (*PHASES, "peak")}
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            flags = train_flags(args, folder, "--max_steps", "1", "--device", device.type)
            done = subprocess.run(
                [sys.executable, "-c", LAUNCH, *flags], check=True, cwd=ROOT, capture_output=True, text=True
            )
        for name, word in zip(found, done.stdout.split("MEASURED")[1].split(), strict=True):
            found[name].append(float(word))
    middle = medians(rates)
    phases = medians({name: found[name] for name in PHASES})
    peak = statistics.median(found["peak"])
    data = train.load_data(train.parse_args(train_flags(args, ".")))
    sets = {"labelled": data.labelled, "unlabelled": data.unlabelled, "source_val": data.source_val}
    counts = {name: len(domain) for name, domain in {**sets, "target_val": data.target_val}.items() if domain}
    raw = sum(domain.images.numel() for domain in (data.labelled, data.unlabelled) if domain is not None)
    return {
        **middle,
        **phases,
        "launch_to_first_step_seconds": round(middle["import_train_seconds"] + sum(list(phases.values())[:-1]), 2),
        "images": counts,
        "peak_memory_megabytes": round(peak / 1e6),
        "raw_train_megabytes": round(raw / 1e6),
        "peak_above_raw_megabytes": round((peak - raw) / 1e6),
    }


def measure_growth(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Images a second of the training loop as both domains grow; random pixels, speed does not care."""
    counts = (5_000, 50_000, 500_000)
    print("growth", flush=True)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (max(counts), 28, 28, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (max(counts),), generator=generator)
    classes = [str(k) for k in range(10)]

    def rate(count: int) -> float:
        labelled = Domain(pixels[:count], labels[:count], [])
        return loop_rate(Data(classes, labelled, Domain(pixels[:count], None, []), None, None), "small", steps, device)

    steps = 2 * args.steps
    found = alternate({str(count): partial(rate, count) for count in counts}, args.repeats)
    middle = medians(found)
    return {"images_per_second": middle, "largest_over_smallest": round(middle["500000"] / middle["5000"], 3)}


# Time to accuracy


def measure_accuracy(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Seconds from launch to each mark of accuracy on USPS val, by the lines of metrics.jsonl, over the seeds."""
    curves = {}
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            more = [
                "--seed",
                str(seed),
                "--run_name",
                "run",
                "--max_steps",
                str(QUICK_STEPS),
                "--val_period",
                "100",
                "--device",
                device.type,
            ]
            began = time.time()
            subprocess.run(
                [sys.executable, str(ROOT / "train.py"), *train_flags(args, folder, *more)],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            lines = read_metrics(Path(folder, "run", "metrics.jsonl"))
            import_seconds = time.time() - began - read_json(Path(folder, "run", "result.json"))["seconds"]
        curves[str(seed)] = [
            {"seconds": round(line["seconds"] + import_seconds, 2), "accuracy": line["target_val_accuracy"]}
            for line in lines
        ]
        print(f"  seed {seed}: {curves[str(seed)][-1]}", flush=True)
    reached = {
        str(mark): [
            next((point["seconds"] for point in curve if point["accuracy"] >= mark), None) for curve in curves.values()
        ]
        for mark in MARKS
    }
    title = f"dann --max_steps {QUICK_STEPS}, MNIST-M to USPS, {device.type}, {os.cpu_count()} cores"
    draw_time_to_accuracy(curves, MARKS, title, args.out / "figures" / "time_to_accuracy.png")
    return {"target": "usps", "steps": QUICK_STEPS, "seconds_to": reached, "curves": curves}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, and write the json; returns what it holds."""
    args = build_parser().parse_args(argv)
    args.data_root, args.out = args.data_root.resolve(), args.out.resolve()
    for domain in ("mnistm", "usps"):
        domain_folder(args.data_root, domain)  # refused before minutes of measuring
    device = choose_device(args.device)
    file = args.out / f"benchmark-{device.type}.json"
    found: dict[str, Any] = read_json(file) if file.exists() else {}
    given = sys.argv[1:] if argv is None else argv
    data = training_data(args.data_root) if "training" in args.parts else None
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "training": lambda: measure_training(args, data, device) if data else {},
        "prediction": lambda: measure_prediction(args, device),
        "start": lambda: measure_start(args, device),
        "growth": lambda: measure_growth(args, device),
        "accuracy": lambda: measure_accuracy(args, device),
    }
    for part in args.parts:
        measured = measures[part]()
        found[part] = {**measured, "repeats": args.repeats, "device": describe_device(device), "versions": versions()}
        found[part]["command"] = " ".join(["python benchmark.py", *given])
        write_json(file, found)
        print(json.dumps(found[part], indent=2), flush=True)
    return found


if __name__ == "__main__":
    run_script(main)

"""Measure speed and memory on this machine, beside the plain recipe.

    python lab/benchmark.py --data_root data/digits

Writes results/benchmark-<device>.json. Nothing else should run meanwhile. About
30 minutes on 2 cores, 8 of them for the time to accuracy, 5 each for two runs
at once and for a frozen backbone; --parts runs some of it: training,
prediction, start, growth, accuracy, frozen, side. Parts that are not run keep
what the file says of them. What is compared alternates within one run; every
number is a median over --repeats. Two parts run only where --parts names them:
large, once, about an hour on one core, and 0.3 MB of $TMPDIR an image; peers,
the public libraries of lab/peers.py, a quarter of an hour a seed.
"""

import argparse
import contextlib
import inspect
import io
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as this script may be run from anywhere

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

import inference
import train
from config import RECIPES, Settings, read_settings
from dataset import Domain, read_images
from lab import peers
from listing import domain_folder, list_split
from losses import Objective, total
from metrics import accuracy_of, answers, predict
from model import ARCHITECTURES, DANN, reverse_gradient
from plots import CLASS_COLOURS, picture
from runs import RunLog, read_json, read_metrics, save_checkpoint, weights_only, write_json
from train import Data
from utils import (
    DEVICES,
    SEED,
    Parser,
    Ranks,
    bounded,
    choose_device,
    choose_precision,
    describe_device,
    run_script,
    versions,
)

ROOT = Path(__file__).resolve().parent.parent
PLAIN_BATCH = 100  # of the public implementation
FEW_VAL = 20  # images that a run validates on where its steps alone are measured
WARM_UP = 5  # steps
MARKS = (0.82392, 0.95)  # the published DANN on USPS, and what a user would call good
QUICK_STEPS = 600  # a third of the recipe's: the learning rate falls sooner, and the marks are reached sooner
OFTEN = 20  # steps from one validation to the next, where they are not counted
COUNTS = (5_000, 50_000, 500_000)  # images a domain, of the part growth
FEW = 1_000  # photos to hold the memory of the part large against
DIFFERENT = 2_000  # photos that are written; what is more are links to them
PHOTO = 224  # pixels of their side
PHOTO_STEPS, LARGE_ARCH = 20, "mobilenet_v3_small"  # of the part large
OWN_PHOTOS, OWN_ARCH = 2_000, "resnet18"  # of the part frozen: the command of README's "Your own photos"
ON_REQUEST = ("large", "peers")
SIDE_STEPS = 900  # of the part side, in which the machine's load of a minute must show


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument("--data_root", type=Path, required=True, metavar="DIR", help="the real digits: mnistm and usps")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "results", metavar="DIR", help="folder of the json (results)"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=tuple(MEASURES),
        default=[part for part in MEASURES if part not in ON_REQUEST],
        metavar="PART",
        help=f"what to measure: {', '.join(MEASURES)} (default: all but {' and '.join(ON_REQUEST)})",
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
    parser.add_argument(
        "--large",
        type=bounded(int, FEW, 10**7),
        default=200_000,
        metavar="N",
        help="photos of the part large (200,000)",
    )
    parser.add_argument("--seeds", nargs="+", type=SEED, default=[0, 1, 2], help="of accuracy and of peers (0 1 2)")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="(default: auto)")
    return parser


def alternate(measures: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
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


def repeat(step: Callable[[], object], worth: float, steps: int, device: torch.device) -> float:
    """Images, or operations, a second of a step that is worth so many."""
    began = time.perf_counter()
    for _ in range(steps):
        step()
    synchronise(device)
    return worth * steps / (time.perf_counter() - began)


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

    def step(self) -> None:
        (x_s, y_s), (x_t, _) = next(self.source), next(self.target)
        x_s, y_s, x_t = x_s.to(self.device), y_s.to(self.device), x_t.to(self.device)
        f = self.net.feature_extractor(torch.cat([x_s, x_t]))
        d = torch.arange(2, device=self.device).repeat_interleave(PLAIN_BATCH)
        loss = F.cross_entropy(self.net.label_classifier(f[:PLAIN_BATCH]), y_s)
        loss = loss + F.cross_entropy(self.net.domain_classifier(reverse_gradient(f, 0.5)), d)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


# Our training step, whole and bare


def dann_flags(data_root: Path | str, *more: str) -> list[str]:
    """Arguments of train.py for a `dann` run on USPS."""
    return ["--data_root", str(data_root), "--train_mode", "dann", "--target_file", "usps", *more]


def settings_of(words: list[str]) -> Settings:
    return read_settings(train.build_parser().parse_args(words))


def loop_rate(data: Data, arch: str, steps: int, device: torch.device) -> float:
    """Images a second of train.py's own loop, progress, schedules and logging included, once warm."""
    more = ["--arch", arch, "--max_steps", str(steps), "--val_period", str(steps), "--device", device.type]
    settings = settings_of(dann_flags(".", *more))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run = train.start_run(settings, Path(folder), data, device, Ranks())
        with contextlib.closing(RunLog(Path(folder) / "metrics.jsonl", 0)) as log:
            run.total_steps = WARM_UP
            train.train(run, data, settings, Ranks(), log)
            seen, seconds = run.images_seen, run.training_seconds
            run.total_steps += steps
            train.train(run, data, settings, Ranks(), log)
        return (run.images_seen - seen) / (run.training_seconds - seconds)


class BareStep:
    """Forward, backward and optimizer on one batch that lies in memory: what the loop cannot be faster than."""

    def __init__(self, data: Data, arch: str, device: torch.device) -> None:
        torch.manual_seed(0)
        recipe = RECIPES["tuned"]
        self.net, self.device = DANN(10, arch).to(device).train(), device
        self.objective = Objective(self.net, recipe.parts if arch == "small" else ())
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
            losses, _ = self.objective(self.x_s, self.y_s, self.x_t, 0.1)
        self.optimizer.zero_grad()
        total(losses).backward()
        self.optimizer.step()

    def operations(self) -> float:
        """Multiplications and additions of a step, an image, by torch's counter."""
        with FlopCounterMode(display=False) as counter:
            self.step()
        return counter.get_total_flops() / (2 * self.count)


def matrix_rate(dtype: torch.dtype, device: torch.device, size: int = 2048) -> float:
    """Operations a second of a large matrix product, a multiplication and an addition counted as two."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return repeat(lambda: a @ b, 2 * size**3, 5, device)


def measure_training(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The plain recipe, our loop and the bare step, alternating, for both networks."""
    found: dict[str, Any] = {}
    precision = choose_precision("auto", device)
    read = train.load_data(settings_of(dann_flags(args.data_root)))
    data = Data(read.classes, read.labelled, read.unlabelled, None, read.labelled.some(FEW_VAL), None)
    for arch in ARCHITECTURES:
        print(f"training, {arch}", flush=True)
        plain, bare = PlainTraining(args.data_root, arch, device), BareStep(data, arch, device)
        rates = alternate(
            {
                "plain_images_per_second": partial(
                    repeat, plain.step, 2 * PLAIN_BATCH, max(2, args.steps // 2), device
                ),
                "images_per_second": partial(loop_rate, data, arch, args.steps, device),
                "bare_images_per_second": partial(repeat, bare.step, 2 * bare.count, args.steps, device),
                "matrix_gflops": lambda: matrix_rate(precision, device) / 1e9,
            },
            args.repeats,
        )
        middle, operations = medians(rates), bare.operations()
        shares = map(float.__truediv__, rates["images_per_second"], rates["bare_images_per_second"])
        reached = middle["bare_images_per_second"] * operations / 1e9
        found[arch] = {
            **middle,
            "times_plain": round(middle["images_per_second"] / middle["plain_images_per_second"], 2),
            "share_of_bare": round(statistics.median(shares), 3),
            "precision": str(precision).removeprefix("torch."),
            "megaflops_an_image": round(operations / 1e6, 2),
            "share_of_matrix_rate": round(reached / middle["matrix_gflops"], 3),
        }
    return found


# Prediction


def rate_of(count: int, call: Callable[[], object]) -> float:
    """Images a second of a call that handles so many."""
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        call()
    return count / (time.perf_counter() - began)


def predict_plainly(net: DANN, paths: list[Path]) -> None:
    """The plain prediction loop: open, transform, forward, batch size 1."""
    transform = plain_transform()
    net.eval()
    with torch.no_grad():
        for path in paths:
            x = transform(Image.open(path).convert("RGB"))[None].to(net.device)
            net.label_classifier(net.feature_extractor(x)).argmax(1).item()


def measure_prediction(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """inference.py on a folder of PNGs beside batch size 1, decoding alone and the forward pass alone."""
    found: dict[str, Any] = {}
    listing = list_split(args.data_root, "mnistm", "train", with_labels=False)
    assert listing is not None
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "images")
        folder.mkdir()
        for path in listing.paths[: args.images]:
            (folder / path.name).symlink_to(path.resolve())
        paths = sorted(folder.iterdir())
        chunks = [paths[start : start + inference.CHUNK] for start in range(0, len(paths), inference.CHUNK)]
        pixels = [read_images(chunk, 28)[0] for chunk in chunks]
        for arch in ARCHITECTURES:
            print(f"prediction, {arch}, {len(paths)} images", flush=True)
            net, file = DANN(10, arch).to(device), Path(root, f"{arch}.pt")
            save_checkpoint(file, weights_only(net.state_dict(), net.arguments))
            words = ["--checkpoint", str(file), "--test_loc", str(folder), "--out_path", f"{root}/pred.csv"]
            calls: dict[str, tuple[int, Callable[[], object]]] = {
                "": (len(paths), partial(inference.main, [*words, "--device", device.type])),
                "batch_size_1_": (len(paths[:500]), partial(predict_plainly, net, paths[:500])),
                "decode_": (len(paths), lambda: [read_images(chunk, 28) for chunk in chunks]),
                "forward_": (len(paths), partial(lambda net: [predict(net, chunk) for chunk in pixels], net)),
            }
            rates = {f"{name}images_per_second": partial(rate_of, *call) for name, call in calls.items()}
            middle = medians(alternate(rates, args.repeats))
            both = 1 / (1 / middle["decode_images_per_second"] + 1 / middle["forward_images_per_second"])
            found[arch] = {
                **middle,
                "images": len(paths),
                "times_batch_size_1": round(middle["images_per_second"] / middle["batch_size_1_images_per_second"], 2),
                "share_of_decode_and_forward": round(middle["images_per_second"] / both, 3),
            }
    return found


# Start-up, memory, growth


LAUNCH = """
import sys, time, train
marks = [time.monotonic()]

def marked(inner):
    def outer(*args, **kwargs):
        found = inner(*args, **kwargs)
        if len(marks) < 4:  # the closing comparison of an adapted run has steps, too
            marks.append(time.monotonic())
        return found
    return outer

train.load_data, train.start_run = marked(train.load_data), marked(train.start_run)
train.Meter.add = marked(train.Meter.add)  # the end of a step
train.main(sys.argv[1:])
marks.append(time.monotonic())
peak = "- 0"
if sys.platform == "linux":
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("MEASURED", *(b - a for a, b in zip(marks, marks[1:])), int(peak.split()[1]) * 1024)
"""
PHASES = ("read_seconds", "network_seconds", "first_step_seconds", "validation_and_files_seconds")


def seconds_of(code: str) -> float:
    """Wall seconds of a fresh interpreter that runs `code`."""
    return 1 / rate_of(1, partial(subprocess.run, [sys.executable, "-c", code], check=True, cwd=ROOT))


def measure_start(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Where the seconds of a run of one step go, and its peak memory; then again, with the images in the cache."""
    print("start-up and memory", flush=True)
    imports = {f"import_{name}_seconds": partial(seconds_of, f"import {name}") for name in ("torch", "train")}
    middle = medians(alternate(imports, args.repeats))
    launches: list[dict[str, list[float]]] = [{name: [] for name in (*PHASES, "peak")} for _ in range(2)]
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            more = ["--save_dir", folder, "--cache", f"{folder}/cache", "--max_steps", "1", "--device", device.type]
            command = [sys.executable, "-c", LAUNCH, *dann_flags(args.data_root, *more)]
            for k, found in enumerate(launches):
                done = subprocess.run(
                    [*command, "--run_name", str(k)], check=True, cwd=ROOT, capture_output=True, text=True
                )
                for name, word in zip(found, done.stdout.split("MEASURED")[1].split(), strict=True):
                    found[name].append(float(word))
            images = read_json(Path(folder, "0", "result.json"), images=dict)["images"]
    first, second = ({**medians(found), **middle} for found in launches)
    for launch in (first, second):
        to_first_step = launch["import_train_seconds"] + sum(launch[name] for name in PHASES[:-1])
        launch["launch_to_first_step_seconds"] = round(to_first_step, 2)
        launch["peak_memory_megabytes"] = round(launch.pop("peak") / 1e6)
    raw = 28 * 28 * 3 * (images["labelled_train"] + images["unlabelled_train"])
    return {**first, "second_launch": second, "images": images, "raw_train_megabytes": round(raw / 1e6)}


def random_data(count: int) -> Data:
    """Two domains of random pixels; speed does not care."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 28, 28, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    labelled, unlabelled = (Domain(pixels, known, [""] * count) for known in (labels, None))
    return Data([str(k) for k in range(10)], labelled, unlabelled, None, labelled.some(FEW_VAL), None)


def measure_growth(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Images a second of the training loop as both domains grow; random pixels, speed does not care."""
    print("growth", flush=True)
    rates = {str(n): partial(loop_rate, random_data(n), "small", 2 * args.steps, device) for n in COUNTS}
    middle = medians(alternate(rates, args.repeats))
    smallest, *_, largest = middle.values()
    return {"images_per_second": middle, "largest_over_smallest": round(largest / smallest, 3)}


# Many photos


PEAK = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""  # in a process of its own: a child's peak begins at that of the process that starts it


def write_photos(root: Path, count: int) -> None:
    """Domains `one` and `two` of JPEGs in two classes, a hundredth of each val; DIFFERENT of them, else links."""
    rng = np.random.default_rng(0)
    first: list[Path] = []
    for domain in ("one", "two"):
        folder, names = root / domain / "data", [f"{i:07d}.jpg" for i in range(count // 2)]
        folder.mkdir(parents=True)
        for i, name in enumerate(names):
            if len(first) < DIFFERENT:
                small = Image.fromarray(rng.integers(0, 256, (14, 14, 3), dtype=np.uint8))
                small.resize((PHOTO, PHOTO), Image.Resampling.BICUBIC).save(folder / name, quality=90)
                first.append(folder / name)
            else:
                os.link(first[i % DIFFERENT], folder / name)
        rows, val = [f"{name},{i % 2}" for i, name in enumerate(names)], max(20, count // 200)
        for split, part in (("val", rows[:val]), ("train", rows[val:])):
            (root / domain / f"{split}.csv").write_text("\n".join(["image_name,label", *part, ""]))


def measure_large(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Seconds and peak memory of training on photos, decoded and then from the cache, and of predicting all of them.

    Beside FEW of them, whose memory is that of the network, near enough.
    """
    more = ["-bs", "16", "--max_steps", str(PHOTO_STEPS)]
    names = ("first_launch", "second_launch", "prediction")
    found = {str(n): launches(n, LARGE_ARCH, more, names, device) for n in sorted({FEW, args.large})}
    return {"photos": found, "size": PHOTO, "arch": LARGE_ARCH, "repeats": 1}


def measure_frozen(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Seconds from the launch of a `dann` run of a frozen backbone, of full length, to a CSV of all photos."""
    names = ("first_launch", "prediction")
    runs = [launches(OWN_PHOTOS, OWN_ARCH, ["--freeze"], names, device) for _ in range(args.repeats)]
    found = medians({name: [run[name] for run in runs] for name in runs[0]})
    whole = [sum(run[f"{name}_seconds"] for name in names) for run in runs]
    return {**found, "seconds_to_csv": round(statistics.median(whole), 1), "photos": OWN_PHOTOS, "arch": OWN_ARCH}


def launches(count: int, arch: str, more: list[str], names: tuple[str, ...], device: torch.device) -> dict[str, float]:
    """Seconds and peak memory of each of `names`: a `dann` run on photos, the same from the cache, and prediction."""
    script, found = {name: str(ROOT / f"{name}.py") for name in ("train", "inference")}, {}
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    with tempfile.TemporaryDirectory() as folder:
        print(f"{count} photos", flush=True)
        write_photos(Path(folder, "data"), count)
        words = [script["train"], "--data_root", f"{folder}/data", "--source_file", "one", "--target_file", "two"]
        words += ["--train_mode", "dann", "--arch", arch, "--weights", "none", *more, "--save_dir", folder]
        words += ["--cache", f"{folder}/cache", "--device", device.type]
        given = ["--checkpoint", f"{folder}/first", "--test_loc", f"{folder}/data", "--out_path", folder]
        commands = {
            "first_launch": [*words, "--run_name", "first"],
            "second_launch": [*words, "--run_name", "second"],
            "prediction": [script["inference"], *given, "--device", device.type],
        }
        for name in names:
            began = time.monotonic()
            measured = [sys.executable, "-c", PEAK, sys.executable, *commands[name]]
            done = subprocess.run(measured, check=True, stdout=subprocess.PIPE, text=True)
            seconds, megabytes = time.monotonic() - began, int(done.stdout) * unit / 1e6
            found[f"{name}_seconds"] = round(seconds, 1)
            found[f"{name}_peak_megabytes"] = round(megabytes)
            print(f"  {name}: {seconds:.0f} s, {megabytes:.0f} MB", flush=True)
    return found


# Time to accuracy


TIMED = """
import json, sys, time
began = time.monotonic()
import train
spent = {"imports": [time.monotonic() - began]}

def timed(name):
    inner = getattr(train, name)
    def outer(*args, **kwargs):
        began = time.monotonic()
        found = inner(*args, **kwargs)
        spent.setdefault(name, []).append(time.monotonic() - began)
        return found
    return outer

for name in sys.argv.pop(1).split():
    setattr(train, name, timed(name))
result = train.main(sys.argv[1:])
spent["steps"] = [result["steps"] * 2 * result["args"]["batch_size"] / result["images_per_second"]]
print("MEASURED", json.dumps(spent))
"""
# What a run spends its seconds on beside its steps, as train.py calls it.
OUTSIDE = ("load_data", "start_run", "validate", "save_run", "source_only", "draw_figures")


def measure_accuracy(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Seconds from launch to each mark of accuracy on USPS val, validations not counted, over the seeds.

    And where the seconds of such a run go that are none of its steps, with the validations of the defaults.
    """
    more = ["--max_steps", str(QUICK_STEPS), "--device", device.type]
    curves, parts = {}, []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            words = dann_flags(args.data_root, *more, "--seed", str(seed), "--save_dir", folder, "--run_name")
            spent = timed_run([*words, "often", "--val_period", str(OFTEN)])
            lines = read_metrics(Path(folder, "often", "metrics.jsonl"))
            parts.append({name: sum(values) for name, values in timed_run([*words, "default"]).items()})
        measuring = np.cumsum(spent["validate"]) + np.cumsum([0.0, *spent["save_run"][:-1]])
        seconds = spent["imports"][0] + np.array([line["seconds"] for line in lines]) - measuring
        curves[str(seed)] = [
            {"seconds": round(float(second), 2), "accuracy": line["target_val_accuracy"]}
            for second, line in zip(seconds, lines, strict=True)
        ]
        print(f"  seed {seed}: {curves[str(seed)][-1]}", flush=True)
        print(f"  {parts[-1]}", flush=True)
    reached = {
        str(mark): [
            next((point["seconds"] for point in curve if point["accuracy"] >= mark), None) for curve in curves.values()
        ]
        for mark in MARKS
    }
    title = f"dann --max_steps {QUICK_STEPS}, MNIST-M to USPS, {device.type}, {os.cpu_count()} cores"
    draw_time_to_accuracy(curves, title, args.out / "figures" / "time_to_accuracy.png")
    outside = {
        name: round(statistics.median(part[name] for part in parts), 2) for name in ("steps", "imports", *OUTSIDE)
    }
    about = {"target": "usps", "steps": QUICK_STEPS, "val_period": OFTEN}
    return {**about, "seconds_to": reached, "seconds_by_part": outside, "curves": curves}


def timed_run(words: list[str]) -> dict[str, list[float]]:
    """Seconds of each call of what is OUTSIDE in a fresh run of train.py with these words."""
    command = [sys.executable, "-c", TIMED, " ".join(OUTSIDE), *words]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.split("MEASURED")[1])


def draw_time_to_accuracy(curves: dict[str, list[dict[str, float]]], title: str, path: Path) -> None:
    """Draw accuracy over seconds since launch, a line a seed, with the marks. curves: seed -> {seconds, accuracy}."""
    with picture(path, 7, 4.2) as figure:
        axes = figure.subplots()
        for i, (seed, points) in enumerate(curves.items()):
            seconds, accuracy = [p["seconds"] for p in points], [p["accuracy"] for p in points]
            axes.plot(seconds, accuracy, marker=".", color=CLASS_COLOURS[i * 3 % 10], label=f"seed {seed}")
        for mark in MARKS:
            axes.axhline(mark, color="#777777", linestyle=":", linewidth=1)
            axes.annotate(f"{mark:g}", (0, mark), textcoords="offset points", xytext=(2, 3), fontsize=8)
        axes.set(
            xlabel="seconds since launch, validations not counted",
            ylabel="accuracy on the target's val",
            xlim=(0, None),
            title=title,
        )
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")


# Side by side


def measure_side(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Images a second of one run of the defaults and of two at once, in sum, in each third of their steps."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    found = {}
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            more = ["--max_steps", str(SIDE_STEPS), "--val_period", str(SIDE_STEPS // 3), "--device", device.type]
            words = [sys.executable, "train.py", *dann_flags(args.data_root, *more, "--save_dir", folder)]
            runs = [
                subprocess.Popen([*words, "--run_name", str(k)], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
                for k in range(count)
            ]
            if any([run.wait() for run in runs]):
                raise RuntimeError("a training failed")
            lines = [read_metrics(Path(folder, str(k), "metrics.jsonl")) for k in range(count)]
        # images_per_second is the mean since the start: a mark is the seconds so far over the images of a step
        marks = [[0.0, *(line["step"] / line["images_per_second"] for line in each)] for each in lines]
        steps = SIDE_STEPS // 3
        found[str(count)] = [round(sum(steps / (m[i + 1] - m[i]) for m in marks), 1) for i in range(3)]
        print(f"  {count}: {found[str(count)]}", flush=True)
    return {"steps": SIDE_STEPS, "images_per_second": found}


# Public libraries


def lines_of(function: Callable[..., None]) -> int:
    """Lines of its body that are not empty."""
    return sum(bool(line.strip()) for line in inspect.getsource(function).splitlines()) - 1


def by_train(settings: Settings, data: Data) -> tuple[DANN, float]:
    """The network that train.py's own loop trained on the CPU, and its images a second."""
    with tempfile.TemporaryDirectory() as folder:
        run = train.start_run(settings, Path(folder), data, torch.device("cpu"), Ranks())
        with contextlib.closing(RunLog(Path(folder) / "metrics.jsonl", 0)) as log:
            train.train(run, data, settings, Ranks(), log)
    return run.predictor, run.images_seen / run.training_seconds


def measure_peers(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Accuracy and images a second of plain DANN by train.py and by each library, in turn, a seed after the other."""
    steps, threads, silent = str(peers.STEPS), torch.get_num_threads(), io.StringIO()
    more = ["--without", "priors", "confusion", "--max_steps", steps, "--val_period", steps, "--precision", "fp32"]
    runs = [settings_of(dann_flags(args.data_root, *more, "--device", "cpu", "--seed", str(s))) for s in args.seeds]
    data = train.load_data(runs[0])
    libraries = {name: partial(peers.by_library, each) for name, each in peers.LIBRARIES.items()}
    found: dict[str, list[tuple[float | None, float]]] = {name: [] for name in ("train.py", *libraries)}
    torch.set_num_threads(1)
    for settings, (name, measured) in itertools.product(runs, found.items()):
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            net, rate = libraries.get(name, by_train)(settings, data)
        measured.append((accuracy_of(answers(net, data.target_val)), rate))
        print(f"  {name}, seed {settings.seed}: {measured[-1]}", flush=True)
    about = {"device": describe_device(torch.device("cpu")), "repeats": len(runs), "steps": peers.STEPS}
    torch.set_num_threads(threads)
    rows = {
        name: {
            "accuracy": [accuracy for accuracy, _ in measured],
            "images_per_second": round(statistics.median(rate for _, rate in measured), 1),
            "lines": lines_of(peers.LIBRARIES[name]) if name in libraries else 1,  # a command
        }
        for name, measured in found.items()
    }
    packages = {name: version(name) for name in (*libraries, "skorch", "pytorch-lightning")}
    return {**about, "versions": {**versions(), **packages}, "by": rows}


MEASURES = {
    "training": measure_training,
    "prediction": measure_prediction,
    "start": measure_start,
    "growth": measure_growth,
    "accuracy": measure_accuracy,
    "frozen": measure_frozen,
    "large": measure_large,
    "side": measure_side,
    "peers": measure_peers,
}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, and write the json; returns what it holds."""
    args = build_parser().parse_args(argv)
    args.data_root, args.out = args.data_root.resolve(), args.out.resolve()
    for domain in ("mnistm", "usps"):
        domain_folder(args.data_root, domain)  # refused before minutes of measuring
    if "peers" in args.parts:
        peers.require_packages()
    device = choose_device(args.device)
    file = args.out / f"benchmark-{device.type}.json"
    found: dict[str, Any] = read_json(file) if file.exists() else {}
    command = shlex.join(["python", "lab/benchmark.py", *(sys.argv[1:] if argv is None else argv)])
    about = {"repeats": args.repeats, "device": describe_device(device), "versions": versions(), "command": command}
    for part in args.parts:
        found[part] = {**about, **MEASURES[part](args, device)}
        write_json(file, found)
        print(json.dumps(found[part], indent=2), flush=True)
    return found


if __name__ == "__main__":
    run_script(main)

"""Nothing lost, nothing let in: kills at random moments, disks that fill, hostile files and arguments, and load.

All of it is slow. A soak that ran to its end leaves its counts in results/soak.json, which lab/tables.py states.
"""

import contextlib
import io
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK, ended, same_state, same_tensors, write_domain
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from threadpoolctl import threadpool_limits

import export
import inference
import plots
import prepare_data
import report
import train
import tsne
from config import read_settings
from dataset import read_domain, read_image
from listing import class_names, encode_labels, list_csv, list_split
from model import DANN
from runs import build_network, load_checkpoint, write_json
from utils import UserError, describe_device, versions

pytestmark = pytest.mark.slow

KILLS = 12  # of a recipe
CASES = 2000  # of CSVs, argument lists and images
COMMANDS = 500  # of command lines and checkpoints
RUNS = 200  # of train.py and of tsne.py
ROUNDS = 4  # pairs of predictions into one file
IMAGES = 100_000  # to predict
ROWS = 1_000_000  # of a CSV
PROJECT = Path(train.__file__).parent
COUNTS: Counter[str] = Counter()  # what was done
HOSTILE = ("CSVs", "argument lists", "command lines", "images", "checkpoints", "runs of train.py", "runs of tsne.py")
KINDS = {
    *("kills of recipe tuned", "kills of recipe strong", "of them while writing a file", "rows of the longest CSV"),
    *HOSTILE,
    *("images predicted", "pairs of predictions into one file"),
}
fuzzing = settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


@pytest.fixture(scope="module", autouse=True)
def counts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Say at the end what was done; of a soak that ran to its end without a failure keep it."""
    began = time.monotonic()
    yield
    kept = COUNTS.keys() >= KINDS and not request.session.testsfailed
    if kept:
        found = {
            "counts": dict(COUNTS),
            "seconds": round(time.monotonic() - began),
            "command": shlex.join(["python", "-m", "pytest", *request.config.invocation_params.args]),
            "device": describe_device(torch.device("cpu")),
            "versions": versions(),
        }
        write_json(PROJECT / "results" / "soak.json", found)
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\ndone: {json.dumps(COUNTS)}{'; run python lab/tables.py to state it' if kept else ''}")


def count(kind: str, refused: bool = False, number: int = 1) -> None:
    COUNTS[kind] += number
    if kind in HOSTILE:
        COUNTS[f"{kind} refused"] += refused


# Kills and disks

PART = re.compile(r"\..+\.[a-z0-9_]{8}\.\w+")  # what atomic_path has not renamed yet


def training(data: Path, save_dir: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, str(PROJECT / "train.py"), "--data_root", str(data), "--train_mode", "dann"),
        *("--target_file", "usps", "--save_dir", str(save_dir), "--run_name", "run", *QUICK, "--max_steps", "60"),
        *("--val_period", "2", *more),
    ]


@pytest.mark.parametrize("recipe", ["tuned", "strong"])
def test_a_run_killed_at_random_moments_ends_with_the_weights_of_one_never_killed(
    recipe: str, small_data: Path, tmp_path: Path
) -> None:
    """At random moments, and every other time while a checkpoint is written."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(training(small_data, tmp_path / "whole", "--recipe", recipe), check=True, env=environment)
    rng, kills = random.Random(recipe), 0
    folder = tmp_path / "cut" / "run"
    last = folder / "last.pt"
    while kills < KILLS:
        more = ["--recipe", recipe] + ["--resume"] * (kills > 0)
        process = subprocess.Popen(training(small_data, tmp_path / "cut", *more), env=environment)
        before = last.stat().st_mtime_ns if last.exists() else 0
        while process.poll() is None and (last.stat().st_mtime_ns if last.exists() else 0) == before:
            time.sleep(0.01)  # until a first checkpoint of this process: kills of mere imports test nothing
        if kills % 2:  # every other one while it saves
            while process.poll() is None and not any(folder.glob(".last.pt.*")):
                time.sleep(0.0005)
        else:
            time.sleep(rng.uniform(0, 0.3))
        process.kill()
        kills += 1
        assert process.wait() in (0, -9)  # done, or killed: nothing else may end it
        count(f"kills of recipe {recipe}")
        count("of them while writing a file", number=int(any(PART.fullmatch(file.name) for file in folder.iterdir())))
        if last.exists():  # whole, whenever the kill came
            step = load_checkpoint(last)["step"]
            assert process.returncode or step == 60
        if process.returncode == 0:  # it was faster: start over, so that the kills go on
            shutil.rmtree(folder)
    subprocess.run(training(small_data, tmp_path / "cut", "--recipe", recipe, "--resume"), check=True, env=environment)
    whole, cut = (load_checkpoint(tmp_path / name / "run" / "last.pt") for name in ("whole", "cut"))
    assert same_tensors(whole["model"], cut["model"])
    assert same_state(whole["resume"], cut["resume"])  # optimizer, student and teacher too
    assert whole["step"] == cut["step"] == 60
    names = [sorted(path.name for path in (tmp_path / name / "run").iterdir()) for name in ("whole", "cut")]
    assert names[0] == names[1]  # nothing is missing, and nothing half written is left


def test_a_disk_that_fills_up_while_training_leaves_the_last_good_checkpoint_to_resume(
    small_data: Path, tmp_path: Path
) -> None:
    """A disk that holds one checkpoint of a run, but not the next beside it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount the disk that this test fills")
    flags = ["--data_root", small_data, "--train_mode", "dann", "--target_file", "usps", *QUICK, "--val_period", "4"]
    flags += ["--run_name", "run", "--save_dir"]
    last = disk / "run" / "last.pt"
    try:
        code, _, error = ended(train, *flags, disk)
        assert code == 2
        assert f"{last}: No space left on device" in error.splitlines()[-1]
        assert load_checkpoint(last)["step"] == 4
        assert not [file for file in last.parent.iterdir() if file.name.startswith(".")]
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert ended(train, *flags, disk, "--resume")[0] == 0
        found = load_checkpoint(last)["model"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert ended(train, *flags, tmp_path)[0] == 0
    assert same_tensors(found, load_checkpoint(tmp_path / "run" / "last.pt")["model"])


# Hostile files and arguments

SCRIPTS = {script.__name__: script for script in (train, inference, tsne, prepare_data, export, report)}
PARSERS = {name: script.build_parser() for name, script in SCRIPTS.items()}
FLAGS = sorted({flag for p in PARSERS.values() for action in p._actions for flag in action.option_strings})
VALUES = ["0", "-1", "nan", "inf", "1e400", "9" * 24, "x", "dann", "sorce", "usps", "..", "/", "strong", "teacher"]
VALUES += ["0x10", "1.5", ""]
CELLS = ["image_name", "label", "a.png", "../x", "/etc/passwd", "3", "3.0", "", " ", '"', "nan"]
FORMATS = [("RGB", "PNG"), ("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("RGB", "JPEG"), ("L", "GIF"), ("RGB", "BMP")]


def as_csv(rows: list[list[str]]) -> bytes:
    return "\n".join(",".join(row) for row in [["image_name", "label"], *rows]).encode("utf-8", "replace")


def refusal_of(call: Callable[[], object]) -> str:
    """What a UserError says, or nothing where the call went well; any other exception is a failure of the test."""
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)  # as arguments can be
row = st.lists(st.one_of(st.sampled_from(CELLS), st.text(max_size=12)), max_size=4)


@settings(fuzzing, max_examples=CASES)
@given(
    content=st.one_of(
        st.binary(max_size=300),
        st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.lists(row, max_size=6).map(as_csv),
    )
)
def test_any_csv_is_read_or_refused_by_name(content: bytes, tmp_path: Path) -> None:
    csv = tmp_path / "train.csv"
    csv.write_bytes(content)

    def read() -> None:
        listing = list_csv(csv, with_labels=True)
        assert all(path.resolve().is_relative_to(tmp_path.resolve()) for path in listing.paths)
        if listing.labels is not None:
            encode_labels(listing, class_names(listing))

    refusal = refusal_of(read)
    assert str(csv) in refusal or not refusal
    count("CSVs", bool(refusal))


@settings(fuzzing, max_examples=CASES)
@given(
    words=st.lists(st.one_of(st.sampled_from(FLAGS), st.sampled_from(VALUES), st.text(max_size=8)), max_size=12),
    script=st.sampled_from(sorted(PARSERS)),
)
def test_any_arguments_are_taken_or_refused_in_one_line(words: list[str], script: str) -> None:
    """Parsing only: no script may do anything before its arguments are known to be sound."""

    def parse() -> None:
        try:
            if script == "train":
                words[:0] = ["--data_root", "d", "--train_mode", "dann", "--target_file", "t"]
                read_settings(PARSERS[script].parse_args(words))
            else:
                PARSERS[script].parse_args(words)
        except SystemExit as end:  # --help
            if end.code:
                raise

    refusal = refusal_of(parse)
    assert len(refusal.splitlines()) <= 1
    count("argument lists", bool(refusal))


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """What lies below a folder, but for report.py's figure: size and time of the last change."""
    found = {str(path): path.stat() for path in folder.rglob("*") if path.name != "comparison.png"}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}


READABLE = ["in/run", "in/run/last.pt", "in/bad.pt", "in/images", "in/images/x.png", "in", "absent", "", ".."]
READABLE += ["/dev/null"]
WRITTEN = ["out", "out/x.csv", "out/x.pt2", "out/deep/er.png", "out/x.png", "out/none/x.md", "in/bad.pt/x.pt2"]
SOUND = {"--checkpoint": "in/run", "--test_loc": "in/images", "--data_root": "in", "--labels": "in/labels.csv"}
SOUND |= {"--source_file": "mnistm", "--target_file": "usps", "--size": "16", "--limit": "10"}
WRITING = {"--out_path", "--save_dir", "--cache", "--html"}
READING = {"--checkpoint", "--test_loc", "--labels", "--data_root"}
LEARNING = ("train", "tsne")


@st.composite
def command_lines(draw: st.DrawFn, scripts: Sequence[str] = ("inference", "export", "report")) -> tuple[str, list[str]]:
    """A script and flags with values: those that write get places in `out`, the others anything."""
    script = draw(st.sampled_from(scripts))
    actions = [action for action in PARSERS[script]._actions if action.option_strings and action.dest != "help"]
    words: list[str] = []
    all_sound = script in LEARNING and draw(st.booleans())  # and the data, perhaps, not
    chosen = draw(st.lists(st.sampled_from(actions), max_size=4))
    required = [action for action in actions if action.required]
    for action in [*required, *chosen] if all_sound or draw(st.integers(0, 9)) else chosen:
        flag = action.option_strings[-1]
        words.append(flag)
        if flag in WRITING:
            words.append(draw(st.sampled_from(WRITTEN)))
        elif action.nargs != 0:
            sound = st.sampled_from([SOUND[flag]] if flag in SOUND else [*map(str, action.choices or [1, 2])])
            other = st.sampled_from(READABLE) if flag in READING else st.one_of(sound, st.sampled_from(VALUES), WORDS)
            words.append(draw(sound if all_sound else st.one_of(sound, other)))
    if script == "report":
        words = draw(st.lists(st.sampled_from(READABLE), max_size=2)) + words
    if script == "train":  # the last one counts: a short run, into `out`
        words = ["--target_file", "usps", "--batch_size", "2", *words]
        words += ["--max_steps", draw(st.sampled_from("12")), "--save_dir", draw(st.sampled_from(WRITTEN))]
        words += ["--precision", "fp32"]
    return script, words


@pytest.fixture
def workshop(dann_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with images, two domains of two classes and a run in `kept`.

    A figure and an export, which take long, are a word.
    """
    kept = tmp_path / "kept"
    for i, domain in enumerate(("mnistm", "usps")):
        write_domain(kept / domain, {"train": 6, "val": 4}, seed=i, classes=2)
    shutil.copytree(dann_run, kept / "run")
    (kept / "images").mkdir()
    Image.new("L", (28, 28), 9).save(kept / "images" / "x.png")
    (kept / "labels.csv").write_text("image_name,label\nx.png,3\n")
    (kept / "bad.pt").write_bytes(b"x")
    for module, name in itertools.product((plots, tsne), ("curves", "confusion", "mistakes", "by_class", "by_domain")):
        monkeypatch.setattr(module, f"draw_{name}", lambda *given: given[-1].write_text("x"), raising=False)
    monkeypatch.setattr(export, "FORMATS", {".pt2": lambda path, *_: path.write_text("x") * 0.0})
    monkeypatch.chdir(tmp_path)
    before = set(os.listdir(PROJECT))
    yield tmp_path
    assert not [name for name in set(os.listdir(PROJECT)) - before if not name.startswith((".", "__"))]


@contextlib.contextmanager
def no_hang(seconds: int = 120) -> Iterator[None]:
    """An error, and with it a traceback, in what takes longer."""

    def too_long(*_: object) -> None:
        raise AssertionError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(script: str, words: list[str], workshop: Path) -> int:
    """Exit code of a command line in which nothing hangs, raises, or writes anywhere but into `out`."""
    before = snapshot(workshop / "in")
    with no_hang(), threadpool_limits(1):  # t-SNE of ten points on two threads mostly waits
        code, _, error = ended(SCRIPTS[script], *words)
    assert "Traceback" not in error, error
    assert code in (0, 1, 2)
    if code == 2:
        assert error.splitlines()[-1].startswith(f"{script}.py: ")
    assert snapshot(workshop / "in") == before
    assert {file.name for file in workshop.iterdir()} <= {"in", "kept", "out"}
    assert not [file for file in (workshop / "out").rglob(".*") if PART.fullmatch(file.name)]
    shutil.rmtree(workshop / "out", ignore_errors=True)
    return code


def test_any_command_line_ends_in_an_exit_code_and_writes_into_its_output_alone(workshop: Path) -> None:
    shutil.copytree(workshop / "kept", workshop / "in")

    @settings(fuzzing, max_examples=COMMANDS)
    @given(line=command_lines())
    def case(line: tuple[str, list[str]]) -> None:
        count("command lines", check(*line, workshop) == 2)

    case()


FILES = [f"{domain}/{name}" for domain in ("mnistm", "usps") for name in ("train.csv", "val.csv", "data/0000.png")]
good_row = st.integers(0, 9).map(lambda i: [f"{i:04d}.png", str(i % 2)])
spoilt = st.one_of(
    st.none(),  # removed
    st.binary(max_size=60),
    st.lists(st.one_of(good_row, good_row, good_row, row), max_size=8).map(as_csv),
    st.lists(good_row, min_size=2, max_size=8).map(lambda rows: b"\xef\xbb\xbf" + as_csv(rows)),
)


@pytest.mark.parametrize("script", LEARNING)
def test_any_data_and_flags_are_learnt_from_or_refused_and_nothing_is_written_but_into_the_output(
    script: str, workshop: Path
) -> None:
    """Whole runs of train.py, a step or two long, and of tsne.py, on domains of which some files are spoilt."""
    codes: Counter[int] = Counter()

    @settings(fuzzing, max_examples=RUNS)
    @given(
        line=command_lines([script]),
        files=st.one_of(st.just({}), st.dictionaries(st.sampled_from(FILES), spoilt, max_size=2)),
    )
    def case(line: tuple[str, list[str]], files: dict[str, bytes | None]) -> None:
        shutil.rmtree(workshop / "in", ignore_errors=True)
        shutil.copytree(workshop / "kept", workshop / "in")
        for name, content in files.items():
            (workshop / "in" / name).unlink()
            if content is not None:
                (workshop / "in" / name).write_bytes(content)
        code = check(*line, workshop)
        codes[code] += 1
        count(f"runs of {script}.py", code == 2)

    case()
    assert min(codes[0], codes[2]) >= 3, codes  # both were tried


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut, doubled or overwritten with what tends to hurt."""
    out = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out))
        kind = rng.randrange(5)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff"])
        elif kind == 2:
            del out[at : at + rng.randint(1, 40)]
        elif kind == 3:
            out[at:at] = out[at : at + rng.randint(1, 40)]
        else:
            out = out[: max(1, at)]
        out = out or bytearray(b"x")
    return bytes(out)


def test_any_image_is_read_or_named(tmp_path: Path) -> None:
    rng, pixels = random.Random(0), np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    seeds = []
    for mode, form in FORMATS:
        box = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(box, form)
        seeds.append(box.getvalue())
    for _ in range(CASES):
        (tmp_path / "x.png").write_bytes(mutated(rng.choice(seeds), rng))
        found = read_image(tmp_path / "x.png", 28)
        assert isinstance(found, str) or (found.shape == (28, 28, 3) and found.dtype == np.uint8)
        count("images", isinstance(found, str))
    assert 0 < COUNTS["images refused"] < CASES


def test_any_checkpoint_is_loaded_or_refused_by_name(dann_run: Path, tmp_path: Path) -> None:
    rng, content = random.Random(1), (dann_run / "last.pt").read_bytes()
    other = io.BytesIO()
    torch.save({"model": DANN(3).state_dict(), "model_args": {"num_classes": 4}, "args": {}}, other)
    file = tmp_path / "x.pt"
    for _ in range(COMMANDS):
        file.write_bytes(mutated(rng.choice([content, content, other.getvalue()]), rng))
        refusal = refusal_of(lambda: build_network(file, load_checkpoint(file), torch.device("cpu")))
        assert str(file) in refusal or not refusal
        assert "\n" not in refusal
        count("checkpoints", bool(refusal))
    assert COUNTS["checkpoints refused"] > 10


# Load


def test_a_csv_of_a_million_rows_is_listed_in_seconds_and_refused_at_its_first_absent_image(tmp_path: Path) -> None:
    """No image is written but the first."""
    (tmp_path / "d" / "data").mkdir(parents=True)
    Image.new("L", (28, 28)).save(tmp_path / "d" / "data" / "0000000.png")
    csv = tmp_path / "d" / "train.csv"
    csv.write_text("image_name,label\n" + "".join(f"{i:07d}.png,{i % 10}\n" for i in range(ROWS)))
    began = time.process_time()
    listing = list_split(tmp_path, "d", "train", True)
    assert listing is not None
    assert len(listing.names) == ROWS
    refusal = refusal_of(lambda: read_domain(listing, [str(k) for k in range(10)], 28, 1))
    assert time.process_time() - began < 60
    assert f"{csv} row 3: " in refusal
    assert f"{ROWS - 1}" in refusal
    count("rows of the longest CSV", number=ROWS)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory in /proc")
def test_the_memory_of_prediction_does_not_grow_with_the_images_but_for_their_names_and_answers(
    dann_run: Path, tmp_path: Path
) -> None:
    """Links to five images; peak memory of a process that predicts few of them, and of one that predicts all."""
    rng, numbers, peaks = np.random.default_rng(0), (IMAGES // 10, IMAGES), []
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    code = (  # ru_maxrss would be the parent's, where that is more
        "import inference, re, sys; inference.main(sys.argv[1:]); "
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    for number in numbers:
        folder = tmp_path / str(number)
        folder.mkdir()
        for i in range(number):
            (folder / f"{i:06d}.png").symlink_to(tmp_path / f"{i % 5}.png")
        flags = ["--checkpoint", str(dann_run), "--test_loc", str(folder), "--out_path", f"{folder}.csv"]
        done = subprocess.run(
            [sys.executable, "-c", code, *flags], cwd=PROJECT, check=True, capture_output=True, text=True
        )
        peaks.append(int(done.stdout.splitlines()[-1]) * 1024)
    labels = [line.split(",")[1] for line in (tmp_path / f"{IMAGES}.csv").read_text().splitlines()[1:]]
    assert labels == labels[:5] * (IMAGES // 5)
    each = (peaks[1] - peaks[0]) / (numbers[1] - numbers[0])
    assert each * IMAGES < 1500 * IMAGES + (30 << 20)  # an image's pixels alone would be 2,352 bytes; noise aside
    count("images predicted", number=IMAGES)
    count("peak memory in MB", number=peaks[1] >> 20)
    count("bytes more an image", number=round(each))


def test_two_predictions_into_the_same_file_never_mix(dann_run: Path, tmp_path: Path) -> None:
    rng, wanted, folders = np.random.default_rng(5), [], [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
        pixels = rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{folder.name}.png")
        for i in range(4000):  # so that writing takes a while
            (folder / f"{folder.name}_{i}.png").symlink_to(tmp_path / f"{folder.name}.png")
        arguments = ["--checkpoint", dann_run, "--test_loc", folder, "--out_path", tmp_path / "a", "--probs"]
        assert ended(inference, *arguments)[0] == 0
        wanted.append((tmp_path / "a" / "pred.csv").read_text())
    written, seen = tmp_path / "out" / "pred.csv", 0
    command = [sys.executable, "inference.py", "--checkpoint", str(dann_run), "--probs"]
    command += ["--out_path", str(tmp_path / "out"), "--test_loc"]
    for _ in range(ROUNDS):
        running = [
            subprocess.Popen([*command, str(folder)], cwd=PROJECT, stdout=subprocess.DEVNULL) for folder in folders
        ]
        while any(process.poll() is None for process in running):
            if written.exists():  # at any moment it is whole, and of one of the two
                assert written.read_text() in wanted
                seen += 1
        assert [process.wait() for process in running] == [0, 0]
        assert written.read_text() in wanted
        assert [file.name for file in (tmp_path / "out").iterdir()] == ["pred.csv"]
        count("pairs of predictions into one file")
    assert seen > 10

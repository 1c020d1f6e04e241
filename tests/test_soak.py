"""Nothing lost, nothing let in: kills at random moments, files and arguments that nobody would write, and load.

`make test` runs a short version, `make soak` (SOAK=1) the long one, which writes its counts to results/soak.json, where
report.py finds them for the README.
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

import benchmark
import numpy as np
import pytest
import records
import torch
from conftest import ended, same_state, same_tensors, write_domain
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from png import headers, read_rows, unfilter
from records import check_values, write_json
from threadpoolctl import threadpool_limits

import export
import inference
import prepare_data
import report
import train
import tsne
from checkpoint import build_network, load_checkpoint
from dataset import class_names, encode_labels, list_csv, list_split, read_domain, read_image
from model import DANN
from utils import UserError, describe_device, versions

SOAK = bool(os.environ.get("SOAK"))
LONG = {"kills": 24, "cases": 4000, "rounds": 10}
SHORT = {"kills": 3, "cases": 120, "rounds": 1}
KILLS, CASES, ROUNDS = (LONG if SOAK else SHORT).values()  # of a recipe; of each kind; two predictions into one file
IMAGES = 200_000  # to predict
ROWS = 1_000_000 if SOAK else 20_000  # of a CSV
PROJECT = Path(train.__file__).parent
SOAK_FILE = PROJECT / "results" / "soak.json"
KEPT = f"\nwritten to {SOAK_FILE}; python report.py --readme README.md states them"
COUNTS: Counter[str] = Counter()  # what was done, for the README
fuzzing = settings(
    max_examples=CASES, deadline=None, derandomize=not SOAK, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", autouse=True)
def counts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Say at the end what was done; of a whole soak keep it."""
    began = time.monotonic()
    yield
    command = f"SOAK=1 python -m pytest {shlex.join(request.config.invocation_params.args)}"
    kept = SOAK and not request.session.testsfailed and keep(COUNTS, time.monotonic() - began, command, SOAK_FILE)
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\ndone: {json.dumps(COUNTS)}{KEPT if kept else ''}")


def keep(counts: Counter[str], seconds: float, command: str, file: Path) -> bool:
    """Write the counts of a soak and what they were counted on; nothing where a kind of test was left out."""
    found = {
        "counts": dict(counts),
        "seconds": round(seconds),
        "command": command,
        "device": describe_device(torch.device("cpu")),
        "versions": versions(),
    }
    try:
        check_values(file, found, records.SOAK)
    except UserError:
        return False
    write_json(file, found)
    return True


# Kills


PART = re.compile(r"\..+\.[a-z0-9_]{8}\.\w+")  # what atomic_path has not renamed yet


def command(data: Path, save_dir: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, str(PROJECT / "train.py"), "--data_root", str(data), "--train_mode", "dann"),
        *("--target_file", "usps", "--save_dir", str(save_dir), "--run_name", "run", "--max_steps", "60"),
        *("--val_period", "2", "--batch_size", "16", "--device", "cpu", *more),
    ]


@pytest.mark.parametrize("recipe", ["paper", "strong"])
def test_a_run_killed_at_random_moments_ends_with_the_weights_of_one_never_killed(
    recipe: str, small_data: Path, tmp_path: Path
) -> None:
    """At random moments, and every other time while a checkpoint is written."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(small_data, tmp_path / "whole", "--recipe", recipe), check=True, env=environment)
    rng, kills = random.Random(recipe), 0
    while kills < KILLS:
        more = ["--recipe", recipe] + ["--resume"] * (kills > 0)
        process = subprocess.Popen(command(small_data, tmp_path / "cut", *more), env=environment)
        last = tmp_path / "cut" / "run" / "last.pt"
        before = last.stat().st_mtime_ns if last.exists() else 0
        while process.poll() is None and (last.stat().st_mtime_ns if last.exists() else 0) == before:
            time.sleep(0.01)  # until a first checkpoint of this process: kills of mere imports test nothing
        if kills % 2:  # every other one while it saves
            while process.poll() is None and not any(last.parent.glob(".last.pt.*")):
                time.sleep(0.0005)
        else:
            time.sleep(rng.uniform(0, 0.3))
        process.kill()
        kills += 1
        assert process.wait() in (0, -9)  # done, or killed: nothing else may end it
        COUNTS[f"kills of recipe {recipe}"] += 1
        COUNTS["of them while writing a file"] += any(PART.fullmatch(file.name) for file in last.parent.iterdir())
        if process.returncode == 0:  # it was faster: start over, so that the kills go on
            assert load_checkpoint(last)["step"] == 60
            for file in (tmp_path / "cut" / "run").iterdir():
                file.unlink()
            (tmp_path / "cut" / "run").rmdir()
            continue
        if last.exists():
            load_checkpoint(last)  # whole, whenever the kill came
    subprocess.run(command(small_data, tmp_path / "cut", "--recipe", recipe, "--resume"), check=True, env=environment)
    whole, cut = (load_checkpoint(tmp_path / name / "run" / "last.pt") for name in ("whole", "cut"))
    assert same_tensors(whole["model"], cut["model"])
    assert same_state(whole["resume"], cut["resume"])  # optimizer, student and teacher too
    assert whole["step"] == cut["step"] == 60
    names = [sorted(path.name for path in (tmp_path / name / "run").iterdir()) for name in ("whole", "cut")]
    assert names[0] == names[1]  # nothing is missing, and nothing half written is left


# Hostile files

PARSERS = {
    "train": train.build_parser(),
    "inference": inference.build_parser(),
    "tsne": tsne.build_parser(),
    "prepare_data": prepare_data.build_parser(),
    "export": export.build_parser(),
    "report": report.build_parser(),
    "benchmark": benchmark.build_parser(),
}
FLAGS = sorted({flag for p in PARSERS.values() for action in p._actions for flag in action.option_strings})
VALUES = [
    "0",
    "-1",
    "nan",
    "inf",
    "1e400",
    "999999999999999999999999",
    "x",
    "dann",
    "sorce",
    "usps",
    "..",
    "/",
    "strong",
    "teacher",
    "0x10",
    "1.5",
] + [""]
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


@fuzzing
@given(
    content=st.one_of(
        st.binary(max_size=300),
        st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.lists(row, max_size=6).map(as_csv),
    )
)
def test_any_csv_is_read_or_refused_in_one_sentence(content: bytes, tmp_path: Path) -> None:
    csv = tmp_path / "train.csv"
    csv.write_bytes(content)

    def read() -> None:
        listing = list_csv(csv, with_labels=True)
        assert all(path.resolve().is_relative_to(tmp_path.resolve()) for path in listing.paths)
        if listing.labels is not None:
            encode_labels(listing, class_names(listing.labels))

    refusal = refusal_of(read)
    assert str(csv) in refusal or not refusal
    COUNTS["CSVs"] += 1
    COUNTS["CSVs refused"] += bool(refusal)


@fuzzing
@given(
    words=st.lists(st.one_of(st.sampled_from(FLAGS), st.sampled_from(VALUES), st.text(max_size=8)), max_size=12),
    script=st.sampled_from(sorted(PARSERS)),
)
def test_any_arguments_are_taken_or_refused_in_one_sentence(words: list[str], script: str) -> None:
    """Parsing only: no script may do anything before its arguments are known to be sound."""

    def parse() -> None:
        try:
            if script == "train":
                train.parse_args(["--data_root", "d", "--train_mode", "dann", "--target_file", "t", *words])
            else:
                PARSERS[script].parse_args(words)
        except SystemExit as end:  # --help
            if end.code:
                raise

    refusal = refusal_of(parse)
    assert len(refusal.splitlines()) <= 1
    COUNTS["argument lists"] += 1
    COUNTS["argument lists refused"] += bool(refusal)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """What lies below a folder, but for hidden things and report.py's figure: size and time of the last change."""
    found = {}
    for place, folders, files in os.walk(folder):  # a hidden folder such as .venv would take seconds to look through
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        for name in [*folders, *files]:
            if not name.startswith(".") and name != "comparison.png":  # drawn beside the first of the runs compared
                status = os.stat(os.path.join(place, name))
                found[os.path.join(place, name)] = (status.st_size, status.st_mtime_ns)
    return found


@pytest.fixture
def home(dann_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with things to read in `in` and nothing in `out`, where report.py's own folders lie too.

    Exporting takes seconds and measuring minutes: the one writes a word, the other nothing.
    """
    shutil.copytree(dann_run, tmp_path / "in" / "run")
    (tmp_path / "in" / "images").mkdir()
    Image.new("L", (28, 28), 9).save(tmp_path / "in" / "images" / "x.png")
    (tmp_path / "in" / "labels.csv").write_text("image_name,label\nx.png,3\n")
    (tmp_path / "in" / "bad.pt").write_bytes(b"x")
    for domain in ("mnistm", "usps"):
        (tmp_path / "in" / domain).mkdir()
    for name in ("RESULTS", "SHIPPED"):
        monkeypatch.setattr(report, name, tmp_path / "out" / name)
    monkeypatch.setattr(export, "FORMATS", {".pt2": lambda path, *_: path.write_text("x") * 0.0})
    monkeypatch.setattr(benchmark, "training_data", lambda _: None)
    for part in ("training", "prediction", "start", "growth", "accuracy"):
        monkeypatch.setattr(benchmark, f"measure_{part}", lambda *_: {})
    monkeypatch.chdir(tmp_path)
    return tmp_path


READABLE = [
    "in/run",
    "in/run/last.pt",
    "in/bad.pt",
    "in/images",
    "in/images/x.png",
    "in",
    "absent",
    "",
    "..",
    "/dev/null",
]
WRITTEN = [
    "out",
    "out/x.csv",
    "out/x.pt2",
    "out/deep/er.png",
    "out/x.png",
    "out/none/x.md",
    "in/bad.pt/x.pt2",
]
SOUND = {
    "--test_loc": "in/images",
    "--data_root": "in",
    "--labels": "in/labels.csv",
    "--source_file": "mnistm",
    "--target_file": "usps",
    "--size": "16",
    "--limit": "10",
}
WRITING = {"--out_path", "--out", "--signs", "--readme", "--save_dir"}
SCRIPTS = {"inference": inference, "export": export, "report": report, "benchmark": benchmark}
LEARNING = {"train": train, "tsne": tsne}
READING = {
    "inference": ["--checkpoint", "--test_loc", "--labels"],
    "export": ["--checkpoint"],
    "report": ["--add", "--ship"],
    "benchmark": ["--data_root"],
    "train": ["--data_root"],
    "tsne": ["--checkpoint", "--data_root"],
}


@st.composite
def command_lines(draw: st.DrawFn, scripts: Sequence[str] = sorted(SCRIPTS)) -> tuple[str, list[str]]:
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
        elif flag in READING[script]:
            sound = st.just(SOUND.get(flag, "in/run"))
            words.append(draw(sound if all_sound else st.one_of(sound, st.sampled_from(READABLE))))
        elif action.nargs != 0:
            sound = st.sampled_from([SOUND[flag]] if flag in SOUND else [*map(str, action.choices or [1, 2])])
            words.append(draw(sound if all_sound else st.one_of(sound, sound, st.sampled_from(VALUES), WORDS)))
    if script == "report":
        words = draw(st.lists(st.sampled_from(READABLE), max_size=2)) + words
    if script == "benchmark":  # its default is the project's own folder
        words += ["--out", draw(st.sampled_from(WRITTEN))]
    if script == "train":  # the last one counts: a short run, into `out`
        words = ["--target_file", "usps", "--batch_size", "2", *words]
        words += ["--max_steps", draw(st.sampled_from("12")), "--save_dir", draw(st.sampled_from(WRITTEN))]
    return script, words


@settings(fuzzing, max_examples=max(60, CASES // 4))
@given(line=command_lines())
def test_any_command_line_ends_in_an_exit_code_and_writes_into_its_output_alone(
    line: tuple[str, list[str]], home: Path
) -> None:
    script, words = line
    before = snapshot(home / "in"), snapshot(PROJECT)
    with no_hang():
        code, _, error = ended(SCRIPTS[script], *words)
    assert "Traceback" not in error, error
    assert code in (0, 1, 2)
    if code == 2:
        assert error.splitlines()[-1].startswith(f"{script}.py: ")
    assert (snapshot(home / "in"), snapshot(PROJECT)) == before
    assert {file.name for file in home.iterdir()} <= {"in", "out"}
    shutil.rmtree(home / "out", ignore_errors=True)
    COUNTS["command lines"] += 1
    COUNTS["command lines refused"] += code == 2


@pytest.fixture
def workshop(dann_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two domains of two classes and a run in `kept`; a figure, which takes long, is a word."""
    for i, domain in enumerate(("mnistm", "usps")):
        write_domain(tmp_path / "kept" / domain, {"train": 6, "val": 4}, seed=i, classes=2)
    shutil.copytree(dann_run, tmp_path / "kept" / "run")
    (tmp_path / "kept" / "bad.pt").write_bytes(b"x")
    for module, name in itertools.product((train, tsne), ("curves", "confusion", "mistakes", "by_class", "by_domain")):
        monkeypatch.setattr(module, f"draw_{name}", lambda *given: given[-1].write_text("x"), raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


FILES = [f"{domain}/{name}" for domain in ("mnistm", "usps") for name in ("train.csv", "val.csv", "data/0000.png")]
good_row = st.integers(0, 9).map(lambda i: [f"{i:04d}.png", str(i % 2)])
spoilt = st.one_of(
    st.none(),  # removed
    st.binary(max_size=60),
    st.lists(st.one_of(good_row, good_row, good_row, row), max_size=8).map(as_csv),
    st.lists(good_row, min_size=2, max_size=8).map(lambda rows: b"\xef\xbb\xbf" + as_csv(rows)),
)


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


@pytest.mark.parametrize("script", sorted(LEARNING))
def test_any_data_and_flags_are_learnt_from_or_refused_and_nothing_is_written_but_into_the_output(
    script: str, workshop: Path
) -> None:
    """Whole runs of train.py, a step or two long, and of tsne.py, on domains of which some files are spoilt."""
    codes: Counter[int] = Counter()

    @settings(fuzzing, max_examples=max(25, CASES // 10))
    @given(
        line=command_lines([script]),
        files=st.one_of(st.just({}), st.dictionaries(st.sampled_from(FILES), spoilt, max_size=2)),
    )
    def case(line: tuple[str, list[str]], files: dict[str, bytes | None]) -> None:
        for folder in ("in", "out"):
            shutil.rmtree(workshop / folder, ignore_errors=True)
        shutil.copytree(workshop / "kept", workshop / "in")
        for name, content in files.items():
            (workshop / "in" / name).unlink()
            if content is not None:
                (workshop / "in" / name).write_bytes(content)
        before = snapshot(workshop / "in"), snapshot(workshop / "kept"), snapshot(PROJECT)
        with no_hang(), threadpool_limits(1):  # t-SNE of ten points on two threads mostly waits
            code, _, error = ended(LEARNING[script], *line[1])
        assert "Traceback" not in error, error
        assert code in (0, 2)
        if code == 2:
            assert error.splitlines()[-1].startswith(f"{script}.py: ")
        assert (snapshot(workshop / "in"), snapshot(workshop / "kept"), snapshot(PROJECT)) == before
        assert {file.name for file in workshop.iterdir()} <= {"in", "kept", "out"}
        assert not [file for file in (workshop / "out").rglob(".*") if PART.fullmatch(file.name)]
        codes[code] += 1

    case()
    assert min(codes[0], codes[2]) >= 3, codes  # both were tried
    COUNTS[f"runs of {script}.py"], COUNTS[f"runs of {script}.py refused"] = codes.total(), codes[2]


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


def test_any_image_is_read_or_named_and_the_plain_reader_agrees_with_pillow(tmp_path: Path) -> None:
    rng, pixels = random.Random(0), np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    seeds = []
    for mode, form in FORMATS:
        box = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(box, form)
        seeds.append(box.getvalue())
    file, read = tmp_path / "x.png", 0
    for _ in range(CASES):
        file.write_bytes(mutated(rng.choice(seeds), rng))
        found = read_image(file, 28)
        assert isinstance(found, str) or (found.shape == (28, 28, 3) and found.dtype == np.uint8)
        plain = read_rows(file, 28, headers(28))
        if plain is not None:
            assert not isinstance(found, str)
            assert np.array_equal(unfilter(plain[0], [plain[1]], 28)[0], found)
        read += not isinstance(found, str)
    assert 0 < read < CASES
    COUNTS["images"], COUNTS["images refused"] = CASES, CASES - read


def test_any_checkpoint_is_loaded_or_refused_in_one_sentence(dann_run: Path, tmp_path: Path) -> None:
    rng, content = random.Random(1), (dann_run / "last.pt").read_bytes()
    other = io.BytesIO()
    torch.save({"model": DANN(3).state_dict(), "model_args": {"num_classes": 4}, "args": {}}, other)
    file, refused = tmp_path / "x.pt", 0
    for _ in range(max(20, CASES // 4)):  # each takes some milliseconds
        file.write_bytes(mutated(rng.choice([content, content, other.getvalue()]), rng))
        refusal = refusal_of(lambda: build_network(file, load_checkpoint(file), torch.device("cpu")))
        refused += bool(refusal)
        assert str(file) in refusal or not refusal
        assert "\n" not in refusal
        COUNTS["checkpoints"] += 1
    assert refused > 10
    COUNTS["checkpoints refused"] = refused


# Load


def test_a_csv_of_a_million_rows_is_listed_in_seconds_and_refused_at_its_first_absent_image(tmp_path: Path) -> None:
    """A million in make soak, fewer in make test; no image is written but the first."""
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
    assert refusal == (
        f"{csv} row 3: {tmp_path / 'd' / 'data' / '0000001.png'}: no such file ({ROWS - 1} such images in all); "
        "restore the image or remove the row."
    )
    COUNTS["rows of the longest CSV"] = ROWS


@pytest.mark.skipif(not SOAK or sys.platform != "linux", reason="make soak; test_disk.py has the short version")
def test_the_memory_of_prediction_does_not_grow_with_the_images_but_for_their_names_and_answers(
    dann_run: Path, tmp_path: Path
) -> None:
    """Links to five images; peak memory of a process that predicts few of them, and of one that predicts all."""
    rng = np.random.default_rng(0)
    few, all_of_them = tmp_path / "few", tmp_path / "all"
    few.mkdir()
    all_of_them.mkdir()
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    for i in range(IMAGES):
        for folder in (few, all_of_them) if i < IMAGES // 10 else (all_of_them,):
            (folder / f"{i:06d}.png").symlink_to(tmp_path / f"{i % 5}.png")
    code = (  # ru_maxrss would be the parent's, where that is more
        "import inference, re, sys; inference.main(sys.argv[1:]); "
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    peaks = []
    for folder in (few, all_of_them):
        flags = [
            "--checkpoint",
            str(dann_run),
            "--test_loc",
            str(folder),
            "--out_path",
            str(folder.with_suffix(".csv")),
        ]
        done = subprocess.run(
            [sys.executable, "-c", code, *flags], cwd=PROJECT, check=True, capture_output=True, text=True
        )
        peaks.append(int(done.stdout.splitlines()[-1]) * 1024)
    labels = [line.split(",")[1] for line in (tmp_path / "all.csv").read_text().splitlines()[1:]]
    assert len(labels) == IMAGES
    assert labels == [label for label, _ in zip(itertools.cycle(labels[:5]), range(IMAGES), strict=False)]
    each = (peaks[1] - peaks[0]) / (IMAGES - IMAGES // 10)
    assert each * IMAGES < 1500 * IMAGES + (30 << 20)  # an image's pixels alone would be 2,352 bytes; noise aside
    COUNTS["images predicted"] = IMAGES
    COUNTS["peak memory in MB"] = peaks[1] >> 20
    COUNTS["bytes more an image"] = round(each)


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
    for _ in range(ROUNDS):
        command = [sys.executable, "inference.py", "--checkpoint", str(dann_run), "--probs"]
        command += ["--out_path", str(tmp_path / "out")]
        running = [
            subprocess.Popen([*command, "--test_loc", str(folder)], cwd=PROJECT, stdout=subprocess.DEVNULL)
            for folder in folders
        ]
        while any(process.poll() is None for process in running):
            if written.exists():  # at any moment it is whole, and of one of the two
                assert written.read_text() in wanted
                seen += 1
        assert [process.wait() for process in running] == [0, 0]
        assert written.read_text() in wanted
        assert seen > 10
        assert [file.name for file in (tmp_path / "out").iterdir()] == ["pred.csv"]
        COUNTS["pairs of predictions into one file"] += 1


def test_the_readme_states_the_counts() -> None:
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert f"{SHORT['kills']} kills a recipe in `make test`, {LONG['kills']} in `make soak`" in readme
    assert f"`make soak`: {LONG['cases']:,} cases of each, {LONG['cases'] // 4:,} command lines run" in readme
    assert f"command lines run, {LONG['cases'] // 10:,} runs of `train.py` and of `tsne.py`" in readme
    assert f"{LONG['cases'] // 4:,} mutated files" in readme
    assert f"{LONG['rounds']} pairs in `make soak`" in readme
    assert f"`make soak`: {IMAGES:,} images" in readme


def test_a_whole_soak_leaves_its_counts_and_a_part_of_one_nothing(tmp_path: Path) -> None:
    file = tmp_path / "soak.json"
    whole = Counter({name: 10 * i + 1 for i, name in enumerate(records.KINDS)})
    for name in records.KINDS:
        assert not keep(Counter({other: n for other, n in whole.items() if other != name}), 60.0, "make soak", file)
    assert list(tmp_path.iterdir()) == []
    assert keep(whole, 61.4, "make soak", file)
    found = json.loads(file.read_text())
    assert (found["counts"], found["seconds"], found["command"]) == (dict(whole), 61, "make soak")
    assert found["versions"]["torch"] == torch.__version__
    assert found["device"].startswith("cpu (")
    assert [entry.name for entry in tmp_path.iterdir()] == ["soak.json"]

"""The README's tables: from the json files of results/ to Markdown."""

import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from records import BENCHMARK, CITED, HOSTILE, MEMORY, RESULT, SHARE, SOAK, check_values, read_json

from model import ARCHITECTURES
from utils import UserError, shown

VARYING = ("seed", "run_name", "save_dir", "data_root", "device", "num_workers")  # within a cell of a table
MODES, TARGETS = ("source", "dann", "target"), ("svhn", "usps")


class Cell(NamedTuple):
    """What a table tells apart; runs of one cell differ in the seed."""

    recipe: str
    arch: str
    mode: str
    target: str
    without: tuple[str, ...] = ()


Result = dict[str, Any]
Cells = dict[Cell, list[Result]]


# Accuracy on the target's val set as the public implementation's README states it: the best epoch by target labels.
PUBLISHED = {
    ("source", "svhn"): 0.33940,
    ("source", "usps"): 0.73522,
    ("dann", "svhn"): 0.41745,
    ("dann", "usps"): 0.82392,
    ("target", "svhn"): 0.93466,
    ("target", "usps"): 0.98992,
}


def read_results(folder: Path) -> Cells:
    """Results of training runs by cell, each sorted by seed; UserError where a cell mixes kinds of runs."""
    cells: Cells = defaultdict(list)
    for file in sorted(folder.glob("*.json")):
        result = read_json(file)
        check_values(file, result, {"args?": {}})
        args = result.get("args") or {}
        if "train_mode" in args:
            check_values(file, result, CITED)
            without = tuple(args.get("without") or ())
            cells[Cell(args["recipe"], args["arch"], args["train_mode"], args["target_file"], without)].append(result)
    for key, found in cells.items():
        kinds = [
            {name: v for name, v in result["args"].items() if name not in VARYING and v}
            | {name: result.get(name) for name in ("steps", "parameters", "precision")}
            for result in found
        ]
        differing = sorted({name for kind in kinds for name in kind | kinds[0] if kind.get(name) != kinds[0].get(name)})
        if differing:
            cell = " ".join([*key[:4], *(f"without {part}" for part in key.without)])
            raise UserError(
                f"{folder} has results of {cell} that differ in "
                f"{', '.join(differing)}; keep one kind and delete the others."
            )
    return {key: sorted(found, key=lambda result: result["seed"]) for key, found in cells.items()}


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and sample standard deviation."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def accuracy_cell(results: list[Result]) -> str:
    """Mean, deviation and worst; a dash without results."""
    values = [result["target_val_accuracy"] for result in results]
    return f"{spread(values)} (worst {min(values):.3f})" if values else "-"


def seed_counts(found: list[list[Result]]) -> str:
    counts = [str(len(results)) for results in found]
    return counts[0] if len(set(counts)) == 1 else "/".join(counts)


def accuracy_table(cells: Cells) -> list[str]:
    """A row per recipe, network and mode; the published numbers above their like."""
    sizes: dict[str, set[int]] = {target: set() for target in TARGETS}
    for cell, results in cells.items():
        sizes.setdefault(cell.target, set()).update(result["images"]["target_val"] for result in results)
    heads = []
    for target in TARGETS:
        n = " / ".join(f"{size:,}" for size in sorted(sizes[target])) or "-"
        heads.append(f"MNIST-M → {target.upper()}, n = {n}")
    lines = [
        f"| mode | recipe, network | {heads[0]} | {heads[1]} | proxy A-distance {' / '.join(TARGETS)} | seconds | "
        "seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    whole = {cell[:2] for cell in cells if not cell.without}
    groups = sorted(whole, key=lambda pair: (pair[0] != "paper", pair[1] != "small", pair))
    for mode in MODES:
        lines.append(
            f"| {mode} | *published, best epoch by target labels* | *{PUBLISHED[mode, 'svhn']:.5f}* | "
            f"*{PUBLISHED[mode, 'usps']:.5f}* | | | 1 |"
        )
        for recipe, arch in groups:
            found = [cells.get(Cell(recipe, arch, mode, target), []) for target in TARGETS]
            if not any(found):
                continue
            both = [result for results in found for result in results]
            beside = (mode, recipe) == ("source", "strong")  # a rung of the ladder, whose runs may go side by side
            machines = {result["device"] for result in both}
            seconds = (
                "-" if beside or len(machines) > 1 else f"{statistics.mean(result['seconds'] for result in both):.0f}"
            )
            distances = [[result["proxy_a_distance"].get("trained") for result in results] for results in found]
            distance = " / ".join(
                spread([v for v in values if v is not None], 2) if any(v is not None for v in values) else "-"
                for values in distances
            )
            lines.append(
                f"| {mode} | {recipe}, {arch} | {' | '.join(accuracy_cell(results) for results in found)} | {distance} "
                f"| {seconds} | {seed_counts(found)} |"
            )
    return lines


def footnotes(cells: Cells) -> list[str]:
    """Sampling error, machine, versions: what a reader needs to weigh the table."""
    results = [result for found in cells.values() for result in found]
    if not results:
        return ["No results yet."]
    errors = []
    for target in TARGETS:
        found = cells.get(Cell("paper", "small", "dann", target))
        if found:
            mean = statistics.mean(result["target_val_accuracy"] for result in found)
            n = found[0]["images"]["target_val"]
            errors.append(f"{math.sqrt(mean * (1 - mean) / n):.3f} on {target.upper()} (n = {n:,})")
    devices = " and ".join(sorted({result["device"] for result in results}))
    torches = " and ".join(sorted({result["versions"]["torch"] for result in results}))
    selects = ", ".join(sorted({result["select"] for result in results}))
    untrained = [
        known_spread([r["proxy_a_distance"].get("untrained") for r in found], 2)
        for target in TARGETS
        if (found := cells.get(Cell("paper", "small", "dann", target)))
    ]
    notes = [
        "Mean ± standard deviation over the seeds and the worst seed, on the target's val set, on which nothing was "
        f"chosen but the sign that the collapse warning goes by; checkpoint: {selects} step. "
        f"Binomial error of one dann accuracy: {', '.join(errors) or '-'}.",
        "Proxy A-distance: 2 (1 − 2 err) of a linear classifier between the domains' held-out features; 0: not to be "
        "told apart, 2: perfectly. BatchNorm statistics are those of training; with a teacher, of unaltered images. "
        "Before adaptation: the `source` rows; of `small`, untrained: "
        f"{' / '.join(untrained)}.",
        f"Measured on {devices}, torch {torches}; every run's json, with its command, is in `results/`.",
    ]
    return "\n\n".join(notes).splitlines()


# What ADAPTATION.md shows: words, and the names of the runs in results/ with a place for the target.
EVIDENCE = [
    ("`source`", "source_{}_paper_small_seed*"),
    ("`dann`, lambda to 0.02", "adaptation/dann_{}_lambda0.02_seed*"),
    ("`dann`, lambda to 0.2 (default)", "dann_{}_paper_small_seed*"),
    ("`dann`, lambda to 1", "adaptation/dann_{}_lambda1_seed*"),
    ("`dann`, network `published`", "dann_{}_paper_published_seed*"),
    ("`dann --recipe strong`", "dann_{}_strong_small_seed*"),
    ("`source`, shifted shares", "adaptation/source_{}_shifted_seed*"),
    ("`dann`, shifted shares", "adaptation/dann_{}_shifted_seed*"),
    ("`dann --recipe strong`, shifted shares", "adaptation/strong_{}_shifted_seed*"),
]


def known_spread(values: list[float | None], digits: int) -> str:
    """Mean and deviation of what was measured, with the count where that is not all; a dash for nothing."""
    known = [value for value in values if value is not None]
    count = f" (of {len(known)})" if 0 < len(known) < len(values) else ""
    return spread(known, digits) + count if known else "-"


def evidence_table(folder: Path) -> list[str]:
    """A row per kind of run and target that has results; what a run did not measure is a dash."""
    lines = [
        "| runs | target | target val accuracy | source val accuracy | proxy A-distance | domain loss at the end | "
        "information | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for words, pattern in EVIDENCE:
        for target in TARGETS:
            files = sorted(folder.glob(pattern.format(target) + ".json"))
            results = [read_json(file) for file in files]
            if not results:
                continue
            for file, result in zip(files, results, strict=True):
                check_values(file, result, {**RESULT, "target_val_accuracy": SHARE})
            columns = [
                [result.get("source_val_accuracy") for result in results],
                [result["proxy_a_distance"].get("trained") for result in results],
                [(result.get("losses") or {}).get("L_d") for result in results],
                [(result.get("signs") or {}).get("information_maximisation") for result in results],
            ]
            cells = [known_spread(column, digits) for column, digits in zip(columns, (3, 2, 3, 3), strict=True)]
            lines.append(
                f"| {words} | {target.upper()} | {accuracy_cell(results)} | {' | '.join(cells)} | {len(results)} |"
            )
    return lines


def speed_tables(folder: Path) -> list[str]:
    """What benchmark.py measured, a table a device; nothing where there is no such file."""
    lines: list[str] = []
    for file in sorted(folder.glob("benchmark-*.json")):
        found = {part: measured for part, measured in read_json(file).items() if measured is not None}
        check_values(file, found, BENCHMARK)
        lines += ["", *speed_table(found)] if lines else speed_table(found)
    return lines


def by_network(found: dict[str, Any], part: str) -> list[tuple[str, dict[str, Any]]]:
    """What a part of the benchmark measured of each network."""
    return [(arch, found[part][arch]) for arch in ARCHITECTURES if found.get(part, {}).get(arch)]


def speed_table(found: dict[str, Any]) -> list[str]:
    """One benchmark json as a table of measure, number, and what it is beside."""
    rows: list[tuple[str, str, str]] = []
    for arch, m in by_network(found, "training"):
        rows.append(
            (
                f"training step, `{arch}`",
                f"{m['images_per_second']:,.0f} images/s",
                f"{m['times_plain']:.1f} times the plain recipe, {m['share_of_bare']:.2f} of the bare step, "
                f"which reaches {m['share_of_matrix_rate']:.2f} of the {m['matrix_gflops']:,.0f} GFLOP/s of a large "
                f"matrix product; its operations alone at that rate allow {m['floor_of_operations_alone']:,} images/s, "
                f"and, with every input and output fetched from memory, {m['floor_images_per_second']:,}",
            )
        )
    for arch, m in by_network(found, "prediction"):
        rows.append(
            (
                f"prediction of {m['images']:,} PNGs, `{arch}`",
                f"{m['images_per_second']:,.0f} images/s",
                f"{m['times_one_by_one']:.1f} times one by one, {m['share_of_decode_and_forward']:.2f} of decoding and "
                f"forward pass, measured alone, one after the other",
            )
        )
    if start := found.get("start"):
        rows.append(
            (
                "launch to the end of the first training step",
                f"{start['launch_to_first_step_seconds']:.1f} s",
                f"imports {start['import_train_seconds']:.1f} s (torch alone {start['import_torch_seconds']:.1f}), "
                f"reading {sum(start['images'].values()):,} PNGs {start['read_seconds']:.1f} s, "
                f"proxy A-distance of the untrained network {start['untrained_network_measured_seconds']:.1f} s, "
                f"the step {start['first_step_seconds']:.1f} s",
            )
        )
        rows.append(
            (
                "peak memory",
                f"{start['peak_memory_megabytes']:,} MB",
                f"{start['peak_above_raw_megabytes']:,} MB above the training images' "
                f"{start['raw_train_megabytes']:,} MB",
            )
        )
    if growth := found.get("growth"):
        counts = ", ".join(f"{float(n):,.0f}: {rate:,.0f}" for n, rate in growth["images_per_second"].items())
        rows.append(("images/s by images a domain", f"{growth['largest_over_smallest']:.2f}", counts))
    if reached := found.get("accuracy", {}).get("seconds_to"):
        for mark, seconds in reached.items():
            each = ", ".join(shown(value, 0) for value in seconds)
            steps = found["accuracy"]["steps"]
            what = f"`dann --max_steps {steps} --val_period 100`, one number a seed"
            rows.append((f"seconds from launch until USPS val is first at {float(mark):g}", each, what))
    if not rows:
        return []
    devices = " and ".join(sorted({part["device"] for part in found.values()}))
    repeats = sorted({part["repeats"] for part in found.values()})
    return [
        f"Speed, medians of {' or '.join(map(str, repeats))}, {devices}:",
        "",
        "| | | |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def soak_lines(folder: Path) -> list[str]:
    """What the last `make soak` did, in words; that there was none where it left no counts."""
    file = folder / "soak.json"
    if not file.exists():
        return ["`make soak` has not been run on this version: there are no counts to state yet."]
    found = read_json(file)
    check_values(file, found, SOAK)
    counts: dict[str, int] = {name: count for name, count in found["counts"].items() if count is not None}
    kills = counts["kills of recipe paper"] + counts["kills of recipe strong"]
    cases, refused = (sum(counts[f"{name}{suffix}"] for name in HOSTILE) for suffix in ("", " refused"))
    kinds = ", ".join(f"{counts[name]:,} {words}" for name, words in HOSTILE.items())
    memory = ""
    if set(MEMORY) <= counts.keys():
        images, peak, each = (counts[name] for name in MEMORY)
        memory = f" {images:,} images were predicted in {peak:,} MB at most, {each:,} bytes an image."
    return [
        f"The last `make soak` took {found['seconds'] / 60:.0f} minutes on {found['device']}, torch "
        f"{found['versions']['torch']}: {kills:,} kills, {counts['of them while writing a file']:,} of them while a "
        f"file was written, and {cases:,} hostile cases without a traceback, a hang or a write beside the output, "
        f"{refused:,} of them refused: {kinds}. The longest CSV had {counts['rows of the longest CSV']:,} rows, "
        f"{counts['pairs of predictions into one file']:,} pairs of predictions into one file never mixed.{memory} "
        "The counts are in `results/soak.json`."
    ]

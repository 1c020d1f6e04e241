"""Rebuild the tables of the pages and the scores' figure from results/.

    python lab/tables.py             # README.md, ADAPTATION.md, lab/README.md
                                     # and tests/README.md
    python lab/tables.py --check     # fail where a page would change
    python lab/tables.py --add runs/reproduce/dann_usps_tuned_small_seed0
    python lab/tables.py --ship runs/reproduce/dann_usps_strong_small_seed0

A page holds a table between <!-- NAME: begin, by lab/tables.py --> and
<!-- NAME: end -->, NAME being results, ablation, scores, speed, soak or
evidence. --add copies the result.json of a finished run into results/, --ship
writes what predicts of its checkpoint to checkpoint/<mode>_<target>.pt, with
the result beside it.
"""

import argparse
import math
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as this script may be run from anywhere

import pandas as pd

import report
from losses import PSEUDO_LABEL_MEASURES
from metrics import SCORES, collapse
from model import ARCHITECTURES
from plots import DOMAIN_COLOURS, DOMAIN_MARKERS, picture
from runs import MAYBE, NUMBER, check_kinds, load_checkpoint, modern_args, read_json, save_checkpoint, write_json
from utils import Parser, UserError, atomic_path, run_script, shown

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "ADAPTATION.md", "lab/README.md", "tests/README.md")
MODES, TARGETS = ("source", "dann", "target"), ("svhn", "usps")
NUM_CLASSES = 10  # of the digits
VARYING = ("seed", "run_name", "save_dir", "data_root", "device", "num_workers")  # within a cell of a table
ALONE = ", 2 threads"  # in the device of a run that had the machine to itself; two side by side have a thread each
LOW_IS_GOOD = ("entropy",)  # of the validation scores; the others should be high
# Accuracy on the target's val set as the public implementation's README states it: the best epoch by target labels.
PUBLISHED = {"source": (0.33940, 0.73522), "dann": (0.41745, 0.82392), "target": (0.93466, 0.98992)}
# The ablation of recipe strong: words, recipe, mode, parts left out.
ABLATION = [
    ("source", "tuned", "source", ()),
    ("+ augmentation", "strong", "source", ("distractors",)),
    ("+ distractors", "strong", "source", ()),
    ("+ adversarial (DANN)", "strong", "dann", ("teacher",)),
    ("+ teacher: everything", "strong", "dann", ()),
    ("everything but adversarial", "strong", "dann", ("adversarial",)),
    ("everything but augmentation", "strong", "dann", ("augmentation",)),  # its distractors with it
]
PLAIN = ("priors", "confusion")  # the parts of recipe tuned that plain DANN is without
# What ADAPTATION.md shows: words, and the names of the runs in results/ with a place for the target.
EVIDENCE = {
    "`source`": "source_{}_tuned_small_seed*",
    "plain `dann`, lambda to 0.02": "adaptation/plain_{}_lambda0.02_seed*",
    "plain `dann`, lambda to 0.2": "dann_{}_tuned_small_without_priors_confusion_seed*",
    "plain `dann`, lambda to 1": "adaptation/plain_{}_lambda1_seed*",
    "`dann`": "dann_{}_tuned_small_seed*",
    "`dann`, network `published`": "dann_{}_tuned_published_seed*",
    "`source --recipe strong`": "source_{}_strong_small_seed*",
    "`dann --recipe strong`": "dann_{}_strong_small_seed*",
    "`source`, label shift": "adaptation/source_{}_shifted_seed*",
    "plain `dann`, label shift": "adaptation/plain_{}_shifted_seed*",
    "`dann`, label shift": "adaptation/dann_{}_shifted_seed*",
    "`dann --recipe strong`, label shift": "adaptation/strong_{}_shifted_seed*",
}


class Cell(NamedTuple):
    """What a table tells apart; runs of one cell differ in the seed."""

    recipe: str
    arch: str
    mode: str
    target: str
    without: tuple[str, ...] = ()
    source: str = "mnistm"
    with_source: bool = False


Result = dict[str, Any]
Cells = dict[Cell, list[Result]]
Points = dict[str, dict[str, list[tuple[float, float]]]]  # score -> target -> (score, true accuracy) of each run


# Reading


def read_result(file: Path) -> Result:
    """A training run's json in results/; UserError by file and key where it lacks what the tables state."""
    result = read_json(file, target_val_accuracy=NUMBER, seconds=NUMBER, seed=int, select=str, device=str, command=str)
    check_kinds(file, result, **dict.fromkeys(("versions", "images", "proxy_a_distance", "args"), dict))
    check_kinds(f"{file} args", result["args"], train_mode=str, target_file=str, recipe=str, arch=str)
    result["args"] = modern_args(result["args"])
    check_kinds(f"{file} versions", result["versions"], torch=str)
    check_kinds(f"{file} images", result["images"], target_val=int)
    check_kinds(f"{file} proxy_a_distance", result["proxy_a_distance"], untrained=MAYBE, trained=MAYBE)
    for name in ("scores", "losses"):  # older runs have none
        result[name] = result.get(name) or {}
        check_kinds(file, result, **{name: dict})
        check_kinds(f"{file} {name}", result[name], **dict.fromkeys(result[name], MAYBE))
    return result


def read_results(folder: Path) -> Cells:
    """Results of training runs by cell, each sorted by seed; UserError where a cell mixes kinds of runs."""
    cells: Cells = defaultdict(list)
    for file in sorted(folder.glob("*.json")):
        if file.name != "soak.json" and not file.name.startswith("benchmark-"):
            result = read_result(file)
            args = result["args"]
            kind = (args["recipe"], args["arch"], args["train_mode"], args["target_file"])
            more = (tuple(args.get("without") or ()), args.get("source_file", "mnistm"), args.get("with_source", False))
            cells[Cell(*kind, *more)].append(result)
    for cell, found in cells.items():
        kinds = [
            {name: value for name, value in result["args"].items() if name not in VARYING and value}
            | {name: result.get(name) for name in ("steps", "parameters", "precision")}
            for result in found
        ]
        differing = sorted({name for kind in kinds for name in kind | kinds[0] if kind.get(name) != kinds[0].get(name)})
        if differing:
            words = " ".join([*cell[:4], *(f"without {part}" for part in cell.without)])
            raise UserError(
                f"{folder} has results of {words} that differ in {', '.join(differing)}; keep one kind and delete the "
                "others."
            )
    return {cell: sorted(found, key=lambda result: result["seed"]) for cell, found in cells.items()}


# Words and numbers of the tables


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def spread(values: Iterable[float | None], digits: int = 3) -> str:
    """Mean and sample deviation of what was measured, with the count where that is not all; a dash for nothing."""
    every = list(values)
    known = [value for value in every if value is not None]
    if not known:
        return "-"
    deviation = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    count = f" (of {len(known)})" if len(known) < len(every) else ""
    return f"{statistics.mean(known):.{digits}f}{deviation}{count}"


def accuracy_cell(results: list[Result], usual: int | None = None) -> str:
    """Mean, deviation and worst, and how many images they are of where that is not the `usual` number; or a dash."""
    values = [result["target_val_accuracy"] for result in results]
    sizes = sorted({result["images"]["target_val"] for result in results} - {usual}) if usual else []
    other = f", n = {' / '.join(f'{size:,}' for size in sizes)}" if sizes else ""
    return f"{spread(values)} (worst {min(values):.3f}{other})" if values else "-"


def usual_sizes(results: list[Result]) -> dict[str, int]:
    """By target how many val images most results are of."""
    targets = {result["args"]["target_file"] for result in results}
    return {
        target: statistics.mode(r["images"]["target_val"] for r in results if r["args"]["target_file"] == target)
        for target in targets
    }


def seed_counts(found: list[list[Result]]) -> str:
    counts = [str(len(results)) for results in found]
    return counts[0] if len(set(counts)) == 1 else "/".join(counts)


def pair(target: str) -> str:
    return f"MNIST-M → {target.upper()}"


# Block results


def results_block(folder: Path) -> list[str]:
    """Accuracy, a row per mode, recipe and network; the published numbers above their like; what they are of."""
    cells = read_results(folder)
    if not cells:
        return ["No results yet: `bash lab/reproduce.sh DATA_ROOT` makes them."]
    known = {(cell.recipe, cell.arch, cell.without) for cell in cells if cell.without in ((), PLAIN)}
    groups = sorted(known, key=lambda group: (group[0] != "tuned", group[1] != "small", not group[2]))
    every = [result for found in cells.values() for result in found]
    sizes = usual_sizes(every)
    rows = []
    for mode in MODES:
        rows.append([mode, "*published implementation*", *(f"*{value:.5f}*" for value in PUBLISHED[mode]), "", "1"])
        for recipe, arch, without in groups:
            found = [cells.get(Cell(recipe, arch, mode, target, without), []) for target in TARGETS]
            both = [result for results in found for result in results]
            if both:
                alone = all(ALONE in result["device"] for result in both)
                seconds = f"{statistics.mean(result['seconds'] for result in both):.0f}" if alone else "-"
                accuracies = [accuracy_cell(*both) for both in zip(found, map(sizes.get, TARGETS), strict=True)]
                left_out = f" without {', '.join(without)}" if without else ""
                rows.append([mode, f"{recipe}{left_out}, {arch}", *accuracies, seconds, seed_counts(found)])
    heads = [f"{pair(target)}, n = {sizes[target]:,}" if target in sizes else pair(target) for target in TARGETS]
    return [*table(["mode", "recipe, network", *heads, "seconds", "seeds"], rows), "", *footnotes(every)]


def footnotes(results: list[Result]) -> list[str]:
    """What a reader needs to weigh the table: what was chosen on what, machine, versions."""
    devices, torches, selects = (
        " and ".join(sorted({what(result) for result in results}))
        for what in (lambda r: r["device"], lambda r: r["versions"]["torch"], lambda r: r["select"])
    )
    return [
        "Accuracy on the target's val: mean ± standard deviation over the seeds and the worst seed; an accuracy p of n "
        f"images has a binomial error of √(p (1 − p) / n). Checkpoint: {selects} step. Hyperparameters and network "
        "`small` were chosen on labels of the targets' *train* split; on val nothing was chosen but the score that the "
        "collapse warning goes by. The published numbers are of the best epoch by target labels, on larger val sets.",
        "",
        f"Seconds: of runs that had the machine to themselves. Measured on {devices}, torch {torches}; each run's "
        "json, with its command, is in `results/`.",
    ]


# Blocks ablation and scores


def ablation_runs(cells: Cells) -> dict[str, list[list[Result]]]:
    """Words of each row -> its results, a list a target."""
    return {
        words: [cells.get(Cell(recipe, "small", mode, target, without), []) for target in TARGETS]
        for words, recipe, mode, without in ABLATION
    }


def ablation_block(folder: Path) -> list[str]:
    """What each part of recipe strong is worth."""
    found = ablation_runs(read_results(folder)).items()
    rows = [[words, *map(accuracy_cell, results), seed_counts(results)] for words, results in found]
    return [
        "A row with + adds to the one above. Three bring more than they say: + augmentation the recipe's steps, "
        "learning rate and weight decay, + adversarial BatchNorm statistics of the target, + teacher the averaged "
        "weights, which predict from there on. Distractors are a part of the augmentation and are left out with it.",
        "",
        *table(["parts", *map(pair, TARGETS), "seeds"], rows),
    ]


def scored_runs(cells: Cells) -> list[Result]:
    """Every run of the ablation that logged the validation scores."""
    every = (run for found in ablation_runs(cells).values() for results in found for run in results)
    return [run for run in every if run["scores"]]


def score_points(cells: Cells) -> Points:
    """Each validation score beside the true accuracy, over the runs of the ablation that have it."""
    points: Points = {
        score: {target: [] for target in TARGETS} for score in ("source_val_accuracy", *SCORES, *PSEUDO_LABEL_MEASURES)
    }
    for run in scored_runs(cells):
        for score, by_target in points.items():
            value = run["scores"].get(score, run.get(score))
            if value is not None:
                by_target[run["args"]["target_file"]].append((value, run["target_val_accuracy"]))
    return points


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rho, None for fewer than three pairs or a constant."""
    rho = pd.Series(a).rank().corr(pd.Series(b).rank()) if len(a) > 2 else math.nan
    return None if math.isnan(rho) else float(rho)


def rank_scores(points: Points) -> dict[str, dict[str, float | None]]:
    """Spearman's rho of each score by target, the score that ranks best over the targets first; None: not defined."""
    found = {
        score: {target: rank_correlation(*zip(*pairs, strict=True)) if pairs else None for target, pairs in by.items()}
        for score, by in points.items()
    }

    def worth(score: str) -> float:
        known = [rho for rho in found[score].values() if rho is not None]
        return (-1 if score in LOW_IS_GOOD else 1) * statistics.mean(known) if known else -math.inf

    return {score: found[score] for score in sorted(found, key=worth, reverse=True)}


def scores_block(folder: Path) -> list[str]:
    """How each validation score ranks with the true accuracy, the best first, and when the collapse warning comes."""
    cells = read_results(folder)
    points = score_points(cells)
    rows = [
        [
            score.replace("_", " "),
            "low" if score in LOW_IS_GOOD else "high",
            *(f"{shown(rho[target], 2)} ({len(pairs)} runs)" for target, pairs in points[score].items()),
        ]
        for score, rho in rank_scores(points).items()
    ]
    return [
        "Spearman's rank correlation of validation scores without labels with the true accuracy, over the runs of the "
        "ablation:",
        "",
        *table(["validation score", "should be", *map(str.upper, TARGETS)], rows),
        "",
        warning_line(scored_runs(cells)),
    ]


def warning_line(runs: list[Result]) -> str:
    """On which runs the collapse warning comes, and on which it is silent, by their accuracies."""
    words = []
    for warned in (True, False):
        for target in TARGETS:
            found = [
                run["target_val_accuracy"]
                for run in runs
                if run["args"]["target_file"] == target
                and run["scores"].get("diversity") is not None
                and bool(collapse(run["scores"], NUM_CLASSES, run["images"]["target_val"])) == warned
            ]
            accuracies = f" (accuracy {min(found):.3f} to {max(found):.3f})" if found else ""
            words.append(f"{len(found)} on {target.upper()}{accuracies}")
    return (
        "At a run's end a warning says that its answers are unsure where entropy is above a quarter of diversity: on "
        f"{words[0]} and {words[1]} of these runs. It is silent on {words[2]} and {words[3]}."
    )


def draw_scores(points: Points, path: Path) -> None:
    """Draw true target accuracy over each validation score, a panel a score, a colour a target."""
    columns = 4
    rows = -(-len(points) // columns)
    with picture(path, 13, 3.2 * rows) as figure:
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
        for axes, (score, by_target) in zip(grid, points.items(), strict=False):
            for i, (target, pairs) in enumerate(by_target.items()):
                x, y = [value for value, _ in pairs], [accuracy for _, accuracy in pairs]
                axes.scatter(x, y, s=26, alpha=0.8, c=DOMAIN_COLOURS[i], marker=DOMAIN_MARKERS[i], label=target.upper())
            axes.set_xlabel(score.replace("_", " "))
            axes.locator_params(axis="x", nbins=5)
            axes.grid(alpha=0.3)
        for axes in grid[::columns]:
            axes.set_ylabel("accuracy on the target's val")
        for axes in grid[len(points) :]:
            axes.set_axis_off()
        grid[0].legend()


# Block evidence


def evidence_block(folder: Path) -> list[str]:
    """A row per kind of run and target that has results; what a run did not measure is a dash."""
    rows = []
    runs = {
        (words, target): [read_result(file) for file in sorted(folder.glob(pattern.format(target) + ".json"))]
        for words, pattern in EVIDENCE.items()
        for target in TARGETS
    }
    sizes = usual_sizes([result for found in runs.values() for result in found])
    for (words, target), found in runs.items():
        if found:
            rows.append(
                [
                    words,
                    target.upper(),
                    accuracy_cell(found, sizes[target]),
                    spread(result.get("source_val_accuracy") for result in found),
                    spread((result["proxy_a_distance"]["untrained"] for result in found), 2),
                    spread((result["proxy_a_distance"]["trained"] for result in found), 2),
                    spread(result["losses"].get("L_d") for result in found),
                    spread(result["scores"].get("information") for result in found),
                    str(len(found)),
                ]
            )
    head = ["runs", "target", "target val accuracy", "source val accuracy", "proxy A-distance, untrained", "trained"]
    return table([*head, "domain loss at the end", "information", "seeds"], rows)


# Block speed: words -> key, of the columns of a table or of its rows

TRAINING = {
    "`train.py`": "images_per_second",
    "plain recipe": "plain_images_per_second",
    "times": "times_plain",
    "of the bare step": "share_of_bare",
    "of a matrix product": "share_of_matrix_rate",
}
PREDICTION = {
    "`inference.py`": "images_per_second",
    "batch size 1": "batch_size_1_images_per_second",
    "times": "times_batch_size_1",
    "of decoding and forward pass": "share_of_decode_and_forward",
}
BY_NETWORK = {
    "training": (
        "Training, images/s. The plain recipe is what one writes first: a `DataLoader` over files, float32, batches of "
        "100; the bare step is ours on a batch that lies in memory; the last column is its rate of operations beside "
        "that of a large matrix product.",
        TRAINING,
    ),
    "prediction": (
        "Prediction from PNGs, images/s; beside it batch size 1 in float32, and decoding and forward pass measured "
        "alone, one after the other.",
        PREDICTION,
    ),
}
START = {
    "imports, s": "import_train_seconds",
    "of them torch, s": "import_torch_seconds",
    "reading the PNGs, s": "read_seconds",
    "measuring the untrained network, s": "untrained_network_measured_seconds",
    "the first step, s": "first_step_seconds",
    "launch to the end of the first step, s": "launch_to_first_step_seconds",
    "peak memory, MB": "peak_memory_megabytes",
    "of it the training images, MB": "raw_train_megabytes",
}


def numbers(place: str, found: dict[str, Any], keys: Iterable[str]) -> list[str]:
    """The numbers of those keys in words; UserError by file and key where one is missing."""
    check_kinds(place, found, **dict.fromkeys(keys, NUMBER))
    return [f"{found[key]:,.0f}" if found[key] >= 100 else f"{found[key]:.2f}" for key in keys]


def speed_block(folder: Path) -> list[str]:
    """What benchmark.py measured, a table a part that was run."""
    lines: list[str] = []
    for file in sorted(folder.glob("benchmark-*.json")):
        found = read_json(file)
        check_kinds(file, found, **dict.fromkeys(found, dict))
        for part, measured in found.items():
            check_kinds(f"{file} {part}", measured, device=str, repeats=int)
        repeats, devices = (sorted({str(part[key]) for part in found.values()}) for key in ("repeats", "device"))
        lines += ["", f"Medians of {' or '.join(repeats)}, {' and '.join(devices)}."]
        for part, (words, columns) in BY_NETWORK.items():
            networks = [arch for arch in ARCHITECTURES if arch in found.get(part, {})]
            rows = [
                [f"`{arch}`", *numbers(f"{file} {part} {arch}", found[part][arch], columns.values())]
                for arch in networks
            ]
            if rows:
                lines += ["", words, "", *table(["network", *columns], rows)]
        if start := found.get("start"):
            values = numbers(f"{file} start", start, START.values())
            lines += ["", *table(["start of `train.py`", ""], zip(START, values, strict=True))]
        if growth := found.get("growth"):
            check_kinds(f"{file} growth", growth, images_per_second=dict)
            rates = growth["images_per_second"]
            row = ["training, images/s", *numbers(f"{file} growth images_per_second", rates, rates)]
            lines += ["", *table(["images a domain", *(f"{int(count):,}" for count in rates)], [row])]
        if reached := found.get("accuracy"):
            check_kinds(f"{file} accuracy", reached, steps=int, seconds_to=dict)
            head = f"USPS val accuracy, `dann --max_steps {reached['steps']} --val_period 100`"
            each = ([mark, ", ".join(shown(s, 0) for s in seconds)] for mark, seconds in reached["seconds_to"].items())
            lines += ["", *table([head, "seconds from launch until it is first reached, a number a seed"], each)]
    return lines[1:]


# Block soak


def soak_block(folder: Path) -> list[str]:
    """What the last `make soak` did; that there was none where it left no counts."""
    file = folder / "soak.json"
    if not file.exists():
        return ["`make soak` has not been run on this version: there are no counts to state yet."]
    found = read_json(file, counts=dict, seconds=NUMBER, device=str, versions=dict)
    check_kinds(f"{file} versions", found["versions"], torch=str)
    counts = found["counts"]
    check_kinds(f"{file} counts", counts, **dict.fromkeys(counts, NUMBER))
    rows = [
        [name, f"{count:,}", f"{counts[f'{name} refused']:,}" if f"{name} refused" in counts else ""]
        for name, count in counts.items()
        if not name.endswith(" refused")
    ]
    return [
        f"The last `make soak` took {found['seconds'] / 60:.0f} minutes on {found['device']}, torch "
        f"{found['versions']['torch']}, without a traceback, a hang or a write beside the output:",
        "",
        *table(["what", "count", "of them refused"], rows),
    ]


# The pages


BLOCKS = {
    "results": results_block,
    "ablation": ablation_block,
    "scores": scores_block,
    "speed": speed_block,
    "soak": soak_block,
    "evidence": evidence_block,
}


def updated(text: str, name: str, folder: Path) -> str:
    """A page's text with each of its blocks made anew; UserError for a block without a maker or an end."""
    blocks = re.split(r"(<!-- \w+: begin, by lab/tables\.py -->)", text)
    for i in range(1, len(blocks), 2):
        block = blocks[i].split()[1].rstrip(":")
        if block not in BLOCKS:
            raise UserError(f"{name}: there is no block {block}; the blocks are {', '.join(BLOCKS)}.")
        _, end, after = blocks[i + 1].partition(f"<!-- {block}: end -->")
        if not end:
            raise UserError(f"{name}: block {block} has no end; put <!-- {block}: end --> where it belongs.")
        blocks[i + 1] = "\n".join(["", *BLOCKS[block](folder), end + after])
    return "".join(blocks)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--check", action="store_true", help="change nothing, fail where a page would change")
    one.add_argument("--add", type=Path, metavar="RUN", help="copy the result of a finished run")
    one.add_argument("--ship", type=Path, metavar="RUN", help="put a finished run's checkpoint into checkpoint/")
    parser.add_argument(
        "--to", default="results", metavar="DIR", help="with --add: results (default) or a folder in it"
    )
    return parser


def ship(run: Path) -> Path:
    """Write checkpoint/<mode>_<target>.pt and .json of a finished run: the weights that predict, no optimizer."""
    result = report.read_result(run)
    checkpoint = load_checkpoint(run / Path(result["checkpoint"]).name)
    name = f"{result['args']['train_mode']}_{result['args']['target_file']}".replace("/", "-")
    file = ROOT / "checkpoint" / f"{name}.pt"
    save_checkpoint(file, {**checkpoint, "resume": None})
    write_json(file.with_suffix(".json"), result)
    return file


def rebuild(check: bool) -> list[str]:
    """Write the pages whose blocks are not those of results/ and return their names; UserError with `check`."""
    folder, changed = ROOT / "results", []
    for name in PAGES:
        page = ROOT / name
        if page.is_file():
            old = page.read_text(encoding="utf-8")
            new = updated(old, name, folder)
            if new != old:
                if check:
                    raise UserError(f"the tables of {name} are not those of results/; run python lab/tables.py.")
                with atomic_path(page) as part:
                    part.write_text(new, encoding="utf-8")
                changed.append(name)
            print(f"{name}: {'rewritten' if new != old else 'up to date'}")
    if not check:
        draw_scores(score_points(read_results(folder)), folder / "figures" / "scores.png")
    return changed


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Do what the flags ask; returns the `changed` pages, or the `file` that was written."""
    args = build_parser().parse_args(argv)
    if args.ship:
        file = ship(args.ship)
    elif args.add:
        file = ROOT / args.to / f"{args.add.resolve().name}.json"
        write_json(file, report.read_result(args.add))
    else:
        return {"changed": rebuild(args.check)}
    print(file)
    return {"file": str(file)}


if __name__ == "__main__":
    run_script(main)

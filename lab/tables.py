"""Rebuild the tables of the pages from results/.

    python lab/tables.py             # README.md, ADAPTATION.md, lab/README.md
                                     # and tests/README.md
    python lab/tables.py --check     # fail where a page would change
    python lab/tables.py --add runs/reproduce/dann_usps_tuned_small_seed0
    python lab/tables.py --ship runs/reproduce/dann_usps_strong_small_seed0

A page holds a table between <!-- NAME: begin, by lab/tables.py --> and
<!-- NAME: end -->, NAME being results, cells, pairs, ablation, photos,
photos_mean, small_photos, scores, speed, soak or evidence. --add copies the
result.json of a finished run into results/, --ship writes what predicts of its
checkpoint to checkpoint/<mode>_<target>.pt, with the result beside it.
"""

import argparse
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, permutations, product, starmap
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as this script may be run from anywhere

import numpy as np
import pandas as pd

import report
from config import MODES, RECIPES
from losses import PARTS
from metrics import VALIDATORS, collapse
from model import ARCHITECTURES
from runs import MAYBE, NUMBER, check_kinds, load_checkpoint, read_json, save_checkpoint, write_json
from utils import Parser, UserError, atomic_path, run_script, shown

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "ADAPTATION.md", "lab/README.md", "tests/README.md")
TARGETS = ("svhn", "usps")
STYLES = ("photo", "art_painting", "cartoon", "sketch")  # the domains of PACS
# Arguments that may differ within a cell; format: of older runs
VARYING = ("seed", "run_name", "save_dir", "data_root", "device", "num_workers", "format", "max_steps")


class Cell(NamedTuple):
    """Runs that differ in the seed alone; in the row of a table without domains, which are those of its columns."""

    mode: str
    recipe: str = "tuned"
    arch: str = "small"
    without: tuple[str, ...] = ()
    with_source: bool = False
    steps: int | None = None  # where they are not the recipe's
    source: str = ""
    target: str = ""

    def flags(self) -> str:
        """What one types for these runs after --train_mode."""
        without = f" --without {' '.join(self.without)}" if self.without else ""
        steps = f" --max_steps {self.steps}" if self.steps else ""
        given = f"--recipe {self.recipe} --arch {self.arch}{steps}{without}"
        return f"{self.mode}{' --with_source' * self.with_source} {given}"


Rows = dict[str, Cell | tuple[str, ...]]  # words -> runs of ours, or the numbers that others report, one a column


def by_flags(*choices: Iterable[Any]) -> Rows:
    """A row for each combination of what the fields of a cell may be."""
    return {f"`{cell.flags()}`": cell for cell in starmap(Cell, product(*choices))}


DOMAINS = {"mnist": "MNIST", "mnistm": "MNIST-M", "svhn": "SVHN", "usps": "USPS"}
PAIRS = (("mnistm", "svhn"), ("mnistm", "usps"))  # source, target
UNTUNED = (("mnist", "mnistm"), ("mnist", "usps"), ("usps", "mnist"))  # pairs on which nothing was chosen
# Accuracy on the target's val set as the public implementation's README states it: the best epoch by target labels.
PUBLISHED = {"source": ("0.33940", "0.73522"), "dann": ("0.41745", "0.82392"), "target": ("0.93466", "0.98992")}
FIRST: Rows = {  # of the README
    "source labels alone: `source`": Cell("source"),
    "DANN, the paper's training: `dann --recipe paper`": Cell("dann", "paper"),
    "DANN, our default: `dann`": Cell("dann"),
    "with augmentation and pseudo-labels: `dann --recipe strong`": Cell("dann", "strong"),
    "with target labels: `target --with_source --recipe strong`": Cell("target", "strong", with_source=True),
    "*DANN, published implementation*": PUBLISHED["dann"],
}
SHORT = Cell("dann", "strong", without=("confusion",), steps=4000)  # what the ablation takes apart
ABLATION: Rows = {  # of recipe strong
    "source": Cell("source"),
    "+ steps, learning rate, weight decay": Cell("source", "strong", without=("augmentation",)),
    "+ augmentation": Cell("source", "strong", without=("distractors",)),
    "+ distractors": Cell("source", "strong"),
    "+ BatchNorm statistics of the target": SHORT._replace(without=("adversarial", "confusion", "teacher")),
    "+ adversarial (DANN)": SHORT._replace(without=("confusion", "teacher")),
    "+ teacher": SHORT,
    "+ class confusion, 6,000 steps: everything": Cell("dann", "strong"),
    "up to + teacher, without adversarial": SHORT._replace(without=("adversarial", "confusion")),
    "up to + teacher, without augmentation": SHORT._replace(without=("augmentation", "confusion")),  # nor distractors
}
REPORTED: Rows = {  # by papers, on UNTUNED
    "*[DANN](https://arxiv.org/abs/1505.07818), source labels alone*": ("0.5225", "", ""),
    "*[DANN](https://arxiv.org/abs/1505.07818)*": ("0.7666", "", ""),
    "*DANN in [SKADA-Bench](https://arxiv.org/abs/2407.11676)*": ("", "0.926", "0.868"),
    "*DANN in [PyKale](https://arxiv.org/abs/2106.09756), ten seeds*": ("", "0.804 ± 0.053", ""),
    "*[MCD](https://arxiv.org/abs/1712.02560)*": ("", "0.942", "0.941"),
    "*[CyCADA](https://arxiv.org/abs/1711.03213)*": ("", "0.956", "0.965"),
    "*[SHOT](https://arxiv.org/abs/2002.08546)*": ("", "0.979", "0.980"),
    "*[DIRT-T](https://arxiv.org/abs/1802.08735)*": ("0.989", "", ""),
    "*[DANN](https://arxiv.org/abs/1505.07818), target labels*": ("0.9596", "", ""),
}
PLAIN = ("priors", "confusion")  # the parts of recipe tuned that plain DANN is without
ACCURACIES: dict[str, tuple[Rows, Sequence[tuple[str, str]]]] = {  # block -> rows, pairs of domains
    "results": (FIRST, PAIRS),
    "cells": (
        {f"*`{mode}`, published implementation*": numbers for mode, numbers in PUBLISHED.items()}
        | by_flags(MODES, RECIPES, ARCHITECTURES, (PLAIN, ()), (False, True)),
        PAIRS,
    ),
    "pairs": (by_flags(MODES, RECIPES) | REPORTED, UNTUNED),
    "ablation": (ABLATION, PAIRS),
}
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
# The columns of the photos' table, and the beginning of their files in results/photos; {} are source and target.
ON_PHOTOS = {
    "`source`": "source_{}_{}",
    "statistics of the target alone": "statistics_{}_{}",
    "DANN alone": "plain_{}_{}",
    "`dann --without adversarial`": "without_adversarial_{}_{}",
    "`dann`": "dann_{}_{}",
    "`target`, on a fifth": "target_{1}",
}
SMALL_PHOTO = 112  # pixels of a side, at which a whole backbone is trained
WHOLE_SOURCE, WHOLE, WHOLE_STRONG = (
    "whole, source labels alone, 300 steps",
    "whole, `dann`, 300 steps",
    "whole, `--recipe strong`, 600 steps",
)
ON_SMALL_PHOTOS = {"frozen, `dann`": "frozen112_{}_{}", WHOLE: "whole112_{}_{}", WHOLE_STRONG: "strong112_{}_{}"}

Result = dict[str, Any]
Cells = dict[Cell, list[Result]]


# Reading


def read_result(file: Path) -> Result:
    """A training run's json in results/; UserError by file and key where it lacks what the tables state."""
    result = read_json(file, target_val_accuracy=MAYBE, seconds=NUMBER, seed=int, select=str, device=str, command=str)
    check_kinds(file, result, steps=int, **dict.fromkeys(("versions", "images", "proxy_a_distance", "args"), dict))
    check_kinds(f"{file} args", result["args"], train_mode=str, target_file=str, recipe=str, arch=str)
    unsaid = {"source_file": "mnistm", "with_source": False, "eval_split": "val", "views": "digits"}  # by older runs
    result["args"] = unsaid | result["args"]
    if result["args"]["recipe"] not in RECIPES:
        raise UserError(f"{file} is of a recipe {result['args']['recipe']!r} that there is not; delete it.")
    split = result["args"]["eval_split"]
    check_kinds(file, result, **{f"target_{split}_accuracy": NUMBER})
    check_kinds(f"{file} versions", result["versions"], torch=str)
    check_kinds(f"{file} images", result["images"], **{f"target_{split}": int})
    check_kinds(f"{file} proxy_a_distance", result["proxy_a_distance"], untrained=MAYBE, trained=MAYBE)
    for name in ("scores", "losses"):  # older runs have none
        result[name] = result.get(name) or {}
        check_kinds(file, result, **{name: dict})
        check_kinds(f"{file} {name}", result[name], **dict.fromkeys(result[name], MAYBE))
    result["args"]["without"] = without(result)
    return result


def without(result: Result) -> tuple[str, ...]:
    """Parts of its recipe that a run is without: of dann those that it measured nothing of, too, as they are newer."""
    args = result["args"]
    found = set(args.get("without") or ())
    if args["train_mode"] == "dann" and args["arch"] == "small":
        parts = RECIPES[args["recipe"]].parts
        found |= {"priors"} & parts if not result.get("class_priors") else set()
        found |= {"confusion"} & parts if result["losses"].get("L_c") is None else set()
    return tuple(part for part in PARTS if part in found)


def accuracy(result: Result) -> float:
    """On the split of the target that --eval_split names."""
    return float(result[f"target_{result['args']['eval_split']}_accuracy"])


def size(result: Result) -> int:
    """How many images `accuracy` is of."""
    return int(result["images"][f"target_{result['args']['eval_split']}"])


def common_size(results: list[Result]) -> int:
    """How many images these runs are measured on; UserError where these are not the same for all."""
    few, most = min(results, key=size), max(results, key=size)
    if size(few) != size(most):
        raise UserError(
            f"results/ has runs of one table measured on {size(few):,} and on {size(most):,} images ({few['command']}; "
            f"{most['command']}); delete the jsons of one kind."
        )
    return size(most)


def training_results(files: Iterable[Path]) -> list[Path]:
    """Those that are of a training run, sorted."""
    return sorted(file for file in files if file.name != "soak.json" and not file.name.startswith("benchmark-"))


def read_results(folder: Path) -> Cells:
    """Results of training runs by cell, each sorted by seed; UserError where a cell mixes kinds of runs."""
    cells: Cells = defaultdict(list)
    for file in training_results(folder.glob("*.json")):
        result = read_result(file)
        args = result["args"]
        usual = RECIPES[args["recipe"]].steps["source" if args["with_source"] else args["train_mode"]]
        steps = result["steps"] if result["steps"] != usual else None
        kind = (args["train_mode"], args["recipe"], args["arch"], args["without"], args["with_source"], steps)
        cells[Cell(*kind, args["source_file"], args["target_file"])].append(result)
    for cell, found in cells.items():
        found.sort(key=lambda result: result["seed"])
        kinds = [
            {name: value for name, value in result["args"].items() if name not in VARYING and value}
            | {name: result.get(name) for name in ("steps", "parameters", "precision")}
            for result in found
        ]
        differing = sorted({name for kind in kinds for name in kind | kinds[0] if kind.get(name) != kinds[0].get(name)})
        if differing:
            raise UserError(
                f"{folder} has results of {cell.flags()}, {cell.source} to {cell.target}, that differ in "
                f"{', '.join(differing)}; keep one kind and delete the others."
            )
    return cells


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


def accuracy_cell(results: list[Result]) -> str:
    """Mean, deviation and worst, or a dash."""
    return f"{spread(map(accuracy, results))} (worst {min(map(accuracy, results)):.3f})" if results else "-"


# Blocks of accuracies


def results_of(cells: Cells, block: str) -> dict[str, list[list[Result]]]:
    """The results of each row of ours, a list a pair of domains."""
    rows, pairs = ACCURACIES[block]
    return {
        words: [cells.get(row._replace(source=source, target=target), []) for source, target in pairs]
        for words, row in rows.items()
        if isinstance(row, Cell)
    }


def accuracies_block(folder: Path, block: str) -> list[str]:
    """A row per kind of run that has a result, and for the numbers of others; a column per pair of domains."""
    rows, pairs = ACCURACIES[block]
    ours = results_of(read_results(folder), block)
    if not any(map(any, ours.values())):
        return ["No results yet: `bash lab/reproduce.sh DATA_ROOT` makes them."]
    columns = [[*chain(*column)] for column in zip(*ours.values(), strict=True)]
    heads = [
        f"{DOMAINS[source]} → {DOMAINS[target]}" + (f", n = {common_size(column):,}" if column else "")
        for (source, target), column in zip(pairs, columns, strict=True)
    ]
    lines = []
    for words, row in rows.items():
        found = ours.get(words, [])
        if any(found):
            counts = [str(len(results)) for results in found]
            seeds = counts[0] if len(set(counts)) == 1 else "/".join(counts)
            lines.append([words, *map(accuracy_cell, found), seeds])
        elif not found:
            lines.append([words, *(f"*{number}*" if number else "" for number in row), ""])
    return table(["runs", *heads, "seeds"], lines)


# Block photos


def on_photos(folder: Path, kinds: dict[str, str]) -> dict[str, dict[str, list[Result]]]:
    """Results by kind of run, of those that there are, and pair of styles."""
    found = {
        words: {
            f"{source} → {target}".replace("_painting", ""): [
                read_result(file) for file in sorted(folder.glob(f"photos/{name.format(source, target)}_seed*.json"))
            ]
            for source, target in permutations(STYLES, 2)
        }
        for words, name in kinds.items()
    }
    return {words: column for words, column in found.items() if any(column.values())}


def mean_over_pairs(column: dict[str, list[Result]]) -> str:
    """Mean of a kind of run over the pairs, its deviation over the seeds that have every pair, and their number."""
    by_seed = defaultdict(list)
    for run in chain(*column.values()):
        by_seed[run["seed"]].append(accuracy(run))
    whole = [statistics.mean(values) for values in by_seed.values() if len(values) == len(column)]
    return f"{spread(whole)} ({len(whole)} seed{'s' * (len(whole) != 1)})"


def photos_table(found: dict[str, dict[str, list[Result]]]) -> list[str]:
    """A row per pair of styles, a column per kind of run, and their means over the pairs."""
    rows = []
    for pair in next(iter(found.values()), {}):
        each = [column[pair] for column in found.values()]
        if any(each):
            n = f"{size(next(filter(None, each))[0]):,}"
            rows.append([pair, n, *(spread(map(accuracy, runs)) for runs in each)])
    return table(["pair", "n", *found], [*rows, ["**mean**", "", *map(mean_over_pairs, found.values())]])


def on_small_photos(folder: Path) -> dict[str, dict[str, list[Result]]]:
    """As on_photos, of small ones; of the whole backbone first the network that `dann` is held against."""
    found = on_photos(folder, ON_SMALL_PHOTOS)
    alone = {
        pair: [run | run["source_only"] for run in runs if run.get("source_only")]
        for pair, runs in found.get(WHOLE, {}).items()
    }
    return {WHOLE_SOURCE: alone, **found} if any(alone.values()) else found


def photos_mean_block(folder: Path) -> list[str]:
    """The means over the pairs alone, of adaptation and of what it is held against."""
    found = on_photos(folder, ON_PHOTOS) | on_small_photos(folder)
    rows = {
        "frozen, `--freeze`": ("`source`", "DANN alone", "`dann`", ""),
        "whole, `--size 112`": (WHOLE_SOURCE, "", WHOLE, WHOLE_STRONG),
    }
    lines = [
        [words, *(mean_over_pairs(found[name]) if name in found else "-" for name in names)]
        for words, names in rows.items()
        if found.keys() & set(names)
    ]
    return table(["backbone", "`source`", "DANN alone", "`dann`", "`dann --recipe strong`"], lines)


# Block scores


def runs_by_pair(folder: Path) -> dict[str, list[Result]]:
    """Every run that saw no label of the target, by pair of domains, network and val set; none on small photos."""
    found: dict[str, list[Result]] = defaultdict(list)
    for file in training_results(folder.rglob("*.json")):
        result = read_result(file)
        args = result["args"]
        if args.get("size") == SMALL_PHOTO:  # there is no `source` of them
            continue
        if args["train_mode"] != "target" and args["eval_split"] == "val":  # test stands for one number a recipe
            shifted = ", label shift" if "shifted" in str(args.get("data_root")) else ""
            names = (str(args.get("source_file", "mnistm")), str(args["target_file"]))
            domains = " → ".join(DOMAINS.get(name, name) for name in names)
            found[f"{domains}{shifted}, `{args['arch']}`, n = {size(result):,}"].append(result)
    return dict(sorted(found.items()))


def validations(result: Result) -> list[Result]:
    """Each validation of a run with its scores; of older runs the last alone."""
    last = {"target_val_accuracy": result["target_val_accuracy"], "source_val_accuracy": result["source_val_accuracy"]}
    return result.get("validations") or [last | result["scores"]]


def weighted_spearman(scores: Sequence[float], accuracies: Sequence[float]) -> float | None:
    """Spearman's rank correlation, -1..1, in which the best of either weigh more.

    A point weighs the square of its dense rank over the highest, by score or accuracy, whichever is more; its rank is
    the weight of those below it and (n + 1) / 2 times the mean weight of its n equals, itself among them. None for
    fewer than three points or a constant. Source: Musgrave et al., arXiv 2208.07360, as their code has it.
    """
    if len(scores) < 3 or min(scores) == max(scores) or min(accuracies) == max(accuracies):
        return None
    both = pd.DataFrame({"score": scores, "accuracy": accuracies})
    dense = both.rank(method="dense")
    weights = (dense / dense.max()).max(axis=1) ** 2

    def ranks(values: pd.Series) -> pd.Series:
        groups = weights.groupby(values)
        below, n = groups.sum().cumsum() - groups.sum(), groups.count()
        return values.map(below + (n + 1) / 2 * groups.mean())

    covariance = np.cov(ranks(both.score), ranks(both.accuracy), aweights=weights)
    return float(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))


def lost_by_choice(scores: Sequence[float], accuracies: Sequence[float]) -> float:
    """Accuracy lost by taking the highest score instead of the highest accuracy; of equal scores their mean."""
    best = max(scores)
    chosen = [accuracy for score, accuracy in zip(scores, accuracies, strict=True) if score == best]
    return max(accuracies) - statistics.mean(chosen)


def scores_block(folder: Path) -> list[str]:
    """By pair the weighted correlation of each validation score with the accuracy, and what choosing by it costs.

    On the validations of a pair that have every score that any of them has; means are over pairs that have all scores.
    """
    pairs, names = runs_by_pair(folder), (*VALIDATORS, "source_val_accuracy")
    rows, lost = [], defaultdict(list)
    for pair, runs in pairs.items():
        points = [point for run in runs for point in validations(run)]
        measured = [name for name in names if any(point.get(name) is not None for point in points)]
        points = [point for point in points if all(point.get(name) is not None for name in measured)]
        if len(points) < 10:  # a choice among a few says nothing
            continue
        accuracies, cells = [point["target_val_accuracy"] for point in points], {}
        for name in measured:
            values = [point[name] for point in points]
            cost = lost_by_choice(values, accuracies)
            cells[name] = f"{shown(weighted_spearman(values, accuracies), 2)}, {cost:.3f}"
            if len(measured) == len(names):
                lost[name].append(cost)
        rows.append([pair, str(len(points)), *(cells.get(name, "-") for name in names)])
    for words, of in (("accuracy lost, mean", statistics.mean), ("worst pair", max)):
        rows.append([f"**{words}**", "", *(f"**{of(lost[name]):.3f}**" if lost[name] else "-" for name in names)])
    return [
        *table(["pair", "validations", *(f"`{name}`" for name in names)], rows),
        "",
        *table(
            ["runs", "warned of their answers", "not warned", "harmful `dann`, named", "harmless, named"],
            [[pair, *warned_cells(runs)] for pair, runs in pairs.items()],
        ),
    ]


def warned_cells(runs: list[Result]) -> list[str]:
    """Of a pair's runs how many the warnings name, with their accuracies; of the adapted ones by whether they lost."""
    by_warning: dict[bool, list[float]] = {True: [], False: []}
    for run in runs:
        if run["scores"].get("diversity") is not None:
            num_classes = 7 if run["args"]["target_file"] in STYLES else 10
            by_warning[bool(collapse(run["scores"], num_classes, size(run)))].append(accuracy(run))
    answers = [
        f"{len(found)} ({min(found):.3f} to {max(found):.3f})" if found else "0" for found in by_warning.values()
    ]
    source = [
        accuracy(run) for run in runs if run["args"]["train_mode"] == "source" and run["args"]["recipe"] == "tuned"
    ]
    named: dict[bool, list[bool]] = {True: [], False: []}
    for run in runs:
        if source and run.get("source_only"):
            harmful = accuracy(run) < statistics.mean(source) - 0.01
            named[harmful].append(any("may have done harm" in warning for warning in run["warnings"]))
    return answers + [f"{sum(found)} of {len(found)}" for found in named.values()]


# Block evidence


def evidence_block(folder: Path) -> list[str]:
    """A row per kind of run and target that has results; what a run did not measure is a dash."""
    rows = [
        [
            words,
            target.upper(),
            f"{common_size(found):,}",
            accuracy_cell(found),
            spread(result.get("source_val_accuracy") for result in found),
            spread((result["proxy_a_distance"]["untrained"] for result in found), 2),
            spread((result["proxy_a_distance"]["trained"] for result in found), 2),
            spread(result["losses"].get("L_d") for result in found),
            spread(result["scores"].get("information") for result in found),
            str(len(found)),
        ]
        for words, pattern in EVIDENCE.items()
        for target in TARGETS
        if (found := [*map(read_result, sorted(folder.glob(pattern.format(target) + ".json")))])
    ]
    head = ["runs", "target", "n", "target accuracy", "source accuracy", "proxy A-distance, untrained", "trained"]
    return table([*head, "domain loss at the end", "information", "seeds"], rows)


# Block speed: words -> key, of the columns of a table or of its rows

BY_NETWORK = {
    "training": {
        "`train.py`": "images_per_second",
        "plain recipe": "plain_images_per_second",
        "times": "times_plain",
        "of the bare step": "share_of_bare",
        "of a matrix product": "share_of_matrix_rate",
    },
    "prediction": {
        "`inference.py`": "images_per_second",
        "batch size 1": "batch_size_1_images_per_second",
        "times": "times_batch_size_1",
        "of decoding and forward pass": "share_of_decode_and_forward",
    },
}
START = {
    "imports, s": "import_train_seconds",
    "of them torch, s": "import_torch_seconds",
    "reading the images, s": "read_seconds",
    "network and optimizer, for which torch imports its compiler, s": "network_seconds",
    "the first step, s": "first_step_seconds",
    "launch to the end of the first step, s": "launch_to_first_step_seconds",
    "peak memory, MB": "peak_memory_megabytes",
    "of it the training images, MB": "raw_train_megabytes",
}
RUN_PARTS = {
    "steps": "steps",
    "imports": "imports",
    "images, from the cache": "load_data",
    "network": "start_run",
    "five validations, with both distances": "validate",
    "checkpoints": "save_run",
    "figures": "draw_figures",
    "training on the source alone, before the first step": "source_only",
}
LARGE = {
    "first launch, s": "first_launch_seconds",
    "first launch, MB": "first_launch_peak_megabytes",
    "from the cache, s": "second_launch_seconds",
    "from the cache, MB": "second_launch_peak_megabytes",
    "prediction, s": "prediction_seconds",
    "prediction, MB": "prediction_peak_megabytes",
}
FROZEN = {
    "training, s": "first_launch_seconds",
    "prediction, s": "prediction_seconds",
    "from launch to CSV, s": "seconds_to_csv",
}


def numbers(place: str, found: dict[str, Any], keys: Iterable[str]) -> list[str]:
    """The numbers of those keys in words; UserError by file and key where one is missing."""
    check_kinds(place, found, **dict.fromkeys(keys, NUMBER))
    return [f"{found[key]:,.0f}" if found[key] >= 100 else f"{found[key]:.2f}" for key in keys]


def measured_by(part: dict[str, Any]) -> list[str]:
    """How often a part was measured and on what, above its table."""
    times = f"Median of {part['repeats']}" if part["repeats"] > 1 else "Once"
    return ["", f"{times}, {part['device']}:", ""]


def speed_block(folder: Path) -> list[str]:
    """What benchmark.py measured, a table a part that was run."""
    lines: list[str] = []
    for file in sorted(folder.glob("benchmark-*.json")):
        found = read_json(file)
        check_kinds(file, found, **dict.fromkeys(found, dict))
        for part, measured in found.items():
            check_kinds(f"{file} {part}", measured, device=str, repeats=int)
        for part, columns in BY_NETWORK.items():
            rows = [
                [f"`{arch}`", *numbers(f"{file} {part} {arch}", found[part][arch], columns.values())]
                for arch in ARCHITECTURES
                if arch in found.get(part, {})
            ]
            if rows:
                lines += [*measured_by(found[part]), *table([f"{part}, images/s", *columns], rows)]
        if start := found.get("start"):
            check_kinds(f"{file} start", start, second_launch=dict)
            second = {**start, **start["second_launch"]}
            launches = [numbers(f"{file} start", launch, START.values()) for launch in (start, second)]
            heads = ["start of `train.py`", "first launch", "second launch"]
            lines += [*measured_by(start), *table(heads, zip(START, *launches, strict=True))]
        if growth := found.get("growth"):
            check_kinds(f"{file} growth", growth, images_per_second=dict)
            rates = growth["images_per_second"]
            row = ["training, images/s", *numbers(f"{file} growth images_per_second", rates, rates)]
            lines += [*measured_by(growth), *table(["images a domain", *(f"{int(count):,}" for count in rates)], [row])]
        if large := found.get("large"):
            check_kinds(f"{file} large", large, photos=dict, arch=str)
            rows = [
                [f"{int(count):,}", *numbers(f"{file} large {count}", measured, LARGE.values())]
                for count, measured in large["photos"].items()
            ]
            lines += [*measured_by(large), *table([f"photos, `{large['arch']}`", *LARGE], rows)]
        if frozen := found.get("frozen"):
            check_kinds(f"{file} frozen", frozen, photos=int, arch=str)
            row = [f"{frozen['photos']:,}", *numbers(f"{file} frozen", frozen, FROZEN.values())]
            lines += [*measured_by(frozen), *table([f"photos, `{frozen['arch']} --freeze`", *FROZEN], [row])]
        if reached := found.get("accuracy"):
            check_kinds(f"{file} accuracy", reached, steps=int, seconds_to=dict, seconds_by_part=dict)
            head = f"USPS val accuracy, `dann --max_steps {reached['steps']}`"
            each = ([mark, ", ".join(shown(s, 0) for s in seconds)] for mark, seconds in reached["seconds_to"].items())
            seconds = "seconds from launch until it is first reached, validations not counted, a number a seed"
            lines += ["", *table([head, seconds], each)]
            values = numbers(f"{file} accuracy seconds_by_part", reached["seconds_by_part"], RUN_PARTS.values())
            by_part = zip(RUN_PARTS, values, strict=True)
            lines += [*measured_by(reached), *table(["the same run, by part", "s"], by_part)]
        if side := found.get("side"):
            check_kinds(f"{file} side", side, steps=int, images_per_second=dict)
            rows = [[count, *(f"{rate:,.0f}" for rate in rates)] for count, rates in side["images_per_second"].items()]
            heads = [f"`dann --max_steps {side['steps']}` at once", "first third, images/s in sum", "second", "last"]
            lines += [*measured_by(side), *table(heads, rows)]
        if compared := found.get("peers"):
            check_kinds(f"{file} peers", compared, steps=int, versions=dict, by=dict)
            check_kinds(f"{file} peers by", compared["by"], **dict.fromkeys(compared["by"], dict))
            heads = [f"plain `dann`, {compared['steps']} steps, one thread", "USPS val accuracy, a number a seed"]
            rows = [
                peers_row(f"{file} peers by {name}", name, compared["versions"].get(name), measured)
                for name, measured in compared["by"].items()
            ]
            lines += [
                *measured_by(compared),
                *table([*heads, "images/s", "lines of code beside network and data"], rows),
            ]
    return lines[1:]


def peers_row(place: str, name: str, version: str | None, measured: dict[str, Any]) -> list[str]:
    """A library, or train.py, which has no version: accuracy of each seed, speed, and what a user writes for it."""
    check_kinds(place, measured, accuracy=list, lines=int)
    by_seed = {f"accuracy {i}": value for i, value in enumerate(measured["accuracy"])}
    check_kinds(place, by_seed, **dict.fromkeys(by_seed, NUMBER))
    accuracies = ", ".join(shown(value, 3) for value in by_seed.values())
    (speed,) = numbers(place, measured, ["images_per_second"])
    return [f"{name} {version}" if version else f"`{name}`", accuracies, speed, str(measured["lines"])]


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


BLOCKS: dict[str, Callable[[Path], list[str]]] = {
    **{block: partial(accuracies_block, block=block) for block in ACCURACIES},
    "photos": lambda folder: photos_table(on_photos(folder, ON_PHOTOS)),  # frozen features at full size
    "small_photos": lambda folder: photos_table(on_small_photos(folder)),  # and beside a whole backbone
    "photos_mean": photos_mean_block,
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

"""The ablation ladder of recipe strong, and how the label-free signs rank its runs: the README's tables of both."""

import math
import statistics
from collections.abc import Sequence

import pandas as pd

from signs import COLLAPSE_SIGN, SIGNS, too_few
from strong import TEACHER_SIGNS
from tables import TARGETS, Cell, Cells, Result, accuracy_cell, seed_counts
from utils import shown

NUM_CLASSES = 10  # of the digits that the ladder is measured on
LOW_IS_GOOD = ("entropy",)  # of the label-free signs; the others should be high

# The ablation of recipe strong: words, recipe, mode, parts left out.
LADDER = [
    ("source", "paper", "source", ()),
    ("+ augmentation", "strong", "source", ("neighbours",)),
    ("+ neighbours", "strong", "source", ()),
    ("+ adversarial (DANN)", "strong", "dann", ("teacher",)),
    ("+ teacher: everything", "strong", "dann", ()),
    ("everything but adversarial", "strong", "dann", ("adversarial",)),
    ("everything but augmentation", "strong", "dann", ("augmentation",)),  # its neighbours with it
]


def rungs(cells: Cells) -> dict[str, list[list[Result]]]:
    """Words of each rung -> its results, a list a target."""
    return {
        words: [cells.get(Cell(recipe, "small", mode, target, without), []) for target in TARGETS]
        for words, recipe, mode, without in LADDER
    }


def ladder_table(cells: Cells) -> list[str]:
    """What each part of recipe strong is worth; before any run that leaves parts out, how to get there."""
    if not any(cell.recipe == "strong" for cell in cells):
        return []
    if not any(cell.without for cell in cells):
        return [
            "What each part of recipe `strong` is worth, and which label-free sign ranks them best, stand here once "
            '`bash reproduce.sh DATA_ROOT "0 1 2" ladder` has been run (30 runs).'
        ]
    rows = [
        f"| {words} | {' | '.join(accuracy_cell(results) for results in found)} | {seed_counts(found)} |"
        for words, found in rungs(cells).items()
    ]
    return [
        "What each part of recipe `strong` is worth: a row with + adds to the one above. Three of them bring more than "
        "they say: + augmentation the recipe's steps, learning rate and weight decay, + adversarial BatchNorm "
        "statistics of the target, + teacher the averaged weights, which predict from there on. Neighbours are a part "
        "of the augmentation and are left out with it.",
        "",
        f"| | {' | '.join(f'MNIST-M → {target.upper()}' for target in TARGETS)} | seeds |",
        "|---|---|---|---|",
        *rows,
    ]


def signed(found: list[list[Result]]) -> list[Result]:
    """The runs of a rung that logged the label-free signs."""
    return [run for results in found for run in results if run.get("signs")]


def ladder_runs(cells: Cells) -> list[Result]:
    """Every run of the ladder that logged the label-free signs."""
    return [run for found in rungs(cells).values() for run in signed(found)]


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rho, None for fewer than three pairs or a constant."""
    rho = pd.Series(a).rank().corr(pd.Series(b).rank()) if len(a) > 2 else math.nan
    return None if math.isnan(rho) else float(rho)


def sign_points(cells: Cells) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Sign -> target -> (sign, true accuracy) of each run of the ladder that has it."""
    runs = ladder_runs(cells)
    return {
        sign: {
            target: [
                (value, run["target_val_accuracy"])
                for run in runs
                if run["args"]["target_file"] == target and (value := run["signs"].get(sign, run.get(sign))) is not None
            ]
            for target in TARGETS
        }
        for sign in ("source_val_accuracy", *SIGNS, *TEACHER_SIGNS)
    }


def signs_table(cells: Cells) -> list[str]:
    """How each label-free sign ranks with the true accuracy over the ladder; no table for under four of its rungs.

    The best first, by the mean of both targets in the direction that should be good.
    """
    if (
        sum(bool(signed(found)) for found in rungs(cells).values()) < 4
    ):  # of two kinds of runs any sign that differs ranks well
        return []
    lines, points = [], sign_points(cells)
    for sign, rho in rank_signs(points).items():
        row = [f"{shown(rho[target], 2)} ({len(pairs)} runs)" for target, pairs in points[sign].items()]
        lines.append(f"| {sign.replace('_', ' ')} | {'low' if sign in LOW_IS_GOOD else 'high'} | {' | '.join(row)} |")
    return [
        "Spearman's rank correlation of label-free signs with the true accuracy, over the runs of the ladder:",
        "",
        f"| sign | should be | {' | '.join(target.upper() for target in TARGETS)} |",
        "|---|---|---|---|",
        *lines,
        "",
        warning_line(cells),
    ]


def warning_line(cells: Cells) -> str:
    """On which of the ladder's runs the collapse warning comes, and on which it is silent, by their accuracies."""
    runs, words = [run for run in ladder_runs(cells) if run["signs"].get(COLLAPSE_SIGN) is not None], []
    for warned in (True, False):
        for target in TARGETS:
            found = [
                run["target_val_accuracy"]
                for run in runs
                if run["args"]["target_file"] == target and too_few(run["signs"], NUM_CLASSES) == warned
            ]
            accuracies = f" (accuracy {min(found):.3f} to {max(found):.3f})" if found else ""
            words.append(f"{len(found)} on {target.upper()}{accuracies}")
    return (
        f"The collapse warning goes by {COLLAPSE_SIGN.replace('_', ' ')}: it comes where the answers tell less than "
        f"half of the classes apart. Of the ladder's runs it would warn of {words[0]} and {words[1]}; it is silent on "
        f"{words[2]} and {words[3]}."
    )


def rank_signs(points: dict[str, dict[str, list[tuple[float, float]]]]) -> dict[str, dict[str, float | None]]:
    """Spearman's rho of each sign by target, the sign that ranks best first; None where it is not defined."""
    found = {
        sign: {target: rank_correlation(*zip(*pairs, strict=True)) if pairs else None for target, pairs in by.items()}
        for sign, by in points.items()
    }

    def worth(sign: str) -> float:
        known = [rho for rho in found[sign].values() if rho is not None]
        return (-1 if sign in LOW_IS_GOOD else 1) * statistics.mean(known) if known else -math.inf

    return {sign: found[sign] for sign in sorted(found, key=worth, reverse=True)}

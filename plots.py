"""Figures: curves of runs, latent spaces by class and by domain, in colours for colour-blind readers too."""

import contextlib
import itertools
import logging
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from utils import atomic_path, note

# Paul Tol's "muted" set and grey; for two domains blue and orange of Okabe and Ito.
CLASS_COLOURS = [
    "#332288",
    "#88CCEE",
    "#44AA99",
    "#117733",
    "#999933",
    "#DDCC77",
    "#CC6677",
    "#882255",
    "#AA4499",
    "#777777",
]
NO_LABEL = "#DDDDDD"
DOMAIN_COLOURS = ["#0072B2", "#E69F00"]
# Okabe and Ito's but for the yellow, for runs by their number; from the ninth on again, dashed.
RUN_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00", "#888888"]
DOMAIN_MARKERS = ["o", "^"]
# What the curves show: key of metrics.jsonl -> title, top of the axis, a value to compare with, and what that is.
PANELS: dict[str, tuple[str, float | None, float | None, str]] = {
    "target_val_accuracy": ("accuracy on the target's val", 1.02, None, ""),
    "source_val_accuracy": ("accuracy on the source's val", 1.02, None, ""),
    "L_y": ("label loss L_y", None, None, ""),
    "L_d": ("domain loss L_d", None, float(np.log(2)), "ln 2, domains not told apart"),
    "domain_accuracy": ("accuracy of the domain classifier", 1.02, 0.5, "chance"),
    "lambda": ("lambda", None, None, ""),
    "L_u": ("pseudo-label loss L_u", None, None, ""),
    "pseudo_label_coverage": ("pseudo-labels: share above the threshold", 1.02, None, ""),
}
MOST_NAMES = 20  # classes whose names are written into a picture
MISTAKES = 40  # most confident wrong answers in one picture
LONGEST = 24  # letters of a class's name that are written at an axis or in a legend


@contextlib.contextmanager
def picture(path: Path, width: float, height: float, title: str = "", names: Iterable[str] = ()) -> Iterator[Figure]:
    """A figure, its size in inches, written to `path` whole or not at all; no setting of matplotlib stays changed.

    names: what is written in it of the user's own, class names for one, in any script that a font here has.
    """
    odd = "".join(sorted({letter for word in (title, *names) for letter in word if not letter.isascii()}))
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # not which weight of a font it takes
    settings: Any = {"text.parse_math": False, "font.family": fonts_for(odd)}  # a class may be called $5
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # fonts_for has told
        figure = Figure(figsize=(width, height), layout="constrained")
        if title:
            lines = [textwrap.fill(shorter(line, 500), int(10.5 * width)) for line in title.splitlines()]
            figure.suptitle("\n".join(lines), fontsize=10)
        yield figure
        with atomic_path(path) as part:
            figure.savefig(part, dpi=120, format="png")


@lru_cache(maxsize=8)
def fonts_for(text: str) -> list[str]:
    """Names of fonts that have the characters of `text`, the default one first; said where none of this system has."""
    family = ["DejaVu Sans"]
    default = font_manager.get_font(font_manager.findfont(family[0]))
    missing = {ord(letter) for letter in text if letter.isprintable()} - default.get_charmap().keys()
    for font in font_manager.fontManager.ttflist:
        if not missing:
            break
        if "lastresort" in font.name.lower().replace(" ", ""):  # has a box for every character
            continue
        with contextlib.suppress(Exception):  # a damaged font of the system is none
            known = missing & font_manager.get_font(font.fname).get_charmap().keys()
            family += [font.name] * bool(known)
            missing -= known
    if missing:
        letters = "".join(map(chr, sorted(missing)[:5]))
        note(f"no font of this system has {letters!r}, so figures show boxes; install one, such as Noto Sans CJK.")
    return family


def shorter(name: str, limit: int = LONGEST) -> str:
    """A name as a figure shows it: without its middle where it is long, and with a mark for bytes that are no text."""
    name = re.sub("[\ud800-\udfff]", "\ufffd", name)
    end = limit // 3
    return name if len(name) <= limit else f"{name[: limit - 1 - end]}…{name[-end:]}"


def legend(figure: Figure, handles: list[Any], names: Iterable[str], limit: int = LONGEST, **more: Any) -> None:
    """Say outside the axes what is what."""
    made = figure.legend(handles, ["-"] * len(handles), fontsize=11, **more)
    for text, name in zip(made.get_texts(), names, strict=True):  # a label that begins with _ would be left out
        text.set_text(shorter(name, limit))


def told_apart(names: list[str]) -> tuple[list[str], str]:
    """Names of runs without the words that all have, and these words: of one run, and of none, the whole name."""
    words = [name.split("_") for name in names]
    shared = [word for word in words[0] if all(word in other for other in words)] if words else []
    short = [" ".join(word for word in each if word not in shared) for each in words]
    return (short, " ".join(shared)) if all(short) and len(set(short)) == len(names) else (names, "")


def spread(heights: list[float], gap: float) -> list[float]:
    """Heights 0..1 moved as little as it takes to lie `gap` apart, in their order."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = dict(enumerate(heights))
    for below, above in itertools.pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    room = 1.0
    for i in reversed(order):
        placed[i] = min(placed[i], room)
        room = placed[i] - gap
    return [placed[i] for i in range(len(heights))]


def draw_curves(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw what the runs logged over their steps, a panel a quantity, a colour a run, its name where its line ends.

    runs: name -> lines of metrics.jsonl. Quantities that no run has are left out.
    """
    logged = {key for lines in runs.values() for line in lines for key, value in line.items() if value is not None}
    panels = {key: panel for key, panel in PANELS.items() if key in logged}
    columns = min(3, max(1, len(panels)))
    rows = -(-max(1, len(panels)) // columns)
    inches = max(2.6, 0.18 * len(runs))
    names, title = told_apart(list(runs)) if len(runs) > 1 else ([""], next(iter(runs), ""))
    with picture(path, 4.4 * columns, (inches + 0.6) * rows + 0.4, title, runs) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes, (key, (words, top, reference, meaning)) in zip(grid, panels.items(), strict=False):
            ends: dict[int, float] = {}
            for i, (name, lines) in enumerate(runs.items()):
                known = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
                axes.plot(*zip(*known, strict=True) if known else ([], []), color=RUN_COLOURS[i % 8], marker="o",
                          markersize=4, linestyle="--" if i // 8 % 2 else "-", label=name)  # fmt: skip
                ends |= {i: known[-1][1]} if known else {}
            axes.set_ylim(0, top or 1.12 * max(axes.get_ylim()[1], reference or 0))
            heights = spread([value / axes.get_ylim()[1] for value in ends.values()], 0.17 / inches)
            for i, height in zip(ends, heights, strict=True):
                axes.text(1.03, height, shorter(names[i]), color=RUN_COLOURS[i % 8], fontsize=10.5, va="center",
                          transform=axes.transAxes)  # fmt: skip
            if reference is not None:
                axes.axhline(reference, color="#888888", linewidth=1, linestyle=":")
                axes.text(0.98, 0.03, f"dotted: {meaning}", fontsize=10, color="#666666", ha="right",
                          transform=axes.transAxes)  # fmt: skip
            axes.set_title(words, fontsize=12)
            axes.grid(alpha=0.3)
            axes.tick_params(labelsize=10)
        for axes in grid[max(0, len(panels) - columns) : len(panels)]:
            axes.set_xlabel("step", fontsize=11)


def confusion(labels: np.ndarray, answers: np.ndarray, num_classes: int) -> np.ndarray:
    """How often each class, by row, was answered as each, by column: counts [K, K] of class indices [N]."""
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(counts, (labels, answers), 1)
    return counts


def draw_confusion(labels: np.ndarray, answers: np.ndarray, classes: list[str], title: str, path: Path) -> None:
    """Draw how often each class was answered as each: rows are labels, columns answers, shades shares of a row.

    labels, answers: class indices [N].
    """
    counts = confusion(labels, answers, len(classes))
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    names = [shorter(name) for name in classes]
    longest = max(map(len, names))
    side = min(14.0, 3 + 0.45 * len(classes)) + 0.08 * longest
    with picture(path, side + 0.8, side, title, classes) as figure:
        axes = figure.subplots()
        shades = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        if len(classes) <= 25:  # more would not be legible
            for row, column in zip(*counts.nonzero(), strict=True):
                dark = shares[row, column] > 0.5
                axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=10,
                          color="white" if dark else "black")  # fmt: skip
        step = max(1, len(classes) // 40)
        ticks = range(0, len(classes), step)
        axes.set_xticks(ticks, names[::step], rotation=90 if longest > 3 else 0)
        axes.set_yticks(ticks, [f"{names[k]} ({counts[k].sum()})" for k in ticks])
        axes.set(xlabel="answer", ylabel="label (images)")
        figure.colorbar(shades, ax=axes, label="share of the label's images", shrink=0.8)


def most_confident_mistakes(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Rows of the wrong answers, the most confident first, of class indices [N] and probabilities [N, K]."""
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    return wrong[np.argsort(-probabilities.max(1)[wrong], kind="stable")]


def draw_mistakes(
    images: Any, labels: np.ndarray, probabilities: np.ndarray, classes: list[str], title: str, path: Path
) -> None:
    """Draw the 40 wrong answers that were given with most confidence, the most confident first.

    images: uint8 [N, H, W, 3], of which those rows are taken; labels: class indices [N], probabilities [N, K].
    """
    answers, confidence = probabilities.argmax(1), probabilities.max(1)
    wrong = most_confident_mistakes(labels, probabilities)
    worst = wrong[:MISTAKES]
    columns, rows = 8, -(-max(1, len(worst)) // 8)
    which = f"the {len(worst)} most confident of" if len(worst) < len(wrong) else "all"
    which = f"{which} {len(wrong)} mistakes" if len(wrong) > 1 else "the only mistake"
    words = f"{which}: label as answer, confidence" if len(wrong) else "no mistake"
    with picture(path, 10, 0.7 + 1.65 * rows, f"{title}\n{words}", classes) as figure:
        axes, shown = figure.subplots(), np.asarray(images[worst])
        for place, i in enumerate(worst):  # one pair of axes for all: 40 take four times as long
            row, column = divmod(place, columns)
            axes.imshow(shown[place], extent=(column + 0.04, column + 0.96, 1.32 * row + 1.22, 1.32 * row + 0.3))
            label, answer = (shorter(classes[k], 8) for k in (labels[i], answers[i]))
            between = ", " if len(label + answer) < 8 else "\n"
            text = f"{label} as {answer}{between}{confidence[i]:.2f}"
            axes.text(column + 0.5, 1.32 * row + 0.28, text, fontsize=9.5, ha="center", va="bottom")
        axes.set(xlim=(0, columns), ylim=(1.32 * rows, 0), aspect="equal")
        axes.set_axis_off()


def class_colours(count: int) -> list[str]:
    """A colour for each of `count` classes."""
    shades = matplotlib.colormaps["turbo"](np.linspace(0, 1, count))
    return CLASS_COLOURS if count <= 10 else [to_hex(shade) for shade in shades]


def scatter_axes(figure: Figure) -> Any:
    axes = figure.subplots()
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    return axes


def draw_by_class(
    points: np.ndarray,
    domains: np.ndarray,
    labels: np.ndarray,
    classes: list[str],
    names: list[str],
    title: str,
    path: Path,
) -> None:
    """Scatter [N, 2] coloured by class, shaped by domain. labels: index into `classes`, -1 where there is none."""
    colours = np.array([to_rgba(NO_LABEL), *map(to_rgba, class_colours(len(classes)))])  # -1 first
    styles: list[dict[str, Any]] = [
        {"s": 11, "alpha": 0.45, "edgecolors": "none"},
        {"s": 16, "alpha": 0.95, "edgecolors": "black", "linewidths": 0.3},
    ]
    with picture(path, 8.4, 7, title, [*names, *classes]) as figure:
        axes = scatter_axes(figure)
        for domain, style in enumerate(styles):
            chosen = domains == domain
            shade = colours[labels[chosen] + 1]
            axes.scatter(*points[chosen].T, marker=DOMAIN_MARKERS[domain], c=shade, zorder=1 + domain, **style)
        marks = [(DOMAIN_MARKERS[d], "#555555", names[d]) for d in range(2)]
        marks += [("s", colours[0], "no label")] * bool((labels < 0).any())
        if len(classes) <= MOST_NAMES:
            marks += [("s", colours[k + 1], name) for k, name in enumerate(classes)]
            write_names(axes, points, domains, labels, classes, colours)
        handles = [Line2D([], [], marker=m, linestyle="", color=colour) for m, colour, _ in marks]
        many = f"{len(classes)} classes:\nnames in latent.csv" if len(classes) > MOST_NAMES else None
        legend(figure, handles, [name for *_, name in marks], loc="outside right center", title=many, title_fontsize=10)


def write_names(
    axes: Any, points: np.ndarray, domains: np.ndarray, labels: np.ndarray, classes: list[str], colours: np.ndarray
) -> None:
    """Write each class's name amid its points: colour is not the only cue."""
    for k in np.unique(labels[labels >= 0]):
        chosen = labels == k
        middle = np.median(points[chosen & (domains == domains[chosen].min())], axis=0)
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.8, "edgecolor": colours[k + 1]}
        size = 13 if max(map(len, classes)) < 4 else 9
        name = shorter(classes[k], 12)
        axes.annotate(name, middle, fontsize=size, weight="bold", ha="center", va="center", zorder=4, bbox=box)


def draw_by_domain(points: np.ndarray, domains: np.ndarray, names: list[str], title: str, path: Path) -> None:
    """Scatter [N, 2] coloured and shaped by domain."""
    with picture(path, 8.4, 7, title, names) as figure:
        axes = scatter_axes(figure)
        for domain in range(2):
            chosen = domains == domain
            axes.scatter(
                *points[chosen].T,
                s=14,
                marker=DOMAIN_MARKERS[domain],
                color=DOMAIN_COLOURS[domain],
                alpha=0.6,
                linewidths=0,
            )
        legend(figure, axes.collections, names, loc="outside right center", markerscale=1.5)

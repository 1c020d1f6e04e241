"""Figures: curves of runs, latent spaces by class and by domain, in colours for colour-blind readers too."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from utils import atomic_path

plt.rcParams["text.parse_math"] = False  # a class may be called $5

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
DOMAIN_COLOURS = ["#0072B2", "#E69F00"]
DOMAIN_MARKERS = ["o", "^"]
MISTAKES = 40  # most confident wrong answers in one picture


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all, and free it."""
    with atomic_path(path) as part:
        figure.savefig(part, dpi=120, format="png")
    plt.close(figure)


def draw_curves(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw accuracy, losses, and domain accuracy with lambda over steps. runs: name -> lines of metrics.jsonl."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    single = len(runs) == 1
    for i, (name, lines) in enumerate(runs.items()):
        steps = [line["step"] for line in lines]
        prefix = "" if single else f"{name}: "

        def plot(
            axes: Any,
            key: str,
            label: str,
            order: int,
            style: str = "-",
            i: int = i,
            steps: list[int] = steps,
            lines: list[dict[str, Any]] = lines,
            prefix: str = prefix,
        ) -> None:
            if any(line.get(key) is not None for line in lines):
                values = [np.nan if line.get(key) is None else line[key] for line in lines]
                colour = CLASS_COLOURS[(order if single else i) * 3 % 10]
                axes.plot(steps, values, style, color=colour, label=prefix + label, marker="o", markersize=3)

        plot(left, "target_val_accuracy", "target val", 0)
        plot(left, "source_val_accuracy", "source val", 2, "--")
        plot(middle, "L_y", "label loss L_y", 0)
        plot(middle, "L_d", "domain loss L_d", 2, "--")
        plot(middle, "L_u", "pseudo-label loss L_u", 1, "-.")
        plot(right, "domain_accuracy", "domain accuracy", 0)
        if single:
            plot(right, "pseudo_label_coverage", "pseudo-labels: coverage", 1, "-.")
            plot(right, "teacher_agreement", "pseudo-labels: agreement", 3, ":")
        if any(line.get("L_d") is not None for line in lines):
            plot(right, "lambda", "lambda", 2, "--")
    adversarial = any(line.get("L_d") is not None for lines in runs.values() for line in lines)
    if adversarial:
        words = "ln 2: domains not told apart"
        middle.axhline(np.log(2), color="#999999", linewidth=0.8, linestyle=":", label=words)
        right.axhline(0.5, color="#999999", linewidth=0.8, linestyle=":")
    else:
        right.text(0.5, 0.5, "no domain loss in this mode", ha="center", color="#666666", transform=right.transAxes)
    for axes, title in ((left, "accuracy"), (middle, "losses (mean since the last validation)"), (right, "adversary")):
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        if axes is not middle:
            axes.set_ylim(0, 1.02)
        elif axes.get_ylim()[0] > 0:
            axes.set_ylim(bottom=0)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.suptitle(", ".join(runs) if len(runs) < 4 else f"{len(runs)} runs", fontsize=10)
    save_figure(figure, path)


def draw_confusion(labels: np.ndarray, answers: np.ndarray, classes: list[str], title: str, path: Path) -> None:
    """Draw how often each class was answered as each: rows are labels, columns answers, shades shares of a row.

    labels, answers: class indices [N].
    """
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (labels, answers), 1)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    side = min(14.0, 3 + 0.45 * len(classes))
    figure, axes = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 25:  # more would not be legible
        for row, column in zip(*counts.nonzero(), strict=True):
            dark = shares[row, column] > 0.5
            axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=8,
                      color="white" if dark else "black")  # fmt: skip
    step = max(1, len(classes) // 40)
    names = [f"{name} ({count})" for name, count in zip(classes, counts.sum(1), strict=True)]
    ticks = range(0, len(classes), step)
    axes.set_xticks(ticks, classes[::step], rotation=90 if max(map(len, classes)) > 3 else 0)
    axes.set_yticks(ticks, names[::step])
    axes.set(xlabel="answer", ylabel="label (images)")
    axes.set_title(title, fontsize=9, wrap=True)
    figure.colorbar(picture, ax=axes, label="share of the label's images", shrink=0.8)
    save_figure(figure, path)


def draw_mistakes(
    images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, classes: list[str], title: str, path: Path
) -> None:
    """Draw the 40 wrong answers that were given with most confidence, the surest first.

    images uint8 [N, H, W, 3], labels: class indices [N], probabilities [N, K].
    """
    answers, confidence = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(answers != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]
    columns, rows = 8, -(-max(1, len(worst)) // 8)
    figure, axes = plt.subplots(figsize=(10, 0.7 + 1.65 * rows), layout="constrained")
    for place, i in enumerate(worst):  # one pair of axes for all: 40 take four times as long
        row, column = divmod(place, columns)
        axes.imshow(images[i], extent=(column + 0.04, column + 0.96, 1.32 * row + 1.22, 1.32 * row + 0.3))
        label, answer = (shorter(classes[k]) for k in (labels[i], answers[i]))
        between = ", " if len(label + answer) < 8 else "\n"
        text = f"{label} as {answer}{between}{confidence[i]:.2f}"
        axes.text(column + 0.5, 1.32 * row + 0.28, text, fontsize=8, ha="center", va="bottom")
    axes.set(xlim=(0, columns), ylim=(1.32 * rows, 0), aspect="equal")
    axes.set_axis_off()
    which = f"the {len(worst)} surest of" if len(worst) < len(wrong) else "all"
    which = f"{which} {len(wrong)} mistakes" if len(wrong) > 1 else "the only mistake"
    words = f"{which}: label as answer, confidence" if len(wrong) else "no mistake"
    figure.suptitle(f"{title}\n{words}", fontsize=9)
    save_figure(figure, path)


def shorter(name: str, limit: int = 8) -> str:
    """A class's name, cut where it would run into its neighbour's."""
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def draw_time_to_accuracy(
    curves: dict[str, list[dict[str, float]]], marks: tuple[float, ...], title: str, path: Path
) -> None:
    """Draw accuracy over seconds since launch, a line a seed, with the marks. curves: seed -> {seconds, accuracy}."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for i, (seed, points) in enumerate(curves.items()):
        seconds, accuracy = [p["seconds"] for p in points], [p["accuracy"] for p in points]
        axes.plot(seconds, accuracy, marker=".", color=CLASS_COLOURS[i % len(CLASS_COLOURS)], label=f"seed {seed}")
    for mark in marks:
        axes.axhline(mark, color="#777777", linestyle=":", linewidth=1)
        axes.annotate(f"{mark:g}", (0, mark), textcoords="offset points", xytext=(2, 3), fontsize=8)
    axes.set(xlabel="seconds since launch", ylabel="accuracy on the target's val", xlim=(0, None), title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    save_figure(figure, path)


def draw_signs(points: dict[str, dict[str, list[tuple[float, float]]]], path: Path) -> None:
    """Draw true target accuracy over each label-free sign, a panel a sign, a colour a target.

    points: sign -> target -> pairs of (sign, accuracy), a pair a run.
    """
    columns = 4
    rows = -(-len(points) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(13, 3.2 * rows), layout="constrained", sharey=True, squeeze=False
    )
    for k, (sign, by_target) in enumerate(points.items()):
        panel = axes[k // columns][k % columns]
        for i, (target, pairs) in enumerate(by_target.items()):
            x, y = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            panel.scatter(x, y, s=26, alpha=0.8, c=DOMAIN_COLOURS[i], marker=DOMAIN_MARKERS[i], label=target.upper())
        panel.set(xlabel=sign.replace("_", " "))
        panel.locator_params(axis="x", nbins=5)
        panel.grid(alpha=0.3)
        if k % columns == 0:
            panel.set(ylabel="accuracy on the target's val")
    for k in range(len(points), rows * columns):
        axes[k // columns][k % columns].set_axis_off()
    axes[0][0].legend()
    save_figure(figure, path)


def scatter_axes(title: str) -> tuple[Figure, Any]:
    figure, axes = plt.subplots(figsize=(8.4, 7), layout="constrained")
    axes.set_title(title, fontsize=10)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    return figure, axes


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
    figure, axes = scatter_axes(title)
    colours = [
        CLASS_COLOURS[k] if len(classes) <= 10 else matplotlib.colormaps["viridis"](k / (len(classes) - 1))
        for k in range(len(classes))
    ]
    for domain in range(2):
        for k in range(-1, len(classes)):
            chosen = (domains == domain) & (labels == k)
            colour = "#DDDDDD" if k < 0 else colours[k]
            axes.scatter(
                *points[chosen].T,
                s=11 if domain == 0 else 16,
                marker=DOMAIN_MARKERS[domain],
                color=[colour],
                alpha=0.45 if domain == 0 else 0.95,
                edgecolors="none" if domain == 0 else "black",
                linewidths=0.3,
                zorder=1 + domain,
            )
    for k, name in enumerate(classes):
        chosen = labels == k
        if chosen.any():  # the class's name amid its points: colour is not the only cue
            axes.annotate(
                name,
                np.median(points[chosen & (domains == domains[chosen].min())], axis=0),
                fontsize=13,
                weight="bold",
                ha="center",
                va="center",
                zorder=4,
                bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.8, "edgecolor": colours[k]},
            )
    handles = [
        Line2D([], [], marker=DOMAIN_MARKERS[d], linestyle="", color="#555555", label=names[d]) for d in range(2)
    ]
    handles += [
        Line2D([], [], marker="s", linestyle="", color=colours[k], label=name) for k, name in enumerate(classes)
    ]
    if (labels < 0).any():
        handles.append(Line2D([], [], marker="s", linestyle="", color="#DDDDDD", label="no label"))
    figure.legend(handles=handles, loc="outside right upper", fontsize=9)
    save_figure(figure, path)


def draw_by_domain(points: np.ndarray, domains: np.ndarray, names: list[str], title: str, path: Path) -> None:
    """Scatter [N, 2] coloured and shaped by domain."""
    figure, axes = scatter_axes(title)
    for domain in range(2):
        chosen = domains == domain
        axes.scatter(
            *points[chosen].T,
            s=14,
            marker=DOMAIN_MARKERS[domain],
            color=DOMAIN_COLOURS[domain],
            alpha=0.6,
            linewidths=0,
            label=names[domain],
        )
    figure.legend(loc="outside right upper", fontsize=9, markerscale=1.5)
    save_figure(figure, path)

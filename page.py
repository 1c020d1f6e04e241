"""A run as a page to look at: one HTML file with its numbers in words, curves, confusion, mistakes and latent space.

Nothing of it is kept by a training: images are read again from the data_root of the run, and the coordinates are
computed from its checkpoints, each beginning with those of the next one so that a slider over them can be followed.
The charts are plotly's, whose script stands in the file; page.html is the frame.
"""

import base64
import contextlib
import html
import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from latent import Side, embed, look_at, read_validation, statistics
from plots import (
    DOMAIN_COLOURS,
    MISTAKES,
    MOST_NAMES,
    NO_LABEL,
    PANELS,
    RUN_COLOURS,
    class_colours,
    confusion,
    most_confident_mistakes,
    shorter,
)
from runs import build_network, check_kinds, in_words, load_checkpoint, read_metrics, resolve_checkpoint
from utils import Progress, UserError, atomic_path

FRAME = Path(__file__).with_name("page.html")
THUMB = 48  # pixels of a side at most
COLUMNS = 50  # images in a row of a sheet
SHOWN = 1000  # images of each domain in the latent space


def plotly_script() -> str:
    """The script of plotly.js; UserError where the package is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError("--html needs the package plotly; run pip install plotly, or leave the flag out.") from error
    return str(get_plotlyjs())


@dataclass
class Seen:
    """A run as the page shows it: what it logged, and how each kept checkpoint sees the validation images.

    missing: why there are no images, where there are none.
    """

    name: str
    folder: Path
    result: dict[str, Any]
    classes: list[str] = field(default_factory=list)
    views: dict[int, tuple[list[Side], np.ndarray]] = field(default_factory=dict)  # by step: sides, coordinates [N, 2]
    missing: str = ""

    @property
    def sides(self) -> list[Side]:
        """The domains as the checkpoint of the result sees them."""
        return self.views[self.result["selected_step"]][0] if self.views else []


def look(name: str, folder: Path, result: dict[str, Any]) -> Seen:
    """Read the validation images of a finished run again, and pass them through each of its checkpoints."""
    file = folder / "result.json"
    check_kinds(file, result, images=dict, warnings=list, steps=int, seed=int, device=str, select=str, command=str)
    check_kinds(f"{file} images", result["images"], labelled_train=int)
    check_kinds(f"{file} args", result["args"], data_root=str, source_file=str, recipe=str, arch=str, without=list)
    seen = Seen(name, folder, {"selected_step": result["steps"], **result})
    domains = [result["args"][key] for key in ("source_file", "target_file") if result["args"][key]]
    try:
        selected = resolve_checkpoint(folder)
        others = [file for file in sorted(folder.glob("step*.pt")) + [folder / "last.pt"] if file.is_file()]
        checkpoints = {}
        for file in [*others, selected]:
            state = {**load_checkpoint(file), "resume": None}  # twice the size of the network, and of no use here
            checkpoints[state["step"]] = file, state
        step = next(step for step, (file, _) in checkpoints.items() if file == selected)
        seen.result = {**result, "selected_step": step}
        images: list[Any] = []
        before = None
        with contextlib.closing(Progress(len(checkpoints), f"look at {name}", "checkpoints")) as progress:
            for step in sorted(checkpoints, reverse=True):
                file, state = checkpoints[step]
                net, seen.classes = build_network(file, state, torch.device("cpu"))
                root = Path(result["args"]["data_root"])
                images = images or [read_validation(root, domain, seen.classes, net) for domain in domains]
                whose = statistics(net, state["args"])
                sides = [look_at(*known, net, d, SHOWN, 0) for known, d in zip(zip(domains, images), whose)]  # noqa: B905
                before = embed(torch.cat([side.features[side.rows] for side in sides]).numpy(), 0, before)
                seen.views[step] = sides, before
                progress.update(1)
    except UserError as error:
        seen.missing, seen.views = f"the validation images are not shown: {error}", {}
    return seen


# Images


def data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def sheet(images: np.ndarray) -> tuple[str, int]:
    """Images uint8 [N, H, W, 3] side by side, COLUMNS a row, as one JPEG, and the side of each in pixels."""
    side = min(images.shape[1], THUMB)
    whole = Image.new("RGB", (side * min(COLUMNS, len(images)), side * -(-len(images) // COLUMNS)))
    for i, pixels in enumerate(images):
        image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
        whole.paste(image, (i % COLUMNS * side, i // COLUMNS * side))
    content = io.BytesIO()
    whole.save(content, "JPEG", quality=85)
    return data_uri(content.getvalue(), "jpeg"), side


# What the script draws


def curves(runs: list[Seen]) -> list[dict[str, Any]]:
    """The panels of draw_curves."""
    logged = [read_metrics(run.folder / "metrics.jsonl") for run in runs]
    panels = []
    for key, (title, top, reference, meaning) in PANELS.items():
        known = [[(line["step"], line[key]) for line in lines if line.get(key) is not None] for lines in logged]
        lines = [
            {"run": run.name, "colour": RUN_COLOURS[i % 8], "dash": i // 8 % 2, "points": points}
            for i, (run, points) in enumerate(zip(runs, known, strict=True))
            if points
        ]
        if lines:
            panels.append({"title": title, "top": top, "reference": reference, "meaning": meaning, "lines": lines})
    return panels


def latent(runs: list[Seen]) -> tuple[list[dict[str, Any]], list[str]]:
    """Every run's classes, domains and coordinates by step; and the sheets of images, one for all runs that show it."""
    found, sheets = [], dict[str, int]()
    for run in (run for run in runs if run.views):
        domains, side = [], 0
        for one in run.sides:
            uri, side = sheet(one.data.images[one.rows].numpy())
            domains.append(
                {
                    "name": one.name,
                    "split": one.split,
                    "sheet": sheets.setdefault(uri, len(sheets)),
                    "images": [one.data.names[row] for row in one.rows],
                    "labels": one.drawn_labels(),
                }
            )
        steps = []
        for step, (sides, points) in sorted(run.views.items()):
            best = [one.probabilities[one.rows].max(1) for one in sides]
            steps.append(
                {
                    "step": step,
                    "words": " → ".join(one.in_words() for one in sides),
                    "points": points.round(2).tolist(),
                    "answers": [each.indices.tolist() for each in best],
                    "confidence": [[round(value, 3) for value in each.values.tolist()] for each in best],
                }
            )
        found.append(
            {
                "run": run.name,
                "mode": run.result["args"]["train_mode"],
                "classes": run.classes,
                "colours": class_colours(len(run.classes)),
                "side": side,
                "domains": domains,
                "steps": steps,
                "selected": sorted(run.views).index(run.result["selected_step"]),
            }
        )
    return found, list(sheets)


def answered(run: Seen) -> tuple[Side, np.ndarray] | None:
    """The side whose answers are shown, and its labels: the target, or the source where that has none."""
    known = ((side, side.data.labels.numpy()) for side in reversed(run.sides) if side.data.labels is not None)
    return next(known, None)


def confusions(runs: list[Seen]) -> list[dict[str, Any] | None]:
    found: list[dict[str, Any] | None] = []
    for run in runs:
        known = answered(run)
        counts = known and confusion(known[1], known[0].predicted.numpy(), len(run.classes)).tolist()
        found.append(known and {"classes": [shorter(name) for name in run.classes], "counts": counts})
    return found


# The text


def mistakes(run: Seen, side: Side, labels: np.ndarray) -> str:
    """The most confident wrong answers, as figures of HTML."""
    p = side.probabilities.numpy()
    wrong = most_confident_mistakes(labels, p)
    figures = []
    for row in wrong[:MISTAKES]:
        uri, _ = sheet(side.data.images[row : row + 1].numpy())
        label, answer = (html.escape(shorter(run.classes[k], 12)) for k in (labels[row], p[row].argmax()))
        name = html.escape(shorter(side.data.names[row], 80))
        figures.append(
            f'<figure title="{name}"><img src="{uri}" alt="{name}"><figcaption>{label} as {answer}, '
            f"{p[row].max():.2f}</figcaption></figure>"
        )
    count = f"the {MISTAKES} most confident of {len(wrong):,}" if len(wrong) > MISTAKES else f"all {len(wrong)}"
    return f"<h3>Mistakes on {html.escape(side.name)} {side.split}: {count}</h3>\n" + (
        f'<p>Label as answer, confidence.</p>\n<div class="mistakes">{"".join(figures)}</div>' if figures else ""
    )


def section(i: int, run: Seen) -> str:
    """A run in words, and the places for its charts; where its images are gone, the figures that it drew itself."""
    words = [html.escape(sentence) for sentence in in_words(run.result)]
    items = "".join(f"<li{' class=warning' if text.startswith('warning:') else ''}>{text}</li>" for text in words)
    known = answered(run)
    parts = [f'<h2><i style="background:{RUN_COLOURS[i % 8]}"></i>{html.escape(run.name)}</h2>\n<ul>{items}</ul>']
    if known:
        side, labels = known
        parts.append(f"<h3>Answers on {html.escape(side.name)} {side.split}</h3>")
        parts.append(f'<div class="confusion" id="confusion{i}"></div>\n{mistakes(run, side, labels)}')
    elif run.missing:
        parts.append(f'<p class="warning">{html.escape(run.missing)}</p>')
        for file in (run.folder / "confusion.png", run.folder / "mistakes.png"):
            parts += [f'<img class="wide" src="{data_uri(file.read_bytes(), "png")}" alt="">'] if file.is_file() else []
    parts.append(f"<details><summary>command</summary><pre>{html.escape(run.result['command'])}</pre></details>")
    return "\n".join(parts)


def write_page(path: Path, runs: list[Seen], table: str) -> None:
    """Write the page of one run, or of several with their `table` on top."""
    views, sheets = latent(runs)
    data = {
        "curves": curves(runs),
        "confusions": confusions(runs),
        "latent": views,
        "sheets": sheets,
        "columns": COLUMNS,
        "domainColours": DOMAIN_COLOURS,
        "noLabel": NO_LABEL,
        "mostNames": MOST_NAMES,
    }
    keys = [f'<i style="background:{RUN_COLOURS[i % 8]}"></i>{html.escape(run.name)}' for i, run in enumerate(runs)]
    several = f"<h2>Comparison</h2>\n<pre>{html.escape(table)}</pre>" if len(runs) > 1 else ""
    parts = {
        "title": html.escape(", ".join(run.name for run in runs)),
        "comparison": several,
        "key": f'<p class="key">{" ".join(keys)}</p>' if len(runs) > 1 else "",
        "sections": "\n".join(f"<section>{section(i, run)}</section>" for i, run in enumerate(runs)),
        "plotly": plotly_script(),
        "data": json.dumps(data).replace("<", "\\u003c"),  # no </script> in a name ends the script
    }
    text = re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], FRAME.read_text(encoding="utf-8"))
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8", errors="replace")

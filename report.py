"""Compare runs: a table, their curves in one figure, and a page to look at.

    python report.py runs/source_usps_tuned_seed0 runs/dann_usps_tuned_seed0 \\
        --html run.html

Prints the accuracies, the proxy A-distance and the arguments in which the runs
differ, and draws their curves into comparison.png beside the first run, or
into --out_path. With --rank SCORE the runs are in the order of a validation
score, which needs no label of the target, the best first. --html makes a page
to mail of one run or several, in one file.
"""

import argparse
from pathlib import Path
from typing import Any

from metrics import VALIDATORS
from page import look, plotly_script, write_page
from plots import draw_curves
from runs import MAYBE, NUMBER, ONCE, check_kinds, read_json, read_metrics
from utils import Parser, UserError, run_script, shown, user_path

# Arguments in which runs may differ that a gain is stated of
MAY_DIFFER = {
    "train_mode",
    "lambda_max",
    "max_steps",
    "epochs",
    "val_period",
    "device",
    "precision",
    "processes",
    "topk",
}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=user_path, metavar="RUN", help="run folders to compare")
    parser.add_argument(
        "--rank",
        choices=VALIDATORS,
        help="put the runs, which are to be of one target, in the order of this validation score, the best first",
    )
    parser.add_argument(
        "--html",
        type=user_path,
        metavar="FILE",
        help="write a page to look at: the numbers in words, curves, confusion, mistakes and the latent space to "
        "explore (needs plotly; 15 seconds a checkpoint)",
    )
    parser.add_argument(
        "--out_path",
        type=user_path,
        metavar="PNG",
        help="figure of the runs' curves (default: comparison.png beside the first run)",
    )
    return parser


def read_result(run: Path) -> dict[str, Any]:
    """result.json of a finished run; UserError where there is none, or none of train.py's."""
    file = run / "result.json"
    if not file.is_file():
        raise UserError(f"{run} has no result.json; name a finished run folder, or finish it with --resume.")
    once: dict[str, Any] = {f"target_{split}_accuracy": None for split in ONCE}
    result = once | read_json(
        file,
        target_val_accuracy=MAYBE,
        source_val_accuracy=MAYBE,
        proxy_a_distance=dict,
        seconds=NUMBER,
        checkpoint=str,
        args=dict,
        scores=dict,
        images=dict,
    )
    check_kinds(file, result, **dict.fromkeys(once, MAYBE))
    check_kinds(f"{file} proxy_a_distance", result["proxy_a_distance"], trained=MAYBE)
    check_kinds(f"{file} images", result["images"], target_val=MAYBE)
    check_kinds(f"{file} scores", result["scores"], **dict.fromkeys(result["scores"], MAYBE))
    check_kinds(f"{file} args", result["args"], train_mode=str, target_file=(str, type(None)))
    return result


def align(rows: list[list[str]]) -> str:
    """Rows of text in columns that line up."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def run_names(runs: list[Path]) -> dict[str, Path]:
    """Runs by their folder's name, by their whole path where two folders have the same name."""
    folders = [run.resolve().name for run in runs]
    return {name if folders.count(name) == 1 else str(run): run for name, run in zip(folders, runs, strict=True)}


def ranked(results: dict[str, dict[str, Any]], score: str) -> dict[str, dict[str, Any]]:
    """Results in the order of a validation score, the best first; UserError for one without it or of other images."""
    targets = {
        (result["args"]["target_file"], result["images"]["target_val"]): name for name, result in results.items()
    }
    if len(targets) > 1:
        raise UserError(
            f"--rank {score} compares runs on the same images of one target, and those of "
            f"{' and '.join(list(targets.values())[:2])} differ: leave one of them out."
        )
    without = [name for name, result in results.items() if result["scores"].get(score) is None]
    if without:
        raise UserError(f"{without[0]} has no score {score}; rank by another, or train it again.")
    return dict(sorted(results.items(), key=lambda each: -each[1]["scores"][score]))


def compare(runs: list[Path], score: str | None = None) -> str:
    """Table of runs, ordered by a score if any: accuracies, proxy A-distance, time, arguments in which they differ."""
    results = {name: read_result(run) for name, run in run_names(runs).items()}
    if score:
        results = ranked(results, score)
    every = [result["args"] for result in results.values()]
    names = sorted(set().union(*every) - {"run_name", "save_dir", "tensorboard", "num_workers"})
    differing = [name for name in names if len({str(args.get(name)) for args in every}) > 1]
    has = {split: [r[f"target_{split}_accuracy"] is not None for r in results.values()] for split in ("val", *ONCE)}
    splits = [split for split in has if split == "val" or any(has[split])]
    targets = [f"target {split}" for split in splits]
    rows = [["run", *([score] if score else []), *targets, "source val", "proxy A-dist.", "seconds", *differing]]
    for name, result in results.items():
        rows.append(
            [
                name,
                *([shown(result["scores"][score])] if score else []),
                *(shown(result[f"target_{split}_accuracy"]) for split in splits),
                shown(result["source_val_accuracy"]),
                shown(result["proxy_a_distance"].get("trained"), 2),
                f"{result['seconds']:.0f}",
                *[str(result["args"].get(key)) for key in differing],
            ]
        )
    measured = [i for i in range(len(rows[0])) if any(row[i] != "-" for row in rows[1:])]
    text = align([[row[i] for i in measured] for row in rows])
    scored = any(result["scores"].get("class_ami") is not None for result in results.values())
    if not score and scored and not {rows[0].index(target) for target in targets} & set(measured):
        text += "\nno labels of the target, so no accuracy on it; --rank class_ami orders the runs without"
    if score and (tied := sum(row[1] == rows[1][1] for row in rows[1:])) > 1:
        text += f"\n{tied} runs have the highest {score}: it does not tell them apart, only labels can"
    if score and len({bool(args.get("freeze")) for args in every}) > 1:  # see lab/README.md, Photos
        text += f"\n{score} may mislead between runs with --freeze and without: decide between them by labels"
    split = next((split for split in ONCE if all(has[split])), "val")
    by_mode = {result["args"]["train_mode"]: result[f"target_{split}_accuracy"] for result in results.values()}
    alike = set(differing) <= MAY_DIFFER
    if alike and len(results) == len(by_mode) and None not in [by_mode.get("source"), by_mode.get("dann")]:
        text += f"\nadaptation gained {by_mode['dann'] - by_mode['source']:+.4f} on the target's {split}"
        if by_mode.get("target"):
            text += f"; training on target labels would gain {by_mode['target'] - by_mode['source']:+.4f}"
    return text


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Compare runs; returns the printed `table` and the `figure`."""
    args = build_parser().parse_args(argv)
    if args.out_path and args.out_path.suffix.lower() != ".png":
        raise UserError(f"--out_path {args.out_path} is no name of a picture; let it end in .png.")
    if args.html and (args.html.is_dir() or args.html.suffix.lower() not in (".html", ".htm")):
        raise UserError(f"--html {args.html} is no name of a page; let it end in .html.")
    if args.html:
        plotly_script()  # refused here where the package is missing
    table = compare(args.runs, args.rank)
    curves = {name: read_metrics(run / "metrics.jsonl") for name, run in run_names(args.runs).items()}
    print(table)
    figure = args.out_path or args.runs[0].resolve().parent / "comparison.png"
    draw_curves(curves, figure)
    print(figure)
    left_out = make_page(args.runs, table, args.html) if args.html else {}
    return {"table": table, "figure": str(figure), "left_out": left_out}


def make_page(runs: list[Path], table: str, file: Path) -> dict[str, str]:
    """Write the page of the runs; why a run's images are left out, by its name, where they are."""
    seen = [look(name, run, read_result(run)) for name, run in run_names(runs).items()]
    write_page(file, seen, table)
    left_out = {run.name: run.missing for run in seen if run.missing}
    for name, why in left_out.items():
        print(f"{name}: {why}")
    print(file)
    return left_out


if __name__ == "__main__":
    run_script(main)

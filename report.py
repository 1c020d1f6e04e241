"""Compare runs, and rebuild the README's tables from results/*.json.

    python report.py runs/source_usps_tuned_seed0 runs/dann_usps_tuned_seed0
    python report.py --readme README.md
    python report.py --add runs/dann_usps_tuned_seed0
    python report.py --ship runs/dann_usps_tuned_seed0

The first prints a table of the runs named, with the arguments in which they
differ, and draws their curves into one figure, comparison.png beside the first
run or --out_path. The second rewrites what stands between the README's markers;
--check only says whether it would change. The third copies a finished run's
result.json to results/<run name>.json; the fourth writes what predicts of its
checkpoint to checkpoint/<mode>_<target>.pt, with the result beside it.
"""

import argparse
from pathlib import Path
from typing import Any

from ladder import ladder_table, sign_points, signs_table
from records import COMPARED, NUMBER, SHARE, check_values, read_json, read_metrics, write_json
from tables import (
    accuracy_table,
    evidence_table,
    footnotes,
    read_results,
    soak_lines,
    speed_tables,
)

from plots import draw_curves, draw_signs
from runs import load_checkpoint
from utils import Parser, UserError, atomic_path, run_script, save_checkpoint, shown

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
RESULTS = Path(__file__).resolve().parent / "results"
SHIPPED = Path(__file__).resolve().parent / "checkpoint"
BEGIN, END = "<!-- results: begin, by report.py -->", "<!-- results: end -->"
SOAK_BEGIN, SOAK_END = "<!-- soak: begin, by report.py -->", "<!-- soak: end -->"
EVIDENCE_BEGIN, EVIDENCE_END = "<!-- evidence: begin, by report.py -->", "<!-- evidence: end -->"


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders to compare")
    parser.add_argument(
        "--out_path",
        type=Path,
        metavar="PNG",
        help="figure of the runs' curves (default: comparison.png beside the first run)",
    )
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help="rewrite the tables of this page, README.md or ADAPTATION.md"
    )
    parser.add_argument("--check", action="store_true", help="with --readme: change nothing, fail when it would change")
    parser.add_argument("--add", type=Path, metavar="RUN", help="copy the result of a finished run into results/")
    parser.add_argument("--ship", type=Path, metavar="RUN", help="put a finished run's checkpoint into checkpoint/")
    parser.add_argument(
        "--signs",
        type=Path,
        metavar="PNG",
        help="draw the true accuracy of the ladder's runs over the label-free signs",
    )
    return parser


def read_result(run: Path) -> dict[str, Any]:
    """result.json of a finished run; UserError where there is none, or none of train.py's."""
    if not (run / "result.json").is_file():
        raise UserError(f"{run} has no result.json; name a finished run folder, or go on in it with --resume.")
    keys = ("target_val_accuracy", "source_val_accuracy", "proxy_a_distance", "seconds", "images_per_second")
    result = read_json(run / "result.json", *keys, "checkpoint", "args")
    if not isinstance(result["args"], dict) or not {"train_mode", "target_file"} <= set(result["args"]):
        raise UserError(f"{run / 'result.json'} does not say its arguments; restore it or choose another run folder.")
    check_values(run / "result.json", result, COMPARED)
    return result


def ship(run: Path) -> Path:
    """Write checkpoint/<mode>_<target>.pt and .json of a finished run: the weights that predict, no optimizer."""
    result = read_result(run)
    checkpoint = load_checkpoint(run / Path(result["checkpoint"]).name)
    name = f"{result['args']['train_mode']}_{result['args']['target_file']}".replace("/", "-")
    save_checkpoint(SHIPPED / f"{name}.pt", {**checkpoint, "resume": None})
    write_json(SHIPPED / f"{name}.json", result)
    return SHIPPED / f"{name}.pt"


# Comparing runs


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


def compare(runs: list[Path]) -> str:
    """Table of runs: accuracies, proxy A-distance, time, and the arguments in which they differ."""
    results = {}
    for name, run in run_names(runs).items():
        results[name] = read_result(run)
    every = [result["args"] for result in results.values()]
    names = sorted(set().union(*every) - {"run_name", "save_dir", "tensorboard", "num_workers"})
    differing = [name for name in names if len({str(args.get(name)) for args in every}) > 1]
    rows = [["run", "target val", "source val", "proxy A-dist.", "seconds", "images/s", *differing]]
    for name, result in results.items():
        rows.append(
            [
                name,
                shown(result["target_val_accuracy"]),
                shown(result["source_val_accuracy"]),
                shown(result["proxy_a_distance"].get("trained"), 2),
                f"{result['seconds']:.0f}",
                f"{result['images_per_second']:.0f}",
                *[str(result["args"].get(key)) for key in differing],
            ]
        )
    text = align(rows)
    by_mode = {result["args"]["train_mode"]: result["target_val_accuracy"] for result in results.values()}
    alike = set(differing) <= MAY_DIFFER
    if alike and len(results) == len(by_mode) and None not in [by_mode.get("source"), by_mode.get("dann")]:
        text += f"\nadaptation gained {by_mode['dann'] - by_mode['source']:+.4f} on the target"
        if by_mode.get("target"):
            text += f"; training on target labels would gain {by_mode['target'] - by_mode['source']:+.4f}"
    return text


# The README's tables


def render(folder: Path = RESULTS) -> str:
    """What stands between the markers of the README."""
    cells = read_results(folder)
    sections = [accuracy_table(cells), footnotes(cells), ladder_table(cells), signs_table(cells), speed_tables(folder)]
    return "\n".join([BEGIN, *"\n\n".join("\n".join(lines) for lines in sections if lines).splitlines(), END])


def render_evidence(folder: Path = RESULTS) -> str:
    """What stands between the markers of ADAPTATION.md."""
    shipped = []
    for file in sorted(SHIPPED.glob("dann_*.pt")):
        checkpoint = load_checkpoint(file)
        measured = {"L_d?": NUMBER, "domain_accuracy?": SHARE}
        check_values(file, checkpoint, {"metrics": measured, "args": {"recipe": str}})
        line = checkpoint["metrics"]
        if line.get("L_d") is not None:
            shipped.append(
                f"`{file.name}` ({checkpoint['args']['recipe']}) {line['L_d']:.3f}, domain accuracy "
                f"{shown(line.get('domain_accuracy'), 2)}"
            )
    ends = f"Domain loss at the end of the shipped checkpoints' runs: {'; '.join(shipped) or 'not known'}."
    return "\n".join([EVIDENCE_BEGIN, *evidence_table(folder), "", ends, EVIDENCE_END])


def render_soak(folder: Path = RESULTS) -> str:
    """What stands between the markers of the README's section on what is promised."""
    return "\n".join([SOAK_BEGIN, *soak_lines(folder), SOAK_END])


def updated(readme: str, name: str) -> str:
    """README text with each block between its markers made anew; UserError without markers."""
    blocks = [
        (BEGIN, END, render),
        (SOAK_BEGIN, SOAK_END, render_soak),
        (EVIDENCE_BEGIN, EVIDENCE_END, render_evidence),
    ]
    for begin, end, block in [each for each in blocks if each[0] in readme] or blocks[:1]:
        before, found, rest = readme.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise UserError(f"{name} has no markers {begin} ... {end}; put them where the table belongs.")
        readme = before + block() + after
    return readme


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Do what the flags ask; returns `changed` for --readme and the printed table for runs."""
    args = build_parser().parse_args(argv)
    if not (args.runs or args.readme or args.add or args.ship or args.signs):
        raise UserError("nothing to report; name run folders, --readme FILE, --add RUN, --ship RUN or --signs PNG.")
    if args.check and not args.readme:
        raise UserError("--check checks a README; name it with --readme FILE.")
    if args.out_path and not args.runs:
        raise UserError("--out_path draws the curves of runs; name run folders.")
    for flag, picture in (("--out_path", args.out_path), ("--signs", args.signs)):
        if picture and picture.suffix.lower() != ".png":
            raise UserError(f"{flag} {picture} is no name of a picture; let it end in .png.")
    outcome: dict[str, Any] = {}
    if args.add:
        result = read_result(args.add)
        write_json(RESULTS / f"{args.add.resolve().name}.json", result)
        print(f"results/{args.add.resolve().name}.json")
    if args.ship:
        print(ship(args.ship))
    if args.runs:
        outcome["table"] = compare(args.runs)
        curves = {name: read_metrics(run / "metrics.jsonl") for name, run in run_names(args.runs).items()}
        print(outcome["table"])
        figure = args.out_path or args.runs[0].resolve().parent / "comparison.png"
        draw_curves(curves, figure)
        print(figure)
    if args.signs:
        points = sign_points(read_results(RESULTS))
        if not any(pairs for by_target in points.values() for pairs in by_target.values()):
            raise UserError("--signs: results/ has no run with label-free signs yet; run bash reproduce.sh first.")
        draw_signs(points, args.signs)
        print(args.signs)
    if args.readme:
        if not args.readme.is_file():
            raise UserError(f"--readme {args.readme} does not exist.")
        try:
            old = args.readme.read_text(encoding="utf-8")
        except ValueError as error:
            raise UserError(f"--readme {args.readme} is no text; name a README with the results markers.") from error
        new = updated(old, str(args.readme))
        outcome["changed"] = new != old
        if args.check and outcome["changed"]:
            raise UserError(
                f"the tables of {args.readme} are not those of results/; run python report.py --readme {args.readme}."
            )
        if outcome["changed"]:
            with atomic_path(args.readme) as part:
                part.write_text(new, encoding="utf-8")
        print(f"{args.readme}: {'rewritten' if outcome['changed'] else 'up to date'}")
    return outcome


if __name__ == "__main__":
    run_script(main)

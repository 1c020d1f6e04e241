"""Flags of train.py: what they mean, what contradicts what, and the recipes that fill in the rest."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from model import ARCHITECTURES
from records import summary_writer
from strong import PARTS
from utils import DEVICES, PRECISIONS, SEED, Parser, UserError, bounded

MODES = ("source", "dann", "target")
SELECTIONS = ("last", "source_val", "target_val")


@dataclass(frozen=True)
class Recipe:
    """Fixed hyperparameters: chosen on the labels of the targets' train split, see NOTES.md; never on val."""

    steps: dict[str, int]  # by mode
    batch_size: int  # images of each domain a step
    lr: float
    weight_decay: float
    lambda_max: float  # the schedule's end value is lambda_max * 0.9999
    parts: tuple[str, ...] = ("adversarial",)  # see strong.py
    ema_decay: float = 0.99  # of the teacher
    threshold: float = 0.85  # confidence from which on a pseudo-label counts
    ramp_end: float = 0.3  # progress at which the pseudo-labels have their full weight


RECIPES = {
    "paper": Recipe({"source": 1000, "dann": 1800, "target": 1000}, 128, 4e-3, 0.01, 0.2),
    "strong": Recipe({"source": 4000, "dann": 4000, "target": 2000}, 128, 2e-3, 0.05, 0.1, PARTS),
}


def folder_name(text: str) -> str:
    """A domain's folder name without the slash that shells complete."""
    return text.rstrip("/")


def build_parser(description: str) -> argparse.ArgumentParser:
    """Flags of train.py, whose docstring opens --help."""
    parser = Parser(description=description)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data_root",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder that holds the domains, <domain>/train.csv and <domain>/data/*.png, or a folder per class",
    )
    data.add_argument(
        "--train_mode",
        required=True,
        type=lambda name: "source" if name == "sorce" else name,
        choices=MODES,
        help="source: labels of the source only; dann: adaptation to the unlabelled "
        "target; target: labels of the target (`sorce`, as the published command line has it, is source)",
    )
    data.add_argument(
        "--source_file", type=folder_name, default="mnistm", metavar="NAME", help="labelled domain (default: mnistm)"
    )
    data.add_argument(
        "--target_file",
        type=folder_name,
        metavar="NAME",
        help="target domain; `source` does without, then nothing is measured on a target",
    )
    data.add_argument(
        "--size",
        type=bounded(int, 8, 256),
        default=28,
        metavar="PX",
        help="side to which images are resized (default: 28)",
    )
    data.add_argument(
        "--num_workers",
        type=bounded(int, 0, 256),
        default=0,
        metavar="N",
        help="threads that decode images; 0: one per core (default). Results do not depend on it",
    )
    length = parser.add_argument_group("recipe and length")
    length.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        default="paper",
        help="paper: the algorithm of the paper, nothing added (default); strong: with augmentation "
        "and the pseudo-labels of a teacher",
    )
    length.add_argument(
        "--without",
        nargs="+",
        choices=PARTS,
        default=[],
        metavar="PART",
        help=f"parts to leave out of recipe strong, to see what each is worth: {', '.join(PARTS)}",
    )
    length.add_argument(
        "--arch",
        choices=ARCHITECTURES,
        default="small",
        help="small: ours (default); published: that of the published checkpoints",
    )
    length.add_argument(
        "-bs",
        "--batch_size",
        type=bounded(int, 2, 65536),
        metavar="N",
        help="images of each domain a step (default: by recipe, paper 128)",
    )
    length.add_argument(
        "-ep",
        "--epochs",
        type=bounded(float, 0, 10**6, exclusive=True),
        metavar="N",
        help="length in passes over the labelled domain (default: by recipe, in steps)",
    )
    length.add_argument(
        "--max_steps",
        type=bounded(int, 1, 10**9),
        metavar="N",
        help="length in steps, schedules included; overrides -ep",
    )
    length.add_argument(
        "-lr",
        "--learning_rate",
        type=bounded(float, 0, 10, exclusive=True),
        metavar="X",
        help="peak of the one-cycle learning rate (default: by recipe)",
    )
    length.add_argument(
        "--lambda_max",
        type=bounded(float, 0, 100, exclusive=True),
        metavar="X",
        help="weight of the reversed domain gradient at the end of its schedule (default: by recipe, paper 0.2)",
    )
    length.add_argument("--seed", type=SEED, default=0, metavar="N", help="seed of everything random (default: 0)")
    run = parser.add_argument_group("run")
    run.add_argument("--device", choices=DEVICES, default="auto", help="where to train (default: auto)")
    run.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of the training step; auto: bf16 where the hardware has it. Validation is always fp32",
    )
    run.add_argument("--save_dir", type=Path, default=Path("runs"), metavar="DIR", help="where run folders go (runs)")
    run.add_argument("--run_name", metavar="NAME", help="name of the run folder (default: mode, target, recipe, seed)")
    run.add_argument("--resume", action="store_true", help="go on in the run folder of that name")
    run.add_argument(
        "--val_period",
        type=bounded(int, 1, 10**9),
        metavar="STEPS",
        help="steps between validations (default: a fifth of the run)",
    )
    run.add_argument(
        "--select",
        choices=SELECTIONS,
        default="last",
        help="checkpoint that the result is of: the last "
        "step (default), the best on source val, or, by target labels, on target val",
    )
    run.add_argument(
        "--topk",
        type=bounded(int, 0, 1000),
        metavar="K",
        help="checkpoints kept beside last.pt: the K "
        "best by --select, with `last` the K latest (default: 1, with `last` 0)",
    )
    run.add_argument(
        "--tensorboard",
        action="store_true",
        help="write the numbers of metrics.jsonl for TensorBoard too, into tensorboard/ of the run folder",
    )
    return parser


def complete(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parse and complete the arguments; UserError for those that contradict each other."""
    args = parser.parse_args(argv)
    if args.target_file is None and args.train_mode != "source":
        raise UserError(f"--train_mode {args.train_mode} needs --target_file, the name of the target's folder.")
    for flag, name in (("--source_file", args.source_file), ("--target_file", args.target_file)):
        if name is not None and os.path.normpath(name) in ("", ".", ".."):
            raise UserError(f"{flag} {name!r} names no domain; name its folder in --data_root.")
    if args.train_mode == "dann" and os.path.normpath(args.target_file) == os.path.normpath(args.source_file):
        raise UserError(f"--source_file and --target_file are both {args.source_file}; dann needs two domains.")
    if args.arch == "published" and args.size != 28:
        raise UserError(f"--arch published takes images of 28x28, not --size {args.size}; use --arch small.")
    if args.select == "source_val" and args.train_mode == "target":
        raise UserError("--select source_val needs a source, which --train_mode target does not read; use last.")
    if args.tensorboard:
        summary_writer()  # refused here where the package is missing
    if args.topk is None:
        args.topk = 0 if args.select == "last" else 1
    if args.topk == 0 and args.select != "last":
        raise UserError(f"--topk 0 keeps no checkpoint for --select {args.select} to choose; use --topk 1 or more.")
    if args.run_name is None:
        target = (args.target_file or "none").replace("/", "-")
        args.run_name = f"{args.train_mode}_{target}_{args.recipe}_seed{args.seed}"
        args.default_name = True
    else:
        args.default_name = False
    if args.run_name in ("", ".", "..") or "/" in args.run_name or os.sep in args.run_name:
        raise UserError(f"--run_name {args.run_name!r} must be a plain folder name; --save_dir says where it goes.")
    if args.recipe == "strong" and args.arch != "small":
        raise UserError(
            f"--recipe strong is for --arch small; the classifiers of {args.arch} would mix the domains' statistics."
        )
    if args.without and args.recipe != "strong":
        raise UserError(f"--without leaves parts out of --recipe strong; --recipe {args.recipe} has none of them.")
    foreign = [part for part in args.without if part not in parts_of_mode(args.train_mode)]
    if foreign:
        raise UserError(f"--without {foreign[0]}: --train_mode {args.train_mode} has no such part to leave out.")
    if args.lambda_max and "adversarial" not in parts_of(args):
        raise UserError("--lambda_max weighs the domain gradient, which this mode and recipe do without; leave it out.")
    args.without = [part for part in PARTS if part in args.without]
    recipe = RECIPES[args.recipe]
    args.processes = None  # set where there are several
    args.batch_size = args.batch_size or recipe.batch_size
    args.learning_rate = args.learning_rate or recipe.lr
    return args


def parts_of(args: argparse.Namespace) -> set[str]:
    """Parts of the recipe that the mode has and --without does not name."""
    return set(RECIPES[args.recipe].parts) & parts_of_mode(args.train_mode) - set(args.without)


def parts_of_mode(mode: str) -> set[str]:
    """Parts of strong.py that a mode can have: labels alone need no adaptation, and a target its own surroundings."""
    return {"source": {"augmentation", "neighbours"}, "dann": set(PARTS), "target": {"augmentation"}}[mode]

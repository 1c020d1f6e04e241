"""Flags of train.py, the recipes, and the typed Settings that come of both: argparse's namespace ends here."""

import argparse
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from backbones import Preprocessing, known, nearest, preprocessing_of
from cache import user_folder
from losses import PARTS
from metrics import VALIDATORS
from model import ARCHITECTURES, MAX_SIZE, MIN_SIZE, annealed, one_cycle
from runs import ONCE, summary_writer
from utils import DEVICES, PRECISIONS, SEED, Parser, UserError, bounded, user_path

MODES = ("source", "dann", "target")


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters; those of ours were chosen on the labels of the targets' train split, never on val."""

    steps: dict[str, int]  # by mode
    batch_size: int  # images of each domain a step
    lr: float  # the peak of the one-cycle schedule; with SGD mu_0
    weight_decay: float
    lambda_max: float  # the schedule's end value is lambda_max * 0.9999
    parts: frozenset[str]  # see losses.py
    ema_decay: float = 0.99  # of the teacher
    threshold: float = 0.85  # confidence from which on a pseudo-label counts
    ramp_end: float = 0.3  # progress at which the pseudo-labels have their full weight
    momentum: float | None = None  # of SGD, with the paper's learning rate; None: AdamW, with a one-cycle rate
    weight_d: float = 1.0  # of L_d, a mean over both domains; 2: the paper's sum of a mean per domain
    norm: str = "domain"  # the BatchNorm of G_f, see DANN
    steps_a_class: int = 0  # at least so many for each class

    def learning_rate(self, p: float) -> float:
        """At progress `p` in 0..1."""
        return one_cycle(p, self.lr) if self.momentum is None else annealed(p, self.lr)


PLAIN = frozenset({"adversarial"})
TUNED = frozenset({"adversarial", "priors", "confusion"})
STRONG = frozenset({"augmentation", "distractors", "adversarial", "confusion", "teacher"})
# Recipe `paper` keeps of arXiv 1505.07818, section 5.2.2: SGD with momentum 0.9 and mu_p, lambda_p up to 1, batches of
# 128, half source and half target, L_d the sum of a mean per domain, no weight decay, no augmentation. Its length, not
# stated there, is where L_y has settled on MNIST-M in mode `source` (lab/NOTES.md). Not the paper's are the networks,
# with their preprocessing (there: mean subtraction), their dropout (there: in SVHN's network alone, with a bound on the
# norm of weights) and BatchNorm (there: none; here one set of statistics, source and target in one batch).
RECIPES = {
    "paper": Recipe(dict.fromkeys(MODES, 5000), 64, 0.01, 0.0, 1.0, PLAIN, momentum=0.9, weight_d=2.0, norm="shared"),
    "tuned": Recipe({"source": 1000, "dann": 1800, "target": 1000}, 128, 4e-3, 0.01, 0.2, TUNED),
    "strong": Recipe({"source": 4000, "dann": 6000, "target": 2000}, 128, 2e-3, 0.05, 0.1, STRONG),
}
# What these have for a backbone, whole or frozen, in place of their own; the learning rate is that of the heads, a
# whole backbone's is a tenth of it (arXiv 1705.10667). Recipe `paper` stays as it is.
ALL_WHOLE = {"batch_size": 32, "lr": 1e-3, "norm": "pretrained"}
WHOLE = {
    "tuned": {"steps": {"source": 500, "dann": 1000, "target": 500}, **ALL_WHOLE},
    # photos come unbalanced: without priors their frequent classes take in the others (lab/NOTES.md)
    "strong": {"steps": {"source": 1000, "dann": 2000, "target": 1000}, "parts": STRONG | {"priors"}, **ALL_WHOLE},
}
FROZEN = {
    "tuned": {"steps": dict.fromkeys(MODES, 300), "steps_a_class": 15, "batch_size": 64, "lr": 2e-3, "lambda_max": 0.05}
}
# The parts that a mode can have: labels alone need no adaptation, and a target has surroundings of its own.
PARTS_OF_MODE = {"source": {"augmentation", "distractors"}, "dann": set(PARTS), "target": {"augmentation"}}


@dataclass(frozen=True)
class Settings:
    """All that one run was asked for, complete and free of contradictions; named as the flags, but for `values`."""

    train_mode: str
    data_root: Path
    source_file: str
    target_file: str | None
    size: int
    num_workers: int
    cache: Path | None  # folder of decoded images; None: none is kept
    recipe: str
    without: tuple[str, ...]
    with_source: bool
    views: str | None  # None: by the classes
    mirror: bool
    balance: bool
    arch: str
    weights: str | None
    freeze: bool
    epochs: float | None
    max_steps: int | None
    lambda_max: float | None
    seed: int
    device: str
    precision: str
    save_dir: Path
    run_name: str
    numbered: bool  # the name is a default one, and gets -2, -3 where it exists
    resume: bool
    val_period: int | None
    select: str
    eval_split: str
    topk: int
    tensorboard: bool
    preprocessing: Preprocessing | None  # of a backbone's images
    values: Recipe  # the recipe's, with what flags put in their place, and the parts that this run has
    processes: int | None = None  # where there are several

    def plain(self) -> dict[str, Any]:
        """The flags as plain values, for args.json, checkpoints and results."""
        flags = {each.name: getattr(self, each.name) for each in fields(self)}
        for name in ("numbered", "resume", "values", "cache", "preprocessing"):
            del flags[name]
        flags |= {"batch_size": self.values.batch_size, "learning_rate": self.values.lr, "without": list(self.without)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}

    def total_steps(self, labelled: int, classes: int) -> int:
        """Length of the run; -ep counts passes over the `labelled` images."""
        if self.epochs and not self.max_steps:
            return max(1, round(self.epochs * labelled / self.values.batch_size))
        usual = self.values.steps["source" if self.with_source else self.train_mode]
        return self.max_steps or max(usual, self.values.steps_a_class * classes)

    def views_of(self, classes: list[str]) -> str:
        """The kind of views: what --views says, else by the names of the classes."""
        return self.views or ("digits" if set(classes) == set("0123456789") else "photos")

    def over(self, processes: int) -> "Settings":
        """These settings for a run of so many processes; UserError where the batch cannot be split over them."""
        size = self.values.batch_size
        if size % processes or size < 2 * processes:
            raise UserError(
                f"--batch_size {size} cannot be split over {processes} processes; make it a multiple, of two images a "
                "process or more."
            )
        return replace(self, processes=processes) if processes > 1 else self


def architecture(text: str) -> str:
    """A network's name; ArgumentTypeError for one that nobody has, with the nearest that there are."""
    if text not in ARCHITECTURES and not known(text):
        close = nearest(text, ARCHITECTURES)
        meant = f"; did you mean {' or '.join(close)}?" if close else ""
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither {' nor '.join(ARCHITECTURES)} nor a classification network of torchvision, nor "
            f"timm:NAME of timm{meant}"
        )
    return text


def folder_name(text: str) -> str:
    """A domain's folder name without the slash that shells complete."""
    return text.rstrip("/")


def build_parser(description: str) -> argparse.ArgumentParser:
    """Flags of train.py, whose docstring opens --help."""
    parser = Parser(
        usage="%(prog)s --data_root DIR --train_mode MODE --target_file NAME [...]", description=description
    )
    first = parser.add_argument_group("needed first")
    first.add_argument(
        "--data_root",
        type=user_path,
        required=True,
        metavar="DIR",
        help="folder that holds the domains, <domain>/train.csv and <domain>/data/*.png, or a folder per class",
    )
    first.add_argument(
        "--train_mode",
        required=True,
        type=lambda name: "source" if name == "sorce" else name,
        choices=MODES,
        help="source: labels of the source only; dann: adaptation to the unlabelled "
        "target; target: labels of the target (`sorce`, as the published command line has it, is source)",
    )
    first.add_argument(
        "--target_file",
        type=folder_name,
        metavar="NAME",
        help="target domain; `source` does without, then nothing is measured on a target",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--source_file", type=folder_name, default="mnistm", metavar="NAME", help="labelled domain (default: mnistm)"
    )
    data.add_argument(
        "--with_source",
        action="store_true",
        help="`target` trains on the labels of the source as well, each domain half of a step",
    )
    data.add_argument(
        "--size",
        type=bounded(int, MIN_SIZE, MAX_SIZE),
        metavar="PX",
        help="side to which images are resized (default: 28, with a backbone that of its weights)",
    )
    data.add_argument(
        "--num_workers",
        type=bounded(int, 0, 256),
        default=0,
        metavar="N",
        help="threads that decode images; 0: one per core (default). Results do not depend on it",
    )
    data.add_argument(
        "--cache",
        type=lambda text: None if text == "none" else user_path(text),
        default=user_folder(),
        metavar="DIR|none",
        help="folder that keeps decoded images for the next run, safe to delete (default: dann-digits in the user's "
        "cache folder); none: keep none",
    )
    length = parser.add_argument_group("recipe and length")
    length.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        default="tuned",
        help="paper: losses, optimizer, schedules and batches of arXiv 1505.07818, section 5.2, at a length and with a "
        "network of ours; tuned: the losses of the paper with hyperparameters of ours (default); strong: with "
        "augmentation and the pseudo-labels of a mean teacher besides",
    )
    length.add_argument(
        "--without",
        nargs="+",
        choices=PARTS,
        default=[],
        metavar="PART",
        help=f"parts to leave out of the recipe, to see what each is worth: of {', '.join(PARTS)}, those it has",
    )
    length.add_argument(
        "--views",
        choices=("digits", "photos"),
        help="random views of recipe strong. digits: half of them negatives, in the source other digits at the sides; "
        "photos: neither (default: digits where the classes are those from 0 to 9)",
    )
    length.add_argument(
        "--mirror", action="store_true", help="random views of recipe strong are mirrored, half of them, left to right"
    )
    length.add_argument(
        "--balance",
        action="store_true",
        help="draw the classes of the labelled domain alike, however many images each has; not for `dann` with class "
        "priors (recipe tuned, and strong with a backbone), which draws by those of the target if it can estimate "
        "them, else alike",
    )
    length.add_argument(
        "--arch",
        type=architecture,
        default="small",
        metavar="NAME",
        help="small: ours (default); published: that of the published checkpoints; or a backbone, pretrained: a "
        "classification network of torchvision by its name (resnet50), or timm:NAME of timm where that is installed",
    )
    length.add_argument(
        "--weights",
        metavar="FILE",
        help="of the backbone. default: its library's, which downloads them; none: random ones; or a file, a "
        "state_dict or .safetensors (default: default)",
    )
    length.add_argument(
        "--freeze",
        action="store_true",
        help="the backbone keeps its weights and sees each image once; bottleneck and classifiers are trained on its "
        "features: minutes on a CPU",
    )
    length.add_argument(
        "-bs",
        "--batch_size",
        type=bounded(int, 2, 65536),
        metavar="N",
        help="images of each domain a step (default: by recipe, paper 64, else 128; with a backbone 32, --freeze 64)",
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
        help="length in steps, schedules included; overrides -ep (default: by recipe; with --freeze 15 a class, 300 at "
        "least)",
    )
    length.add_argument(
        "-lr",
        "--learning_rate",
        type=bounded(float, 0, 10, exclusive=True),
        metavar="X",
        help="peak of the one-cycle learning rate, recipe paper: mu_0 (default: by recipe)",
    )
    length.add_argument(
        "--lambda_max",
        type=bounded(float, 0, 100, exclusive=True),
        metavar="X",
        help="weight of the reversed domain gradient at the end of its schedule (default: by recipe: paper 1, tuned "
        "0.2, with --freeze 0.05, strong 0.1)",
    )
    length.add_argument("--seed", type=SEED, default=0, metavar="N", help="seed of everything random (default: 0)")
    run = parser.add_argument_group("run")
    run.add_argument("--device", choices=DEVICES, default="auto", help="where to train (default: auto)")
    run.add_argument(
        "--precision",
        choices=("auto", *PRECISIONS),
        default="auto",
        help="of the training step; auto: bf16 where the hardware has it, else fp16 on an NVIDIA GPU, fp32 "
        "on others. Validation is always fp32",
    )
    run.add_argument(
        "--save_dir", type=user_path, default=Path("runs"), metavar="DIR", help="where run folders go (runs)"
    )
    run.add_argument("--run_name", metavar="NAME", help="name of the run folder (default: mode, target, recipe, seed)")
    run.add_argument("--resume", action="store_true", help="continue the run folder of that name")
    run.add_argument(
        "--val_period",
        type=bounded(int, 1, 10**9),
        metavar="STEPS",
        help="steps between validations (default: a fifth of the run)",
    )
    run.add_argument(
        "--select",
        choices=("last", "source_val", "target_val", *VALIDATORS),
        default="last",
        metavar="SCORE",
        help="checkpoint that the result is of: `last`, that of the last step (default), or the best by source_val, "
        f"by a score that needs no label of the target ({', '.join(VALIDATORS)}), or by target_val, which does",
    )
    run.add_argument(
        "--eval_split",
        choices=("val", *ONCE),
        default="val",
        help="split of the target that the reported accuracy is of: val, measured at each validation (default), test, "
        "or train, the images that `dann` adapts to, as papers on photos measure it (transductive); the labels of "
        "these two are read once, at the end, by nothing else",
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


def read_settings(args: argparse.Namespace) -> Settings:
    """The parsed flags as Settings; UserError for those that contradict each other."""
    recipe, with_backbone = RECIPES[args.recipe], args.arch not in ARCHITECTURES
    preprocessing = preprocessing_of(args.arch) if with_backbone else None
    if with_backbone:
        changes: dict[str, Any] = (FROZEN if args.freeze else WHOLE).get(args.recipe, {})
        recipe = replace(recipe, **changes)
        if recipe.norm == "pretrained" and args.weights == "none":
            recipe = replace(recipe, norm="domain")  # random weights bring no statistics
    has = recipe.parts & PARTS_OF_MODE["source" if args.with_source else args.train_mode]
    if args.arch == "published":  # its classifiers mix the domains' statistics
        has -= {"priors", "confusion"}
    parts = has - set(args.without)
    refuse_domains(args.train_mode, args.source_file, args.target_file, args.with_source)
    refuse_recipe(args, has, parts)
    topk = args.topk if args.topk is not None else int(args.select != "last")
    if topk == 0 and args.select != "last":
        raise UserError(f"--topk 0 keeps no checkpoint for --select {args.select} to choose; use --topk 1 or more.")
    if args.select in ("source_val", "iw") and args.train_mode == "target" and not args.with_source:
        raise UserError(f"--select {args.select} needs a source, which --train_mode target does not read; use last.")
    if args.select in VALIDATORS and args.target_file is None:
        raise UserError(f"--select {args.select} is measured on a target; name one with --target_file.")
    refuse_eval_split(args)
    if args.tensorboard:
        summary_writer()  # refused here where the package is missing
    target = (args.target_file or "none").replace("/", "-")
    kind = f"{args.recipe}_with_source" if args.with_source else args.recipe
    name = f"{args.train_mode}_{target}_{kind}_seed{args.seed}" if args.run_name is None else args.run_name
    if name in ("", ".", "..") or "/" in name or os.sep in name:
        raise UserError(f"--run_name {name!r} must be a plain folder name; --save_dir says where it goes.")
    flags = vars(args) | {
        "size": args.size or (preprocessing.size if preprocessing else 28),
        "without": tuple(part for part in PARTS if part in args.without),
        "weights": args.weights or ("default" if with_backbone else None),
        "run_name": name,
        "topk": topk,
    }
    values = replace(
        recipe,
        batch_size=flags.pop("batch_size") or recipe.batch_size,
        lr=flags.pop("learning_rate") or recipe.lr,
        lambda_max=(args.lambda_max or recipe.lambda_max) if "adversarial" in parts else 0.0,
        parts=parts,
    )
    return Settings(**flags, numbered=args.run_name is None, preprocessing=preprocessing, values=values)


def refuse_domains(mode: str, source: str, target: str | None, with_source: bool) -> None:
    """UserError for domains that are missing, or no folder's name."""
    if with_source and mode != "target":
        raise UserError(f"--with_source adds the source to --train_mode target; {mode} has it already: leave it out.")
    if target is None and mode != "source":
        raise UserError(f"--train_mode {mode} needs --target_file, the name of the target's folder.")
    for flag, name in (("--source_file", source), ("--target_file", target)):
        if name is not None and os.path.normpath(name) in ("", ".", ".."):
            raise UserError(f"{flag} {name!r} names no domain; name its folder in --data_root.")


def refuse_eval_split(args: argparse.Namespace) -> None:
    """UserError for a split of the target whose labels would not be new to the run."""
    given = f"--eval_split {args.eval_split}"
    if args.eval_split == "val":
        return
    if args.target_file is None:
        raise UserError(f"{given} measures on a target; name one with --target_file.")
    if args.select == "target_val":
        raise UserError(f"{given} is no number of a checkpoint chosen by target labels; leave out --select target_val.")
    if args.eval_split == "train" and args.train_mode == "target":
        raise UserError(f"{given} would measure on the labels that --train_mode target trains on; use val or test.")


def refuse_recipe(args: argparse.Namespace, has: frozenset[str], parts: frozenset[str]) -> None:
    """UserError for a recipe that does not go with the network or the mode.

    has: its parts in this mode and network. parts: those that --without leaves.
    """
    if args.arch == "published" and args.size not in (None, 28):
        raise UserError(f"--arch published takes images of 28x28, not --size {args.size}; use --arch small.")
    if args.recipe == "strong" and args.arch == "published":
        raise UserError(
            f"--recipe strong is not for --arch {args.arch}, whose classifiers would mix the domains' statistics; use "
            "--arch small."
        )
    for flag, value in (("--weights", args.weights), ("--freeze", args.freeze)):
        if value and args.arch in ARCHITECTURES:
            raise UserError(f"{flag} is for a backbone, such as --arch resnet50, not for --arch {args.arch}.")
    if args.freeze and args.recipe == "strong":
        raise UserError(
            "--freeze computes the features of each image once, and --recipe strong trains on random views; leave out "
            "one of them."
        )
    foreign = [part for part in args.without if part not in has]
    if foreign:
        raise UserError(
            f"--without {foreign[0]}: --recipe {args.recipe} in mode {args.train_mode} has, with --arch {args.arch}, "
            f"{', '.join(sorted(has)) or 'no part'} to leave out."
        )
    for flag, value, does in (("--views", args.views, "chooses"), ("--mirror", args.mirror, "mirrors")):
        if value and "augmentation" not in parts:
            raise UserError(
                f"{flag} {does} the random views of --recipe strong, which this run does without; leave it out."
            )
    if args.balance and "priors" in parts:
        raise UserError(
            "--balance draws the classes alike, and this run draws them by the target's priors where it estimates "
            "these; leave it out, or add --without priors."
        )
    if args.lambda_max and "adversarial" not in parts:
        raise UserError("--lambda_max weighs the domain gradient, which this mode and recipe do without; leave it out.")

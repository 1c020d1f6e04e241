"""Train a classifier that works on an unlabelled target domain.

    python train.py --data_root data/digits --train_mode dann --target_file usps

Modes: `source` trains on source labels only, `dann` adapts to the target's
images without reading a target label (domain-adversarial training, arXiv
1505.07818), `target` trains on target labels, for comparison.
On the real digits and 2 cores, `dann` takes about four minutes (recipe
strong: eight to ten), `source` and `target` one to two; the accuracies to
expect stand in the README's table.
Writes a run folder: args.json, metrics.jsonl, last.pt, the figures curves.png,
confusion.png and mistakes.png and, when all is done, result.json.
"""

import argparse
import contextlib
import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import flags
from augment import views
from checkpoint import load_checkpoint
from dataset import Batches, Domain, class_names, drop_foreign_labels, list_split, read_domain
from flags import RECIPES, Recipe, parts_of
from losses import Step, train_step
from metrics import answers, domain_distance, share_right
from model import DANN, SOURCE, TARGET, lambda_schedule, learning_rate
from parallel import Ranks, join
from plots import draw_confusion, draw_curves, draw_mistakes
from records import RunLog, read_json, write_json
from runs import Data, Run, check_same_run, fingerprint, locked, make_folder, open_folder, plain_args, restore, save_run
from signs import SIGNS, collapse, idle_adversary, label_free_signs, some_rows, top_class_share
from strong import TEACHER_SIGNS, Teacher, ramp
from utils import (
    InterruptFlag,
    Progress,
    UserError,
    choose_device,
    choose_precision,
    describe_device,
    keep_freed_memory,
    run_script,
    seed_step,
    shown,
    versions,
)

ALONE = Ranks()
SIGN_IMAGES = 2000  # of a target without a labelled val set, on which what needs no label is measured
SOURCE_BATCHES = 20  # the last ones, on which a teacher's statistics of the source are measured
LOGGED = ("L_y", "L_d", "L_u", "domain_accuracy", *TEACHER_SIGNS)  # means of the steps


def build_parser() -> argparse.ArgumentParser:
    return flags.build_parser(__doc__)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The arguments, complete; UserError for those that contradict each other."""
    return flags.complete(build_parser(), argv)


# Data


def load_data(args: argparse.Namespace) -> Data:
    """Read the images that the mode needs, and no label that it must not see; UserError for what is missing."""
    labelled_name = args.target_file if args.train_mode == "target" else args.source_file
    listing = list_split(args.data_root, labelled_name, "train", with_labels=True)
    assert listing is not None  # `train` exists or list_split has refused
    if listing.labels is None:
        raise UserError(
            f"{listing.origin} has no labels, and --train_mode {args.train_mode} trains on them; add a "
            "column label, or put the images into one folder per class."
        )
    classes = class_names(listing.labels)
    if len(classes) < 2:
        raise UserError(f"{listing.origin} has the single class {classes[0]!r}; a classifier needs two or more.")

    def read(domain: str, split: str, names: list[str] | None, limit: int | None = None) -> Domain | None:
        found = list_split(args.data_root, domain, split, with_labels=names is not None)
        if found is None:
            return None
        if names is not None:
            if domain != labelled_name and domain != args.source_file:  # those of a target may sort by anything
                found = drop_foreign_labels(found, names)
            if found.labels is None:
                return None
        if limit:
            found = found.of(some_rows(len(found.names), limit))
        return read_domain(found, names, args.size, args.num_workers, f"read {domain} {split}")

    labelled = read_domain(listing, classes, args.size, args.num_workers, f"read {labelled_name} train")
    unlabelled = read(args.target_file, "train", None) if args.train_mode == "dann" else None
    source_val = read(args.source_file, "val", classes) if args.train_mode != "target" else None
    target_val = read(args.target_file, "val", classes) if args.target_file else None
    sample = None
    if target_val is None and args.target_file and args.train_mode != "target":
        sample = read(args.target_file, "val", None, SIGN_IMAGES)
        if sample is None:
            sample = some_of(unlabelled) if unlabelled else read(args.target_file, "train", None, SIGN_IMAGES)
    wanted = {"source_val": source_val, "target_val": target_val}
    if wanted.get(args.select, labelled) is None:
        domain = args.source_file if args.select == "source_val" else args.target_file
        where = args.data_root / domain / "val.csv" if domain else "val.csv of a --target_file"
        raise UserError(f"--select {args.select} needs a labelled {where}; use --select last.")
    return Data(classes, labelled, unlabelled, source_val, target_val, sample)


def some_of(domain: Domain) -> Domain:
    """Some images of a target without labels, to measure on."""
    rows = some_rows(len(domain), SIGN_IMAGES)
    return Domain(domain.images[rows], None, [domain.names[i] for i in rows])


# The run


def build_optimizer(net: DANN, mode: str, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW over theta_f and theta_y, and over theta_d where there is a domain loss."""
    parts = [net.feature_extractor, net.label_classifier] + [net.domain_classifier] * (mode == "dann")
    parameters = [parameter for part in parts for parameter in part.parameters()]
    return torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)


def start_run(args: argparse.Namespace, folder: Path, data: Data, device: torch.device, ranks: Ranks = ALONE) -> Run:
    """Network, optimizer and counters, new or, with --resume, as last.pt has them; rank 0 writes args.json."""
    recipe = RECIPES[args.recipe]
    total_steps = args.max_steps or recipe.steps[args.train_mode]
    if args.epochs and not args.max_steps:
        total_steps = max(1, round(args.epochs * len(data.labelled) / args.batch_size))
    seed_step(args.seed, -1)
    predict_as = SOURCE if args.train_mode == "source" else TARGET  # source: no statistics of a target are learnt
    net = DANN(len(data.classes), args.arch, args.size, predict_as).to(device)
    teacher = Teacher(net, recipe.ema_decay, recipe.threshold) if "teacher" in parts_of(args) else None
    run = Run(
        args,
        folder,
        data,
        net,
        build_optimizer(net, args.train_mode, recipe),
        choose_precision(args.precision, device),
        total_steps,
        teacher,
        ranks,
    )
    run.fingerprint = fingerprint(data)
    if args.train_mode != "dann":
        net.domain_classifier.requires_grad_(False)  # not trained
    if args.resume and (folder / "last.pt").exists():
        restore(run, load_checkpoint(folder / "last.pt"))
    elif ranks.main:
        target = data.target_val or data.target_sample
        run.distance_before = domain_distance(answers(net, data.source_val, SOURCE), answers(net, target))
        arguments = {**plain_args(args), "total_steps": total_steps, "classes": data.classes}
        write_json(folder / "args.json", arguments)
    return run


def train(run: Run, log: RunLog | None, began: float) -> bool:
    """Train to the last step, validating and saving on the way; False when Ctrl-C stopped it at a step's end.

    Of several ranks only rank 0 has a log, validates and saves.
    """
    args, device, ranks = run.args, run.net.device, run.ranks
    recipe, parts = RECIPES[args.recipe], parts_of(args)
    labelled, unlabelled = (
        Batches(domain, args.batch_size, args.seed, stream, device, ranks.rank, ranks.world) if domain else None
        for domain, stream in ((run.data.labelled, SOURCE), (run.data.unlabelled, TARGET))
    )
    assert labelled is not None
    images_a_step = args.batch_size * (2 if unlabelled else 1)
    val_period = args.val_period or max(1, run.total_steps // 5)
    lambda_max = (args.lambda_max or recipe.lambda_max) if "adversarial" in parts else 0.0
    totals: dict[str, Tensor] = {}
    since = run.step
    progress = Progress(run.total_steps, f"train {args.train_mode}", "steps", run.step) if log else None
    run.net.train()
    keep_freed_memory()
    losses_of = ranks.wrap(Step(run.net))
    mark, stop = time.monotonic(), False
    with InterruptFlag() as interrupt:
        while run.step < run.total_steps and not stop:
            p = run.step / run.total_steps
            lambda_p, lr = lambda_max * lambda_schedule(p), learning_rate(p, args.learning_rate)
            for group in run.optimizer.param_groups:
                group["lr"] = lr
            seed_step(args.seed, run.step * ranks.world + ranks.rank)
            x, y = labelled(run.step)
            x_t = unlabelled(run.step)[0] if unlabelled else None
            autocast = torch.autocast(device.type, run.precision, enabled=run.precision != torch.float32)
            with autocast:
                pseudo = run.teacher.label(x_t) if run.teacher and x_t is not None else None
            if "augmentation" in parts:  # in float32: bfloat16 would round the sampling grid
                x = views(x, paste="neighbours" in parts)
                x_t = views(x_t, paste=False) if x_t is not None else None
            with autocast:
                losses = losses_of(x, y, x_t, lambda_p, pseudo, ramp(p, recipe.ramp_end))
            train_step(run.optimizer, losses)
            if run.teacher:
                run.teacher.follow(run.net, run.step)
            run.step += 1
            run.images_seen += images_a_step
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach()
            if device.type == "cpu" or run.step % 50 == 0:  # to ask a GPU is to wait for it
                check_finite(run, totals, lr)
            stop = ranks.any(interrupt.raised, device)
            if not log or not progress:
                continue
            progress.update(1, partial(describe, losses, lambda_p, run, mark))
            if run.step % val_period == 0 or run.step == run.total_steps or stop:
                means = {name: value.item() / (run.step - since) for name, value in totals.items()}
                run.training_seconds += time.monotonic() - mark
                check_finite(run, {**totals, "a weight": weight_sum(run.predictor)}, lr)
                if run.teacher:
                    steps = range(max(0, run.step - SOURCE_BATCHES), run.step)
                    run.teacher.meet_source(labelled(step)[0] for step in steps)
                line = validate(run, means, p, lambda_p, lr, run.seconds_before + time.monotonic() - began)
                log.write(line)
                progress.say(summary(line, run.total_steps))
                save_run(run, line, candidate=run.step % val_period == 0 or run.step == run.total_steps)
                totals, since, mark = {}, run.step, time.monotonic()
    if progress:
        progress.close()
    return run.step == run.total_steps


def weight_sum(net: DANN) -> Tensor:
    """A number that is finite where every weight and statistic of a network is."""
    return torch.stack([value.float().abs().sum() for value in net.state_dict().values()]).sum()


def check_finite(run: Run, found: dict[str, Tensor], lr: float) -> None:
    """UserError when a loss, or what else is `found`, is nan or infinite, before anything is saved."""
    bad = [name for name, value in found.items() if not abs(value.item()) < float("inf")]
    if bad:
        good = (
            f"the last good checkpoint is {run.folder / 'last.pt'}"
            if (run.folder / "last.pt").exists()
            else "no checkpoint was written before"
        )
        raise UserError(
            f"{bad[0]} is no finite number at step {run.step} (learning rate {lr:.2g}); {good}; start again with a "
            "smaller -lr or with --precision fp32."
        )


def validate(run: Run, means: dict[str, float], p: float, lambda_p: float, lr: float, seconds: float) -> dict[str, Any]:
    """One line of metrics.jsonl; None (null) for what was not measured.

    Losses and shares are means since the last line; p, lambda and lr those of the step just done. The label-free signs
    are of the target's val images or, where there are none, of some of its train images.
    """
    measure(run)
    run.measured_step = run.step
    source, target = run.measured["source_val"], run.measured["target"]
    signs = label_free_signs(target.probabilities) if target else {}
    return {
        "step": run.step,
        "seconds": round(seconds, 3),
        "p": p,
        "lambda": lambda_p,
        "lr": lr,
        **{name: means.get(name) for name in LOGGED},
        "source_val_accuracy": share_right(source),
        "target_val_accuracy": share_right(run.measured["target_val"]),
        **{name: signs.get(name) for name in SIGNS},
        "top_class_share": top_class_share(target.probabilities) if target else None,
        "images_per_second": round(run.images_seen / run.training_seconds, 1),
    }


def measure(run: Run) -> None:
    """Predict both val sets with the network that predicts; `target`: without such a val set, images of its train."""
    data, target_val = run.data, answers(run.predictor, run.data.target_val)
    run.measured = {
        "source_val": answers(run.predictor, data.source_val, SOURCE),
        "target_val": target_val,
        "target": target_val or answers(run.predictor, data.target_sample),
    }


def describe(losses: dict[str, Tensor], lambda_p: float, run: Run, mark: float) -> str:
    """Words of the progress bar; `mark` is when training went on after the last validation."""
    seconds = run.training_seconds + time.monotonic() - mark
    loss = sum(value.item() for name, value in losses.items() if name.startswith("L_"))
    domain = f", domain acc {losses['domain_accuracy'].item():.2f}, lambda {lambda_p:.2f}" if "L_d" in losses else ""
    return f"loss {loss:.3f}{domain}, {run.images_seen / max(seconds, 1e-9):.0f} images/s"


def summary(line: dict[str, Any], total_steps: int) -> str:
    """A validation in one line."""
    return (
        f"step {line['step']}/{total_steps}  L_y {line['L_y']:.3f}  L_d {shown(line['L_d'], 3)}  "
        f"lambda {line['lambda']:.2f}  domain acc {shown(line['domain_accuracy'], 2)}  "
        f"val accuracy: source {shown(line['source_val_accuracy'], 4)} "
        f"target {shown(line['target_val_accuracy'], 4)}"
        f"{label_free(line)}"
    )


def label_free(line: dict[str, Any]) -> str:
    """The signs that need no label, in words; nothing where none was measured."""
    names = {"information_maximisation": "information", **{name: name.split("_")[-1] for name in TEACHER_SIGNS}}
    words = [f"{word} {line[name]:.2f}" for name, word in names.items() if line.get(name) is not None]
    return f"  ({', '.join(words)})" if words else ""


def finish(run: Run, log: RunLog, began: float, command: str) -> dict[str, Any]:
    """Measure the selected checkpoint, draw the curves, and write result.json last, as the sign that all is done."""
    name = "last.pt" if run.args.select == "last" else run.kept[0]["name"]
    selected = load_checkpoint(run.folder / name)
    if run.measured_step != selected["step"]:  # else the last validation was of these weights
        run.predictor.load_state_dict(selected["model"])
        measure(run)
    after = domain_distance(run.measured["source_val"], run.measured["target"])
    draw_curves({run.folder.name: log.lines}, run.folder / "curves.png")
    draw_answers(run)
    sizes = {
        "labelled_train": run.data.labelled,
        "unlabelled_train": run.data.unlabelled,
        "source_val": run.data.source_val,
        "target_val": run.data.target_val,
    }
    lines = [line for line in log.lines if line["step"] <= selected["step"]]
    warnings = collapse(lines[-1], len(run.data.classes)) if lines else []
    if lines and "adversarial" in parts_of(run.args):
        warnings += idle_adversary(lines, run.distance_before, after)
    for sentence in warnings:
        print(f"warning: {sentence}")
    result = {
        "target_val_accuracy": selected["metrics"]["target_val_accuracy"],
        "source_val_accuracy": selected["metrics"]["source_val_accuracy"],
        "signs": {name: selected["metrics"].get(name) for name in (*SIGNS, *TEACHER_SIGNS)},
        "losses": {name: selected["metrics"].get(name) for name in LOGGED},
        "proxy_a_distance": {"untrained": run.distance_before, "trained": after},
        "seconds": round(run.seconds_before + time.monotonic() - began, 2),
        "images_per_second": round(run.images_seen / run.training_seconds, 1),
        "warnings": warnings,
        "steps": run.total_steps,
        "seed": run.args.seed,
        "select": run.args.select,
        "selected_step": selected["step"],
        "checkpoint": name,
        "images": {key: len(domain) if domain is not None else None for key, domain in sizes.items()},
        "parameters": sum(
            p.numel() for part in (run.net.feature_extractor, run.net.label_classifier) for p in part.parameters()
        ),
        "command": command,
        "args": plain_args(run.args),
        "versions": versions(),
        "device": describe_device(run.net.device),
        "processes": run.ranks.world,
        "precision": str(run.precision).removeprefix("torch."),
    }
    write_json(run.folder / "result.json", result)
    return result


def draw_answers(run: Run) -> None:
    """Draw confusion.png and mistakes.png of the target's val set, or of the source's in a run without a target."""
    for key, name in (("target_val", run.args.target_file), ("source_val", run.args.source_file)):
        found, data = run.measured[key], getattr(run.data, key)
        if found and data.labels is not None:
            labels, p = data.labels.numpy(), found.probabilities.numpy()
            title = f"{run.folder.name}: {name} val, n = {len(data):,}, accuracy {shown(found.accuracy)}"
            draw_confusion(labels, p.argmax(1), run.data.classes, title, run.folder / "confusion.png")
            draw_mistakes(data.images.numpy(), labels, p, run.data.classes, title, run.folder / "mistakes.png")
            return


def resume_command(run: Run, command: str) -> str:
    """The command that goes on in the folder of `run`, which `command` started."""
    again = command if run.args.resume else f"{command} --resume"
    numbered = run.args.default_name and run.folder.name != run.args.run_name  # NAME-2: say which
    return f"{again} --run_name {shlex.quote(run.folder.name)}" if numbered else again


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train one run; returns its result and `folder`, or {"folder", "interrupted"} after Ctrl-C."""
    began = time.monotonic()
    args = parse_args(argv)
    command = shlex.join(["python", "train.py", *(sys.argv[1:] if argv is None else argv)])
    device = choose_device(args.device)
    with join(device) as ranks:
        if args.batch_size % ranks.world or args.batch_size < 2 * ranks.world:
            raise UserError(
                f"--batch_size {args.batch_size} cannot be split over {ranks.world} processes; make it a multiple, of "
                "two images a process or more."
            )
        if ranks.world > 1:
            args.processes = ranks.world  # another number of them is another run
            command = command.replace("python", f"torchrun --nproc-per-node {ranks.world}", 1)
        return run_of(args, command, device, ranks, began)


def run_of(args: argparse.Namespace, command: str, device: torch.device, ranks: Ranks, began: float) -> dict[str, Any]:
    """Open or make the run folder, train, and measure what came of it; on all ranks but 0 only train."""
    folder = ranks.from_main(open_folder(args) if ranks.main else None)
    if args.resume and (folder / "args.json").exists():
        check_same_run(folder, args)
    if args.resume and (folder / "result.json").exists():
        result = read_json(folder / "result.json", "target_val_accuracy", "checkpoint")
        print(f"{folder} is finished, nothing to do.\n{folder}")
        return {**result, "folder": str(folder)}
    data = load_data(args)
    if not ranks.main:
        ranks.from_main(None)  # the folder stands and is locked
        done = train(start_run(args, folder, data, device, ranks), None, began)
        return {"folder": str(folder), "interrupted": not done}
    make_folder(folder, args.resume)
    with locked(folder):
        run = start_run(args, folder, data, device, ranks)
        ranks.from_main(None)
        with contextlib.closing(RunLog(folder / "metrics.jsonl", run.step, args.tensorboard)) as log:
            done = train(run, log, began)
        if not done:
            print(f"stopped at step {run.step} of {run.total_steps}; go on with:")
            print(f"{resume_command(run, command)}\n{folder}")
            return {"folder": str(folder), "interrupted": True}
        result = finish(run, log, began, command)
    print(
        f"{args.train_mode}: target val accuracy {shown(result['target_val_accuracy'], 5)}, "
        f"source val accuracy {shown(result['source_val_accuracy'], 5)}, {result['seconds']:.0f} s\n{folder}"
    )
    return {**result, "folder": str(folder)}


if __name__ == "__main__":
    run_script(main)

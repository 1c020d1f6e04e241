"""Train a classifier that works on an unlabelled target domain.

    python train.py --data_root data/digits --train_mode dann --target_file usps

Modes: `source` trains on source labels only, `dann` adapts to the target's
images without reading a target label (domain-adversarial training, arXiv
1505.07818), `target` trains on target labels, with --with_source on those of
both domains, for comparison.
On the real digits `dann` takes a quarter of an hour on one core without
bfloat16; the accuracies to expect stand in the README's table.
Writes a run folder: args.json, metrics.jsonl, last.pt, the figures curves.png,
confusion.png and mistakes.png and, when all is done, result.json.

Several processes share each batch: torchrun --nproc-per-node 2 train.py ...
On two machines, of which the second has --node-rank 1, with the data and, to
resume, the run folder at the same place on both:

    torchrun --nnodes 2 --node-rank 0 --nproc-per-node 1 \\
        --master-addr HOST --master-port 29500 train.py ...
"""

import argparse
import contextlib
import copy
import hashlib
import math
import re
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import config
from augment import views
from backbones import backbone, width
from cache import NO_CACHE, Cache
from config import Recipe, Settings, read_settings
from dataset import Batches, Domain, as_input, read_domain, some_rows
from listing import (
    Listing,
    NoClasses,
    class_names,
    domain_folder,
    encode_labels,
    list_split,
    may_have_labels,
    of_known_classes,
)
from losses import LOGGED, PSEUDO_LABEL_MEASURES, ClassPriors, Objective, Teacher, entropy, ramp, total
from metrics import (
    MINIMUM,
    SCORES,
    VALIDATORS,
    Answers,
    accuracy_of,
    answers,
    changed_answers,
    collapse,
    domain_distance,
    eval_batch,
    harm,
    idle_adversary,
    predict,
    top_class_share,
    validation_scores,
)
from model import DANN, SOURCE, TARGET, lambda_schedule
from runs import (
    ONCE,
    Run,
    RunLog,
    check_same_run,
    claimed,
    fingerprint,
    in_words,
    load_checkpoint,
    read_json,
    restore,
    save_run,
    write_json,
)
from utils import (
    ALONE,
    ASK_GPU,
    InterruptFlag,
    Progress,
    Ranks,
    UserError,
    choose_device,
    choose_precision,
    describe_device,
    join_ranks,
    note,
    run_script,
    seed_step,
    share_cores,
    shown,
    versions,
)

SAMPLE_IMAGES = 2000  # of a target without a labelled val set, and of the source's val before the last validation
BACKBONE_RATE = 0.1  # of a backbone, as a part of its heads' learning rate (arXiv 1705.10667)
SOURCE_STEPS = 300  # of the network that adaptation is held against, or those of a shorter run
SOURCE_IMAGES = 64  # a step of that network, at most: with twice as many it says the same (lab/NOTES.md)
VALIDATED = ("step", "source_val_accuracy", "target_val_accuracy", *SCORES)  # of each validation, in result.json
LOOK = 10.0  # seconds from one look at the machine's load to the next
SOURCE_BATCHES = 20  # the last ones, on which a teacher's statistics of the source are measured


def build_parser() -> argparse.ArgumentParser:
    return config.build_parser(__doc__)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train one run; returns its result and `folder`, or {"folder", "interrupted"} after Ctrl-C."""
    began = time.monotonic()
    settings = read_settings(build_parser().parse_args(argv))
    command = shlex.join(["python", "train.py", *(sys.argv[1:] if argv is None else argv)])
    device = choose_device(settings.device)
    with contextlib.ExitStack() as held:
        ranks = held.enter_context(join_ranks(device))
        settings = settings.over(ranks.world)
        command = command.replace("python", ranks.launcher, 1)
        claim = claimed(settings.save_dir, settings.run_name, settings.resume, settings.numbered)
        folder = ranks.from_main(partial(held.enter_context, claim))
        if settings.resume and (folder / "args.json").exists():
            before = read_json(folder / "args.json", classes=list)
            steps = {} if settings.epochs else {"total_steps": settings.total_steps(1, len(before["classes"]))}
            check_same_run(folder, before, settings.plain() | steps)
        if settings.resume and (folder / "result.json").exists() and (result := finished(folder, settings)):
            print(f"{folder} is finished, nothing to do.\n{folder}")
            return {**result, "folder": str(folder)}
        again = settings.resume and (folder / "last.pt").exists()
        if settings.resume and ranks.main and not again:
            note(f"--resume: {folder} has no checkpoint yet; the run starts anew.")
        body = None if again else pretrained(settings)  # what is wrong with it is said before the images are read
        data = ranks.main_first(partial(load_data, settings)) if settings.cache else load_data(settings)
        if ranks.main:
            more = f" and {len(data.classes) - 10} more" if len(data.classes) > 10 else ""
            print(f"classes: {', '.join(data.classes[:10])}{more}")
        run = start_run(settings, folder, data, device, ranks, body)
        run.began = began
        if run.priors and run.step == 0:
            sure = ranks.from_main(partial(sure_of_target, run, data, settings))
            if sure is None:
                return stopped(run, settings, command, ranks)
            run.priors.estimated = sure
        log = None
        if ranks.main:
            log = held.enter_context(
                contextlib.closing(RunLog(folder / "metrics.jsonl", run.step, settings.tensorboard))
            )
        measured = train(run, data, settings, ranks, log)
        if run.step < run.total_steps or log is None:
            return stopped(run, settings, command, ranks)
        result = finish(run, data, settings, log, measured, command)
    print("", *in_words(result), f"next: {next_command(settings, folder, command)}", folder, sep="\n")
    return {**result, "folder": str(folder)}


def finished(folder: Path, settings: Settings) -> dict[str, Any] | None:
    """The result of a run, None where --eval_split asks for an accuracy that it lacks; UserError without last.pt."""
    result, split = read_json(folder / "result.json", images=dict), settings.eval_split
    if split == "val" or result.get(f"target_{split}_accuracy") is not None:
        return result
    if not (folder / "last.pt").exists():
        raise UserError(
            f"{folder} is finished and has no last.pt to measure --eval_split {split} with; leave out --eval_split."
        )
    return None


# Data


@dataclass
class Data:
    """What a mode reads: `labelled` trains G_y, `unlabelled` (dann only) has no label, the rest is for measuring.

    target_sample: images on which what needs no label is measured, of a target without a labelled val set or with
    classes in it that the source lacks, as no label may choose them; None where they are of target_val or `unlabelled`.
    labelled_t: what trains G_y besides, of the target (target --with_source only).
    """

    classes: list[str]
    labelled: Domain
    unlabelled: Domain | None
    source_val: Domain | None
    target_val: Domain | None
    target_sample: Domain | None
    labelled_t: Domain | None = None

    @cached_property
    def on_target(self) -> Domain | None:
        """The images of the target on which what needs no label is measured, with features once they have them."""
        found = self.target_sample or self.target_val
        return self.unlabelled.some(SAMPLE_IMAGES) if not found and self.unlabelled else found

    def sizes(self) -> dict[str, int | None]:
        """Images by what they are for, None for what was not read."""
        domains = {
            "labelled_train": self.labelled,
            "unlabelled_train": self.unlabelled,
            "labelled_target_train": self.labelled_t,
            "source_val": self.source_val,
            "target_val": self.target_val,
        }
        return {name: None if domain is None else len(domain) for name, domain in domains.items()}


def to_train_on(settings: Settings, domain: str) -> Listing:
    """The train split of a domain, with labels; UserError where it has none."""
    listing = list_split(settings.data_root, domain, "train", with_labels=True)
    assert listing is not None  # `train` exists or list_split has refused
    if listing.labels is None:
        mend = "add a column label" if listing.rows else f"list them in {settings.data_root / domain / 'train.csv'}"
        raise UserError(
            f"{listing.origin} has no labels, and --train_mode {settings.train_mode} trains on them; {mend} "
            "(image_name,label), or make a folder per class."
        )
    return listing


def load_data(settings: Settings) -> Data:
    """Read the images that the mode needs, and no label that it must not see; UserError for what is missing."""
    mode, source, target = settings.train_mode, settings.source_file, settings.target_file
    if (
        (mode == "dann" or settings.with_source or settings.eval_split == "train")
        and target
        and domain_folder(settings.data_root, source).samefile(domain_folder(settings.data_root, target))
    ):
        raise UserError(f"--source_file {source} and --target_file {target} are one folder; the run needs two domains.")
    reads_source = mode != "target" or settings.with_source
    labelled_name = source if reads_source or target is None else target
    listing = to_train_on(settings, labelled_name)
    classes = class_names(listing)
    if len(classes) < 2:
        raise UserError(f"{listing.origin} has the single class {classes[0]!r}; a classifier needs two or more.")

    if (split := settings.eval_split) != "val" and target:
        there = list_split(settings.data_root, target, split, with_labels=False)
        if there is None or not may_have_labels(there):
            place = settings.data_root / target / f"{split}.csv"
            raise UserError(f"--eval_split {split} needs a labelled {place}, or class folders; use --eval_split val.")
    cache = Cache(settings.cache)
    read = partial(read_split, settings, cache)
    wanted, workers = settings.preprocessing, settings.num_workers
    in_full = partial(read_domain, size=settings.size, workers=workers, cache=cache, wanted=wanted)
    labelled = in_full(listing, classes, label=f"read {labelled_name} train")
    unlabelled = read(target, "train", None) if mode == "dann" and target else None
    labelled_t = None
    if settings.with_source and target:
        labelled_t = in_full(to_train_on(settings, target), classes, label=f"read {target} train")
    source_val = read(source, "val", classes) if reads_source else None
    to_measure = list_to_measure(settings, target, "val", classes) if target else None
    target_val = in_full(to_measure, classes, label=f"read {target} val") if to_measure else None
    sample = None
    if target and not (to_measure and to_measure.whole) and mode != "target":
        sample = read(target, "val", None, None if to_measure else SAMPLE_IMAGES)
        if sample is None and unlabelled is None:
            sample = read(target, "train", None, SAMPLE_IMAGES)
    cache.tell()
    data = Data(classes, labelled, unlabelled, source_val, target_val, sample, labelled_t)
    refuse_selection(settings, data)
    return data


def refuse_selection(settings: Settings, data: Data) -> None:
    """UserError where what --select goes by cannot be measured."""
    select, source_val = settings.select, data.source_val
    on_target = data.target_sample or data.target_val or data.unlabelled
    weighed = source_val if source_val and on_target and min(len(source_val), len(on_target)) >= MINIMUM else None
    needed = {"source_val": source_val, "target_val": data.target_val, **dict.fromkeys(VALIDATORS, on_target)}
    needed["iw"] = weighed
    if needed.get(select, True) is None:
        domain = settings.source_file if select in ("source_val", "iw") else settings.target_file
        where = settings.data_root / domain / "val.csv" if domain else "val.csv of a --target_file"
        many = f", and {MINIMUM} images or more in it and in the target's" if select == "iw" else ""
        raise UserError(f"--select {select} needs a labelled {where}{many}; use --select last.")


def read_split(
    settings: Settings, cache: Cache, domain: str, split: str, classes: list[str] | None, limit: int | None = None
) -> Domain | None:
    """A split, or some `limit` of its images, with labels of `classes` where given; None without it or these."""
    found = list_to_measure(settings, domain, split, classes)
    if found is None:
        return None
    if limit:
        found, cache = found.of(some_rows(len(found.names), limit)), NO_CACHE
    label, wanted = f"read {domain} {split}", settings.preprocessing
    return read_domain(found, classes, settings.size, settings.num_workers, label, cache, wanted)


def list_to_measure(settings: Settings, domain: str, split: str, classes: list[str] | None) -> Listing | None:
    """The listing of a split, with labels of `classes` where given; None without it or these."""
    foreign = settings.train_mode != "target" and domain != settings.source_file  # its folders may sort by anything
    try:
        found = list_split(settings.data_root, domain, split, with_labels=classes is not None)
    except NoClasses as error:
        if classes is None or not foreign:
            raise
        note(f"no accuracy is measured on {domain}: {error}")
        return None
    if found and classes and foreign:
        found = of_known_classes(found, classes)
    return None if found and classes and found.labels is None else found


# Network


def pretrained(settings: Settings) -> nn.Module | None:
    """The backbone with its weights, None for another network; UserError for weights or a size that do not fit it."""
    if settings.preprocessing is None:
        return None
    seed_step(settings.seed, -2)
    body = backbone(settings.arch, settings.weights)
    width(body, settings.arch, settings.size)
    return body


def build(settings: Settings, data: Data, predict_as: int, body: nn.Module | None) -> DANN:
    """The network of a run, on the CPU; body: its backbone, None for another network or weights yet to be loaded."""
    seed_step(settings.seed, -1)
    plain = asdict(settings.preprocessing) if settings.preprocessing else None
    norm = settings.values.norm
    return DANN(len(data.classes), settings.arch, settings.size, predict_as, norm, plain, settings.freeze, body)


def start_run(
    settings: Settings, folder: Path, data: Data, device: torch.device, ranks: Ranks, body: nn.Module | None = None
) -> Run:
    """Network, optimizer and counters, new or, with --resume, as last.pt has them; rank 0 writes args.json."""
    mode, recipe = settings.train_mode, settings.values
    predict_as = SOURCE if mode == "source" else TARGET  # source: no statistics of a target are learnt
    net = build(settings, data, predict_as, body).to(device)
    optimizer = build_optimizer(net, mode, recipe)
    run = Run(
        folder,
        {**settings.plain(), "views": settings.views_of(data.classes), "classes": data.classes},
        net,
        optimizer,
        settings.total_steps(len(data.labelled), len(data.classes)),
        teacher=Teacher(net, recipe.ema_decay, recipe.threshold) if "teacher" in recipe.parts else None,
        fingerprint=fingerprint((data.labelled, data.unlabelled, data.labelled_t)),
        precision=choose_precision(settings.precision, device),
    )
    if "priors" in recipe.parts and data.labelled.labels is not None:
        run.priors = ClassPriors(data.labelled.labels, len(data.classes), device)
    if mode != "dann":
        net.domain_classifier.requires_grad_(False)  # not trained
    again = settings.resume and (folder / "last.pt").exists()
    if again:
        restore(run, load_checkpoint(folder / "last.pt"))
    if settings.freeze:
        compute = partial(compute_features, run, data, Cache(settings.cache), ranks.main)
        ranks.main_first(compute) if settings.cache else compute()
    if ranks.main and not again:
        run.untrained = copy.deepcopy(net)
        write_json(folder / "args.json", {**run.args, "total_steps": run.total_steps})
    return run


def build_optimizer(net: DANN, mode: str, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW, or the paper's SGD, over theta_f and theta_y, and over theta_d where there is a domain loss."""
    parts = [net.feature_extractor, net.label_classifier] + [net.domain_classifier] * (mode == "dann")
    slow = list(net.feature_extractor[0].parameters()) if net.preprocessing else []  # the backbone's
    ids = {id(parameter) for parameter in slow}
    groups: list[dict[str, Any]] = [{"params": [p for part in parts for p in part.parameters() if id(p) not in ids]}]
    if slow and slow[0].requires_grad:
        groups.append({"params": slow, "rate": BACKBONE_RATE})
    if recipe.momentum is not None:
        return torch.optim.SGD(groups, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(groups, recipe.lr, weight_decay=recipe.weight_decay, fused=True)


def compute_features(run: Run, data: Data, cache: Cache, shown: bool) -> None:
    """Give every domain the features of the frozen backbone, float32 as in prediction: kept, or of one pass over it."""
    net, measured_on = run.net.eval(), (data.source_val, data.target_val, data.target_sample)
    domains = [domain for domain in (data.labelled, data.unlabelled, data.labelled_t, *measured_on) if domain]
    channels: Any = net.feature_extractor.get_submodule("bottleneck.0").in_features
    body = hashlib.sha256(f"{net.arch} {net.preprocessing} {net.device.type} {torch.__version__}".encode())
    for value in net.feature_extractor[0].state_dict().values():
        body.update(value.cpu().numpy().tobytes())
    alike: dict[Any, list[Domain]] = {}  # by checksums, as train and val may be the same images
    for domain in domains:
        alike.setdefault(id(domain) if domain.checksums is None else domain.checksums.tobytes(), []).append(domain)
    for same in alike.values():
        names = [f"features-{Path(each.kept).stem}-{body.hexdigest()[:16]}.npy" for each in same if each.kept]
        there = (name for name in names if cache.folder and (cache.folder / name).is_file())
        name = next(there, names[0] if names else None)
        make = partial(feature_chunks, net, same[0], shown)
        found = cache.find_or_write(name, (len(same[0]), channels, 4), sys.maxsize, make)  # bytes of float32
        stored = found[0] if found else torch.from_numpy(np.concatenate(list(make())))
        assert isinstance(stored, Tensor)
        for each in same:
            each.features = stored.view(torch.float32).squeeze(2)  # [N, C]
    cache.tell()


def feature_chunks(net: DANN, domain: Domain, shown: bool) -> Iterator[np.ndarray]:
    """Features of a domain's images by the backbone, batch by batch, as bytes: uint8 [B, C, 4]."""
    progress = Progress(len(domain), "features" if shown else "", "images")
    size = eval_batch(net, domain.images)
    for start in range(0, len(domain), size):
        batch = domain.images[start : start + size]
        with torch.no_grad():
            features = net.backbone_features(as_input(batch.to(net.device))).float().cpu()  # [B, C]
        progress.update(len(batch))
        yield features[:, :, None].view(torch.uint8).numpy()
    progress.close()


# Loop


def source_only(run: Run, data: Data, settings: Settings) -> DANN | None:
    """A network trained a short time on the source alone, which adaptation is held against; None after Ctrl-C.

    UserError for a loss that is not finite, and for weights of the backbone that have gone since.
    """
    room = settings.values.batch_size // (settings.processes or 1)  # of one process
    recipe = replace(settings.values, parts=frozenset(), batch_size=min(room, SOURCE_IMAGES))
    body = run.net.feature_extractor[0] if settings.freeze else pretrained(settings)
    net = build(settings, data, SOURCE, body).to(run.net.device)
    optimizer, steps = build_optimizer(net, "source", recipe), min(run.total_steps, SOURCE_STEPS)
    short = Run(run.folder, run.args, net, optimizer, steps, precision=run.precision)
    train(short, replace(data, unlabelled=None), replace(settings, train_mode="source", values=recipe), ALONE, None)
    net.zero_grad(set_to_none=True)  # or the gradients would stay as long as the network
    return None if short.interrupted else net


def sure_of_target(run: Run, data: Data, settings: Settings) -> bool | None:
    """Whether the network of source_only, which `run` keeps, is sure of the target's images; None after Ctrl-C.

    Sure: the mean entropy of its answers is below a quarter of log K. Beside their diversity instead, a target that is
    of one class for the most part would count as unsure.
    """
    assert data.unlabelled is not None
    try:
        run.source_only = source_only(run, data, settings)
    except UserError:  # a loss that is not finite; where the run's own is, too, it is said there
        return False
    if run.source_only is None:
        return None
    rows = some_rows(len(data.unlabelled), SAMPLE_IMAGES)
    probabilities = predict(run.source_only, data.unlabelled.inputs[rows])[1]
    return entropy(probabilities.double()).mean().item() < 0.25 * math.log(len(data.classes))


def train(run: Run, data: Data, settings: Settings, ranks: Ranks, log: RunLog | None) -> "Measured | None":
    """Train to the last step or, after Ctrl-C, to the end of this one; with a log validate, and return the last."""
    recipe, seed, device, net = settings.values, settings.seed, run.net.device, run.net
    autocast = partial(torch.autocast, device.type, run.precision, enabled=run.precision != torch.float32)
    batches = partial(Batches, batch_size=recipe.batch_size, seed=seed, device=device, ranks=ranks)
    batch_s = batches(data.labelled, stream=SOURCE, balance=settings.balance)
    batch_t = batches(half_t, stream=TARGET) if (half_t := data.unlabelled or data.labelled_t) else None
    objective = ranks.wrap(Objective(net, recipe.parts))
    what = f"train {settings.train_mode}" if log else "for comparison, train source alone"
    label = what if ranks.main else ""
    meter = Meter(run, label, recipe.batch_size * (2 if batch_t else 1))
    val_period = settings.val_period or max(1, run.total_steps // 5)
    measured, stop, kind, share = None, False, run.args["views"], recipe.batch_size // ranks.world
    net.train()
    with InterruptFlag() as interrupt:
        while run.step < run.total_steps and not stop:
            p = run.step / run.total_steps
            lambda_p, lr = recipe.lambda_max * lambda_schedule(p), recipe.learning_rate(p)
            seed_step(seed, run.step * ranks.world + ranks.rank)
            x_s, y_s = batch_s.take(run.priors.draw(share)) if run.priors else batch_s(run.step)
            x_t, y_t = batch_t(run.step) if batch_t else (None, None)
            with autocast():
                pseudo = run.teacher.label(x_t) if run.teacher and x_t is not None else None
            priors = run.priors.target if run.priors else None
            if "augmentation" in recipe.parts:  # in float32: bfloat16 would round the sampling grid
                paste = kind == "digits" and "distractors" in recipe.parts
                x_s = views(x_s, kind, paste, settings.mirror)
                x_t = views(x_t, kind, False, settings.mirror) if x_t is not None else None
            with autocast():
                losses, z_t = objective(x_s, y_s, x_t, lambda_p, pseudo, ramp(p, recipe.ramp_end), priors, y_t)

            for group in run.optimizer.param_groups:
                group["lr"] = lr * group.get("rate", 1.0)
            run.optimizer.zero_grad(set_to_none=True)
            run.scaler.scale(total(losses, recipe.weight_d)).backward()
            run.scaler.step(run.optimizer)
            run.scaler.update()
            if run.teacher:
                run.teacher.follow(net, run.step)
            if run.priors:
                run.priors.follow(z_t, run.step, ranks)
            run.step += 1

            stop = ranks.any(interrupt.raised, device, run.step)
            meter.add(losses, lr)
            regular = run.step % val_period == 0 or run.step == run.total_steps
            if log and (regular or stop):
                numbers = {"p": p, "lambda": lambda_p, "lr": lr, **meter.pause(lr)}
                in_full = run.step == run.total_steps or settings.select != "last"
                measured, line = validate(run, data, batch_s, numbers, in_full)
                log.write(line)
                meter.progress.say(summary(line, run.total_steps))
                save_run(run, line, settings.select, settings.topk, candidate=regular)
                meter.restart()
    meter.progress.close()
    run.interrupted = stop
    return measured


class Meter:
    """What the steps since the last validation gave: means of their losses, the time they took, the progress bar."""

    def __init__(self, run: Run, label: str, images_a_step: int) -> None:
        self.run, self.images_a_step = run, images_a_step
        self.progress = Progress(run.total_steps, label, "steps", run.step)
        self.looked = time.monotonic()  # at what else keeps the cores busy
        self.restart()

    def restart(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.since, self.mark = self.run.step, time.monotonic()

    def add(self, losses: dict[str, Tensor], lr: float) -> None:
        """Count one step; UserError where a loss is not finite."""
        self.run.images_seen += self.images_a_step
        for name, value in losses.items():
            self.totals[name] = self.totals.get(name, 0) + value.detach()
        if losses["L_y"].device.type == "cpu" or self.run.step % ASK_GPU == 0:
            check_finite(self.run, self.totals, lr)
        self.progress.update(1, lambda: f"loss {total(losses).item():.3f}")
        if time.monotonic() - self.looked > LOOK:
            self.looked = time.monotonic()
            if busy := share_cores(self.run.net.device):
                note(busy)

    def pause(self, lr: float) -> dict[str, float | None]:
        """End the time that counts as training; returns means of the losses and shares, None for those not there.

        UserError where a loss or a weight is not finite.
        """
        self.run.training_seconds += time.monotonic() - self.mark
        weights = [value.float().abs().sum() for value in self.run.predictor.state_dict().values()]
        check_finite(self.run, {**self.totals, "a weight": torch.stack(weights).sum()}, lr)
        steps = self.run.step - self.since
        return {name: self.totals[name].item() / steps if name in self.totals else None for name in LOGGED}


def check_finite(run: Run, found: dict[str, Tensor], lr: float) -> None:
    """UserError when a loss, or what else is `found`, is nan or infinite, before anything is saved."""
    bad = [name for name, value in found.items() if not abs(value.item()) < float("inf")]
    if bad:
        last = run.folder / "last.pt"
        good = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was written before"
        raise UserError(
            f"{bad[0]} is not finite at step {run.step} (learning rate {lr:.2g}); {good}; start again with a "
            "smaller -lr or with --precision fp32."
        )


# Validation


@dataclass
class Measured:
    """Answers on the val sets at `step`; `target`: on what Data.on_target has."""

    step: int
    source_val: Answers | None
    target_val: Answers | None
    target: Answers | None


def measure(run: Run, data: Data, in_full: bool = True) -> Measured:
    """Predict both val sets with the network that predicts; without `in_full` a part of the source's, if of images."""
    source_val = data.source_val
    if source_val and source_val.features is None and not in_full:
        source_val = source_val.some(SAMPLE_IMAGES)
    return Measured(run.step, answers(run.predictor, source_val, SOURCE), *answers_on_target(run.predictor, data))


def answers_on_target(net: DANN, data: Data) -> tuple[Answers | None, Answers | None]:
    """Answers on the target's val and on what Data.on_target has, predicted once where these are the same."""
    on_val = answers(net, data.target_val)
    return on_val, on_val if data.on_target is data.target_val else answers(net, data.on_target)


def validate(
    run: Run, data: Data, batch_s: Batches, numbers: dict[str, float | None], in_full: bool
) -> tuple[Measured, dict[str, Any]]:
    """Measure the network, and make the line of metrics.jsonl; None (null) for what was not measured.

    in_full: on the whole of the source's val, as the numbers of a result are. numbers: p, lambda and lr of the step
    just done, means since the last line. The validation scores are of the images of Data.on_target. The first
    validation measures the untrained network, too.
    """
    if run.teacher:
        run.teacher.measure_source(batch_s(step)[0] for step in range(max(0, run.step - SOURCE_BATCHES), run.step))
    if run.untrained:
        if (source := data.source_val) and (on_target := data.on_target):
            n = min(len(source), len(on_target), SAMPLE_IMAGES)
            x_s, x_t = (side.inputs[some_rows(len(side), n)] for side in (source, on_target))
            f_s, f_t = predict(run.untrained, x_s, domain=SOURCE)[0], predict(run.untrained, x_t)[0]  # [n, F] each
            run.distance_before = domain_distance(f_s, f_t)
        run.untrained = None
    measured, priors = measure(run, data, in_full), run.priors
    target, images = measured.target, data.on_target
    scores = validation_scores(run.predictor, images.inputs, target, measured.source_val) if target and images else {}
    return measured, {
        "step": run.step,
        "seconds": round(run.seconds(), 3),
        **numbers,
        "source_val_accuracy": accuracy_of(measured.source_val),
        "target_val_accuracy": accuracy_of(measured.target_val),
        **{name: scores.get(name) for name in (*SCORES, "proxy_a_distance")},
        "top_class_share": top_class_share(target.probabilities) if target else None,
        "target_priors": [round(share, 5) for share in priors.target.tolist()] if priors and priors.estimated else None,
        "images_per_second": round(run.images_seen / run.training_seconds, 1),
    }


def summary(line: dict[str, Any], total_steps: int) -> str:
    """A validation in one line."""
    names = ("information", *PSEUDO_LABEL_MEASURES)
    scores = [f"{name.split('_')[-1]} {line[name]:.2f}" for name in names if line.get(name) is not None]
    return (
        f"step {line['step']}/{total_steps}  L_y {line['L_y']:.3f}  L_d {shown(line['L_d'], 3)}  "
        f"lambda {line['lambda']:.2f}  domain acc {shown(line['domain_accuracy'], 2)}  "
        f"val accuracy: source {shown(line['source_val_accuracy'], 4)} target {shown(line['target_val_accuracy'], 4)}"
        + (f"  ({', '.join(scores)})" if scores else "")
    )


# Result


def finish(
    run: Run, data: Data, settings: Settings, log: RunLog, measured: Measured | None, command: str
) -> dict[str, Any]:
    """Measure the selected checkpoint, draw the figures, and write result.json last, as the sign that all is done."""
    name = "last.pt" if settings.select == "last" else run.kept[0]["name"]
    selected = load_checkpoint(run.folder / name)
    if measured is None or measured.step != selected["step"]:  # else the last validation was of these weights
        run.predictor.load_state_dict(selected["model"])
        measured = measure(run, data)
    once = {f"target_{split}": each for split, each in measured_once(run, data, settings).items()}
    file = run.folder / "result.json"
    before = read_json(file, images=dict) if file.exists() else {"images": {}}  # it may have the other split's accuracy
    metrics = selected["metrics"]
    after = metrics.get("proxy_a_distance")
    draw_figures(run.folder, log, (settings.target_file, settings.source_file), data, measured)
    lines = [line for line in log.lines if line["step"] <= selected["step"]]
    compared = against_source_only(run, data, settings, measured)
    priors = class_priors(run, data, metrics.get("target_priors"))
    answered = len(measured.target.probabilities) if measured.target else 0
    warnings = []
    if lines:
        warnings += collapse(lines[-1], len(data.classes), answered)
        warnings += idle_adversary(lines, run.distance_before, after) if "adversarial" in settings.values.parts else []
        warnings += harm(compared) if compared and answered >= MINIMUM else []
    predicting = (*run.net.feature_extractor.parameters(), *run.net.label_classifier.parameters())
    result = {
        "target_val_accuracy": metrics["target_val_accuracy"],
        **{
            f"{name}_accuracy": each.accuracy if each else before.get(f"{name}_accuracy") for name, each in once.items()
        },
        "source_val_accuracy": metrics["source_val_accuracy"],
        "scores": {name: metrics.get(name) for name in (*SCORES, *PSEUDO_LABEL_MEASURES)},
        "losses": {name: metrics.get(name) for name in LOGGED},
        "validations": [{name: line.get(name) for name in VALIDATED} for line in log.lines],
        "class_priors": priors,
        "source_only": compared,
        "proxy_a_distance": {"untrained": run.distance_before, "trained": after},
        "seconds": round(run.seconds(), 2),
        "images_per_second": round(run.images_seen / run.training_seconds, 1),
        "warnings": warnings,
        "steps": run.total_steps,
        "seed": settings.seed,
        "select": settings.select,
        "selected_step": selected["step"],
        "checkpoint": name,
        "images": {
            **data.sizes(),
            **{name: len(each.probabilities) if each else before["images"].get(name) for name, each in once.items()},
        },
        "parameters": sum(parameter.numel() for parameter in predicting),
        "command": command,
        "args": {name: value for name, value in run.args.items() if name != "classes"},
        "versions": versions(),
        "device": describe_device(run.net.device),
        "processes": settings.processes or 1,
        "precision": str(run.precision).removeprefix("torch."),
    }
    write_json(file, result)
    return result


def next_command(settings: Settings, folder: Path, command: str) -> str:
    """What to type next: after `source` the same command with adaptation, else what shows the run."""
    if settings.train_mode == "source" and settings.target_file:
        same = re.sub(r" (--resume|--run_name[ =]('[^']*'|\S+))(?!\S)", "", command)
        return re.sub(r"(--train_mode[ =])\S+", r"\1dann", same)
    return f"python report.py {shlex.quote(str(folder))} --html run.html"


def measured_once(run: Run, data: Data, settings: Settings) -> dict[str, Answers | None]:
    """Answers on the split that --eval_split names beside val; its labels are read here, when all is chosen."""
    found: dict[str, Answers | None] = dict.fromkeys(ONCE)
    split, target = settings.eval_split, settings.target_file
    if split == "val" or target is None:
        return found
    try:
        if split == "train" and data.unlabelled:
            found[split] = with_labels_of_train(run, data.unlabelled, settings, target, data.classes)
        else:
            cache = Cache(settings.cache)
            found[split] = answers(run.predictor, read_split(settings, cache, target, split, data.classes))
            cache.tell()
        if found[split] is None:
            raise UserError(f"the {split} split of {settings.data_root / target} has no label of a class")
    except UserError as error:
        raise UserError(
            f"{str(error).rstrip('.')}; the training is done, and --resume finishes it, with --eval_split val without "
            "this number."
        ) from error
    return found


def with_labels_of_train(
    run: Run, unlabelled: Domain, settings: Settings, target: str, classes: list[str]
) -> Answers | None:
    """Answers on the images of the target's train that have a label of a class: they have been read without any."""
    listing = list_to_measure(settings, target, "train", classes)
    row = {name: i for i, name in enumerate(unlabelled.names)}  # whose order goes without labels
    read = [i for i, name in enumerate(listing.names) if name in row] if listing else []  # others have come since
    if listing is None or not read:
        return None
    listing = listing.of(read)
    labels, every = encode_labels(listing, classes), answers(run.predictor, unlabelled)
    assert every
    assert labels is not None
    rows = [row[name] for name in listing.names]
    probabilities = every.probabilities[rows]
    return Answers(every.features[rows], probabilities, probabilities.argmax(1) == labels)


def against_source_only(
    run: Run, data: Data, settings: Settings, measured: "Measured"
) -> dict[str, float | None] | None:
    """The adapted answers on the target beside those of a network trained on the source alone.

    None in another mode than dann, where that training fails, as the run itself is done, and where Ctrl-C ends it.
    """
    if settings.train_mode != "dann" or measured.target is None:
        return None
    net = run.source_only
    with contextlib.suppress(UserError):
        net = net or source_only(run, data, settings)
    on_val, found = answers_on_target(net, data) if net else (None, None)
    if found is None or not found.probabilities.isfinite().all():
        return None
    return {
        **changed_answers(found.probabilities, measured.target.probabilities),
        "steps": min(run.total_steps, SOURCE_STEPS),
        "target_val_accuracy": on_val.accuracy if on_val else None,
    }


def class_priors(run: Run, data: Data, estimated: list[float] | None) -> dict[str, dict[str, float | None]] | None:
    """By class the priors of the source, those estimated of the target, and the true ones where its val has labels.

    None without class priors; target_estimated is None where none was made.
    """
    if run.priors is None:
        return None
    unknown: list[Any] = [None] * len(data.classes)
    true = unknown
    if data.target_val and data.target_val.labels is not None:
        true = (data.target_val.labels.bincount(minlength=len(true)) / len(data.target_val)).tolist()
    columns = zip(data.classes, run.priors.source.tolist(), estimated or unknown, true, strict=True)
    return {name: {"source": s, "target_estimated": t, "target_val": val} for name, s, t, val in columns}


def draw_figures(folder: Path, log: RunLog, names: tuple[str | None, str], data: Data, measured: Measured) -> None:
    """Draw curves.png and, of the target's val set or else of the source's, confusion.png and mistakes.png.

    names: of target and source; one without labels has none of these.
    """
    from plots import draw_confusion, draw_curves, draw_mistakes  # here, as a start need not wait for matplotlib

    draw_curves({folder.name: log.lines}, folder / "curves.png")
    sides = ((data.target_val, measured.target_val), (data.source_val, measured.source_val))
    for name, (domain, found) in zip(names, sides, strict=True):
        if domain and found and domain.labels is not None:
            labels, p = domain.labels.numpy(), found.probabilities.numpy()
            title = f"{folder.name}: {name} val, n = {len(domain):,}, accuracy {shown(found.accuracy)}"
            draw_confusion(labels, p.argmax(1), data.classes, title, folder / "confusion.png")
            draw_mistakes(domain.images, labels, p, data.classes, title, folder / "mistakes.png")
            return


def stopped(run: Run, settings: Settings, command: str, ranks: Ranks) -> dict[str, Any]:
    """What a run returns that Ctrl-C stopped, and a rank that only trained; rank 0 says how to continue."""
    interrupted = run.step < run.total_steps
    if interrupted and ranks.main:
        again = command if settings.resume else f"{command} --resume"
        if settings.numbered and run.folder.name != settings.run_name:  # NAME-2: say which
            again += f" --run_name {shlex.quote(run.folder.name)}"
        print(f"stopped at step {run.step} of {run.total_steps}; continue with:\n{again}\n{run.folder}")
    return {"folder": str(run.folder), "interrupted": interrupted}


if __name__ == "__main__":
    run_script(main)

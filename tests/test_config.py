"""Flags become settings that are complete, typed, frozen and free of contradictions; none of them is dead."""

import ast
import json
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from conftest import ended

import config
import train
from config import MODES, RECIPES, Recipe, Settings, read_settings
from losses import PARTS
from utils import UserError

BASE = ["--data_root", "data", "--train_mode", "dann", "--target_file", "usps"]


def settings(*words: str) -> Settings:
    return read_settings(train.build_parser().parse_args([*BASE, *words]))


# What flags do

OTHER = {  # a value of each flag that is not the default
    "data_root": "elsewhere",
    "train_mode": "target",
    "source_file": "svhn",
    "target_file": "svhn",
    "with_source": None,  # with --train_mode target
    "size": "32",
    "num_workers": "3",
    "cache": "here",
    "recipe": "strong",
    "without": "teacher",  # with --recipe strong
    "views": "photos",  # with --recipe strong
    "mirror": None,  # with --recipe strong
    "balance": None,  # with --recipe strong
    "arch": "published",
    "weights": "none",  # with a backbone
    "freeze": None,  # with a backbone
    "batch_size": "10",
    "epochs": "2",
    "max_steps": "7",
    "learning_rate": "0.1",
    "lambda_max": "0.5",
    "seed": "1",
    "device": "cpu",
    "precision": "fp32",
    "save_dir": "there",
    "run_name": "x",
    "resume": None,
    "val_period": "9",
    "select": "source_val",
    "eval_split": "test",
    "topk": "3",
    "tensorboard": None,
}


def test_every_flag_changes_the_settings_and_no_two_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "summary_writer", lambda: None)  # the package may be missing
    assert set(vars(train.build_parser().parse_args(BASE))) == set(OTHER)
    strong, target = ["--recipe", "strong"], ["--train_mode", "target"]
    backbone = ["--arch", "resnet18"]
    needed = {"without": strong, "views": strong, "mirror": strong, "balance": strong, "with_source": target}
    needed |= {"weights": backbone, "freeze": backbone}
    found = [settings(), settings(*strong)]
    for flag, value in OTHER.items():
        words = [f"--{flag}"] if value is None else [f"--{flag}", value]
        found.append(settings(*needed.get(flag, []), *words))
    found.pop(2 + list(OTHER).index("recipe"))  # is the second already
    assert len({str(each) for each in found}) == len(found)


def test_every_setting_is_read_by_the_training_or_is_the_record_of_one_that_is() -> None:
    tree = ast.parse(Path(train.__file__).read_text())
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and "settings" in ast.dump(node)}
    read |= {"epochs", "max_steps", "views"}  # by total_steps and views_of
    assert {each.name for each in fields(Settings)} - read == {"recipe", "without", "lambda_max"}  # all in `values`
    assert {"recipe", "without", "lambda_max", "batch_size", "learning_rate"} <= set(settings().plain())


def test_neither_a_setting_nor_a_hyperparameter_can_be_set() -> None:
    found = settings()
    for held in (found, found.values):
        for each in fields(held):
            with pytest.raises(FrozenInstanceError):
                setattr(held, each.name, None)


def test_the_record_of_a_run_is_plain_values() -> None:
    plain = settings("--recipe", "strong", "--without", "teacher").plain()
    assert json.loads(json.dumps(plain)) == plain


def test_the_recipe_holds_where_no_flag_says_otherwise() -> None:
    for name, recipe in RECIPES.items():
        assert settings("--recipe", name).values == recipe
    found = settings("-bs", "10", "-lr", "0.1", "--lambda_max", "3").values
    assert (found.batch_size, found.lr, found.lambda_max) == (10, 0.1, 3.0)


@pytest.mark.parametrize("mode", MODES)
def test_only_adaptation_has_a_domain_loss_and_a_teacher(mode: str) -> None:
    found = settings("--train_mode", mode, "--recipe", "strong").values
    adapts = mode == "dann"
    assert ({"adversarial", "teacher"} <= found.parts) == ({"adversarial", "teacher"} & found.parts != set()) == adapts
    assert (found.lambda_max > 0) == adapts


def test_without_leaves_a_part_out_and_the_domain_gradient_with_its_part() -> None:
    assert set(PARTS) == RECIPES["tuned"].parts | RECIPES["strong"].parts
    for name, recipe in RECIPES.items():
        for part in recipe.parts:
            assert settings("--recipe", name, "--without", part).values.parts == recipe.parts - {part}
        assert settings("--recipe", name, "--without", "adversarial").values.lambda_max == 0.0


@pytest.mark.parametrize(
    ("classes", "words", "kind"),
    [
        (list("0123456789"), (), "digits"),
        (["0", "1"], (), "photos"),  # cats and dogs
        (["ash", "birch"], (), "photos"),
        (["0", "10"], (), "photos"),  # forty traffic signs
        (["0", "1"], ("--views", "photos"), "photos"),
        (["ash"], ("--views", "digits"), "digits"),
    ],
)
def test_the_views_go_by_the_classes_unless_they_are_chosen(
    classes: list[str], words: tuple[str, ...], kind: str
) -> None:
    assert settings("--recipe", "strong", *words).views_of(classes) == kind


def test_length_is_that_of_the_recipe_then_passes_over_the_labelled_domain_then_steps() -> None:
    assert settings().total_steps(40, 10) == RECIPES["tuned"].steps["dann"]
    assert settings("-ep", "2", "-bs", "8").total_steps(40, 10) == 10
    assert settings("-ep", "2", "-bs", "8", "--max_steps", "3").total_steps(40, 10) == 3


def test_a_frozen_backbone_trains_for_longer_where_there_are_many_classes() -> None:
    few, some, many = (settings("--arch", "resnet18", "--freeze").total_steps(40, k) for k in (2, 7, 65))
    assert few == some < many
    assert settings("--arch", "resnet18", "--freeze", "--max_steps", "3").total_steps(40, 65) == 3


def test_target_with_source_has_the_length_parts_and_choices_of_source() -> None:
    both = ("--train_mode", "target", "--with_source", "--recipe")
    for name, recipe in RECIPES.items():
        found = settings(*both, name, "--select", "source_val")
        assert found.total_steps(40, 10) == recipe.steps["source"]
        assert found.values.parts == recipe.parts & {"augmentation", "distractors"}
        assert found.run_name == f"target_usps_{name}_with_source_seed0"
    assert settings(*both, "strong", "--without", "distractors").values.parts == {"augmentation"}


def test_sorce_is_source_and_a_slash_that_the_shell_completed_is_no_part_of_a_name() -> None:
    found = settings("--train_mode", "sorce", "--target_file", "usps/")
    assert (found.train_mode, found.target_file, found.run_name) == ("source", "usps", "source_usps_tuned_seed0")


def test_several_processes_share_a_batch_that_can_be_split() -> None:
    assert settings().over(1).processes is None
    assert settings().over(2).processes == 2
    for size, processes in ((63, 2), (2, 2)):
        with pytest.raises(UserError, match=f"--batch_size {size}"):
            settings("-bs", str(size)).over(processes)


# Refusals


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("--train_mode sauce", "--train_mode"),  # which silently trained on target labels is a fault of public code
        ("--recipe papre", "tuned"),
        ("--lamda 3", "--lamda"),
        ("-bs 1", "--batch_size"),
        ("-lr nan", "--learning_rate"),
        ("-ep -1", "--epochs"),
        ("--max_steps 0", "--max_steps"),
        ("--seed -1", "--seed"),
        ("--target_file ..", "--target_file"),
        ("--target_file usps/..", "--target_file"),
        ("--source_file .", "--source_file"),
        ("--run_name ../x", "--run_name"),
        ("--arch published --size 32", "--size"),
        ("--arch resnet5O", "resnet50"),
        ("--arch smal", "small"),
        ("--arch fasterrcnn_resnet50_fpn", "--arch"),
        ("--arch resnet18 --weights none --size 2000", "--size"),
        ("--freeze", "--freeze"),
        ("--weights none", "--weights"),
        ("--arch resnet18 --freeze --recipe strong", "--freeze"),
        ("--mirror", "--mirror"),
        ("--balance", "--balance"),
        ("--arch resnet18 --recipe strong --balance", "--balance"),
        ("--arch published --recipe strong", "--recipe"),
        ("--select target_val --topk 0", "--topk"),
        ("--train_mode target --select source_val", "--select"),
        ("--eval_split test --select target_val", "--eval_split"),
        ("--eval_split other", "--eval_split"),
        ("--eval_split train --select target_val", "--eval_split"),
        ("--eval_split train --train_mode target", "--eval_split"),
        ("--without teacher", "--without"),
        ("--recipe strong --without priors", "--without"),
        ("--views photos", "--views"),
        ("--arch published --without priors", "--without"),
        ("--recipe strong --without augmentation --views photos", "--views"),
        ("--train_mode target --recipe strong --without teacher", "--without"),
        ("--train_mode source --lambda_max 3", "--lambda_max"),
        ("--recipe paper --train_mode source --lambda_max 3", "--lambda_max"),
        ("--recipe paper --without confusion", "--without"),
        ("--recipe paper --views digits", "--views"),
        ("--with_source", "--with_source"),
        ("--with_source --train_mode source", "--with_source"),
        ("--train_mode target --with_source --recipe strong --without teacher", "--without"),
        ("--recipe strong --without adversarial --lambda_max 3", "--lambda_max"),
    ],
)
def test_a_flag_that_cannot_be_is_refused_by_name_in_one_line_and_nothing_is_made(
    change: str, named: str, tmp_path: Path
) -> None:
    code, _, errors = ended(train, *BASE, "--save_dir", tmp_path / "runs", *change.split())
    assert code == 2
    assert named in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("mode", ["dann", "target"])
def test_a_mode_that_needs_a_target_says_so(mode: str) -> None:
    code, _, errors = ended(train, "--data_root", "data", "--train_mode", mode)
    assert code == 2
    assert "--target_file" in errors


def test_each_recipe_has_a_length_for_each_mode() -> None:
    assert all(isinstance(recipe, Recipe) and set(recipe.steps) == set(MODES) for recipe in RECIPES.values())

"""What people's real folders, files and lists look like: each is read as its owner expects, or refused in one sentence.

Every test builds the tree that it is about, so that the oracle is what was built.
"""

import gzip
import io
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK, ended, stripes
from matplotlib.figure import Figure
from PIL import Image

import inference
import plots
import train
import tsne
from dataset import read_domain, read_image
from latent import embed
from listing import class_names, encode_labels, image_names, list_split, of_known_classes
from metrics import answer_scores, collapse
from runs import resolve_checkpoint
from utils import UserError, user_path

CLASSES = ("ash", "birch", "elm")


def picture(path: Path, label: int = 0, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    number = sum(path.name.encode()) + 7 * label
    Image.fromarray(stripes(label, np.random.default_rng(number))).save(path, format="PNG", **options)


def tree(root: Path, *names: str) -> Path:
    """Write an image for each name; its class is the part of the path that is one of CLASSES, else the first."""
    for name in names:
        label = next((CLASSES.index(part) for part in Path(name).parts if part in CLASSES), 0)
        picture(root / name, label)
    return root


def classes_of(data_root: Path, domain: str = "d", split: str = "train") -> dict[str, int]:
    """What a labelled split is read as: class -> number of images."""
    listing = list_split(data_root, domain, split, with_labels=True)
    assert listing is not None
    labels = listing.labels or []
    return {name: labels.count(name) for name in class_names(listing)}


def refused(act: Callable[[], object], *named: str) -> None:
    """One sentence that names all of `named`."""
    with pytest.raises(UserError) as error:
        act()
    missing = [word for word in named if word not in str(error.value)]
    assert not missing, f"{missing} not in: {error.value}"


# Folders


@pytest.mark.parametrize(
    ("train_name", "val_name"),
    [
        ("Training", "Testing"),
        ("Train", "Val"),
        ("seg_train", "seg_val"),
        ("TRAIN", "validation"),
        ("train_set", "valid"),
        ("mnist_train", "mnist_test"),
        ("asl_alphabet_train/asl_alphabet_train", "asl_alphabet_test/asl_alphabet_test"),
        ("TrainData", "TestData"),
        ("TrainImages", "ValImages"),
        ("train_resized", "val_resized"),
        ("train2017", "val2017"),
        ("trn", "tst"),
    ],
)
def test_folders_called_as_splits_are_the_splits_whatever_their_case(
    tmp_path: Path, train_name: str, val_name: str
) -> None:
    tree(
        tmp_path / "d",
        *[f"{split}/{name}/{i}.png" for split in (train_name, val_name) for name in CLASSES for i in "01"],
    )
    assert classes_of(tmp_path) == dict.fromkeys(CLASSES, 2)
    split = "val" if "val" in val_name.lower() else "test"
    assert classes_of(tmp_path, split=split) == dict.fromkeys(CLASSES, 2)


def test_an_archive_that_unpacks_to_a_folder_of_its_own_name_is_read_through_it(tmp_path: Path) -> None:
    names = [f"seg_{s}/seg_{s}/{name}/{i}.png" for s in ("train", "test") for name in CLASSES for i in "012"]
    tree(tmp_path / "d", *names)
    assert classes_of(tmp_path) == dict.fromkeys(CLASSES, 3)


def test_a_class_called_train_beside_others_is_a_class_and_not_the_whole_domain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree(tmp_path / "d", "car/0.png", "car/1.png", "bus/0.png", "train/0.png")
    assert classes_of(tmp_path) == {"bus": 1, "car": 2, "train": 1}
    said = capsys.readouterr().err
    assert said.startswith("note:")
    assert "d/train" in said
    unlabelled = list_split(tmp_path, "d", "train", with_labels=False)
    assert unlabelled is not None
    assert len(unlabelled.names) == 4
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["test", "Validation", "test_images"])
def test_a_flat_folder_called_test_is_no_class_of_a_source_and_part_of_a_target(tmp_path: Path, name: str) -> None:
    tree(tmp_path / "d", "ash/0.png", "elm/1.png", f"{name}/2.png")
    refused(lambda: classes_of(tmp_path), name)
    unlabelled = list_split(tmp_path, "d", "train", with_labels=False)
    assert unlabelled is not None
    assert len(unlabelled.names) == 3
    assert list_split(tmp_path, "d", "val", with_labels=True) is None


@pytest.mark.parametrize("name", ["val", "test"])
def test_a_split_alone_is_that_split_and_not_what_is_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    tree(tmp_path / "d", f"{name}/ash/0.png", f"{name}/elm/0.png")
    assert classes_of(tmp_path, split=name) == {"ash": 1, "elm": 1}
    refused(lambda: list_split(tmp_path, "d", "train", with_labels=False), name, "train")


@pytest.mark.parametrize(
    "names",
    [
        [f"train/{name}/{camera}/0.png" for name in ("ash", "elm") for camera in ("cam1", "cam2")],
        ["train/ash/2023/0.png", "train/ash/2024/0.png", "train/elm/2024/0.png"],
        ["train/ash/0.png", "train/elm/0.png", "val/ash/0.png", "val/elm/0.png", "annotations/0.json"],
        ["train/test_tube/0.png", "train/bullet_train/0.png"],
        ["test_tube/0.png", "training_shoe/0.png"],
    ],
)
def test_folders_below_classes_annotations_and_names_with_such_a_word_are_no_splits(
    tmp_path: Path, names: list[str]
) -> None:
    tree(tmp_path / "d", *[name for name in names if name.endswith(".png")])
    for name in names:
        if name.endswith(".json"):
            (tmp_path / "d" / name).parent.mkdir()
            (tmp_path / "d" / name).write_text("{}")
    parts = [name.removeprefix("train/").split("/")[0] for name in names if not name.startswith(("val", "ann"))]
    assert classes_of(tmp_path) == {name: parts.count(name) for name in sorted(set(parts))}


def test_a_target_whose_val_is_sorted_by_anything_is_adapted_to_without_an_accuracy_and_says_so(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mnistm").symlink_to(small_data / "mnistm")
    places = [f"{place}/{year}/{i}.png" for place in ("north", "south") for year in ("2023", "2024") for i in "0123"]
    tree(tmp_path / "photos", *(f"{split}/{name}" for split in ("train", "val") for name in places))
    words = ["--data_root", str(tmp_path), "--train_mode", "dann", "--target_file", "photos", "--save_dir"]
    outcome = train.main([*words, str(tmp_path / "runs"), *QUICK])
    assert outcome["target_val_accuracy"] is None
    assert outcome["scores"]["entropy"] is not None
    said = capsys.readouterr().err
    assert all(word in said for word in ("note:", "photos", "north"))


def test_a_train_alone_is_read_as_ever(tmp_path: Path) -> None:
    tree(tmp_path / "d", "train/ash/0.png", "train/elm/0.png")
    assert classes_of(tmp_path) == {"ash": 1, "elm": 1}


@pytest.mark.parametrize("kind", ["folders", "lists"])
def test_a_test_without_a_val_is_said_to_measure_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    tree(tmp_path / "d", *(f"{split}/{name}/0.png" for split in ("train", "test") for name in ("ash", "elm")))
    if kind == "lists":
        for split in ("train", "test"):
            (tmp_path / "d" / f"{split}.csv").write_text("image_name,label\nash/0.png,ash\n")
    assert list_split(tmp_path, "d", "val", with_labels=True) is None
    said = capsys.readouterr().err
    assert all(word in said for word in ("note:", "test", "val"))


@pytest.mark.parametrize("place", ["d/oak", "d/train", "d/train/oak", "d/val"])
def test_a_folder_that_is_a_link_to_nothing_is_named(tmp_path: Path, place: str) -> None:
    tree(tmp_path / "d", *(f"train/{name}/0.png" if "train/" in place else f"{name}/0.png" for name in CLASSES))
    (tmp_path / place).symlink_to(tmp_path / "nowhere")
    refused(lambda: classes_of(tmp_path), place)


def test_images_that_are_in_icloud_alone_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(tmp_path / "d", "ash/0.png", "elm/0.png")
    for i in range(3):
        (root / "ash" / f".IMG_{i}.jpg.icloud").write_bytes(b"bplist00")
    assert classes_of(tmp_path) == {"ash": 1, "elm": 1}
    said = capsys.readouterr().err
    assert all(word in said for word in ("note:", "3 ", ".icloud"))


def test_a_hidden_folder_is_named_where_it_holds_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(tmp_path / "d", "ash/0.png", "elm/0.png", "ash/.new/a/1.png", "elm/@eaDir/0.png")
    (root / ".git").mkdir()
    assert classes_of(tmp_path) == {"ash": 1, "elm": 1}
    said = capsys.readouterr().err
    assert [word in said for word in ("ash/.new", ".git", "@eaDir")] == [True, False, False]


@pytest.mark.parametrize("target", ["scans", "./scans", "{root}/scans", "../my/scans", "link", "scans/../scans/"])
@pytest.mark.parametrize("mode", ["dann", "target --with_source", "source --eval_split train"])
def test_one_folder_is_no_two_domains_under_two_names_either(tmp_path: Path, target: str, mode: str) -> None:
    root = tree(tmp_path / "my", "scans/ash/0.png", "scans/elm/0.png")
    (root / "link").symlink_to(root / "scans")
    flags = ["--data_root", root, "--source_file", "scans", "--target_file", target.format(root=root), "--train_mode"]
    code, _, error = ended(train, *flags, *mode.split(), "--save_dir", tmp_path / "runs", *QUICK)
    assert code == 2
    assert "scans" in error
    assert not list((tmp_path / "runs").glob("*/args.json"))


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["train/ash/0.png", "val/ash/0.png", "extra/ash/0.png"], ["extra"]),
        (["train/ash/0.png", "Train/ash/0.png", "val/ash/0.png"], ["train", "Train"]),
        (["train/ash/0.png", "val/ash/0.png", "valid/ash/0.png"], ["val", "valid"]),
        (["ash/train/0.png", "ash/test/0.png", "elm/train/0.png", "elm/test/0.png"], ["elm/", "split"]),
        (
            [f"{name}/images/{s}/0.png" for name in ("ash", "elm") for s in ("train", "val")],
            ["elm/images/train", "split"],
        ),
        ([f"fold_{k}/{name}/0.png" for k in range(3) for name in CLASSES], ["fold_0", "fold_1"]),
        ([f"{s}/{name}/0.png" for s in ("entrenamiento", "prueba") for name in CLASSES], ["entrenamiento", "prueba"]),
        ([f"{s}/{name}/0.png" for s in ("训练集", "测试集") for name in CLASSES], ["训练集", "测试集"]),
        (["tren/ash/0.png", "tren/elm/0.png", *(f"prova/{name}/0.png" for name in CLASSES)], ["tren", "prova"]),
        ([f"{s}{d}/0.png" for s in ("train", "test") for d in "AB"], ["train", "test"]),
        ([f"{s}_{name}/0.png" for s in ("train", "test") for name in ("ash", "elm")], ["train_", "test_"]),
        (["mnist_train/ash/0.png", "mnist_test/ash/0.png", "extra/ash/0.png"], ["mnist_train", "mnist_test"]),
    ],
)
def test_folders_that_could_be_splits_or_classes_are_refused_by_name(
    tmp_path: Path, names: list[str], named: list[str]
) -> None:
    refused(lambda: classes_of(tree(tmp_path / "d", *names).parent), *named)


def test_a_linked_class_folder_and_linked_images_are_read_and_a_loop_ends(tmp_path: Path) -> None:
    tree(tmp_path / "elsewhere", "elm/0.png", "elm/1.png", "more/2.png")
    root = tree(tmp_path / "d", "ash/0.png", "birch/0.png")
    (root / "elm").symlink_to(tmp_path / "elsewhere" / "elm")
    (root / "ash" / "linked.png").symlink_to(tmp_path / "elsewhere" / "more" / "2.png")
    (root / "birch" / "back").symlink_to(root)
    assert classes_of(tmp_path) == {"ash": 2, "birch": 1, "elm": 2}


def test_two_names_of_one_folder_are_a_question_and_not_the_same_images_twice(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "ash/0.png", "birch/0.png")
    (root / "Aaa").symlink_to(root / "ash")
    refused(lambda: classes_of(tmp_path), "Aaa")


def test_prediction_over_a_folder_of_links_labels_each_and_names_the_dangling_one(
    dann_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree(tmp_path / "real", "0.png", "1.png", "sub/2.png")
    links = tmp_path / "links"
    links.mkdir()
    (links / "a.png").symlink_to(tmp_path / "real" / "0.png")
    (links / "sub").symlink_to(tmp_path / "real" / "sub")
    (links / "gone.png").symlink_to(tmp_path / "nowhere.png")
    outcome = inference.main(
        ["--checkpoint", str(dann_run), "--test_loc", str(links), "--out_path", str(tmp_path / "p.csv")]
    )
    assert (outcome["count"], list(outcome["left_out"])) == (2, ["gone.png"])
    assert sorted(pd.read_csv(tmp_path / "p.csv")["image_name"]) == ["a.png", "sub/2.png"]


@pytest.mark.parametrize("name", ["0", "0.JPG~", "0.image", "photo.jpg.bak", "0.PNG"])
def test_an_image_is_one_by_its_content_whatever_its_name(tmp_path: Path, name: str) -> None:
    tree(tmp_path / "d", f"ash/{name}", "elm/1.png")
    assert classes_of(tmp_path) == {"ash": 1, "elm": 1}


def test_what_is_no_image_is_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path / "d", "0.png", "1.png")
    (tmp_path / "d" / "film.mp4").write_bytes(b"no image at all")
    (tmp_path / "d" / "labels.csv").write_text("image_name\n")
    assert image_names(tmp_path / "d") == ["0.png", "1.png"]
    assert "film.mp4" in capsys.readouterr().err


def test_an_empty_class_folder_is_named_and_not_forgotten(tmp_path: Path) -> None:
    (tree(tmp_path / "d", "ash/0.png", "elm/0.png") / "oak").mkdir()
    refused(lambda: classes_of(tmp_path), "oak")


def test_folders_that_a_system_leaves_are_no_classes(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "d",
        "ash/0.png",
        "elm/0.png",
        "__MACOSX/ash/0.png",
        ".cache/0.png",
        "#recycle/0.png",
        "@Recycle/0.png",
    )
    assert classes_of(root.parent) == {"ash": 1, "elm": 1}


def test_a_heic_without_its_package_says_which_package_reads_it(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    if "pillow_heif" in sys.modules:
        pytest.skip("pillow-heif is installed")
    (tmp_path / "0.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    assert "pillow-heif" in str(read_image(tmp_path / "0.heic", 28))


def test_a_folders_name_is_the_class_as_it_is_written(tmp_path: Path) -> None:
    tree(tmp_path / "d", "001/0.png", "002/0.png", "010/0.png")
    assert list(classes_of(tmp_path)) == ["001", "002", "010"]


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("001", "1"),
        ("001", "01"),
        ("001", "0001"),
        ("5", "5.000"),
        ("Ash", "ash"),
        ("ash", "ash "),
        ("red oak", "red  oak"),
        ("ash", "a\u200bsh"),
        ("Caf\u00e9", "Cafe\u0301"),
    ],
)
def test_two_names_that_look_alike_are_a_question(tmp_path: Path, name: str, other: str) -> None:
    refused(
        lambda: classes_of(tree(tmp_path / "d", f"{name}/0.png", f"{other}/0.png").parent), ascii(name), ascii(other)
    )


def test_a_class_in_the_other_unicode_form_is_that_class(tmp_path: Path) -> None:
    tree(tmp_path / "d", "Cafe\u0301/0.png", "elm/0.png")
    listing = list_split(tmp_path, "d", "train", with_labels=True)
    assert listing is not None
    codes = encode_labels(of_known_classes(listing, ["Caf\u00e9", "elm"]), ["Caf\u00e9", "elm"])
    assert codes is not None
    assert codes.tolist() == [0, 1]


def test_in_a_csv_3_and_3_0_are_one_label(tmp_path: Path) -> None:
    tree(tmp_path / "d", "data/0.png", "data/1.png", "data/2.png")
    (tmp_path / "d" / "train.csv").write_text("image_name,label\n0.png,3\n1.png,3.0\n2.png,4\n")
    assert classes_of(tmp_path) == {"3": 2, "4": 1}


def test_in_a_csv_thousands_stay_as_they_are_written(tmp_path: Path) -> None:
    tree(tmp_path / "d", "data/0.png", "data/1.png", "data/2.png")
    (tmp_path / "d" / "train.csv").write_text(
        "image_name,label\n0.png,1.000\n1.png,10.000\n2.png,5,00\n".replace(",5,00", ',"5,00"')
    )
    assert classes_of(tmp_path) == {"1.000": 1, "10.000": 1, "5": 1}


def test_an_open_set_val_is_measured_on_the_classes_that_both_have_and_names_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree(tmp_path / "d", "ash/0.png", "elm/0.png", "other/0.png", "other/1.png", "Birch/0.png")
    listing = list_split(tmp_path, "d", "train", with_labels=True)
    assert listing is not None
    kept = of_known_classes(listing, list(CLASSES))
    assert kept.labels == ["ash", "elm"]
    said = capsys.readouterr().err
    assert all(word in said for word in ("other (2)", "Birch (1)", "birch?", "2 images"))


def test_a_val_of_no_known_class_has_no_accuracy_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listing = list_split(tree(tmp_path / "d", "red/0.png", "blue/0.png").parent, "d", "train", with_labels=True)
    assert listing is not None
    assert of_known_classes(listing, list(CLASSES)).labels is None
    assert "red" in capsys.readouterr().err


def test_a_domain_outside_data_root_trains_and_is_drawn(small_data: Path, tmp_path: Path) -> None:
    shutil.copytree(small_data / "usps", tmp_path / "away")
    flags = [
        "--data_root",
        small_data,
        "--train_mode",
        "dann",
        "--target_file",
        tmp_path / "away",
        "--save_dir",
        tmp_path,
    ]
    outcome = train.main([*map(str, flags), "--run_name", "r", *QUICK])
    code, _, error = ended(
        tsne,
        "--checkpoint",
        outcome["folder"],
        "--data_root",
        small_data,
        "--out_path",
        tmp_path / "f",
        "--limit",
        "20",
    )
    assert (code, error) == (0, "")


# Images


def test_a_damaged_exif_leaves_the_image_readable(tmp_path: Path) -> None:
    picture(tmp_path / "0.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\xff\xff\xff\xff")
    assert isinstance(read_image(tmp_path / "0.png", 28), np.ndarray)


@pytest.mark.parametrize("ink", ["white", "black", "yellow"])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_strokes_on_a_transparent_ground_stay_visible(tmp_path: Path, ink: str, mode: str) -> None:
    layer = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    layer.paste(Image.new("RGBA", (8, 20), ink), (10, 4))
    (layer if mode != "LA" else layer.convert("LA")).save(tmp_path / "0.png")
    pixels = read_image(tmp_path / "0.png", 28)
    assert isinstance(pixels, np.ndarray)
    assert np.ptp(pixels.astype(int).max(2)) > 60 or np.ptp(pixels.astype(int).min(2)) > 60


def test_images_of_one_colour_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path / "d", "0.png")
    for i in (1, 2):
        Image.new("RGB", (28, 28), (9, 200, i)).save(tmp_path / "d" / f"{i}.png")
    listing = list_split(tmp_path, "d", "train", with_labels=False)
    assert listing is not None
    read_domain(listing, None, 28, 1)
    said = capsys.readouterr().err
    assert "2 of 3" in said
    assert "1.png" in said


def test_a_photo_of_60_megapixels_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (10_000, 6_000), (10, 90, 200)).save(tmp_path / "0.jpg")
    pixels = read_image(tmp_path / "0.jpg", 32)
    assert isinstance(pixels, np.ndarray)
    assert abs(pixels.astype(int) - [10, 90, 200]).max() < 4


# Lists and labels


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("image_name;label\n0.png;ash\nä.png;elm\n", "utf-8"),
        ("sep=;\nimage_name;label\n0.png;ash\nä.png;elm\n", "utf-8-sig"),
        ("image_name,label\r\n0.png,ash\r\nä.png,elm\r\n", "cp1252"),
        ("image_name\tlabel\n0.png\tash\nä.png\telm\n", "utf-16"),
        ("Image_Name|Label\n0.png|ash\nä.png|elm\n", "utf-8"),
    ],
)
def test_a_csv_as_spreadsheets_write_it_is_read(tmp_path: Path, text: str, encoding: str) -> None:
    tree(tmp_path / "d", "data/0.png", "data/ä.png")
    (tmp_path / "d" / "train.csv").write_bytes(text.encode(encoding))
    assert classes_of(tmp_path) == {"ash": 1, "elm": 1}


def test_a_csv_without_the_columns_names_what_its_first_line_is(tmp_path: Path) -> None:
    tree(tmp_path / "d", "data/0.png")
    (tmp_path / "d" / "train.csv").write_text("filename,class\n0.png,ash\n")
    refused(lambda: classes_of(tmp_path), "train.csv", "image_name", "filename,class")


@pytest.mark.parametrize(
    "name", ["0", "data/0.png", "0.PNG", "./0.png", "data\\0.png", "{home}/0.png", "d/data/0.png", "d/0.png"]
)
def test_a_near_miss_in_a_csv_is_the_one_file_that_it_can_mean(tmp_path: Path, name: str) -> None:
    home = tree(tmp_path / "d", "data/0.png", "data/10.png", "data/sub/1.png") / "data"
    (tmp_path / "d" / "train.csv").write_text(f"image_name,label\n{name.format(home=home)},ash\n10.png,elm\n")
    listing = list_split(tmp_path, "d", "train", with_labels=True)
    assert listing is not None
    assert listing.paths[0] == home / "0.png"


def test_a_near_miss_that_two_files_can_be_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    tree(tmp_path / "d", "data/leaf_0.png", "data/leaf_0.jpg", "data/leaf_1.png")
    (tmp_path / "d" / "train.csv").write_text("image_name,label\nleaf_0,ash\nleaf_1.png,elm\n")
    listing = list_split(tmp_path, "d", "train", with_labels=True)
    assert listing is not None
    refused(lambda: read_domain(listing, ["ash", "elm"], 28, 1), "row 2", "did you mean", "leaf_0")


@pytest.mark.parametrize(
    ("files", "name", "file"),
    [
        (["data/0.png", "0.png"], "0.png", "data/0.png"),
        (["data/0.png", "val/0.png"], "val/0.png", "val/0.png"),
        (["data/1.png", "val/0.png"], "0.png", "val/0.png"),
        (["0.png", "val/0.png"], "val/0.png", "val/0.png"),
        (["data/Cafe\u0301.png"], "Caf\u00e9.png", "data/Cafe\u0301.png"),
        (["data/Caf\u00e9.png"], "Cafe\u0301.png", "data/Caf\u00e9.png"),
    ],
)
def test_a_name_in_a_list_is_the_file_at_that_very_place(
    tmp_path: Path, files: list[str], name: str, file: str
) -> None:
    root = tree(tmp_path / "d", *files)
    (root / "val.csv").write_text(f"image_name,label\n{name},ash\n", encoding="utf-8")
    listing = list_split(tmp_path, "d", "val", with_labels=True)
    assert listing is not None
    assert listing.paths == [root / file]


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["data/0.png", "val/0.png"], "0.png"),
        (["data/val/0.png", "val/0.png"], "val/0.png"),
        (["0.png", "val/0.png"], "0.png"),
    ],
)
def test_a_name_in_a_list_that_is_two_files_is_refused(tmp_path: Path, files: list[str], name: str) -> None:
    root = tree(tmp_path / "d", *files)
    (root / "val.csv").write_text(f"image_name,label\n{name},ash\n")
    refused(lambda: classes_of(tmp_path, split="val"), "row 2", *(str(root / file) for file in files))


@pytest.mark.parametrize(
    ("file", "name", "meant"),
    [
        ("data/0.png", "val/0.png", "0.png"),
        ("data/0.png", "old/0.png", "0.png"),
        ("data/0.png", "https://x/0.png", "0.png"),
        ("0.png", "data/0.png", "0.png"),
        ("train_images/0.png", "0.png", "train_images/0.png"),
        ("data/ash/0.png", "0", "ash/0.png"),
        ("data/leaf_10.png", "leaf_1.png", "leaf_10.png"),
    ],
)
def test_an_absent_image_is_no_other_one_and_its_like_is_suggested(
    tmp_path: Path, file: str, name: str, meant: str
) -> None:
    root = tree(tmp_path / "d", file)
    (root / "train.csv").write_text(f"image_name,label\n{name},ash\n")
    listing = list_split(tmp_path, "d", "train", with_labels=True)
    assert listing is not None
    refused(lambda: read_domain(listing, ["ash"], 28, 1), "row 2", "no such file", f"did you mean {meant}?")


@pytest.mark.parametrize("name", ["valid.csv", "validation.csv", "Val.csv", "val.csv.txt", "VAL.CSV"])
def test_a_list_is_that_of_its_split_by_any_of_its_names(tmp_path: Path, name: str) -> None:
    root = tree(tmp_path / "d", "data/0.png", "data/1.png")
    (root / "Train.csv").write_text("image_name,label\n0.png,ash\n")
    (root / name).write_text("image_name,label\n1.png,elm\n")
    assert (classes_of(tmp_path), classes_of(tmp_path, split="val")) == ({"ash": 1}, {"elm": 1})
    (root / "dev.csv").write_text("image_name,label\n1.png,elm\n")
    refused(lambda: classes_of(tmp_path, split="val"), name, "dev.csv")


def test_a_list_with_its_labels_in_another_column_names_that_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree(tmp_path / "d", "data/0.png") / "val.csv").write_text("image_name,class\n0.png,ash\n")
    listing = list_split(tmp_path, "d", "val", with_labels=True)
    assert listing is not None
    assert listing.labels is None
    said = capsys.readouterr().err
    assert all(word in said for word in ("note:", "val.csv", "class"))
    assert list_split(tmp_path, "d", "val", with_labels=False) is not None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("encoding", "label"), [("gbk", "榆树"), ("cp1251", "вяз"), ("cp1250", "dąb"), ("cp1252", "chêne")]
)
def test_a_list_in_a_code_page_is_read_as_windows_western_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], encoding: str, label: str
) -> None:
    root = tree(tmp_path / "d", "data/0.png")
    (root / "train.csv").write_bytes(f"image_name,label\n0.png,{label}\n".encode(encoding))
    (read,) = classes_of(tmp_path)
    said = capsys.readouterr().err
    assert all(word in said for word in ("note:", "train.csv", "cp1252", read, "UTF-8"))


def test_a_list_in_no_code_page_that_is_known_is_refused(tmp_path: Path) -> None:
    (tree(tmp_path / "d", "data/0.png") / "train.csv").write_bytes(
        "image_name,label\n0.png,ツ\n".encode("shift_jis") + b"\x81"
    )
    refused(lambda: classes_of(tmp_path), "train.csv", "UTF-8")


def test_a_near_miss_in_a_list_given_by_a_relative_path_is_predicted(
    dann_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree(tmp_path / "d", "data/0.png") / "list.csv").write_text("image_name\n0\n")
    (tree(tmp_path, "Cafe\u0301.png") / "list.txt").write_text("Caf\u00e9.png 3\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for given in ("d/list.csv", "list.txt"):
        outcome = inference.main(["--checkpoint", str(dann_run), "--test_loc", given, "--out_path", "p.csv"])
        assert (outcome["count"], outcome["left_out"]) == (1, {})


@pytest.mark.parametrize("name", ["old/0.png", "https://x/0.png"])
@pytest.mark.parametrize("ending", ["csv", "txt"])
def test_an_absent_image_is_left_out_of_a_prediction_and_no_other_takes_its_place(
    dann_run: Path, tmp_path: Path, name: str, ending: str
) -> None:
    (tree(tmp_path / "d", "0.png", "1.png") / f"list.{ending}").write_text(
        "image_name\n" * (ending == "csv") + f"1.png\n{name}\n"
    )
    flags = [
        "--checkpoint",
        dann_run,
        "--test_loc",
        tmp_path / "d" / f"list.{ending}",
        "--out_path",
        tmp_path / "p.csv",
    ]
    assert list(inference.main([str(flag) for flag in flags])["left_out"]) == [name]


def test_a_list_of_paths_and_labels_is_read_as_paths(dann_run: Path, tmp_path: Path) -> None:
    tree(tmp_path, "a b.png", "c.png", "sub/d.png")
    (tmp_path / "list.txt").write_bytes("a b.png 3\nc.png;4\nsub/d.png\t0\n".encode("cp1252"))
    flags = ["--checkpoint", dann_run, "--test_loc", tmp_path / "list.txt", "--out_path", tmp_path / "p.csv"]
    assert inference.main([str(flag) for flag in flags])["count"] == 3
    assert sorted(pd.read_csv(tmp_path / "p.csv")["image_name"]) == ["a b.png", "c.png", "sub/d.png"]


@pytest.mark.parametrize(
    "line",
    ['"a b.png"', "'a b.png' 3", '"a b.png",3', r"sub\c.png", r'"sub\c.png" 3', "~/c.png", '"~/c.png"', "#1.png"],
)
def test_a_line_of_a_list_is_the_path_that_it_means_and_comments_are_none(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tree(tmp_path / "in", "a b.png", "sub/c.png", "#1.png")
    monkeypatch.setenv("HOME", str(home / "sub"))
    (home / "list.txt").write_text(f"# my images 2024\n#other.png\n{line}\nabsent.png\n" + "x" * 300)
    _, names, _ = inference.list_inputs(home / "list.txt")
    found = [home / name for name in names if (name[0] == "/" or len(name) < 99) and (home / name).is_file()]
    assert (len(names), len(found)) == (3, 1)


@pytest.mark.parametrize("spelt", ["{}", "./{}", ".\\{}", "süd/../{}"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])  # a Mac writes ü as two characters
def test_rows_of_labels_that_name_no_predicted_image_are_counted_and_named(
    spelt: str, form: Any, dann_run: Path, tmp_path: Path
) -> None:
    tree(tmp_path / "in", *[unicodedata.normalize("NFC", f"süd/{i}.png") for i in range(9)])
    known = [spelt.format(f"süd/{i}.png").replace("/", "\\" if "\\" in spelt else "/") for i in range(5)]
    known = [unicodedata.normalize(form, name) for name in known]
    for foreign in ([], ["süd/5.jpg", "SÜD/6.png", "7.png"]):
        rows = "".join(f"{name},3\n" for name in [*known, *foreign])
        (tmp_path / "labels.csv").write_text(f"image_name,label\n{rows}")
        flags = ["--checkpoint", dann_run, "--test_loc", tmp_path / "in", "--out_path", tmp_path / "p.csv"]
        code, out, error = ended(inference, *flags, "--labels", tmp_path / "labels.csv")
        assert (code, "(n = 5)" in out, error.count("\n")) == (0, True, int(bool(foreign)))
    assert re.search(r"3 of 8 rows.*(5\.jpg|6\.png|7\.png).*4 images", error)


def test_names_in_two_unicode_forms_are_two_images_and_one_in_two_rows_has_one_label() -> None:
    one, two = (unicodedata.normalize(form, "süd.png") for form in ("NFC", "NFD"))
    assert inference.score({one: "a", two: "b"}, {one: "a", two: "b"}, ["a", "b"])[0]["accuracy"] == 1
    refused(lambda: inference.score({one: "a"}, {one: "a", two: "b"}, ["a", "b"]), "--labels")


def test_labels_that_are_a_folder_are_not_said_to_be_absent(tmp_path: Path) -> None:
    refused(lambda: inference.read_labels(tmp_path, ["3"]), str(tmp_path), "folder")


def test_a_tilde_behind_an_equals_sign_is_the_home_folder(
    dann_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "in", "0.png")
    inference.main([f"--checkpoint={dann_run}", f"--test_loc={tmp_path / 'in'}", "--out_path=~/pred"])
    assert (tmp_path / "pred" / "pred.csv").is_file()
    assert not (tmp_path / "~").exists()


def test_a_tilde_before_a_name_that_is_no_user_is_a_part_of_the_name() -> None:
    assert user_path("~nobody of that name/x") == Path("~nobody of that name/x")


@pytest.mark.parametrize("name", ["pred.txt", "pred.tsv", "pred.xlsx"])
def test_an_out_path_of_another_ending_is_refused(dann_run: Path, tmp_path: Path, name: str) -> None:
    tree(tmp_path / "in", "0.png")
    code, _, error = ended(
        inference, "--checkpoint", dann_run, "--test_loc", tmp_path / "in", "--out_path", tmp_path / name
    )
    assert code == 2
    assert name in error
    assert not (tmp_path / name).exists()


# Runs and figures


def test_features_that_are_all_alike_are_refused_and_do_not_crash() -> None:
    refused(lambda: embed(np.ones((60, 8), dtype=np.float32), 0), "60")


def test_sixty_five_classes_are_drawn_and_no_name_covers_a_point(tmp_path: Path) -> None:
    rng, n = np.random.default_rng(0), 400
    names = [f"class number {k}" for k in range(65)]
    plots.draw_by_class(rng.normal(size=(n, 2)), np.repeat([0, 1], n // 2), rng.integers(0, 65, n), names, ["s", "t"],
                        "65", tmp_path / "p.png")  # fmt: skip
    assert Image.open(tmp_path / "p.png").size == (1008, 840)


def draw_all(folder: Path, classes: list[str], names: tuple[str, str] = ("s", "t"), title: str = "title") -> None:
    """Every figure of answers, of 40 images and these classes."""
    rng, k = np.random.default_rng(0), len(classes)
    labels, p = np.arange(40) % k, rng.dirichlet(np.ones(k), 40)
    points, domains = rng.normal(size=(40, 2)), np.repeat([0, 1], 20)
    plots.draw_confusion(labels, p.argmax(1), classes, title, folder / "confusion.png")
    plots.draw_mistakes(np.zeros((40, 8, 8, 3), np.uint8), labels, p, classes, title, folder / "mistakes.png")
    plots.draw_by_class(points, domains, labels, classes, list(names), title, folder / "by_class.png")
    plots.draw_by_domain(points, domains, list(names), title, folder / "by_domain.png")
    plots.draw_curves({name: [{"step": 1, "L_y": 0.5}] for name in classes}, folder / "curves.png")


@pytest.mark.parametrize("name", ["白桦", "カバ", "자작", "ต้นไม้", "भोजपत्र", "🦩"])
def test_names_of_a_script_that_no_font_here_has_are_drawn_as_boxes_and_one_sentence_says_so(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [font for font in plots.font_manager.fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(plots.font_manager.fontManager, "ttflist", own)  # matplotlib's, as on a bare system
    plots.fonts_for.cache_clear()
    draw_all(tmp_path, [name, "elm"])
    plots.fonts_for.cache_clear()
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert re.search(f"no font .*[{name}]", said[0])


def test_each_script_that_some_font_here_has_is_drawn_in_that_font(capfd: pytest.CaptureFixture[str]) -> None:
    stix = plots.font_manager.get_font(plots.font_manager.findfont("STIXGeneral")).get_charmap()
    default = plots.font_manager.get_font(plots.font_manager.findfont("DejaVu Sans")).get_charmap()
    letter = next(chr(code) for code in stix if code not in default and chr(code).isprintable())
    for text in (letter, f"{letter}白"):  # what one font lacks does not cost what another has
        plots.fonts_for.cache_clear()
        family = plots.fonts_for(text)
        fonts = [plots.font_manager.get_font(plots.font_manager.findfont(name)) for name in family]
        assert family[0] == "DejaVu Sans"
        assert any(ord(letter) in font.get_charmap() for font in fonts)
    assert repr(letter)[1:-1] not in capfd.readouterr().err


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("count", "length"), [(2, 45), (3, 60), (10, 100), (20, 100), (65, 250)])
def test_long_names_are_cut_so_that_each_stands_in_the_figure_and_is_still_told_apart(
    count: int, length: int, tmp_path: Path, figures: list[Figure]
) -> None:
    classes = [f"{k:02d} {'Wide name ' * 25}"[: length - 2] + f"{k:02d}" for k in range(count)]
    draw_all(tmp_path, classes, ("/data/" * 20, "t" * 150), "run name " * 25)
    confusion = figures[0].axes[0]
    for ticks in (confusion.get_xticklabels(), confusion.get_yticklabels()):
        assert len({tick.get_text() for tick in ticks}) == count
    for figure in figures:
        figure.draw_without_rendering()
        texts = [text for legend in figure.legends for text in legend.get_texts()]
        texts += [*confusion.get_xticklabels(), *confusion.get_yticklabels()] if figure is figures[0] else []
        for text in texts:
            box = text.get_window_extent()
            assert 0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
            assert 0 <= box.y0 <= box.y1 <= figure.bbox.y1, text


def test_a_name_that_begins_with_an_underscore_stands_in_each_legend(tmp_path: Path, figures: list[Figure]) -> None:
    draw_all(tmp_path, ["_noise_", "elm"], ("_s", "t"))
    legends = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in figures if figure.legends]
    assert legends == [["_s", "t", "_noise_", "elm"], ["_s", "t"]]
    drawn = {text.get_text() for figure in figures for axes in figure.axes for text in axes.texts}
    assert {"_noise_", "elm"} <= drawn  # where the lines of the runs of these names end


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff\xfe", b"\xe7\x99"])
def test_a_class_folder_whose_name_is_no_utf_8_is_trained_drawn_and_predicted(name: bytes, tmp_path: Path) -> None:
    folder = os.fsdecode(name)
    files = [f"{s}/{label}/{i}.png" for s in ("train", "val") for label in (folder, "elm") for i in range(9)]
    shutil.copytree(tree(tmp_path / "d", *files), tmp_path / "t")
    flags = ["--data_root", tmp_path, "--source_file", "d", "--target_file", "t", "--train_mode", "dann", *QUICK]
    code, _, error = ended(train, *flags, "--save_dir", tmp_path / "runs", "--run_name", "run")
    assert (code, error) == (0, "")
    run = tmp_path / "runs" / "run"
    assert {"curves.png", "confusion.png", "mistakes.png", "result.json"} <= {file.name for file in run.iterdir()}
    assert ended(tsne, "--checkpoint", run, "--data_root", tmp_path, "--out_path", tmp_path / "f")[0] == 0
    flags = ["--checkpoint", run, "--test_loc", tmp_path / "d" / "val", "--out_path", tmp_path / "p.csv", "--probs"]
    assert ended(inference, *flags)[0] == 0
    assert b"p_" + name in (tmp_path / "p.csv").read_bytes()
    assert name in (tmp_path / "f" / "latent.csv").read_bytes()


def test_two_runs_started_at_once_with_the_default_name_get_a_folder_each(small_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, train.__file__, "--data_root", str(small_data), "--train_mode", "source"]
    command += ["--save_dir", str(tmp_path), *QUICK, "--max_steps", "2"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [(process.communicate()[1], process.returncode) for process in both]
    assert [code for _, code in ends] == [0, 0], ends
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source_none_tuned_seed0", "source_none_tuned_seed0-2"]


def test_resume_with_nothing_there_says_that_it_starts_anew(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data_root", str(small_data), "--train_mode", "source", "--save_dir", str(tmp_path), "--resume", *QUICK]
    train.main([*flags, "--run_name", "new"])
    assert "new" in capsys.readouterr().err


PAGES = [b"<!DOCTYPE html><html>", b"\n <html><head>", b"<?xml version='1.0'?>"]
PAGES += ["<html>".encode(encoding) for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be")]


@pytest.mark.parametrize("page", PAGES)
def test_a_web_page_saved_as_a_checkpoint_is_called_a_web_page(tmp_path: Path, page: bytes) -> None:
    (tree(tmp_path, "in/0.png") / "x.pt").write_bytes(page + bytes(500))
    code, _, error = ended(
        inference, "--checkpoint", tmp_path / "x.pt", "--test_loc", tmp_path / "in", "--out_path", tmp_path / "o"
    )
    assert code == 2
    assert "x.pt" in error
    assert "web page" in error


def written(write: Callable[[Any], object]) -> bytes:
    """What a library writes into a file."""
    box = io.BytesIO()
    write(box)
    return box.getvalue()


def exported(file: Any) -> None:
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), file)


def scripted(file: Any) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), file)


def in_protocol(number: int, file: Any) -> None:
    torch.save(torch.nn.Linear(2, 2), file, pickle_protocol=number)


OTHERS: dict[str, tuple[bytes | Callable[[Any], object], str]] = {
    "PNG": (lambda file: Image.new("RGB", (9, 9)).save(file, "PNG"), "picture"),
    "JPEG": (lambda file: Image.new("RGB", (9, 9)).save(file, "JPEG"), "picture"),
    "PDF": (b"%PDF-1.4\n\xe2\xe3", "PDF"),
    "CSV": (b"image_name,label\n0.png,3\n", "text"),
    "JSON": (b'{"checkpoint": "last.pt"}', "text"),
    "words": (b"(101)", "text"),
    "UTF-16": ("words".encode("utf-16"), "text"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "gzip": (gzip.compress(b"words"), "gzip"),
    "npy": (lambda file: np.save(file, np.ones(3)), "NumPy"),
    "npz": (lambda file: np.savez(file, a=np.ones(3)), "archive"),
    "TorchScript": (scripted, "exported model"),
    "pt2": (exported, "exported model"),
    "a module in protocol 4": (partial(in_protocol, 4), "no checkpoint of this program"),
    "a pickle in protocol 4": (pickle.dumps([1], 4), "no checkpoint of this program"),
    "zeros": (bytes(99), "no checkpoint of this program"),
    "empty": (b"", "empty"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("kind", OTHERS)
def test_another_file_than_a_checkpoint_is_called_what_it_is_without_words_of_torch(kind: str, tmp_path: Path) -> None:
    content, names = OTHERS[kind]
    file = tree(tmp_path, "in/0.png") / "x.pt"
    file.write_bytes(content if isinstance(content, bytes) else written(content))
    flags = ["--checkpoint", file, "--test_loc", tmp_path / "in", "--out_path", tmp_path / "o"]
    code, out, error = ended(inference, *flags)
    assert (code, out, error.count("\n"), error.count(str(file))) == (2, "", 1, 1)
    assert names in error
    assert not re.search("enforce|operand|pickle|Reader|WeightsUnpickler|torch", error)


def test_a_checkpoint_that_is_no_regular_file_is_not_said_to_be_absent() -> None:
    refused(lambda: resolve_checkpoint(Path(os.devnull)), os.devnull, "no regular file")


def test_data_that_does_not_fit_into_memory_is_refused_before_it_is_read_with_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path / "d", *[f"{i}.png" for i in range(9)])
    monkeypatch.setattr("dataset.memory_of_machine", lambda: 1000)
    listing = list_split(tmp_path, "d", "train", with_labels=False)
    assert listing is not None
    refused(lambda: read_domain(listing, None, 28, 1), "GB", "--size")


def sure(labels: list[int], classes: int) -> dict[str, float]:
    p = torch.nn.functional.one_hot(torch.tensor(labels), classes) * 0.97 + 0.03 / classes
    return {**answer_scores(p), "top_class_share": max(map(labels.count, labels)) / len(labels)}


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([7 * i % 65 for i in range(30)], 65),
        ([i % 4 for i in range(200)], 10),
        ([int(i % 10 > 7) for i in range(100)], 2),
        ([0, 1, 2], 10),
    ],
    ids=["30 images of 65 classes", "4 of 10 classes", "two classes, one rare", "three images"],
)
def test_right_and_sure_answers_are_no_collapse(labels: list[int], classes: int) -> None:
    assert collapse(sure(labels, classes), classes, len(labels)) == []


@pytest.mark.parametrize("labels", [[0] * 5, [1] * 2, [2], [0] * 9])
def test_a_handful_of_images_of_one_class_is_no_collapse(labels: list[int]) -> None:
    assert collapse(sure(labels, 3), 3, len(labels)) == []


@pytest.mark.parametrize("labels", [[0] * 30, [0] * 995 + [1] * 5, [1] * 500 + [0]])
def test_a_target_nearly_of_one_class_is_told_as_one_that_may_be_so(labels: list[int]) -> None:
    (said,) = collapse(sure(labels, 2), 2, len(labels))
    assert "unless the target is like that" in said


@pytest.mark.parametrize("classes", [2, 10, 65])
def test_one_answer_for_every_image_is_a_collapse_whatever_the_number_of_classes(classes: int) -> None:
    assert collapse(sure([1] * 100, classes), classes, 100)


@pytest.mark.parametrize("classes", [2, 10, 65])
def test_unsure_answers_are_said_whatever_the_number_of_classes(classes: int) -> None:
    p = torch.rand(500, classes, generator=torch.Generator().manual_seed(0)).mul(2).softmax(1)
    assert collapse({**answer_scores(p), "top_class_share": 0.2}, classes, 500)


def test_the_network_runs_without_what_apples_gpus_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    from model import DANN

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("adaptive pooling of 7x7 to 2x2 is refused there")

    monkeypatch.setattr(torch.nn.functional, "adaptive_avg_pool2d", forbidden)
    assert DANN(10)(torch.zeros(2, 3, 28, 28)).shape == (2, 10)


def test_mirrored_places_sample_what_reflection_does() -> None:
    from augment import reflected

    x, grid = torch.rand(4, 3, 28, 20), torch.rand(4, 28, 20, 2) * 6 - 3
    wanted = torch.nn.functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    found = torch.nn.functional.grid_sample(x, reflected(grid, 20, 28), align_corners=False)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_a_warning_of_a_library_becomes_one_line_of_ours(tmp_path: Path) -> None:
    code = "import warnings\nfrom utils import run_script\nrun_script(lambda: warnings.warn('odd\\nthing') or {})"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(train.__file__).parent, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "note: odd thing\n")


@pytest.mark.parametrize("outcome", ["{}", "{'left_out': [1]}", "{'interrupted': True}"])
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_output_changes_no_exit_code(closed: str, outcome: str) -> None:
    code = f"import utils\np = utils.Progress(2, 'x', 'y')\np.say('x'), print('x'), utils.note('x')\nreturn {outcome}"
    code = "from utils import run_script\ndef work():\n " + code.replace("\n", "\n ") + "\nrun_script(work)"
    home = Path(train.__file__).parent
    done = subprocess.run(["bash", "-c", f'"$0" -c "$1" {closed}', sys.executable, code], cwd=home, capture_output=True)
    assert done.returncode == {"{}": 0, "{'left_out': [1]}": 1}.get(outcome, 130)


def test_permission_to_list_a_folder_is_asked_for(unprivileged: Path) -> None:
    tree(unprivileged / "d", "ash/0.png", "elm/0.png")
    os.chmod(unprivileged / "d" / "elm", 0)
    try:
        refused(lambda: classes_of(unprivileged), "elm")
    finally:
        os.chmod(unprivileged / "d" / "elm", 0o755)


# 2,000 trees that nobody thought of

PLAIN = ["ash", "birch", "Elm", "oak tree", "白桦", "007", "42", "x.y", "cat-2"]
TRICKY = ["train", "Val", "test", "data", "images", "7", "1e3", "dev"]
SPLIT_NAMES = [
    ("train", "val"),
    ("Train", "Val"),
    ("Training", "valid"),
    ("seg_train", "seg_val"),
    ("TRAIN_SET", "dev"),
    ("mnist_train", "mnist_val"),
    ("TrainImages", "ValImages"),
    ("train_resized", "val_resized"),
    ("train2017", "val2017"),
]
UNKNOWN_SPLITS = [("fold_0", "fold_1"), ("entrenamiento", "prueba"), ("训练集", "验证集"), ("part1", "part2")]
LOOK_ALIKES: list[Callable[[str], str]] = [
    str.swapcase,
    lambda name: f"{name} ",
    lambda name: f"{name[0]}\u200b{name[1:]}",
    lambda name: unicodedata.normalize("NFD", name),
]
ENDINGS = [".png", ".PNG", ".jpg", "", ".jpeg~", ".img"]


def build(rng: random.Random, root: Path) -> tuple[dict[str, dict[str, int]], set[str]]:
    """Build a random labelled domain root/d; returns images by split and class, and what may come of it."""
    simple = rng.random() < 0.5
    names = [*rng.sample(PLAIN, 1), *rng.sample(PLAIN[1:] if simple else PLAIN[1:] + TRICKY, rng.randint(1, 4))]
    outcomes = {"read"} if simple else {"read", "refused"}
    if rng.random() < 0.1:
        names.append(rng.choice(LOOK_ALIKES)(names[0]))
        outcomes = outcomes if names[-1] == names[0] else {"refused"}
    names = sorted(set(names))  # were every class called as a split, they could not be told from splits
    splits = rng.choice(SPLIT_NAMES) if rng.random() < 0.6 else None
    if splits and len(names) > 1 and rng.random() < 0.1:
        splits, outcomes = rng.choice(UNKNOWN_SPLITS), {"refused"}
    home = root / "d"
    if splits and rng.random() < 0.2:
        home = home / rng.choice(["dataset", "d", "images"])  # as an archive unpacks
    made: dict[str, dict[str, int]] = {}
    number = 0
    for split, folder in zip(("train", "val"), splits or ("",), strict=False):
        made[split] = {}
        below: list[set[str]] = []
        for name in names:
            place = home / folder / name
            real = place
            if rng.random() < 0.15:  # a linked class folder
                real = root / "elsewhere" / folder / name
                place.parent.mkdir(parents=True, exist_ok=True)
                real.mkdir(parents=True, exist_ok=True)
                place.symlink_to(real)
            made[split][name] = rng.randint(1, 3)
            below.append(set())
            for _ in range(made[split][name]):
                deep = Path(*rng.sample(["a", "2021", "b c"], rng.choice([0, 0, 0, 1, 2])))
                below[-1].update(deep.parts[:1])
                number += 1
                image = real / deep / f"{number}{rng.choice(ENDINGS)}"
                picture(image)
                if rng.random() < 0.1:
                    (real / deep / f"link{number}.png").symlink_to(image)
                    made[split][name] += 1
        if any(len(one) > 1 and sum(other >= one for other in below) > 1 for one in below):  # may be splits of classes
            outcomes = outcomes | {"refused"}
        if rng.random() < 0.05:
            (home / folder / "gone").symlink_to(root / "nowhere")
            outcomes = {"refused"}
        for junk in rng.sample(["notes.txt", ".DS_Store", "Thumbs.db", "film.mp4"], rng.randint(0, 2)):
            (home / folder / junk).write_bytes(b"no image")
        if rng.random() < 0.1:
            picture(home / folder / "__MACOSX" / "x.png")
        if rng.random() < 0.05:
            (home / folder / names[0] / "back").symlink_to(home)
    return made, outcomes


def read_or_refused(root: Path, splits: Iterable[str]) -> tuple[dict[str, dict[str, int]], str]:
    """What each split is read as, or why one is refused."""
    try:
        return {split: classes_of(root, split=split) for split in splits}, ""
    except UserError as error:
        return {}, str(error)


@pytest.mark.slow
def test_of_2000_random_trees_none_is_learnt_wrongly(tmp_path: Path) -> None:
    refused_ones = 0
    for seed in range(2000):
        root = tmp_path / str(seed)
        made, outcomes = build(random.Random(seed), root)
        found, why = read_or_refused(root, made)
        assert ("refused" if why else "read") in outcomes, f"tree {seed}: {why or found}"
        assert why or found == made, f"tree {seed}: {found}"
        refused_ones += bool(why) and "read" in outcomes
        shutil.rmtree(root)
    assert refused_ones < 700

"""The latent-space figures are drawn from validation images and say what they show."""

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import QUICK, write_domain
from PIL import Image

import train
import tsne
from utils import UserError


def test_two_figures_and_the_coordinates_are_written(dann_run: Path, small_data: Path, tmp_path: Path) -> None:
    outcome = tsne.main(
        ["--checkpoint", str(dann_run), "--data_root", str(small_data), "--out_path", str(tmp_path / "x")]
    )
    assert sorted(file.name for file in (tmp_path / "x").iterdir()) == [
        "latent.csv",
        "latent_by_class.png",
        "latent_by_domain.png",
    ]
    for name in ("class", "domain"):
        with Image.open(tmp_path / "x" / f"latent_by_{name}.png") as image:
            assert min(image.size) > 600
    table = pd.read_csv(tmp_path / "x" / "latent.csv", dtype={"label": str, "prediction": str})
    assert table.columns.tolist() == ["image_name", "domain", "label", "prediction", "x", "y"]
    assert table["domain"].tolist() == ["mnistm"] * 20 + ["usps"] * 20
    listed = pd.read_csv(small_data / "usps" / "val.csv", dtype=str)
    target = table[table["domain"] == "usps"]
    assert target["image_name"].tolist() == listed["image_name"].tolist()
    assert target["label"].tolist() == listed["label"].tolist()
    share = (target["label"] == target["prediction"]).mean()
    assert outcome["accuracy"]["usps"] == pytest.approx(share)


def test_a_target_without_labels_is_drawn_too(dann_run: Path, small_data: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "mnistm").symlink_to(small_data / "mnistm")
    (root / "photos").symlink_to(small_data / "usps" / "data")
    outcome = tsne.main(
        [
            "--checkpoint",
            str(dann_run),
            "--data_root",
            str(root),
            "--out_path",
            str(tmp_path / "x"),
            "--target_file",
            "photos",
        ]
    )
    assert outcome["accuracy"]["photos"] is None
    assert outcome["count"] == 80


def test_the_same_seed_gives_the_same_coordinates(dann_run: Path, small_data: Path, tmp_path: Path) -> None:
    for name in "ab":
        tsne.main(
            [
                "--checkpoint",
                str(dann_run),
                "--data_root",
                str(small_data),
                "--out_path",
                str(tmp_path / name),
                "--limit",
                "15",
            ]
        )
    assert (tmp_path / "a" / "latent.csv").read_bytes() == (tmp_path / "b" / "latent.csv").read_bytes()


def test_an_output_that_is_a_file_is_refused(dann_run: Path, small_data: Path, tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(UserError, match="is a file; name a folder"):
        tsne.main(["--checkpoint", str(dann_run), "--data_root", str(small_data), "--out_path", str(tmp_path / "x")])


def test_a_target_run_is_drawn_with_the_statistics_it_learnt(small_data: Path, tmp_path: Path) -> None:
    """It never saw the source: the source's own BatchNorm statistics are untrained and would make noise of it."""
    run = train.main(
        [
            *("--data_root", str(small_data), "--train_mode", "target", "--target_file", "usps", "--save_dir"),
            *(str(tmp_path), *QUICK, "--max_steps", "60", "--val_period", "60"),
        ]
    )
    outcome = tsne.main(
        ["--checkpoint", run["folder"], "--data_root", str(small_data), "--out_path", str(tmp_path / "x")]
    )
    assert outcome["accuracy"]["usps"] == run["target_val_accuracy"]
    assert outcome["accuracy"]["mnistm"] > 0.9  # the test domains look alike


def test_the_title_states_the_measures_of_the_result(dann_run: Path, small_data: Path, tmp_path: Path) -> None:
    outcome = tsne.main(["--checkpoint", str(dann_run), "--data_root", str(small_data), "--out_path", str(tmp_path)])
    result = json.loads((dann_run / "result.json").read_text())
    assert outcome["proxy_a_distance"] == pytest.approx(result["proxy_a_distance"]["trained"])
    assert outcome["accuracy"] == {"mnistm": result["source_val_accuracy"], "usps": result["target_val_accuracy"]}


def test_a_target_without_labels_may_lie_in_subfolders_and_beside_them(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_domain(data / "mnistm", {"train": 40, "val": 20})
    write_domain(tmp_path / "other" / "usps", {"train": 30, "val": 10})
    for i, file in enumerate(sorted((tmp_path / "other" / "usps" / "data").glob("*.png"))):
        place = data / "photos" / ("" if i % 2 else "2024/may")
        place.mkdir(parents=True, exist_ok=True)
        file.rename(place / file.name)
    arguments = ["--data_root", str(data), "--train_mode", "dann", "--target_file", "photos", "--max_steps", "2"]
    run = train.main([*arguments, "-bs", "8", "--save_dir", str(tmp_path / "runs"), "--device", "cpu"])
    assert run["target_val_accuracy"] is None
    assert -2 <= run["proxy_a_distance"]["untrained"] <= 2
    assert -2 <= run["proxy_a_distance"]["trained"] <= 2
    out = tmp_path / "figures"
    tsne.main(["--checkpoint", run["folder"], "--data_root", str(data), "--out_path", str(out), "--limit", "30"])
    drawn = pd.read_csv(out / "latent.csv")
    assert drawn[drawn.domain == "photos"].label.isna().all()

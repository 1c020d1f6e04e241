"""The latent-space figures are drawn from validation images and say what they show."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import ended, quick_run, write_domain
from PIL import Image

import tsne


def drawn(run: Path | str, root: Path, out: Path, *more: str) -> tuple[dict[str, Any], pd.DataFrame]:
    """What tsne.py returns, and the coordinates that it wrote."""
    flags = ["--checkpoint", str(run), "--data_root", str(root), "--out_path", str(out), *more]
    return tsne.main(flags), pd.read_csv(out / "latent.csv", dtype={"label": str, "prediction": str})


def test_two_figures_and_the_coordinates_show_the_measures_of_the_run(
    dann_run: Path, small_data: Path, tmp_path: Path
) -> None:
    outcome, table = drawn(dann_run, small_data, tmp_path / "x")
    assert {file.name for file in (tmp_path / "x").iterdir()} == {
        "latent.csv", "latent_by_class.png", "latent_by_domain.png"
    }  # fmt: skip
    for name in ("class", "domain"):
        with Image.open(tmp_path / "x" / f"latent_by_{name}.png") as image:
            assert min(image.size) > 600
    assert table.columns.tolist() == ["image_name", "domain", "label", "prediction", "x", "y"]
    assert table["domain"].tolist() == ["mnistm"] * 20 + ["usps"] * 20
    listed = pd.read_csv(small_data / "usps" / "val.csv", dtype=str)
    target = table[table["domain"] == "usps"]
    assert target["image_name"].tolist() == listed["image_name"].tolist()
    assert target["label"].tolist() == listed["label"].tolist()
    result = json.loads((dann_run / "result.json").read_text())
    assert (target["label"] == target["prediction"]).mean() == pytest.approx(result["target_val_accuracy"])
    assert outcome["accuracy"] == {"mnistm": result["source_val_accuracy"], "usps": result["target_val_accuracy"]}
    assert outcome["proxy_a_distance"] == pytest.approx(result["proxy_a_distance"]["trained"])


def test_the_same_seed_gives_the_same_coordinates(dann_run: Path, small_data: Path, tmp_path: Path) -> None:
    for name in "ab":
        drawn(dann_run, small_data, tmp_path / name, "--limit", "15")
    assert (tmp_path / "a" / "latent.csv").read_bytes() == (tmp_path / "b" / "latent.csv").read_bytes()


@pytest.mark.parametrize("with_source", [False, True])
def test_a_target_run_is_drawn_with_the_statistics_it_learnt(
    with_source: bool, small_data: Path, tmp_path: Path, no_figures: None
) -> None:
    """Alone it never saw the source, whose BatchNorm statistics are untrained and would make noise of it."""
    more = ["--max_steps", "60", "--val_period", "60", *["--with_source"] * with_source]
    run = quick_run(small_data, tmp_path, "target", "usps", *more)
    outcome, _ = drawn(run["folder"], small_data, tmp_path / "x")
    assert outcome["accuracy"]["usps"] == run["target_val_accuracy"]
    assert outcome["accuracy"]["mnistm"] > 0.9  # the test domains look alike
    assert outcome["accuracy"]["mnistm"] == run["source_val_accuracy"] or not with_source


def test_a_target_without_labels_may_lie_in_subfolders_and_beside_them(tmp_path: Path, no_figures: None) -> None:
    data = tmp_path / "data"
    write_domain(data / "mnistm", {"train": 40, "val": 20})
    write_domain(tmp_path / "other", {"train": 40})
    for i, file in enumerate(sorted((tmp_path / "other" / "data").glob("*.png"))):
        place = data / "photos" / ("" if i % 2 else "2024/may")
        place.mkdir(parents=True, exist_ok=True)
        file.rename(place / file.name)
    run = quick_run(data, tmp_path / "runs", "dann", "photos", "--max_steps", "2")
    assert run["target_val_accuracy"] is None
    assert -2 <= run["proxy_a_distance"]["trained"] <= 2
    outcome, table = drawn(run["folder"], data, tmp_path / "x", "--limit", "30")
    assert outcome["accuracy"]["photos"] is None
    assert (table["domain"] == "photos").sum() == 30
    assert table[table["domain"] == "photos"]["label"].isna().all()


def test_a_refusal_names_the_flag_and_draws_nothing(dann_run: Path, small_data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    flags = ["--checkpoint", dann_run, "--data_root", small_data, "--out_path"]
    files = [[name] for name in ("file", "fig.png", "fig.PDF", "latent.csv")]
    for more in (*files, ["x", "--limit", "nan"], ["x", "--target_file", "cifar"]):
        code, _, error = ended(tsne, *flags, tmp_path / more[0], *more[1:])
        assert code == 2
        assert str(more[-1]) in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

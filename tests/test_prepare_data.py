"""The demo domains: the layout train.py reads, the same for the same seed, nothing shared between splits."""

import hashlib
import json
import os
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import prepare_data
from prepare_data import FONTS, MAKERS, MARKER, PHOTO_BANDS, SPLITS, blend, load_font, main, split_digits
from utils import UserError

TINY = ["--scale", "0.02"]


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def digests(root: Path, domain: str, split: str) -> list[str]:
    """One hash of the decoded pixels per row of the split's table."""
    table = pd.read_csv(root / domain / f"{split}.csv")
    paths = (root / domain / "data" / name for name in table.image_name)
    return [hashlib.sha256(np.asarray(Image.open(path)).tobytes()).hexdigest() for path in paths]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    main(["demo", "--out", str(tmp_path / "tiny"), *TINY])
    return tmp_path / "tiny"


@pytest.mark.parametrize("domain", MAKERS)
def test_layout_is_two_tables_and_the_28x28_pngs_they_list(demo_data: Path, domain: str) -> None:
    folder = demo_data / domain
    tables = [pd.read_csv(folder / f"{split}.csv") for split in SPLITS]
    assert all(list(table.columns) == ["image_name", "label"] for table in tables)
    listed = [name for table in tables for name in table.image_name]
    assert sorted(listed) == sorted(p.name for p in (folder / "data").iterdir())
    for name in listed[::10]:
        with Image.open(folder / "data" / name) as image:
            assert (image.format, image.size, image.mode) == ("PNG", (28, 28), "L" if domain == "usps" else "RGB")


@pytest.mark.parametrize("domain", MAKERS)
@pytest.mark.parametrize("split", SPLITS)
def test_every_class_occurs_in_every_split_in_mixed_order(demo_data: Path, domain: str, split: str) -> None:
    labels = pd.read_csv(demo_data / domain / f"{split}.csv").label
    assert set(labels) == set(range(10))
    assert not labels.is_monotonic_increasing


def test_counts_are_those_the_docstring_and_the_marker_state(demo_data: Path) -> None:
    assert prepare_data.__doc__
    for domain in MAKERS:
        marker = json.loads((demo_data / domain / MARKER).read_text())
        line = next(line for line in prepare_data.__doc__.splitlines() if line.split()[:1] == [domain])
        stated = [int(word) for word in line.split() if word.isdecimal() and int(word) > 99]
        assert [len(pd.read_csv(demo_data / domain / f"{split}.csv")) for split in SPLITS] == stated
        assert [marker[split] for split in SPLITS] == stated


def test_no_handwritten_sample_is_dealt_twice_and_none_is_left_over() -> None:
    labels = load_digits().target
    for seed in (0, 1):
        dealt = np.concatenate(list(split_digits(labels, seed).values()))
        assert sorted(dealt) == list(range(len(labels)))


def test_deal_depends_on_the_seed() -> None:
    labels = load_digits().target
    assert not np.array_equal(split_digits(labels, 0)["usps", "val"], split_digits(labels, 1)["usps", "val"])


def test_patches_of_train_and_val_come_from_regions_that_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PHOTO_BANDS["val"][1] <= PHOTO_BANDS["train"][0]
    photo = Image.new("RGB", (640, 427), "white")  # white where val cuts, black where train does
    photo.paste((0, 0, 0), (PHOTO_BANDS["train"][0], 0, *photo.size))
    monkeypatch.setattr(prepare_data, "load_photos", lambda: (photo,))
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert prepare_data.cut_patch(rng, "train").max() < 0.5 < prepare_data.cut_patch(rng, "val").min()


def test_no_image_occurs_twice_in_or_across_splits_and_domains(demo_data: Path) -> None:
    sets = {(d, s): digests(demo_data, d, s) for d in MAKERS for s in SPLITS}
    for hashes in sets.values():
        assert len(set(hashes)) == len(hashes)
    for a, b in combinations(sets.values(), 2):
        assert not set(a) & set(b)


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tiny: Path, tmp_path: Path) -> None:
    main(["demo", "--out", str(tmp_path / "again"), *TINY])
    main(["demo", "--out", str(tmp_path / "other"), *TINY, "--seed", "1"])
    first, again, other = (contents(root) for root in (tiny, tmp_path / "again", tmp_path / "other"))
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first if name.endswith(".png"))


def test_blend_is_the_absolute_difference_per_channel() -> None:
    b = np.array([[[0.2, 0.6, 1.0], [0.2, 0.6, 1.0], [0.2, 0.6, 1.0]]])
    x = np.array([[0.0, 1.0, 0.6]])  # paper, ink, the edge of a stroke
    np.testing.assert_array_equal(blend(b, x), [[[51, 153, 255], [204, 102, 0], [102, 0, 102]]])


def test_every_font_draws_ten_different_digits() -> None:
    for name in FONTS:
        font = load_font(name)
        masks = [font.getmask(str(digit)) for digit in range(10)]
        assert all(mask.getbbox() for mask in masks), name
        assert len({(mask.size, bytes(mask)) for mask in masks}) == 10, name


def test_scale_makes_fewer_and_keeps_every_class(tiny: Path) -> None:
    for domain in MAKERS:
        for split in SPLITS:
            labels = pd.read_csv(tiny / domain / f"{split}.csv").label
            assert set(labels) == set(range(10))
            assert len(labels) <= 80


def test_what_an_earlier_run_made_is_kept_and_what_is_missing_is_made(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(tiny)
    shutil.rmtree(tiny / "usps")
    times = {p: p.stat().st_mtime_ns for p in (tiny / "svhn").rglob("*")}
    capsys.readouterr()
    outcome = main(["demo", "--out", str(tiny), *TINY])
    assert contents(tiny) == before
    assert times == {p: p.stat().st_mtime_ns for p in (tiny / "svhn").rglob("*")}
    assert outcome["domains"]["svhn"] == {"train": 40, "val": 10}
    lines = capsys.readouterr().out.splitlines()
    assert [("already" in line, line.split(":")[0]) for line in lines[:3]] == [
        (True, "mnistm"),
        (False, "usps"),
        (True, "svhn"),
    ]
    assert f"python train.py --data_root {tiny} --train_mode dann --target_file usps" in lines[-1]


@pytest.mark.parametrize("damage", ["lost", "changed", "added"])
def test_a_domain_that_differs_from_what_was_made_is_refused(tiny: Path, damage: str) -> None:
    png = tiny / "svhn" / "data" / "00003.png"
    if damage == "lost":
        png.unlink()
    elif damage == "changed":
        png.write_bytes(b"")
    else:
        (tiny / "svhn" / "data" / "more.png").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"svhn is no longer what this command made.*delete that folder or name another"
    ):
        main(["demo", "--out", str(tiny), *TINY])


def test_a_domain_of_another_seed_or_scale_is_refused(tiny: Path) -> None:
    with pytest.raises(UserError, match="mnistm is there already, made with seed 0 and not 5; delete that folder"):
        main(["demo", "--out", str(tiny), *TINY, "--seed", "5"])
    with pytest.raises(UserError, match=r"made with scale 0\.02 and not 0\.03"):
        main(["demo", "--out", str(tiny), "--scale", "0.03"])


def test_a_folder_this_command_did_not_make_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "svhn").mkdir()
    (tmp_path / "svhn" / "train.csv").write_text("image_name,label\n")
    with pytest.raises(UserError, match="svhn is there already and is no demo domain"):
        main(["demo", "--out", str(tmp_path), *TINY])
    assert os.listdir(tmp_path) == ["svhn"]
    assert os.listdir(tmp_path / "svhn") == ["train.csv"]


@pytest.mark.parametrize("marker", ["", "[]", "{}", "null", '{"version": 1}'])
def test_a_marker_that_cannot_be_read_counts_as_none(tmp_path: Path, marker: str) -> None:
    (tmp_path / "usps").mkdir()
    (tmp_path / "usps" / MARKER).write_text(marker)
    with pytest.raises(UserError, match="usps is there already and is no demo domain"):
        main(["demo", "--out", str(tmp_path), *TINY])


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_run_leaves_no_half_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    def interrupted(*_: object) -> str:
        raise interruption

    with monkeypatch.context() as patch:
        patch.setattr(prepare_data, "digest", interrupted)  # the images are written, the domain is not complete
        with pytest.raises((KeyboardInterrupt, UserError)):
            main(["demo", "--out", str(tmp_path), *TINY])
    assert os.listdir(tmp_path) == []
    main(["demo", "--out", str(tmp_path), *TINY])
    assert sorted(os.listdir(tmp_path)) == sorted(MAKERS)


def test_an_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the demo into .*file.*File exists.*name another --out"):
        main(["demo", "--out", str(tmp_path / "file"), *TINY])


@pytest.mark.parametrize(
    "flags", [["--seed", "-1"], ["--seed", "x"], ["--scale", "0"], ["--scale", "1.5"], ["--scale", "nan"]]
)
def test_a_bad_flag_value_is_refused(tmp_path: Path, flags: list[str]) -> None:
    with pytest.raises(UserError, match=flags[0]):
        main(["demo", "--out", str(tmp_path), *flags])


def test_a_missing_command_or_out_is_refused() -> None:
    with pytest.raises(UserError):
        main([])
    with pytest.raises(UserError, match="--out"):
        main(["demo"])

"""The sample behind the README's tables: its rows and its split are the ones that were measured."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import real_digits
import sample_digits
from PIL import Image
from sample_digits import MNISTM, enlarged, photo_of_digit, read_released, sample_rows
from test_real_digits import raw  # noqa: F401 (a fixture)

import prepare_data
from utils import UserError

MEASURED = Path(prepare_data.__file__).parent / "data" / "digits"  # git-ignored: where it lies, it is compared
# Images of train and val, and sha256 of the rows of val (int64, little endian), taken from the data that was measured.
SPLITS = {
    "mnistm": (47_200, 11_801, "27dcd1413eb3a02fc9051dfbbfddcfbdd749aab393e3d006b9a99ce6102591c7"),
    "svhn": (762, 321, "c30d428874a8d6f580e0b2393e4769c17a46519e894e2d6a2e5c979dc291b78f"),
    "usps": (5_832, 1_459, "7d91a49e930b4378bb3f4aa54c99b04458285e24637ac875983cc2f7cbdb71a5"),
}


@pytest.mark.parametrize("domain", SPLITS)
def test_the_split_is_the_one_that_was_measured(domain: str) -> None:
    train, val, digest = SPLITS[domain]
    rows = sample_rows(domain, train + val)
    assert (len(rows["train"]), len(rows["val"])) == (train, val)
    assert hashlib.sha256(rows["val"].astype("<i8").tobytes()).hexdigest() == digest
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(train + val))


@pytest.mark.parametrize("domain", SPLITS)
def test_it_is_the_split_of_the_data_that_lies_here(domain: str) -> None:
    if not (MEASURED / domain / "val.csv").is_file():
        pytest.skip("the real digits are not here")
    for split, rows in sample_rows(domain, sum(SPLITS[domain][:2])).items():
        names = pd.read_csv(MEASURED / domain / f"{split}.csv").image_name
        assert [f"{row:05d}.png" for row in rows] == names.tolist()


def test_no_photograph_stands_on_both_sides() -> None:
    photo = photo_of_digit()
    rows = sample_rows("svhn", len(photo))
    assert not set(photo[rows["train"]]) & set(photo[rows["val"]])
    assert len(set(photo)) == 499


def released(path: Path, count: int) -> np.ndarray:
    """An archive in the form of the released MNIST-M; returns its images [count, 32, 32, 3]. Labels: row % 10."""
    images = np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    with tarfile.open(path, "w:gz") as archive:

        def add(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(f"mnist_m/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

        for i in reversed(range(count)):  # the order within the archive does not matter
            buffer = io.BytesIO()
            Image.fromarray(images[i]).save(buffer, "png")
            add(f"mnist_m_train/{i:08d}.png", buffer.getvalue())
            add(f"mnist_m_test/{i:08d}.png", buffer.getvalue())
        lines = "".join(f"{i:08d}.png {i % 10}\n" for i in reversed(range(count)))
        add("mnist_m_train_labels.txt", lines.encode())
        add("mnist_m_test_labels.txt", b"")
    return images


def test_the_released_mnistm_gives_the_middle_of_its_training_images_in_their_order(tmp_path: Path) -> None:
    images = released(tmp_path / MNISTM.name, 12)
    found, labels = read_released(tmp_path / MNISTM.name)
    assert np.array_equal(found, images[:, 2:30, 2:30])
    assert labels.tolist() == [i % 10 for i in range(12)]
    with tarfile.open(tmp_path / "empty.tar.gz", "w:gz"):
        pass
    with pytest.raises(UserError, match="lacks the training images of MNIST-M"):
        read_released(tmp_path / "empty.tar.gz")


def test_usps_is_enlarged_without_moving_it() -> None:
    image = np.zeros((1, 16, 16), np.uint8)
    image[0, 4:12, 4:12] = 200
    wide = enlarged(image)
    assert wide.shape == (1, 28, 28)
    assert np.array_equal(wide, wide[:, ::-1, ::-1])
    assert (wide[0, 9:19, 9:19] == 200).all()


def test_the_sample_is_made_from_its_archives_and_nothing_else_is_taken_for_it(
    raw: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    released(raw / MNISTM.name, 60)
    digest = hashlib.md5((raw / MNISTM.name).read_bytes()).hexdigest()
    monkeypatch.setattr(sample_digits, "MNISTM", real_digits.Archive(MNISTM.name, MNISTM.address, digest))
    monkeypatch.setattr(sample_digits, "PHOTO_DIGITS", "22222222223")
    for unneeded in ("usps.t.bz2", "test_32x32.mat", "t10k-images-idx3-ubyte.gz"):
        next(raw.rglob(unneeded)).unlink()
    flags = ["digits", "--out", str(tmp_path / "out"), "--raw", str(raw), "--sample"]
    with pytest.raises(UserError, match=r"the labels of mnistm are not those of the tables \(60 rows\)"):
        prepare_data.main(flags)
    assert not (tmp_path / "out" / "mnistm").exists()
    labels = {"mnistm": np.arange(60) % 10, "svhn": (np.arange(23) + 2) % 10, "usps": np.arange(30) % 10}
    digests = {name: sample_digits.sha256(row.astype(np.uint8)) for name, row in labels.items()}
    monkeypatch.setattr(sample_digits, "LABELS_SHA256", digests)
    made = prepare_data.main(flags)["domains"]
    assert made == {
        "mnistm": {"train": 48, "val": 12},
        "svhn": {"train": 15, "val": 8},  # 7 photographs of 11, one of them the one of three digits
        "usps": {"train": 24, "val": 6},
    }
    assert (
        "warning: usps: the rows, labels and split are those of the tables, but not every pixel"
        in capsys.readouterr().out
    )
    assert not (tmp_path / "out" / "usps" / "test.csv").exists()
    names = sorted(path.name for path in (tmp_path / "out" / "usps" / "data").iterdir())
    assert names == [f"{i:05d}.png" for i in range(30)]
    with pytest.raises(UserError, match="made with --sample and not seed 0"):
        prepare_data.main(flags[:-1] + ["--only", "usps"])
    with pytest.raises(UserError, match="--sample has a split of its own; leave out --seed"):
        prepare_data.main([*flags, "--seed", "3"])

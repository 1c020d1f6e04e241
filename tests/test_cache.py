"""The cache of decoded images: a second launch decodes nothing, and whatever becomes of a file, no pixel is wrong."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ended, quick_run, same_tensors, write_domain
from PIL import Image

import cache
import dataset
import train
from cache import Cache, Stored
from dataset import Batches, Domain, read_domain, read_image, read_images
from latent import read_validation
from listing import list_split
from runs import build_network, load_checkpoint
from utils import UserError

COUNT = 100


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A domain d of COUNT images without labels, each another."""
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        file = tmp_path / "root" / "d" / f"{i:03d}.bmp"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    return tmp_path / "root"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cached"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The images that are decoded from here on."""
    opened: list[Path] = []

    def counting(path: Path, *how: Any) -> np.ndarray | str:
        opened.append(path)
        return read_image(path, *how)

    monkeypatch.setattr(dataset, "read_image", counting)
    return opened


@pytest.fixture(params=["held in memory", "left on the disk"])
def most(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the domain is one that is held whole."""
    monkeypatch.setattr(dataset, "WHOLE", 1 << 30 if request.param == "held in memory" else 0)
    return str(request.param)


def read(root: Path, folder: Path | None) -> Domain:
    listing = list_split(root, "d", "train", with_labels=False)
    assert listing is not None
    return read_domain(listing, None, 8, 2, cache=Cache(folder))


def right(domain: Domain, root: Path) -> bool:
    """Whether the pixels are those of the files as they are now."""
    return torch.equal(domain.images[:], read_images([root / "d" / name for name in domain.names], 8)[0])


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_a_second_launch_decodes_nothing_and_trains_to_the_weights_of_a_run_without_a_cache(
    small_data: Path, tmp_path: Path, most: str, decoded: list[Path], no_figures: None
) -> None:
    counts, weights = [], []
    for given in ("none", tmp_path / "cached", tmp_path / "cached"):
        run = quick_run(small_data, tmp_path / "runs", "dann", "usps", "--cache", str(given))
        counts.append(len(decoded))
        weights.append(load_checkpoint(Path(run["folder"]) / "last.pt")["model"])
    assert counts == [120, 240, 240]
    assert same_tensors(weights[0], weights[1])
    assert same_tensors(weights[0], weights[2])


def test_rows_of_a_file_are_those_of_the_memory(root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = read(root, None)
    monkeypatch.setattr(dataset, "WHOLE", 0)
    on_disk = read(root, folder)
    assert isinstance(on_disk.images, Stored)
    assert len(on_disk) == COUNT
    assert torch.equal(on_disk.images[torch.tensor([7, 0, 7])], in_memory.images[torch.tensor([7, 0, 7])])
    assert torch.equal(on_disk.images[90:200], in_memory.images[90:200])
    assert torch.equal(on_disk.some(9).images[:], in_memory.some(9).images[:])
    a, b = (Batches(each, 32, 0, 0, torch.device("cpu")) for each in (on_disk, in_memory))
    assert all(torch.equal(a(step)[0], b(step)[0]) for step in (0, 1, 9, 4))
    assert a(0)[0].is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(np.load(only_file(folder)), in_memory.images[:].numpy())  # a file that NumPy reads


def test_threads_that_read_one_file_at_a_time_each_get_their_rows(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = read(root, None)
    monkeypatch.setattr(dataset, "WHOLE", 0)
    on_disk = read(root, folder)
    rows = [torch.randint(0, COUNT, (50,), generator=torch.Generator().manual_seed(i)) for i in range(100)]
    with dataset.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda which: on_disk.images[which], rows))
    assert all(torch.equal(images, in_memory.images[which]) for images, which in zip(found, rows, strict=True))


def test_batches_for_a_gpu_are_read_ahead_and_the_same(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU: the thread that reads ahead, and what it is asked for."""
    wanted = Batches(read(root, None), 32, 0, 0, torch.device("cpu"))
    monkeypatch.setattr(dataset, "WHOLE", 0)
    batches = Batches(read(root, folder), 32, 0, 0, torch.device("cpu"))
    batches.reader = dataset.ThreadPoolExecutor(1)
    for step in (0, 1, 2, 9, 3, 4):
        assert torch.equal(batches(step)[0], wanted(step)[0])
        assert list(batches.ahead) == [step + 1]


def test_a_large_domain_without_a_cache_is_not_copied_to_the_device_as_a_whole(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain, device = read(root, None), torch.device("meta")
    for most, place in ((domain.images.nbytes, "meta"), (32 * 8 * 8 * 3, "cpu")):
        monkeypatch.setattr(dataset, "WHOLE", most)
        batches = Batches(domain, 32, 0, 0, device)
        assert isinstance(batches.inputs, torch.Tensor)
        assert batches.inputs.device.type == place
    for step in range(7):
        x, _ = batches(step)
        assert (x.device, x.shape) == (device, (32, 3, 8, 8))


def test_the_test_split_and_the_latent_space_decode_nothing_that_is_in_the_cache(
    tmp_path: Path, decoded: list[Path], no_figures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cached"))
    for seed, domain in enumerate(("mnistm", "usps")):
        write_domain(tmp_path / "data" / domain, {"train": 40, "val": 20, "test": 20}, seed)
    flags = ("dann", "usps", "--eval_split", "test", "--cache", str(tmp_path / "cached" / "dann-digits"))
    for count in (140, 0):
        run = quick_run(tmp_path / "data", tmp_path / "runs", *flags)
        assert (len(decoded), run["images"]["target_test"]) == (count, 20)
        decoded.clear()
    net, classes = build_network(tmp_path, load_checkpoint(Path(run["folder"]) / "last.pt"), torch.device("cpu"))
    for domain in ("mnistm", "usps"):
        assert len(read_validation(tmp_path / "data", domain, classes, net)[0]) == 20
    assert decoded == []
    shutil.rmtree(tmp_path / "cached")
    read_validation(tmp_path / "data", "usps", classes, net)
    assert (len(decoded), (tmp_path / "cached").exists()) == (20, False)


# What happens to the images


def same_time(file: Path, act: Callable[[Path], object]) -> None:
    """Change a file and set its old time, as unpacking an archive may."""
    before = file.stat()
    act(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size


def redraw(file: Path) -> None:
    """Another image of the same size, into the same file."""
    with Image.open(file) as image:
        other = Image.fromarray(255 - np.asarray(image))
    other.save(file)


CHANGES: dict[str, Callable[[Path], object]] = {
    "changed": lambda d: redraw(d / "005.bmp"),
    "changed, its time set back": lambda d: same_time(d / "005.bmp", redraw),
    "another of the same time in its place": lambda d: same_time(
        d / "005.bmp", lambda file: (shutil.copy2(d / "006.bmp", d / "x"), (d / "x").replace(file))
    ),
    "two swapped": lambda d: (
        [(d / a).rename(d / b) for a, b in (("1", "x"), ("2", "1"), ("x", "2")) if (d / a).exists()]
        or [(d / f"{a}.bmp").rename(d / f"{b}.bmp") for a, b in (("001", "x"), ("002", "001"), ("x", "002"))]
    ),
    "added": lambda d: shutil.copy2(d / "005.bmp", d / "005b.bmp"),
    "removed": lambda d: (d / "005.bmp").unlink(),
    "renamed": lambda d: (d / "005.bmp").rename(d / "zzz.bmp"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_images_that_were_changed_added_or_removed_are_noticed_and_the_old_file_goes(
    kind: str, root: Path, folder: Path, most: str
) -> None:
    assert right(read(root, folder), root)
    before = only_file(folder)
    CHANGES[kind](root / "d")
    assert right(read(root, folder), root)
    assert only_file(folder) != before


def test_each_size_and_each_domain_has_a_file_of_its_own(root: Path, folder: Path) -> None:
    shutil.copytree(root / "d", root / "e")
    for domain, size in (("d", 8), ("d", 9), ("e", 8), ("e", 8)):
        listing = list_split(root, domain, "train", with_labels=False)
        assert listing is not None
        assert read_domain(listing, None, size, 1, cache=Cache(folder)).images[:].shape[1] == size
    assert len(list(folder.iterdir())) == 3


def test_a_file_that_no_run_has_used_for_long_goes_when_another_is_written(root: Path, folder: Path) -> None:
    shutil.copytree(root / "d", root / "e")

    def launched(size: int, domain: str = "d") -> set[Path]:
        """What it wrote."""
        listing = list_split(root, domain, "train", with_labels=False)
        assert listing is not None
        there = set(folder.glob("*"))
        read_domain(listing, None, size, 1, cache=Cache(folder))
        return set(folder.glob("*")) - there

    unused, used = launched(8), launched(9)
    (folder / "embeddings.npy").touch()
    foreign = {folder / "embeddings.npy"}
    for file in unused | used | foreign:
        os.utime(file, (0, 0))
    assert not launched(9)  # it is read, and so used
    assert launched(8, "e") | used | foreign == set(folder.iterdir())


# What happens to the file


def flip(at: float) -> Callable[[Path], None]:
    """Another value of the byte at a place 0..1 of the file."""

    def act(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[min(int(at * len(content)), len(content) - 1)] ^= 16
        file.write_bytes(content)

    return act


def header(old: bytes, new: bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(file.read_bytes().replace(old, new, 1))


DAMAGES: dict[str, Callable[[Path], object]] = {
    **{f"a bit at {at}": flip(at) for at in (0.0, 0.001, 0.003, 0.01, 0.3, 0.5, 0.9, 0.96, 0.97, 0.98, 1.0)},
    "cut in the pixels": lambda file: os.truncate(file, 9000),
    "cut in the header": lambda file: os.truncate(file, 30),
    "cut at the end": lambda file: os.truncate(file, file.stat().st_size - 1),
    "cut and filled with zeros": lambda file: file.write_bytes(
        file.read_bytes()[:9000].ljust(file.stat().st_size, b"\0")
    ),
    "empty": lambda file: os.truncate(file, 0),
    "a text": lambda file: file.write_text("no array"),
    "another shape": header(b"(100, 8, 8, 3)", b"(100, 8, 3, 8)"),
    "more images": header(b"(100, 8, 8, 3), }", b"(999999, 8, 8, 3)}"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_from_a_damaged_file_no_wrong_pixel_comes(kind: str, root: Path, folder: Path, most: str) -> None:
    """Decoded anew, or refused when the damage is met, and then decoded anew."""
    read(root, folder)
    DAMAGES[kind](only_file(folder))
    if most == "left on the disk":
        with contextlib.suppress(UserError):
            assert right(read(root, folder), root)
    assert right(read(root, folder), root)


def test_a_file_that_is_damaged_while_it_is_read_ends_the_run_and_the_next_one_goes_on(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "WHOLE", 0)
    for damage in (flip(0.5), DAMAGES["cut in the pixels"]):
        domain, file = read(root, folder), only_file(folder)
        damage(file)
        with pytest.raises(UserError, match=file.name):
            domain.images[:]
        assert right(read(root, folder), root)


def test_a_file_that_is_removed_or_replaced_while_it_is_read_stays_readable(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "WHOLE", 0)
    domain, before = read(root, folder), read(root, None)
    redraw(root / "d" / "005.bmp")
    assert right(read(root, folder), root)  # the old file is gone
    shutil.rmtree(folder)
    assert torch.equal(domain.images[:], before.images[:])


# What happens while it is written


def forked(act: Callable[[], object]) -> None:
    """Let a process of its own act and end."""
    child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def test_a_process_killed_while_writing_leaves_nothing_that_is_read_and_its_part_is_removed(
    root: Path, folder: Path, most: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(path: Path, *how: Any) -> np.ndarray | str:
        return os._exit(9) if path.name == "090.bmp" else read_image(path, *how)

    def killed() -> None:
        monkeypatch.setattr(dataset, "read_image", dying)
        read(root, folder)

    forked(killed)
    part = only_file(folder)
    assert part.name.startswith(".")
    assert right(read(root, folder), root)
    assert part.exists()  # it may be that of a run which is writing now
    os.utime(part, (0, 0))
    redraw(root / "d" / "005.bmp")
    assert right(read(root, folder), root)
    assert not only_file(folder).name.startswith(".")


def test_two_runs_at_once_both_read_what_is_right(root: Path, folder: Path, most: str) -> None:
    found: list[Domain] = []
    runs = [threading.Thread(target=lambda: found.append(read(root, folder))) for _ in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [right(domain, root) for domain in found] == [True] * 4
    assert right(read(root, folder), root)
    only_file(folder)


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("kind", ["little room", "full at the end", "a file", "read-only"])
def test_without_room_for_the_cache_the_run_goes_on_and_says_so(
    kind: str, unprivileged: Path, most: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = unprivileged / "cached"
    if kind == "little room":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    if kind == "full at the end":
        monkeypatch.setattr(np.lib.format, "write_array", full)
    if kind == "a file":
        folder.write_text("x")
    if kind == "read-only":
        folder.mkdir(mode=0o500)
    write_domain(unprivileged / "d", {"train": 9})
    listing = list_split(unprivileged, "d", "train", with_labels=False)
    assert listing is not None
    domain = read_domain(listing, None, 28, 1, cache=Cache(folder))
    assert torch.equal(domain.images[:], read_images(listing.paths, 28)[0])
    assert str(folder) in capfd.readouterr().err
    assert folder.is_file() or not list(folder.iterdir())


def test_an_image_that_is_unreadable_is_refused_by_name_and_leaves_no_file(root: Path, folder: Path, most: str) -> None:
    (root / "d" / "050.bmp").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"050\.bmp"):
        read(root, folder)
    assert not list(folder.iterdir())


# Where it is, and what it costs


def test_it_stands_in_the_users_cache_folder_and_in_none_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.user_folder() == Path("/somewhere/dann-digits")
    for given in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        monkeypatch.setenv("HOME", "/home/me")
        assert cache.user_folder() == Path("/home/me/.cache/dann-digits")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert cache.user_folder() is None


def test_a_run_says_once_where_the_images_are_kept_and_how_large_they_are(
    root: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = Cache(folder)
    kept.bytes_written = 123_000_000
    kept.tell()
    kept.tell()
    (line,) = capfd.readouterr().err.splitlines()
    assert "123 MB" in line
    assert str(folder) in line
    assert "--cache none" in line


PEAK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch, dataset
from cache import Cache
from listing import list_split

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

before, dataset.WHOLE = peak(), 0
for launch in range(2):
    listing = list_split(Path(sys.argv[2]), "d", "train", False)
    domain = dataset.read_domain(listing, None, 224, 1, cache=Cache(Path(sys.argv[3])))
    batches = dataset.Batches(domain, 16, 0, 0, torch.device("cpu"))
    drawn = sum(batches(step)[0].sum() for step in range(len(domain) // 16))
    predicted = sum(domain.images[i : i + 16].sum() for i in range(0, len(domain), 16))
print(domain.images.nbytes >> 20, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of a process's peak memory")
def test_a_domain_is_decoded_drawn_and_predicted_in_a_part_of_the_memory_that_it_takes(
    root: Path, folder: Path
) -> None:
    for i in range(1400):
        (root / "d" / f"x{i}.bmp").symlink_to(f"{i % COUNT:03d}.bmp")
    arguments = [str(Path(dataset.__file__).parent), str(root), str(folder)]
    done = subprocess.run([sys.executable, "-c", PEAK, *arguments], check=True, capture_output=True, text=True)
    megabytes, held = map(int, done.stdout.split())
    assert megabytes > 200
    assert held < megabytes / 2


def test_a_cache_that_is_deleted_is_made_again(small_data: Path, tmp_path: Path, no_figures: None) -> None:
    flags = ["--data_root", small_data, "--train_mode", "source", "--max_steps", 2, "-bs", 8, "--device", "cpu"]
    for _ in range(2):
        assert ended(train, *flags, "--save_dir", tmp_path / "runs", "--cache", tmp_path / "cached")[0] == 0
        assert len(list((tmp_path / "cached").iterdir())) == 2
        shutil.rmtree(tmp_path / "cached")

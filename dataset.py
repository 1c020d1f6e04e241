"""Listed images -> decoded once -> uint8 [N, H, W, 3], in memory or in the cache -> batches.

A batch, permuted, is channels_last at no cost.
"""

import contextlib
import inspect
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from backbones import Preprocessing
from cache import NO_CACHE, Cache, Stored, facts_of, file_name
from listing import Listing, NearNames, encode_labels, formats, quiet_pillow
from utils import ALONE, Progress, Ranks, UserError, memory_of_machine, note

MAX_PIXELS = 200_000_000  # a larger image is taken for a decompression bomb
LARGE_PIXELS = 4_000_000  # images above it are decoded one at a time: a few threads with one each would fill the memory
one_large_image = threading.Lock()
CHUNK = 64  # images that a thread decodes at a time
WHOLE = 512 << 20  # bytes of images up to which a domain is held in memory and, whole, on the device


@dataclass
class Domain:
    """One split: images uint8 [N, H, W, 3], in memory or in the cache, labels int64 [N] or None, names [N].

    checksums: uint32 [N] of the images, where they were read from a disk. features: float [N, C] of a frozen backbone,
    which then train and predict in place of the images. kept: the name of the images in the cache.
    """

    images: Tensor | Stored
    labels: Tensor | None
    names: list[str]
    checksums: np.ndarray | None = None
    features: Tensor | None = None
    kept: str | None = None

    @property
    def inputs(self) -> Tensor | Stored:
        """What the network takes of each image: its features, or itself."""
        return self.images if self.features is None else self.features

    def __len__(self) -> int:
        return len(self.images)

    def some(self, limit: int) -> "Domain":
        """At most `limit` of the images, drawn as some_rows does."""
        rows = some_rows(len(self), limit)
        labels, features = (None if each is None else each[rows] for each in (self.labels, self.features))
        return Domain(self.images[rows], labels, [self.names[i] for i in rows], features=features)


def some_rows(count: int, limit: int, seed: int = 0) -> list[int]:
    """Rows of `limit` images at most of `count`, in their order, drawn at random: any rule may follow the classes."""
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return sorted(drawn[:limit].tolist())


# Reading images


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB: transparency over white, EXIF rotation undone.

    Of more than 8 bits, white is the largest value of the least depth that holds the image (8, 10, 12, 14 or 16 bits,
    else its own maximum); of floats up to 1 it is 1, and black is -1 where one is below 0. What would be blank over
    white, white strokes on a transparent ground, is laid over black. A damaged EXIF counts as none.
    """
    if "exif" in image.info:
        with contextlib.suppress(Exception):
            image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        wide = np.asarray(image, dtype=np.float32)
        if not np.isfinite(wide).all():
            raise ValueError("pixels that are no numbers")
        black, white = 0, next((2**bits - 1 for bits in (8, 10, 12, 14, 16) if wide.max() < 2**bits), wide.max())
        if image.mode == "F" and wide.max() <= 1:
            black, white = -1 if wide.min() < 0 else 0, 1
        image = Image.fromarray(((wide - black) / (white - black) * 255).clip(0, 255).round().astype(np.uint8))
    elif "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), layer).convert("RGB")
        if contrast(image) < 32:
            dark = Image.alpha_composite(Image.new("RGBA", image.size, "black"), layer).convert("RGB")
            image = max(image, dark, key=contrast)
    return image if image.mode == "RGB" else image.convert("RGB")


def contrast(image: Image.Image) -> int:
    """The widest range of values in a channel."""
    return max(high - low for low, high in image.getextrema())  # type: ignore[misc]


def square(image: Image.Image, size: int, wanted: Preprocessing | None) -> Image.Image:
    """An image of any shape as a square of that side: all of it, or its middle as pretrained weights have it wanted."""
    if wanted is None:
        return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR)
    side = wanted.crop * min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling[wanted.interpolation.upper()], box)


def read_image(path: Path, size: int, wanted: Preprocessing | None = None) -> np.ndarray | str:
    """One image as uint8 [size, size, 3], made a square as in `square`; or in words why it is unreadable."""
    try:
        if not os.path.isfile(path) and os.path.exists(path):
            return "no regular file"  # to open a pipe would wait for ever
        with Image.open(path, formats=formats()) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                return f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,}; make it smaller"
            if pixels > LARGE_PIXELS:  # a JPEG is decoded at a reduced scale, still larger than what is wanted
                image.draft(None, (4 * size, 4 * size))
            with one_large_image if pixels > LARGE_PIXELS else contextlib.nullcontext():
                return np.asarray(square(to_rgb(image), size, wanted))
    except FileNotFoundError:
        return "no such file"
    except PermissionError:
        return "no permission to read it"
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        if isinstance(error, OSError) and error.errno:  # the file, not its content
            return f"not readable ({error.strerror})"
        if path.suffix.lower() in (".heic", ".heif"):
            return "an image that needs the package pillow-heif; pip install pillow-heif"
        return f"not a readable image ({type(error).__name__})"


# Another version of this code may give other pixels; read now, as the program may have fewer rights later.
DECODER = "".join(inspect.getsource(part) for part in (to_rgb, contrast, square, read_image)).encode()


def decode(
    paths: Sequence[Path], size: int, unreadable: dict[int, str], workers: int, label: str, wanted: Preprocessing | None
) -> Iterator[np.ndarray]:
    """Decode images, each once, on `workers` threads (0: one per core); yields uint8 [n, size, size, 3] in their order.

    unreadable: gets, by index, why an image could not be read; its pixels are then 0. `label` names the progress bar;
    without one there is none. A few chunks are in memory at a time.
    """

    def read_chunk(start: int) -> np.ndarray:
        pixels = np.zeros((min(CHUNK, len(paths) - start), size, size, 3), np.uint8)
        for i in range(len(pixels)):
            image = read_image(paths[start + i], size, wanted)
            if isinstance(image, str):
                unreadable[start + i] = image
            else:
                pixels[i] = image
        return pixels

    threads, starts = workers or os.cpu_count() or 1, iter(range(0, len(paths), CHUNK))
    progress = Progress(len(paths), label, "images")
    with quiet_pillow(), ThreadPoolExecutor(threads) as pool:
        coming = deque(pool.submit(read_chunk, start) for start in islice(starts, 2 * threads))
        while coming:
            pixels = coming.popleft().result()
            coming.extend(pool.submit(read_chunk, start) for start in islice(starts, 1))
            progress.update(len(pixels))
            yield pixels
    progress.close()


def in_memory(chunks: Iterable[np.ndarray], count: int, size: int) -> Tensor:
    """Chunks of images as one tensor uint8 [count, size, size, 3]; UserError for more than the machine's memory."""
    needed, there = 3 * count * size * size, memory_of_machine()
    if there and needed > 0.9 * there:
        raise UserError(
            f"{count:,} images of {size}x{size} take {needed / 1e9:,.1f} GB of memory, and this machine has "
            f"{there / 1e9:,.1f} GB; use a smaller --size, fewer images, or a --cache on a disk with room for them."
        )
    images, done = torch.empty(count, size, size, 3, dtype=torch.uint8), 0
    for pixels in chunks:
        images[done : done + len(pixels)] = torch.from_numpy(pixels)
        done += len(pixels)
    return images


def read_images(
    paths: Sequence[Path], size: int, workers: int = 0, wanted: Preprocessing | None = None
) -> tuple[Tensor, dict[int, str]]:
    """Images as decode reads them, uint8 [N, size, size, 3], and by index why one could not be read."""
    unreadable: dict[int, str] = {}
    images = in_memory(decode(paths, size, unreadable, workers, "", wanted), len(paths), size)
    return images, dict(sorted(unreadable.items()))


def decode_all(
    listing: Listing, size: int, workers: int, label: str, wanted: Preprocessing | None
) -> Iterator[np.ndarray]:
    """Images of a listing in chunks, as decode yields them; UserError for an absent or, at the end, unreadable one."""
    # absent images are told before an hour is spent on reading the others
    refuse_unreadable(listing, {i: "no such file" for i, path in enumerate(listing.paths) if not os.path.lexists(path)})
    unreadable: dict[int, str] = {}
    yield from decode(listing.paths, size, unreadable, workers, label, wanted)
    refuse_unreadable(listing, dict(sorted(unreadable.items())))


def refuse_unreadable(listing: Listing, unreadable: dict[int, str]) -> None:
    """UserError that names the first row and the count of the images that are absent or unreadable, if any is.

    Training on part of a set unawares is worse than no training.
    """
    if not unreadable:
        return
    i, why = next(iter(unreadable.items()))
    place = f"{listing.where(i)}: {listing.paths[i]}" if listing.rows else str(listing.paths[i])
    more = f" ({len(unreadable)} such images in all)" if len(unreadable) > 1 else ""
    remedy = "restore the image or remove the row" if listing.rows else "restore or remove the image"
    absent = listing.rows and not os.path.lexists(listing.paths[i])
    meant = NearNames(listing.origin).like(listing.names[i]) if absent else ""
    raise UserError(f"{place}: {why}{more}{'' if ';' in why else f'; {remedy}'}{meant or '.'}")


def read_domain(
    listing: Listing,
    classes: list[str] | None,
    size: int,
    workers: int,
    label: str = "",
    cache: Cache = NO_CACHE,
    wanted: Preprocessing | None = None,
) -> Domain:
    """Read a listing, from the cache or from its files; labels are encoded where `classes` is given.

    Up to WHOLE bytes of images are held in memory, more stay in the cache. Raises UserError naming the row when a
    listed image is absent or unreadable.
    """
    labels = encode_labels(listing, classes) if classes else None
    shape = (len(listing.paths), size, size, 3)
    kind = "labelled folders" if listing.rows is None and listing.labels else ""  # which go in an order of their own
    kind += repr(wanted) if wanted else ""
    name = file_name(listing.origin, kind, listing.paths, size, DECODER) if cache.folder else None
    read = partial(decode_all, listing, size, workers, label, wanted)
    found = cache.find_or_write(name, shape, WHOLE, read)
    if found is None:
        name, decoded = None, in_memory(read(), len(listing.paths), size)
        found = decoded, facts_of(decoded.numpy())
    images, facts = found
    tell_one_colour(facts["plain"], listing.names, str(listing.origin))
    return Domain(images, labels, listing.names, facts["checksum"], kept=name)


def tell_one_colour(plain: np.ndarray, names: Sequence[str], origin: str) -> None:
    """Say how many images are of one colour, by bool [N]: they were empty, or are after what was done to them."""
    if plain.any():
        first = names[int(plain.argmax())]
        note(f"{origin}: {plain.sum()} of {len(plain)} images are of one colour, such as {first}.")


# Batches


class Batches:
    """Endless shuffled batches of a domain; the batch of a step is a pure function of (seed, step).

    Each pass over the domain is a fresh permutation and a batch may span two passes, so that every image is drawn
    exactly once a pass and no batch is ever short. With `balance` the images of a pass are drawn one by one, by chance
    and all classes alike. `stream` keeps two domains of one run apart; of several
    processes each gets its share of the batch, every world-th row. Up to WHOLE bytes are copied to the device whole; of
    more, and of what stays in the cache, each batch is, for a GPU from pinned memory and read while the step before is
    computed.
    """

    def __init__(
        self,
        domain: Domain,
        batch_size: int,
        seed: int,
        stream: int,
        device: torch.device,
        ranks: Ranks = ALONE,
        balance: bool = False,
    ) -> None:
        self.weights = None  # of the images to be drawn, float [N]
        if balance and domain.labels is not None:
            self.weights = 1 / domain.labels.bincount()[domain.labels]
        inputs = domain.inputs
        self.whole = not isinstance(inputs, Stored) and inputs.nbytes <= WHOLE
        self.inputs = inputs.to(device) if isinstance(inputs, Tensor) and self.whole else inputs
        self.labels = domain.labels.to(device) if domain.labels is not None else None
        self.batch_size, self.seed, self.stream, self.device = batch_size, seed, stream, device
        self.ranks = ranks
        self.passes: dict[int, Tensor] = {}
        self.reader = None if self.whole or device.type == "cpu" else ThreadPoolExecutor(1)
        self.ahead: dict[int, Future[Tensor]] = {}

    def permutation(self, number: int) -> Tensor:
        """Order of pass `number`: int64 [N]."""
        if number not in self.passes:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number * 16 + self.stream) % 2**63)
            self.passes = {k: v for k, v in self.passes.items() if k >= number - 1}
            if self.weights is None:
                order = torch.randperm(len(self.inputs), generator=generator)
            else:
                order = torch.multinomial(self.weights, len(self.inputs), replacement=True, generator=generator)
            self.passes[number] = order.to(self.device) if self.whole else order
        return self.passes[number]

    def indices(self, step: int) -> Tensor:
        """Row numbers of the batch of `step`: int64 [B]."""
        position, parts, missing = step * self.batch_size, [], self.batch_size
        while missing:
            number, offset = divmod(position, len(self.inputs))
            parts.append(self.permutation(number)[offset : offset + missing])
            position += len(parts[-1])
            missing -= len(parts[-1])
        return torch.cat(parts)

    def share(self, step: int) -> Tensor:
        """Those of this process: int64 [B / world]."""
        return self.indices(step)[self.ranks.rank :: self.ranks.world]

    def __call__(self, step: int) -> tuple[Tensor, Any]:
        """Images uint8 [B / world, 3, H, W] (channels_last), or features, and labels int64 or None, of `step`."""
        inputs = self.ahead.pop(step).result() if step in self.ahead else None
        if self.reader:
            self.ahead = {step + 1: self.reader.submit(self.read, self.share(step + 1))}
        return self.take(self.share(step), inputs)

    def read(self, rows: Tensor) -> Tensor:
        """Images uint8 [B, H, W, 3], or features, of those rows where they lie, of the cache in memory."""
        inputs: Tensor = self.inputs[rows if self.whole else rows.cpu()]
        return inputs.pin_memory() if self.reader and self.device.type == "cuda" else inputs

    def take(self, rows: Tensor, inputs: Tensor | None = None) -> tuple[Tensor, Any]:
        """The batch of those rows, int64 [B]; inputs: they have been read already."""
        inputs = self.read(rows) if inputs is None else inputs
        labels = self.labels[rows.to(self.labels.device)] if self.labels is not None else None
        return as_input(inputs.to(self.device, non_blocking=True)), labels


def as_input(rows: Tensor) -> Tensor:
    """Images [B, H, W, 3] -> [B, 3, H, W], in channels_last; features [B, C] as they are."""
    return rows.permute(0, 3, 1, 2) if rows.ndim == 4 else rows

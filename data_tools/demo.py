"""The offline demo: three small domains, made of what scikit-learn and matplotlib carry.

1,797 handwritten 8x8 digits, two photographs and fonts become mnistm (handwritten digits in photo patches), usps (other
handwritten digits, plain) and svhn (rendered street numbers). No handwritten sample stands in two splits or in two
domains, and the patches of val come from another region of the photographs than those of train.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from utils import UserError

SPLITS = ("train", "val")
SIDE = 28  # pixels of a finished image
OVERSAMPLE = 4  # drawn this much larger, then averaged down, so that edges are soft as in a scan
MARKER = "demo.json"
VERSION = 1  # raise when the same seed would no longer give the same images

# Handwritten samples per class. load_digits has 174 to 183 of each; usps train takes what the others leave.
SAMPLES_PER_CLASS = {("mnistm", "train"): 64, ("mnistm", "val"): 16, ("usps", "val"): 30}
# Pictures made of one sample: another patch, another small affine change.
VARIANTS = {"train": 7, "val": 5}
RENDERED_PER_CLASS = {"train": 200, "val": 50}
# Columns of the 640-pixel-wide photographs that each split may cut patches from.
PHOTO_BANDS = {"train": (208, 640), "val": (0, 208)}

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmr10",
    "cmb10",
    "cmss10",
    "cmtt10",
)
FONT_SIZE = 96

Floats = npt.NDArray[np.floating]
Pixels = npt.NDArray[np.uint8]
Example = tuple[Pixels, int]  # image [28, 28] or [28, 28, 3], label


# ------------------------------------------------------------------------------------------------ what it is made of


def split_digits(labels: npt.NDArray[np.int64], seed: int) -> dict[tuple[str, str], npt.NDArray[np.int64]]:
    """Deal the samples of load_digits to (domain, split), class by class; no index is dealt twice."""
    rng = np.random.default_rng([seed, 0])
    dealt: dict[tuple[str, str], list[int]] = {(d, s): [] for d in ("mnistm", "usps") for s in SPLITS}
    for label in range(10):
        indices = rng.permutation(np.flatnonzero(labels == label)).tolist()
        for key, n in SAMPLES_PER_CLASS.items():
            dealt[key] += indices[:n]
            indices = indices[n:]
        dealt["usps", "train"] += indices
    return {key: np.array(indices, dtype=np.int64) for key, indices in dealt.items()}


@lru_cache(maxsize=1)
def load_photos() -> tuple[Image.Image, ...]:
    """The two photographs that scikit-learn carries, 640x427 RGB."""
    from sklearn.datasets import load_sample_images

    return tuple(Image.fromarray(photo) for photo in load_sample_images().images)


def cut_patch(rng: np.random.Generator, split: str) -> Floats:
    """A random 28x28 patch, [28, 28, 3] in 0..1, from the columns of a photograph that belong to `split`.

    Scale, flips, turns, contrast and the order of the channels vary, because two photographs hold few textures and
    colours, and those mostly very bright or very dark.
    """
    photos = load_photos()
    photo = photos[rng.integers(len(photos))]
    left, right = PHOTO_BANDS[split]
    side = int(rng.integers(SIDE, 4 * SIDE))
    x, y = int(rng.integers(left, right - side + 1)), int(rng.integers(0, photo.height - side + 1))
    patch = photo.resize((SIDE, SIDE), Image.Resampling.BOX, (x, y, x + side, y + side))
    pixels = np.rot90(np.asarray(patch, dtype=np.float32) / 255, int(rng.integers(4)))
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    return 0.5 + rng.uniform(0.4, 1) * (pixels[:, :, rng.permutation(3)] - 0.5)


# ------------------------------------------------------------------------------------------------ handwritten digits


def enlarge(digit: npt.NDArray[np.float64]) -> Floats:
    """[8, 8] ink counts in 0..16 -> smooth [96, 96] in about 0..1, with an empty margin of 16 pixels."""
    padded = np.pad(digit / 16, 3).astype(np.float32)  # [14, 14]
    nearby = sum(padded[i : i + 12, j : j + 12] for i in range(3) for j in range(3)) / 9
    # 8x8 pixels run thick strokes together: what stands out from its surroundings counts more, and holes open again.
    crisp = padded[1:-1, 1:-1] * 1.9 - nearby * 0.9  # [12, 12]
    return np.asarray(Image.fromarray(crisp).resize((96, 96), Image.Resampling.BICUBIC))


def ink_box(ink: Floats) -> tuple[float, float, float, float]:
    """Centre x, centre y, width and height of what is darker than half."""
    rows, columns = np.flatnonzero((ink > 0.5).any(1)), np.flatnonzero((ink > 0.5).any(0))
    x0, x1, y0, y1 = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    return (x0 + x1) / 2, (y0 + y1) / 2, float(x1 - x0), float(y1 - y0)


def is_bar(ink: Floats) -> bool:
    """Whether the ink is one solid stroke: it fills its box and no row of it is interrupted."""
    _, _, w, h = ink_box(ink)
    edges = np.diff(ink > 0.5, axis=1).sum(1)  # [96], 2 in a row that holds one run of ink
    return bool((ink > 0.5).sum() > 0.62 * w * h and edges.max() == 2)


def warp(
    image: Image.Image,
    centre: tuple[float, float],
    zoom: tuple[float, float],
    angle: float = 0.0,
    shear: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> Image.Image:
    """Put `centre` of an image into the middle of a 112x112 canvas, zoomed by (x, y), sheared, turned and shifted.

    `angle` in radians, `shear` in x per y, `shift` in pixels of the canvas.
    """
    c, s = math.cos(angle), math.sin(angle)
    forward = np.array([[c, -s], [s, c]]) @ np.array([[1, shear], [0, 1]]) @ np.diag(zoom)
    back = np.linalg.inv(forward)  # PIL asks where each pixel of the result comes from
    middle = SIDE * OVERSAMPLE / 2 + np.array(shift)
    offset = np.array(centre) - back @ middle
    data = (back[0, 0], back[0, 1], offset[0], back[1, 0], back[1, 1], offset[1])
    size = (SIDE * OVERSAMPLE, SIDE * OVERSAMPLE)
    return image.transform(size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)


def sharpen(ink: Image.Image, threshold: float, softness: float, side: int) -> Floats:
    """Turn blurred ink into strokes with a soft edge, [side, side] in 0..1; a lower threshold makes them thicker."""
    strokes = 1 / (1 + np.exp((threshold - np.asarray(ink, dtype=np.float32)) / softness))
    return np.asarray(Image.fromarray(strokes).resize((side, side), Image.Resampling.BOX))


def mnist_like(digit: npt.NDArray[np.float64], rng: np.random.Generator) -> Floats:
    """A handwritten 8x8 digit as MNIST shows it: [28, 28] in 0..1, crisp strokes in the middle 20x20."""
    ink = enlarge(digit)
    x, y, w, h = ink_box(ink)
    zoom = 20 * OVERSAMPLE / max(w, h) * rng.uniform(0.9, 1.08)
    warped = warp(
        Image.fromarray(ink),
        (x, y),
        (zoom * rng.uniform(0.9, 1.1), zoom),
        angle=rng.uniform(-0.15, 0.15),
        shear=rng.uniform(-0.25, 0.1),
        shift=tuple(rng.uniform(-6, 6, 2)),
    )
    strokes = sharpen(warped, rng.uniform(0.35, 0.5), 0.04, SIDE)
    return (1.5 * strokes - 0.25).clip(0, 1)  # most pixels of MNIST are all ink or all paper


def usps_like(digit: npt.NDArray[np.float64], rng: np.random.Generator) -> Floats:
    """A handwritten 8x8 digit as USPS shows it: [28, 28] in 0..1, 16x16 pixels that it fills, enlarged."""
    ink = enlarge(digit)
    x, y, w, h = ink_box(ink)
    full = (SIDE - 1) * OVERSAMPLE
    zoom = full / h
    widen = min(rng.uniform(0.85, 1.4), full / (zoom * w))
    if is_bar(ink):  # a one without serifs, wide only because 8x8 pixels are coarse
        widen = rng.uniform(4, 8) * OVERSAMPLE / (zoom * w)
    warped = warp(Image.fromarray(ink), (x, y), (zoom * widen, zoom), shear=rng.uniform(-0.1, 0.05))
    small = 1.12 * sharpen(warped, rng.uniform(0.37, 0.54), 0.12, 16) - 0.06  # [16, 16], paper black again
    return np.asarray(Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).clip(0, 1)


def blend(b: Floats, x: Floats) -> Pixels:
    """|b - x| per channel, the blend that makes MNIST-M of MNIST (Ganin et al. 2016, section 5.2.4).

    `b` [28, 28, 3] the photo patch and `x` [28, 28] the digit, both in 0..1; the result is uint8 [28, 28, 3].
    """
    return to_pixels(np.abs(b - x[:, :, None]))


def to_pixels(image: Floats) -> Pixels:
    """0..1 -> uint8 0..255, rounded."""
    return (image * 255).round().clip(0, 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------- street numbers


@lru_cache(maxsize=len(FONTS))
def load_font(name: str) -> ImageFont.FreeTypeFont:
    """One of the fonts that matplotlib carries, by file name without .ttf; raises UserError where it is missing."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    if not path.is_file():
        raise UserError(f"{path} is missing; `pip install --force-reinstall matplotlib` brings the font back.")
    return ImageFont.truetype(str(path), FONT_SIZE)


def draw_number(label: int, rng: np.random.Generator) -> Image.Image:
    """The ink of `label` in the middle of a 112x112 canvas (mode L), other digits beside it cut by the border."""
    font = load_font(FONTS[rng.integers(len(FONTS))])
    canvas = Image.new("L", (4 * FONT_SIZE, 2 * FONT_SIZE))
    draw = ImageDraw.Draw(canvas)
    stroke = int(rng.integers(0, 4))
    left, top, right, bottom = font.getbbox(str(label), anchor="ls", stroke_width=stroke)
    x, y = canvas.width / 2 - (left + right) / 2, canvas.height / 2 - (top + bottom) / 2
    draw.text((x, y), str(label), 255, font, anchor="ls", stroke_width=stroke)
    gap = rng.uniform(0.04, 0.2) * FONT_SIZE
    for direction in (-1, 1):
        if rng.random() < 0.4:
            continue
        text = str(rng.integers(10))
        beside = font.getbbox(text, anchor="ls", stroke_width=stroke)
        at = x + right + gap - beside[0] if direction > 0 else x + left - gap - beside[2]
        draw.text((at, y), text, 255, font, anchor="ls", stroke_width=stroke)
    zoom = rng.uniform(0.6, 0.9) * SIDE * OVERSAMPLE / (bottom - top)
    return warp(
        canvas,
        (canvas.width / 2, canvas.height / 2),
        (zoom * rng.uniform(0.75, 1.1), zoom),
        angle=rng.uniform(-0.12, 0.12),
        shear=rng.uniform(-0.25, 0.15),
        shift=tuple(rng.uniform(-5, 5, 2)),
    )


def svhn_like(label: int, rng: np.random.Generator, split: str) -> Pixels:
    """A rendered street number, uint8 [28, 28, 3]: muted colours, blurred, noisy, often pale."""
    ink = np.asarray(draw_number(label, rng).resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32) / 255
    wall = cut_patch(rng, split)
    texture = rng.uniform(0.1, 0.5) * (wall - wall.mean((0, 1)))
    contrast = rng.uniform(0.18, 0.55)
    dark = rng.uniform(0.06, 0.94 - contrast)
    paper, paint = rng.permutation([dark, dark + contrast])  # either polarity
    tint = rng.normal(0, 0.07, (2, 3)) - [[0.03, 0, -0.03]]  # street photographs lean to blue
    image = (paper + tint[0] + texture) * (1 - ink[:, :, None]) + (paint + tint[1]) * ink[:, :, None]
    blurred = Image.fromarray(to_pixels(image)).filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.1)))
    noise = rng.normal(0, rng.uniform(0.005, 0.025), (SIDE, SIDE, 3))
    return to_pixels(np.asarray(blurred, dtype=np.float32) / 255 + noise)


# ------------------------------------------------------------------------------------------------------- the domains


def handwritten(domain: str, split: str, seed: int, scale: float) -> Iterator[tuple[npt.NDArray[np.float64], int]]:
    """The 8x8 samples and labels dealt to a domain's split, at a smaller scale the first few of each class."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    indices = split_digits(digits.target, seed)[domain, split]
    for label in range(10):
        of_class = indices[digits.target[indices] == label]
        for index in of_class[: scaled(len(of_class), scale)]:
            yield digits.images[index], label


def scaled(n: int, scale: float) -> int:
    """n times scale, at least 1, so that every class occurs in every split."""
    return max(1, round(n * scale))


def make_mnistm(split: str, seed: int, scale: float, rng: np.random.Generator) -> Iterator[Example]:
    for digit, label in handwritten("mnistm", split, seed, scale):
        for _ in range(VARIANTS[split]):
            yield blend(cut_patch(rng, split), mnist_like(digit, rng)), label


def make_usps(split: str, seed: int, scale: float, rng: np.random.Generator) -> Iterator[Example]:
    for digit, label in handwritten("usps", split, seed, scale):
        yield to_pixels(usps_like(digit, rng)), label


def make_svhn(split: str, seed: int, scale: float, rng: np.random.Generator) -> Iterator[Example]:
    for label in range(10):
        for _ in range(scaled(RENDERED_PER_CLASS[split], scale)):
            yield svhn_like(label, rng, split), label


MAKERS: dict[str, Callable[[str, int, float, np.random.Generator], Iterator[Example]]] = {
    "mnistm": make_mnistm,
    "usps": make_usps,
    "svhn": make_svhn,
}


# ----------------------------------------------------------------------------------------------------------- writing


def write_split(folder: Path, split: str, examples: list[Example], first: int) -> int:
    """Write examples as data/<number>.png, numbered from `first`, and <split>.csv; returns how many."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    names = [f"{first + i:05d}.png" for i in range(len(examples))]
    for name, (pixels, _) in zip(names, examples, strict=True):
        Image.fromarray(pixels).save(folder / "data" / name)
    table = pd.DataFrame({"image_name": names, "label": [label for _, label in examples]})
    table.to_csv(folder / f"{split}.csv", index=False, lineterminator="\n")
    return len(examples)


def digest(folder: Path) -> str:
    """sha256 over the names and bytes of a domain's files, the marker left out."""
    sha = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MARKER):
        content = path.read_bytes()
        sha.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode())
        sha.update(content)
    return sha.hexdigest()


def build_domain(out: Path, domain: str, settings: dict) -> dict:
    """Make out/<domain>, whole or not at all; returns its counts."""
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=out) as unfinished:
        folder = Path(unfinished) / domain
        counts: dict[str, int] = {}
        for number, split in enumerate(SPLITS):
            rng = np.random.default_rng([settings["seed"], 1 + list(MAKERS).index(domain), number])
            examples = list(MAKERS[domain](split, settings["seed"], settings["scale"], rng))
            shuffled = [examples[i] for i in rng.permutation(len(examples))]
            counts[split] = write_split(folder, split, shuffled, first=sum(counts.values()))
        marker = {**settings, **counts, "sha256": digest(folder)}
        (folder / MARKER).write_text(json.dumps(marker, indent=1) + "\n")
        folder.rename(out / domain)
    return counts


def standing(folder: Path, settings: dict) -> dict | None:
    """Counts of a domain that an earlier run made with these settings, None where there is none.

    Raises UserError where the folder holds anything else.
    """
    if not folder.exists():
        return None
    remedy = "delete that folder or name another --out."
    try:
        marker = json.loads((folder / MARKER).read_text())
        found = {key: marker[key] for key in (*settings, *SPLITS, "sha256")}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder} is there already and is no demo domain of this program; {remedy}") from None
    for key, value in settings.items():
        if found[key] != value:
            raise UserError(f"{folder} is there already, made with {key} {found[key]} and not {value}; {remedy}")
    if digest(folder) != found["sha256"]:
        raise UserError(f"{folder} is no longer what this command made: files were changed, added or lost; {remedy}")
    return {split: found[split] for split in SPLITS}

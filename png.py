"""Plain PNGs, many at a time: the pixels that Pillow reads one by one, in about half the time.

Plain: 8 bits, grey or RGB, of the wanted size, not interlaced, chunks IHDR, IDAT and IEND alone, every length and
checksum right. Anything else is left to Pillow: palettes, tRNS, EXIF and any other chunk, another size, all damage.
Each file is inflated by itself; the filters of the rows are undone by Pillow's decoder, of many images in one call.
"""

import os
import stat
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CHANNELS = {"L": 1, "RGB": 3}
MODES = {0: "L", 2: "RGB"}  # by PNG's colour type
END = b"\0\0\0\0IEND\xae\x42\x60\x82"
FILTERS = bytes(range(5))
LONGEST = 1 << 16  # bytes of a file
FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # to open a pipe would wait for ever


def headers(size: int) -> dict[bytes, str]:
    """First bytes of a plain PNG of size x size, up to its pixels -> Pillow's mode, L or RGB."""
    found = {}
    for colour, mode in MODES.items():
        header = b"IHDR" + size.to_bytes(4, "big") * 2 + bytes([8, colour, 0, 0, 0])
        found[b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + zlib.crc32(header).to_bytes(4, "big")] = mode
    return found


def read_rows(path: Path, size: int, modes: dict[bytes, str]) -> tuple[str, bytes] | None:
    """Mode and filtered rows of a plain PNG of size x size; None for anything else, never an error.

    modes: headers(size). Each of the `size` rows is the number of its filter, 0 to 4, and its bytes: for `unfilter`.
    """
    try:
        descriptor = os.open(path, FLAGS)
        try:
            content = os.read(descriptor, LONGEST) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
        finally:
            os.close(descriptor)
        mode = modes.get(content[:33])
        if mode is None:
            return None
        at, packed = 33, b""
        while content[at + 4 : at + 8] == b"IDAT":
            end = at + 8 + int.from_bytes(content[at : at + 4], "big")
            if zlib.crc32(content[at + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
                return None
            packed += content[at + 8 : end]
            at = end + 4
        if content[at : at + 12] != END:
            return None
        width = 1 + size * CHANNELS[mode]
        inflater = zlib.decompressobj()
        rows = inflater.decompress(packed, size * width + 1)
        whole = len(rows) == size * width and inflater.eof and not inflater.unused_data
        return (mode, rows) if whole and not rows[::width].strip(FILTERS) else None
    except Exception:  # nothing that a file holds may end the program
        return None


def unfilter(mode: str, images: Sequence[bytes], size: int) -> np.ndarray:
    """Pixels uint8 [N, size, size, 3] of N images of one mode, from their filtered rows.

    Pillow decodes them as one tall image: after each stands an unfiltered row of zeros, which is what the filters of a
    first row take for the row above.
    """
    between = bytes(1 + size * CHANNELS[mode])
    tall = zlib.compress(between.join([*images, b""]), 0)  # level 0 only wraps it
    decoded = Image.frombytes(mode, (size, len(images) * (size + 1)), tall, "zip", mode, 0)
    pixels = np.asarray(decoded if mode == "RGB" else decoded.convert("RGB"))
    return pixels.reshape(len(images), size + 1, size, 3)[:, :size]

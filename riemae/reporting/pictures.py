"""Images in a page: tiles of one sheet, as a PNG without losses."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from torch import Tensor

_BUDGET = 2**21  # numbers in all tiles of one sheet


def as_base64(values: np.ndarray, dtype: str) -> str:
    """Little-endian numbers as text."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode("ascii")


def tiles_within_budget(pixels: int, most: int) -> int:
    """How many tiles of so many numbers one sheet has room for."""
    return min(most, _BUDGET // pixels)


@dataclass(frozen=True)
class Sheet:
    """Tiles side by side in one picture.

    Attributes:
        source: The picture as a data URI.
        columns: Tiles per row.
        count: Tiles in all.
        width: Of a tile, in pixels.
        height: Of a tile, in pixels.
    """

    source: str
    columns: int
    count: int
    width: int
    height: int

    @classmethod
    def of(
        cls, tiles: Tensor, low: float, high: float, columns: int | None = None
    ) -> Sheet:  # (k, channels, height, width)
        """The sheet of grey or coloured tiles, with black at ``low`` and white at ``high``.

        What is not a number is black.
        """
        k, channels, height, width = tiles.shape
        columns = columns or math.ceil(math.sqrt(k * height / width))
        rows = math.ceil(k / columns)
        scaled = (tiles.double().cpu().numpy() - low) / max(high - low, 1e-300)
        bytes_ = (np.clip(np.nan_to_num(scaled), 0, 1) * 255).round().astype(np.uint8)
        canvas = np.zeros((rows * columns, channels, height, width), dtype=np.uint8)
        canvas[:k] = bytes_
        canvas = canvas.reshape(rows, columns, channels, height, width)
        sheet = canvas.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
        data = base64.b64encode(png(sheet)).decode("ascii")
        return cls(f"data:image/png;base64,{data}", columns, k, width, height)

    def to_dict(self) -> dict[str, object]:
        """For the page."""
        return {
            "source": self.source,
            "columns": self.columns,
            "count": self.count,
            "width": self.width,
            "height": self.height,
        }


def png(pixels: np.ndarray) -> bytes:  # (height, width, 1 or 3) of uint8
    """A PNG file of grey or RGB pixels (ISO/IEC 15948), every row as it is."""
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), dtype=np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    kind = {1: 0, 3: 2}[channels]
    head = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", head),
            _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)),
            _chunk(b"IEND", b""),
        ]
    )


def _chunk(name: bytes, content: bytes) -> bytes:
    check = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)


def grey_levels(values: Tensor) -> tuple[float, float]:
    """Black and white of images: 0 and 1, 0 and 255, or what covers nearly all values."""
    finite = values[values.isfinite()]
    if not finite.numel():
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    slack = 0.25
    if low >= -slack and high <= 1 + slack and high > 0.3:
        return 0.0, 1.0
    if low >= -255 * slack and 2 < high <= 255 * (1 + slack) and high > 64:
        return 0.0, 255.0
    return low, high if high > low else low + 1

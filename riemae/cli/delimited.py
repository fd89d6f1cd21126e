"""Tables in text files: csv and its relatives, read in pieces, column by column."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from riemae.exceptions import DataError, FileError

# What stands for a missing number; R, pandas and spreadsheets write these.
MISSING = frozenset(
    ("", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NAN", "null", "NULL", "None", "-", "?", ".")
)
_PIECE = 20_000  # rows at once
_DELIMITERS = ",;\t|"
_SWAPPED = str.maketrans(",.", ".,")
_POINTED = {cell: cell for cell in MISSING if "." in cell}


@dataclass
class Column:
    """One column of a table.

    Attributes:
        name: In the header.
        numbers: ``(n,)`` float64; NaN where a cell is missing or not a number.
        bad: The first cell that is not a number: its row, counted from 1, and its text.
        text: The cells as they stand, where they are kept.
    """

    name: str
    numbers: np.ndarray
    bad: tuple[int, str] | None = None
    text: list[str] | None = None


@dataclass
class _Growing:
    name: str
    parts: list[np.ndarray] = field(default_factory=list)
    bad: tuple[int, str] | None = None
    text: list[str] | None = None

    def take(self, cells: Sequence[str], first: int, decimal: str) -> None:
        if self.text is not None:
            self.text.extend(cells)
        numbers, bad = as_numbers(cells, decimal)
        self.parts.append(numbers)
        if bad is not None and self.bad is None:
            self.bad = first + bad, cells[bad]

    def whole(self) -> Column:
        numbers = np.concatenate(self.parts) if self.parts else np.empty(0)
        return Column(self.name, numbers, self.bad, self.text)


def read_delimited(
    path: Path, keep: Collection[str], decimal: str | None = None, usual: str | None = None
) -> tuple[list[Column], bool]:
    """The columns of a text table.

    The delimiter of a file that does not end in ``.tsv`` is the most frequent of comma, semicolon,
    tabulator and bar in its first line. A first line of numbers is data, and the columns are then
    named ``x1, x2, …``.

    Args:
        path: The file; one that ends in ``.gz`` is unpacked.
        keep: Columns whose text is kept.
        decimal: What divides whole numbers from fractions, a point or a comma.
        usual: The same where the user does not say it, of files whose delimiter is no comma.

    Returns:
        The columns, and whether the file has named them.

    Raises:
        FileError: When the file is not text, or empty.
        DataError: When a row has more or fewer cells than the others.
    """
    try:
        with _opened(path) as stream:
            return _columns(path, stream, keep, decimal, usual)
    except UnicodeDecodeError as reason:
        got = f"a byte 0x{reason.object[reason.start]:02x}, which is none"
        hint = "Save it again in UTF-8: spreadsheets call that 'CSV UTF-8'."
        raise FileError(path.name, "text in UTF-8", got, hint) from reason
    except (csv.Error, gzip.BadGzipFile, EOFError) as reason:
        hint = "Save it as csv again."
        raise FileError(path.name, "a table of text", str(reason), hint) from reason


def as_numbers(cells: Sequence[str], decimal: str = ".") -> tuple[np.ndarray, int | None]:
    """Cells as numbers, NaN where there is none; and the place of the first that is no number.

    With a decimal comma, a cell with a point is no number: it may divide thousands.
    """
    if decimal != ".":
        cells = [_POINTED.get(cell.strip(), cell.translate(_SWAPPED)) for cell in cells]
    try:
        return np.array(cells, dtype=float), None
    except ValueError:
        pass
    numbers = np.full(len(cells), np.nan)
    bad = None
    for i, cell in enumerate(cells):
        try:
            numbers[i] = float(cell)
        except ValueError:
            if bad is None and cell.strip() not in MISSING:
                bad = i
    return numbers, bad


def _opened(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _columns(
    path: Path,
    stream: IO[str],
    keep: Collection[str],
    decimal: str | None,
    usual: str | None,
) -> tuple[list[Column], bool]:
    start = stream.readline()
    if not start.strip():
        raise FileError(
            path.name, "a table with a first line", "an empty file", "Is it the right one?"
        )
    rest = _chained(start, stream)
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    delimiter = "\t" if suffix.lower() == ".tsv" else _delimiter(start, decimal)
    point = decimal or (usual if delimiter != "," else None) or "."
    lines: Iterator[list[str]] = csv.reader(rest, delimiter=delimiter, skipinitialspace=True)
    head = next(lines)
    numbers, bad = as_numbers(head, point)
    named = bad is not None or bool(np.isnan(numbers).any())
    names = [name.strip() for name in head] if named else [f"x{i + 1}" for i in range(len(head))]
    columns = []
    for i, name in enumerate(names):
        unnamed = i == 0 and not name  # the names of the rows
        columns.append(_Growing(name, text=[] if name in keep or unnamed else None))
    done = 0
    if not named:
        lines = _after(head, lines)
    while piece := [row for row in islice(lines, _PIECE) if row]:
        for i, row in enumerate(piece):
            if len(row) != len(names):
                got = f"{len(row)} in row {done + i + 1}"
                hint = "Is a delimiter missing, or a cell with one not quoted?"
                raise DataError(path.name, f"{len(names)} cells in every row", got, hint)
        for column, cells in zip(columns, zip(*piece, strict=True), strict=True):
            column.take(cells, done + 1, point)
        done += len(piece)
    return [column.whole() for column in columns], named


def _delimiter(line: str, decimal: str | None) -> str:
    """The most frequent delimiter; a decimal comma is one only where there is no other."""
    others = _DELIMITERS.replace(",", "")
    known = others if decimal == "," and any(sign in line for sign in others) else _DELIMITERS
    return max(known, key=line.count)


def _chained(start: str, stream: IO[str]) -> Iterator[str]:
    yield start
    yield from stream


def _after(row: list[str], lines: Iterator[list[str]]) -> Iterator[list[str]]:
    yield row
    yield from lines

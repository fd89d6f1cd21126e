"""Rows of numbers with what belongs to them, and which rows and columns of the data they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from riemae.cli.delimited import Column
from riemae.cli.options import Reading, suggestion
from riemae.exceptions import DataError, FileError, NonFiniteError, OptionError

_NAMED = 3  # how many columns an error names


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of numbers, with what belongs to them.

    Attributes:
        name: Where they come from.
        values: ``(n, *shape)``, finite.
        columns: Names of the columns of ``(n, D)``, or None.
        labels: One for each row, or None.
        label_name: What the labels are called.
        rows: The names of the rows, or their numbers as text.
        index_name: What the names of the rows are called; None when they are numbers.
        dropped: How many rows were left out because cells were missing.
        kept: Which rows of the data these are, ``(rows,)`` bool; None for all.
        pixels: The shape of an image, where a flat row is one.
    """

    name: str
    values: np.ndarray
    columns: tuple[str, ...] | None
    labels: list[str] | None
    label_name: str
    rows: list[str]
    index_name: str | None
    dropped: int = 0
    kept: np.ndarray | None = None
    pixels: tuple[int, ...] | None = None

    @property
    def picture(self) -> tuple[int, ...] | None:
        """The shape of the image that a row is, ``(channels, height, width)``; or None."""
        shape = self.values.shape[1:]
        if len(shape) == 3 and shape[0] in (1, 3):
            return shape
        return self.pixels

    def __len__(self) -> int:
        return len(self.values)

    def described(self) -> dict[str, object]:
        """What ``--json`` says of it."""
        return {
            "data": self.name,
            "rows": len(self),
            "shape": list(self.values.shape[1:]),
            "dropped": self.dropped,
        }


@dataclass(eq=False)
class Source:
    """Data that were found, before columns are chosen.

    Attributes:
        name: For errors: the file's name.
        columns: Of a table, each by itself; or None for an array.
        array: ``(n, *shape)``; or None for a table.
        names: Of the columns, or None when the data have no names.
        rows: The names of the rows, or None.
        labels: One for each row, where the data bring them.
        find: Labels by a name in the data; None where the data have no names for them.
        findable: The names that ``find`` knows.
        pixels: The shape of an image, where a flat row is one.
    """

    name: str
    columns: list[Column] | None = None
    array: np.ndarray | None = None
    names: tuple[str, ...] | None = None
    rows: list[str] | None = None
    labels: list[str] | None = None
    find: Callable[[str], list[str]] | None = None
    findable: tuple[str, ...] = ()
    pixels: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.columns[0].numbers if self.columns is not None else self._array)

    @property
    def _array(self) -> np.ndarray:
        assert self.array is not None
        return self.array

    def table(self, reading: Reading, wanted: Sequence[str] | None = None) -> Table:
        """The rows and columns that are asked for.

        Args:
            reading: The user's choices.
            wanted: The columns to take, in this order; by default what the user has chosen.

        Raises:
            OptionError: When a column is not there.
            DataError: When nothing is left, or cells are missing or are not numbers.
            NonFiniteError: For infinite numbers.
        """
        labels, label_name = self._labels(reading)
        rows, index_name = self._rows(reading)
        chosen = self._chosen(reading, wanted)
        values = self._values(chosen)
        values, kept = self._complete(values, chosen, reading)
        if not np.isfinite(values).all():
            place = np.argwhere(~np.isfinite(values))[0]
            hint = "Replace infinite numbers first."
            raise NonFiniteError(
                self.name, "finite numbers", f"an infinite one in row {place[0] + 1}", hint
            )
        if not values.size:
            raise self._of_nothing(reading, chosen, int((~kept).sum()))
        picked = np.flatnonzero(kept)
        names = rows if rows is not None else [str(i) for i in range(len(kept))]
        return Table(
            name=self.name,
            values=values,
            columns=None if chosen is None else tuple(chosen),
            labels=None if labels is None else [labels[i] for i in picked],
            label_name=label_name,
            rows=[names[i] for i in picked],
            index_name=index_name,
            dropped=int((~kept).sum()),
            kept=kept,
            pixels=self.pixels,
        )

    def _labels(self, reading: Reading) -> tuple[list[str] | None, str]:
        given = reading.choice("labels", [*(self.names or ()), *self.findable])
        if given is None:
            return self.labels, "label"
        if self.columns is not None and given in (self.names or ()):
            return self._text(given), given
        if self.find is not None and given in self.findable:
            return self._fitting(self.find(given), given), given
        if Path(given).is_file():
            return self._fitting(_lines(Path(given)), given), "label"
        known = self.findable if self.columns is None else self.names or ()
        hint = suggestion(given, known)
        raise OptionError(self.name, "a column for --labels", repr(given), hint)

    def _fitting(self, labels: list[str], name: str) -> list[str]:
        if len(labels) != len(self):
            hint = "Give one label for each row."
            raise DataError(self.name, f"{len(self)} labels", f"{len(labels)} in {name!r}", hint)
        return labels

    def _rows(self, reading: Reading) -> tuple[list[str] | None, str | None]:
        given = reading.choice("index", self.names or ())
        if given is None:
            if self._has_index:
                return self._text(""), "index"
            return self.rows, None if self.rows is None else "index"
        if self.columns is None or given not in (self.names or ()):
            hint = suggestion(given, self.names or ())
            raise OptionError(self.name, "a column for --index", repr(given), hint)
        return self._text(given), given

    @property
    def _has_index(self) -> bool:
        """Whether the first column has no name, as pandas and R write the names of rows."""
        return self.columns is not None and bool(self.names) and not self.columns[0].name

    def _text(self, name: str) -> list[str]:
        assert self.columns is not None
        column = next(c for c in self.columns if c.name == name)
        return column.text if column.text is not None else [f"{x:g}" for x in column.numbers]

    def _chosen(self, reading: Reading, wanted: Sequence[str] | None) -> list[str] | None:
        """Names of the columns to take; None for an array without names.

        Raises:
            OptionError: When one is not there.
        """
        if self.names is None:
            if reading.columns or reading.exclude:
                hint = "Leave --columns and --exclude out."
                raise OptionError(self.name, "columns with names", "data without", hint)
            return None if self.columns is None else [c.name for c in self.columns]
        asked = [*(reading.columns if wanted is None else wanted), *reading.exclude]
        known = set(self.names)
        unknown = [name for name in asked if name not in known]
        if unknown:
            role = "a column" if wanted is None else "a column of the model"
            more = f", and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            hint = suggestion(unknown[0], self.names)
            expected = f"{role} called {unknown[0]!r}{more}"
            raise OptionError(self.name, expected, "none", hint)
        if wanted is not None:
            return list(wanted)
        if reading.columns:
            return list(reading.columns)
        away = {*reading.named, *reading.exclude}
        if self._has_index:
            away.add("")
        return [name for name in self.names if name not in away]

    def _values(self, chosen: list[str] | None) -> np.ndarray:
        if self.columns is None:
            if chosen is None or chosen == list(self.names or ()):
                return self._array
            place = {name: i for i, name in enumerate(self.names or ())}
            return self._array[:, [place[name] for name in chosen]]
        by_name: dict[str, Column] = {}
        for column in self.columns:
            if column.name in by_name and column.name in (chosen or ()):
                hint = "Rename one of them, or leave it out with --exclude."
                raise DataError(
                    self.name, "columns of different names", f"{column.name!r} twice", hint
                )
            by_name.setdefault(column.name, column)
        found = [by_name[name] for name in chosen or ()]
        words = [column for column in found if column.bad is not None]
        if words:
            raise self._of_words(words)
        return np.stack([c.numbers for c in found], 1) if found else np.empty((len(self), 0))

    def _of_nothing(self, reading: Reading, chosen: list[str] | None, dropped: int) -> DataError:
        """The error of a table in which nothing is left."""
        expected = "at least one row and one column"
        if dropped:
            got = f"{dropped} rows, all of which have missing cells"
            hint = "Leave out the columns that are hardly filled, with --exclude."
        elif not len(self):
            got, hint = "no rows", "Is it the right file?"
        else:
            got = "no columns"
            away = ", ".join(sorted(map(repr, {*reading.named, *reading.exclude})))
            hint = f"All are labels, names of rows or left out: {away}." if away else ""
        return DataError(self.name, expected, got, hint)

    def _of_words(self, columns: Sequence[Column]) -> DataError:
        """The error of columns that hold no numbers."""
        first = columns[0]
        assert first.bad is not None
        row, text = first.bad
        name = _quoted(first.name)
        if other := _other_decimal(text):
            hint = f"If that is a fraction, say --decimal {other}; if it divides thousands, "
            expected = f"numbers in the column {first.name!r}"
            got = f"{text!r} in row {row}"
            return DataError(self.name, expected, got, hint + "write the number without it.")
        everyone = _quoted(",".join(column.name for column in columns))
        hint = (
            f"If it holds labels or names, say --labels {name} or --index {name}; to leave "
            f"{'it' if len(columns) == 1 else 'all such columns'} out, --exclude {everyone}."
        )
        expected = f"numbers in the column {first.name!r}"
        return DataError(self.name, expected, f"{text!r} in row {row}", hint)

    def _complete(
        self, values: np.ndarray, chosen: list[str] | None, reading: Reading
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows without missing cells, and which rows they are.

        Raises:
            NonFiniteError: When cells are missing and the user has not said what to do.
        """
        missing = np.isnan(values)
        broken = missing.any(axis=tuple(range(1, missing.ndim)))
        if not broken.any():
            return values, ~broken
        if reading.drop_missing:
            return values[~broken], ~broken
        where = ""
        names: list[str] = []
        if chosen is not None:
            names = [name for name, bad in zip(chosen, missing.any(0), strict=True) if bad]
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            where = f", in {', '.join(map(repr, names[:_NAMED]))}{more}"
        cells = int(missing.sum())
        got = f"{cells} missing (NaN) in {int(broken.sum())} of {len(values)} rows{where}"
        hint = "Leave these rows out with --drop-missing, or fill the cells in first."
        if broken.all():
            away = _quoted(",".join(names[:_NAMED]))
            hint = f"No row is complete: leave columns out with --exclude {away}."
            hint = hint if names else "No row is complete: fill the cells in first."
        raise NonFiniteError(self.name, "a number in every cell", got, hint)


def _other_decimal(text: str) -> str:
    """The comma or point that makes a cell no number; empty where it is something else."""
    for sign in ",.":
        if re.fullmatch(rf"[+-]?\d*\{sign}\d+([eE][+-]?\d+)?", text.strip()):
            return sign
    return ""


def _quoted(name: str) -> str:
    return f"'{name}'" if " " in name or not name else name


def _lines(path: Path) -> list[str]:
    """Labels in a file: one in a line, or an array of them.

    Raises:
        FileError: When it holds something else.
    """
    try:
        if path.suffix.lower() == ".npy":
            return [str(label) for label in np.load(path, allow_pickle=False).reshape(-1)]
        return path.read_text("utf-8").splitlines()
    except (ValueError, EOFError) as reason:
        raise FileError(
            path.name, "labels as text", str(reason), "Write one in a line."
        ) from reason

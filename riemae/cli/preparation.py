"""What was done to data before a model saw them, kept next to the model.

A folder that ``riemae train`` has written holds ``preparation.json``: the names of the columns, and
the numbers of the standardisation. A model that is used again gets data prepared in the same way.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from riemae.cli.options import Reading
from riemae.cli.output import write_json
from riemae.cli.tables import Table
from riemae.exceptions import CheckpointError

FILE = "preparation.json"
_CHECKPOINT = "checkpoint.json"
_NAMES = ("labels", "index", "key", "layer", "decimal")
_FORMAT = "riemae preparation"
_AGAIN = "Train the model again, or take the whole folder from where it was trained."


@dataclass(frozen=True)
class Preparation:
    """How rows of data become rows for a model: ``(x − center) / scale``.

    Attributes:
        columns: Names of the columns, in the order of the model; or None for data without names.
        shape: Of one row.
        center: Flat, one number for each entry of a row; or None without standardisation.
        scale: The same.
        labels: The column of labels, as the user of the training has named it, or None.
        index: The column of the names of rows, or None.
        key: The array of an npz file, or None.
        layer: The layer of an h5ad file, or None.
        decimal: Of numbers in a text table, where the user has said it, or None.
    """

    columns: tuple[str, ...] | None
    shape: tuple[int, ...]
    center: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    labels: str | None = None
    index: str | None = None
    key: str | None = None
    layer: str | None = None
    decimal: str | None = None

    @property
    def reading(self) -> Reading:
        """How the data of the training were read."""
        return Reading(**{name: getattr(self, name) for name in _NAMES})

    @classmethod
    def of(cls, table: Table, standardize: bool, reading: Reading) -> Preparation:
        """The preparation of the data of a training.

        Columns that do not vary keep their units.

        Args:
            table: The data.
            standardize: Whether every column gets mean 0 and variance 1.
            reading: How the data were read.
        """
        shape = table.values.shape[1:]
        names = {name: getattr(reading, name) for name in _NAMES}
        if not standardize:
            return cls(table.columns, shape, **names)
        flat = table.values.reshape(len(table), -1).astype(float)
        center = flat.mean(0)
        scale = flat.std(0)
        constant = scale <= 1e-12 * np.maximum(np.abs(center), 1e-300)
        scale[constant] = 1.0
        return cls(table.columns, shape, tuple(center.tolist()), tuple(scale.tolist()), **names)

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Rows for the model.

        Args:
            values: ``(n, *shape)`` in the units of the data.
        """
        if self.center is None or self.scale is None:
            return values
        center = np.asarray(self.center).reshape(self.shape)
        scale = np.asarray(self.scale).reshape(self.shape)
        return (values - center) / scale

    def undo(self, values: np.ndarray) -> np.ndarray:
        """Rows in the units of the data.

        Args:
            values: ``(n, *shape)`` as the model returns them.
        """
        if self.center is None or self.scale is None:
            return values
        center = np.asarray(self.center).reshape(self.shape)
        scale = np.asarray(self.scale).reshape(self.shape)
        return values * scale + center

    def save(self, folder: Path) -> Path:
        """Write it next to the model that it belongs to.

        Args:
            folder: Of the model, which is there already.
        """
        return write_json(
            folder / FILE, {"format": _FORMAT, "model": _digest(folder), **asdict(self)}
        )

    @classmethod
    def load(cls, folder: Path) -> Preparation | None:
        """What lies next to a model; None for a model that was trained in Python.

        Args:
            folder: Of the model.

        Raises:
            CheckpointError: When it cannot be read, or belongs to another model.
        """
        path = folder / FILE
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_bytes())
            kind = found["format"]
            columns = found["columns"]
            preparation = cls(
                columns=None if columns is None else tuple(map(str, columns)),
                shape=tuple(map(int, found["shape"])),
                center=_numbers(found["center"]),
                scale=_numbers(found["scale"]),
                **{name: _text(found.get(name)) for name in _NAMES},
            )
            model = found["model"]
        except (ValueError, LookupError, TypeError, RecursionError) as reason:
            got = f"{type(reason).__name__}: {reason}"
            raise CheckpointError(str(path), "the preparation of data", got, _AGAIN) from reason
        if kind != _FORMAT:
            raise CheckpointError(str(path), f"the format {_FORMAT!r}", repr(kind), _AGAIN)
        if model != _digest(folder):
            expected = "the preparation of the data of this model"
            raise CheckpointError(str(path), expected, "that of another one", _AGAIN)
        return preparation


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / _CHECKPOINT).read_bytes()).hexdigest()


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _numbers(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(map(float, values))

"""The latent points that a command works on: codes of data, or codes that were given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import rich_click as click
import torch
from torch import Tensor

from riemae.cli.models import Model
from riemae.cli.options import Reading, Run
from riemae.cli.output import as_tensor
from riemae.cli.sources import find
from riemae.cli.tables import Source, Table
from riemae.exceptions import DataError


@dataclass(frozen=True, eq=False)
class Points:
    """Latent points with what belongs to them.

    Attributes:
        codes: ``(n, m)``.
        table: The rows that they belong to, as they were read.
        encoded: Whether the rows are data, and not codes.
    """

    codes: Tensor
    table: Table
    encoded: bool

    def __len__(self) -> int:
        return len(self.codes)

    def described(self) -> dict[str, Any]:
        """What ``--json`` says of them."""
        return {**self.table.described(), "codes_given": not self.encoded}


def as_option(function: Any) -> Any:
    """Decorator: the option that says whether data are codes."""
    return click.option(
        "--codes-given/--data-given",
        "codes_given",
        default=None,
        help="Whether DATA are codes already; by default seen from its columns.",
    )(function)


def points(
    model: Model, data: str, reading: Reading, run: Run, codes_given: bool | None = None
) -> Points:
    """Codes of data, or codes that were given.

    Data are codes when the model has no encoder, when their columns are named ``z1, z2, …`` as
    ``riemae embed`` writes them, or when they have the shape of codes and not that of the model's
    data.

    Args:
        model: Of which the codes are.
        data: A file, a folder, or the name of a data set.
        reading: How they are read.
        run: Says where the codes go.
        codes_given: The user's word on whether they are codes.
    """
    if model.preparation is not None:
        reading = replace(reading, usual=model.preparation.reading)
    source = find(data, reading, run.seed)
    if _are_codes(model, source, reading) if codes_given is None else codes_given:
        names = code_names(_count(model, source))
        wanted = names if _has(source, names) and not reading.columns else None
        table = source.table(reading, wanted)
        _expect_codes(model, table)
        codes = as_tensor(table.values, run.dtype, run.device)
        return Points(codes.flatten(1), table, encoded=False)
    table = rows_of(model, source, reading)
    return Points(model.encode(table, run), table, encoded=True)


def rows_of(model: Model, source: Source, reading: Reading) -> Table:
    """Data with the columns that a model was trained on.

    Args:
        model: With an encoder.
        source: The data.
        reading: How they are read.

    Raises:
        DataError: When they have another shape than those of the training.
    """
    wanted = model.columns if source.names is not None and not reading.columns else None
    table = source.table(reading, wanted)
    shape = model.data_shape
    if shape is not None and table.values.shape[1:] != shape:
        hint = "Give the columns of the training, by --columns or --exclude if need be."
        got = f"rows of shape {table.values.shape[1:]}"
        raise DataError(table.name, f"rows of shape {shape}, as in the training", got, hint)
    return table


def code_names(count: int) -> tuple[str, ...]:
    """The columns of codes: ``z1, z2, …``."""
    return tuple(f"z{i + 1}" for i in range(count))


def code_columns(codes: Tensor, table: Table) -> dict[str, Any]:
    """Codes as a table: the names of the rows, the numbers, and the labels if there are any.

    Args:
        codes: ``(n, m)``.
        table: The rows that they belong to.
    """
    columns: dict[str, Any] = {table.index_name or "row": table.rows}
    columns |= dict(zip(code_names(codes.shape[1]), codes.cpu().mT, strict=True))
    if table.labels is not None:
        columns[table.label_name] = table.labels
    return columns


def _has(source: Source, names: tuple[str, ...]) -> bool:
    return bool(names) and set(names) <= set(source.names or ())


def _count(model: Model, source: Source) -> int:
    """How many numbers a code has: as the model says, or as columns are named so."""
    if model.latent_dim is not None:
        return model.latent_dim
    count = 0
    while f"z{count + 1}" in (source.names or ()):
        count += 1
    return count


def _are_codes(model: Model, source: Source, reading: Reading) -> bool:
    if model.estimator is None:
        return True
    named = source.names is not None
    if named and model.columns is not None and set(model.columns) <= set(source.names or ()):
        return False
    if _has(source, code_names(_count(model, source))):
        return True
    if source.array is None:
        return False
    return source.array.shape[1:] == (model.latent_dim,) != model.data_shape


def _expect_codes(model: Model, table: Table) -> None:
    found = table.values[0].size
    if model.latent_dim is not None and found != model.latent_dim:
        hint = "Give one row of codes for each point, in columns z1, z2, … or alone."
        expected = f"codes of {model.latent_dim} numbers"
        raise DataError(table.name, expected, f"{found} in a row", hint)


def drawn(count: int, least: int, most: int | None, seed: int) -> Tensor:
    """Numbers of rows: all, or so many of them at random, in ascending order.

    Args:
        count: Of all rows.
        least: How many have to be there.
        most: How many are wanted, or None for all.
        seed: Of the draw.

    Raises:
        DataError: When there are too few.
    """
    if count < least or (most is not None and most > count):
        wanted = max(least, most or 0)
        hint = "Add rows, or ask for fewer."
        raise DataError("data", f"at least {wanted} rows", f"{count}", hint)
    if most is None:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:most].sort().values

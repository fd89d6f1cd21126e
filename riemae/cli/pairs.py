"""Pairs of points as a user names them: by rows, by names and labels, by codes, or at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from riemae.cli.options import suggestion
from riemae.cli.points import Points
from riemae.exceptions import OptionError

_ROWS = "Try --pairs 0:5,3:7."
_CODES = 'Try --codes "0.1,0.2:1,1"; more pairs follow after a semicolon.'


@dataclass(frozen=True, eq=False)
class Pairs:
    """End points of curves.

    Attributes:
        start: ``(p, m)``.
        end: ``(p, m)``.
        names: What the user calls them.
    """

    start: Tensor
    end: Tensor
    names: list[tuple[str, str]]

    @classmethod
    def cat(cls, parts: Sequence[Pairs]) -> Pairs:
        """All pairs one after the other."""
        return cls(
            torch.cat([part.start for part in parts]),
            torch.cat([part.end for part in parts]),
            [name for part in parts for name in part.names],
        )


def by_rows(text: str, points: Points) -> Pairs:
    """Pairs of rows, counted from 0, such as ``0:5,3:7``.

    Args:
        text: As typed.
        points: Those that have rows.

    Raises:
        OptionError: When it is not such a list, or a row is not there.
    """
    chosen = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        ends = part.split(":")
        if len(ends) != 2 or not all(end.strip().isdigit() for end in ends):
            raise OptionError("--pairs", "pairs of rows as i:j", repr(part), _ROWS)
        i, j = map(int, ends)
        for row in (i, j):
            if row >= len(points):
                expected = f"rows from 0 to {len(points) - 1}"
                raise OptionError("--pairs", expected, str(row), "Rows are counted from 0.")
        chosen.append((i, j))
    if not chosen:
        raise OptionError("--pairs", "pairs of rows as i:j", repr(text), _ROWS)
    return _of(chosen, points)


def at_random(count: int, points: Points, seed: int) -> Pairs:
    """Pairs of two different rows, drawn.

    Args:
        count: How many.
        points: Those to draw from.
        seed: Of the draw.

    Raises:
        OptionError: When there are fewer than two rows.
    """
    if len(points) < 2:
        hint = "Give more rows."
        raise OptionError("--random", "at least two rows", str(len(points)), hint)
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(len(points), (count,), generator=generator)
    step = torch.randint(1, len(points), (count,), generator=generator)
    second = (first + step) % len(points)
    return _of(list(zip(first.tolist(), second.tolist(), strict=True)), points)


def between(names: Sequence[tuple[str, str]], points: Points) -> Pairs:
    """Pairs of rows by their names, or of labels.

    A label stands for its row whose code is nearest to the mean of all codes of that label.

    Args:
        names: What is to be joined.
        points: Those that have names or labels.

    Raises:
        OptionError: When there is no such name or label.
    """
    chosen = [(_row(a, points), _row(b, points)) for a, b in names]
    found = _of(chosen, points)
    return Pairs(found.start, found.end, [(str(a), str(b)) for a, b in names])


def by_codes(text: str, latent_dim: int | None, like: Tensor) -> Pairs:
    """Pairs of codes, such as ``0.1,0.2:1,1;0,0:2,2``.

    Args:
        text: As typed.
        latent_dim: m, or None.
        like: Gives dtype and device.

    Raises:
        OptionError: When they are not such codes, or have another number of entries.
    """
    ends: list[list[list[float]]] = []
    for part in filter(None, (p.strip() for p in text.split(";"))):
        try:
            ends.append([[float(x) for x in end.split(",")] for end in part.split(":")])
        except ValueError as reason:
            raise OptionError("--codes", "numbers", repr(part), _CODES) from reason
        if len(ends[-1]) != 2:
            raise OptionError("--codes", "two codes divided by a colon", repr(part), _CODES)
    sizes = {len(end) for pair in ends for end in pair}
    if not ends or len(sizes) > 1 or (latent_dim is not None and sizes != {latent_dim}):
        m = "equally many" if latent_dim is None else str(latent_dim)
        raise OptionError("--codes", f"codes of {m} numbers", repr(text), _CODES)
    codes = torch.tensor(ends, dtype=torch.float64).to(like)
    names = [tuple(end.strip() for end in p.split(":")) for p in text.split(";") if p.strip()]
    return Pairs(codes[:, 0], codes[:, 1], names)  # type: ignore[arg-type]


def _of(chosen: list[tuple[int, int]], points: Points) -> Pairs:
    rows = torch.tensor(chosen)
    names = [(points.table.rows[i], points.table.rows[j]) for i, j in chosen]
    return Pairs(points.codes[rows[:, 0]], points.codes[rows[:, 1]], names)


def _row(name: str, points: Points) -> int:
    table = points.table
    if table.index_name is not None and name in table.rows:
        return table.rows.index(name)
    labels = table.labels or []
    if name in labels:
        members = torch.tensor([i for i, label in enumerate(labels) if label == name])
        codes = points.codes[members]
        nearest = (codes - codes.mean(0)).square().sum(1).argmin()
        return int(members[nearest])
    known = [*dict.fromkeys(labels), *(table.rows if table.index_name is not None else [])]
    hint = suggestion(name, known) if known else "Say --labels COLUMN or --index COLUMN as well."
    raise OptionError("--between", "a label or the name of a row", repr(name), hint)

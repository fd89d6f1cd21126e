"""What a geodesic solver returns: one entry per pair, and a status with its remedy."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from riemae import storage
from riemae.exceptions import OptionError
from riemae.numerics.frames import frame
from riemae.numerics.html import table
from riemae.solvers.certificate import geodesic_residual
from riemae.solvers.curve import Curve
from riemae.solvers.hooks import restored
from riemae.solvers.space import Space
from riemae.storage.kinds import expect_kind

if TYPE_CHECKING:
    import pandas

# What a saved result calls itself.
_KIND = "GeodesicResult"
# Fields with one number for each pair, in the order of a table's columns.
_NUMBERS = ("length", "error", "status", "index", "lower_bound", "speed_deviation")
# Pairs that a notebook shows.
_SHOWN = 8


class Status(IntEnum):
    """Outcome for one pair."""

    CONVERGED = 0
    MAX_STEPS = 1
    RESOLUTION = 2
    PRECISION = 3
    STALLED = 4
    SINGULAR = 5
    NON_FINITE = 6
    INVALID_POINT = 7
    ABSENT = 8
    BUDGET = 9


HINTS = {
    Status.CONVERGED: "",
    Status.MAX_STEPS: "raise max_steps, loosen rtol, or start from a graph path (init=)",
    Status.RESOLUTION: (
        "raise max_segments, or loosen rtol: the curve is not resolved yet; a decoder with kinks "
        "(ReLU, max-pooling) reaches rtol=1e-2"
    ),
    Status.PRECISION: (
        "rtol is below what the arithmetic can deliver: loosen it (rtol=1e-3, with ReLU 1e-2, with "
        "half precision inside the decoder 1e-1), let the decoder compute in the points' dtype, or "
        "use M.to(dtype=torch.float64)"
    ),
    Status.STALLED: (
        "no step lowers the energy any more: is the decoder smooth (no ReLU, no rounding)?"
    ),
    Status.SINGULAR: (
        "the metric is singular along the curve: directions without length, such as unused latent "
        "units; try solver=solvers.NewtonCG(), which moves along them as little as it can"
    ),
    Status.NON_FINITE: (
        "decoder, metric or start curve are NaN or infinite somewhere: start elsewhere (init=)"
    ),
    Status.INVALID_POINT: "an end point is NaN or infinite: remove it",
    Status.ABSENT: (
        "a search found fewer distinct geodesics for this pair than for others: raise n_starts for "
        "more"
    ),
    Status.BUDGET: (
        "max_decodings or max_seconds was reached: raise it, loosen rtol, or solve fewer pairs"
    ),
}


@dataclass(frozen=True)
class GeodesicResult:
    """Geodesics between pairs of points; every field has the pairs' batch shape ``(*b,)``.

    Attributes:
        length: Riemannian length of ``curve``, an upper bound of the distance; NaN where a failed
            curve has none.
        error: Estimated absolute error of ``length``, never more than its distance from
            ``lower_bound``; where a solver did not finish, that distance itself; NaN where neither
            is known.
        status: :class:`Status` codes, int64. ``HINTS[Status(code)]`` says what to do about one.
        index: Morse index: the number of independent ways to shorten the curve, 0 for a local
            minimum, −1 where unknown. It is that of the discrete energy at the resolution at which
            second derivatives were last computed, usually the coarsest: ``conjugate_points`` counts
            without nodes.
        curve: The curves, from ``z0`` at t = 0 to ``z1`` at t = 1, at nearly constant speed.
        lower_bound: Ambient distance of the end points, never more than the geodesic distance; NaN
            where unknown.
        speed_deviation: Largest relative deviation of the speed along ``curve`` from its mean; 0 on
            a geodesic.
        rtol: The relative accuracy that was asked for.
        stats: Per pair: ``segments`` and ``steps`` spent, ``decrement`` (relative length still to
            gain at that resolution); with a lattice, ``inside`` and ``leaving``, see
            :attr:`bracket`; with conditions, ``condition``: which of them, counted along
            the pairs.
        alternatives: All distinct local geodesics that a search with several starts found, the
            shortest first: a result of shape ``(s, *b)``, its places beyond what a pair has marked
            ABSENT. None without a search, and where a default call has solved no second one.
        space: Where the curves live, for :attr:`residual`; not pickled.
    """

    length: Tensor
    error: Tensor
    status: Tensor
    index: Tensor
    curve: Curve
    lower_bound: Tensor
    speed_deviation: Tensor
    rtol: float
    stats: dict[str, Tensor] = field(default_factory=dict)
    alternatives: GeodesicResult | None = None
    space: Space | None = field(default=None, repr=False, compare=False)

    @property
    def converged(self) -> Tensor:
        """``(*b,)`` bool: the length is within ``rtol`` by its error estimate."""
        return self.status == Status.CONVERGED

    @property
    def is_local_minimum(self) -> Tensor:
        """``(*b,)`` bool: converged, and no neighbouring curve is shorter (Morse index 0)."""
        return self.converged & (self.index == 0)

    @property
    def gap(self) -> Tensor:
        """``(*b,)``, how much longer the next best geodesic found is, relatively; NaN for none.

        Near 0, which of the two is the shortest hangs on little: a different training run of the
        decoder, or a small move of an end point, may change it.
        """
        if self.alternatives is None or len(self.alternatives.length) < 2:
            return torch.full_like(self.length, torch.nan)
        second = self.alternatives[1]
        longer = (second.length - self.length) / self.length
        return torch.where(second.converged, longer, torch.nan)

    @property
    def bracket(self) -> Tensor:
        """``(*b, 2)``, between which two numbers the distance is: a lower bound, and ``length``.

        With ``method="lattice"`` the lower one is the smaller of two, ``stats["inside"]`` for
        curves that stay in the box and ``stats["leaving"]`` for those that leave it:
        :mod:`riemae.solvers.brackets` says what of them is proved and what is sampled. Without, or
        where the ambient distance is more, it is ``lower_bound``.
        """
        lower = self.lower_bound
        if "inside" in self.stats:
            inside = torch.minimum(self.stats["inside"], self.stats["leaving"])
            lower = torch.fmax(lower, inside)
        return torch.stack([lower, self.length], -1)

    @cached_property
    def residual(self) -> Tensor:
        """``(*b,)``, residual of the geodesic equation: ``rms |z̈ + Γ(ż, ż)| / length``.

        It is 0 on an exact geodesic. Computed at first use, by one acceleration per segment (about
        as much as one step of the solver); :func:`~riemae.solvers.geodesic_residual` has the
        definition.

        Raises:
            OptionError: When the result came out of a pickle without it: the space does not travel
                with it.
        """
        if self.space is None:
            raise OptionError(
                "GeodesicResult.residual",
                "a result that knows its space",
                "one that was pickled before the residual was asked for",
                "Ask for .residual before pickling, or call solvers.geodesic_residual(space, "
                "result.curve).",
            )
        curve = restored(self.space, self.curve, self.stats)
        with torch.no_grad():
            return geodesic_residual(self.space, curve, self.stats["segments"])

    def __getstate__(self) -> dict[str, object]:
        """Everything but the space, whose decoder may not be picklable.

        A residual that was computed stays.
        """
        return {**self.__dict__, "space": None}

    def __getitem__(self, index: object) -> GeodesicResult:
        """The results of some pairs, indexed along the batch axes."""
        return GeodesicResult(
            self.length[index],  # type: ignore[index]
            self.error[index],  # type: ignore[index]
            self.status[index],  # type: ignore[index]
            self.index[index],  # type: ignore[index]
            self.curve[index],
            self.lower_bound[index],  # type: ignore[index]
            self.speed_deviation[index],  # type: ignore[index]
            self.rtol,
            {name: value[index] for name, value in self.stats.items()},  # type: ignore[index]
            None if self.alternatives is None else self.alternatives[_under(index)],
            self.space,
        )

    @classmethod
    def cat(cls, parts: list[GeodesicResult], batch: torch.Size) -> GeodesicResult:
        """One result of shape ``batch`` from flat ones.

        Their curves are taken on the finest grid among them.
        """
        if len(parts) == 1 and parts[0].length.shape == batch:
            return parts[0]
        segments = max(part.curve.segments for part in parts)
        curves = [
            part.curve.resample(segments) if part.curve.segments < segments else part.curve
            for part in parts
        ]

        def joined(tensors: list[Tensor]) -> Tensor:
            if len(tensors) > 1:
                whole = torch.cat(tensors)
            else:
                whole = tensors[0]
            return whole.view((*batch, *whole.shape[1:]))

        return cls(
            length=joined([part.length for part in parts]),
            error=joined([part.error for part in parts]),
            status=joined([part.status for part in parts]),
            index=joined([part.index for part in parts]),
            curve=Curve(
                joined([curve.nodes for curve in curves]),
                joined([curve.slopes for curve in curves]),
            ),
            lower_bound=joined([part.lower_bound for part in parts]),
            speed_deviation=joined([part.speed_deviation for part in parts]),
            rtol=parts[0].rtol,
            stats={name: joined([part.stats[name] for part in parts]) for name in parts[0].stats},
            space=parts[0].space,
        )

    @classmethod
    def where(cls, condition: Tensor, a: GeodesicResult, b: GeodesicResult) -> GeodesicResult:
        """Pair by pair: ``a`` where ``condition`` ``(*b,)`` holds, ``b`` elsewhere."""
        segments = max(a.curve.segments, b.curve.segments)
        fine = [r.curve.resample(segments) for r in (a, b)]
        wide = condition[..., None, None]
        return cls(
            length=torch.where(condition, a.length, b.length),
            error=torch.where(condition, a.error, b.error),
            status=torch.where(condition, a.status, b.status),
            index=torch.where(condition, a.index, b.index),
            curve=Curve(
                torch.where(wide, fine[0].nodes, fine[1].nodes),
                torch.where(wide, fine[0].slopes, fine[1].slopes),
            ),
            lower_bound=torch.where(condition, a.lower_bound, b.lower_bound),
            speed_deviation=torch.where(condition, a.speed_deviation, b.speed_deviation),
            rtol=max(a.rtol, b.rtol),
            stats={name: torch.where(condition, a.stats[name], b.stats[name]) for name in a.stats},
            space=a.space if a.space is b.space else None,
        )

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each pair, with all numbers; curves and alternatives are left out.

        The index counts along each batch axis, and ``status`` is its name. Needs pandas.

        Raises:
            MissingExtraError: When pandas is not installed.
        """
        shape = tuple(self.length.shape)
        places = np.indices(shape or (1,)).reshape(max(len(shape), 1), -1)
        columns = {name: _column(getattr(self, name)) for name in _NUMBERS}
        columns["status"] = np.array([Status(c).name for c in columns["status"]], dtype=object)
        columns["converged"] = _column(self.converged)
        columns |= {name: _column(value) for name, value in self.stats.items()}
        names = ["pair"] if len(places) == 1 else [f"axis_{i}" for i in range(len(places))]
        index = dict(zip(names, places, strict=True))
        return frame("GeodesicResult.to_dataframe", columns, index)

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the result into a folder: tensors in safetensors, the rest in JSON.

        Everything is kept, to the bit, but for the space. Killed at any moment, it leaves what was
        there before, or the new result. :meth:`load` reads it.

        Args:
            directory: Made when missing.

        Returns:
            The directory.

        Raises:
            CheckpointError: When the directory is a file, or is not a path.
        """
        tensors, metadata = _packed(self)
        return storage.save(directory, tensors, {"kind": _KIND, "result": metadata})

    @classmethod
    def load(
        cls, directory: str | os.PathLike[str], device: torch.device | str = "cpu"
    ) -> GeodesicResult:
        """The result that :meth:`save` wrote, without its space.

        Args:
            directory: Where it lies.
            device: Where the tensors go.

        Raises:
            CheckpointError: When a file is missing, changed, or of something else.
        """
        tensors, metadata = storage.load(directory, device)
        expect_kind("GeodesicResult.load", directory, metadata, _KIND)
        return _unpacked(tensors, metadata["result"], "")

    def summary(self) -> str:
        """How many pairs ended with which status."""
        counts = Counter(self.status.flatten().tolist())
        return (
            ", ".join(f"{n} {Status(code).name.lower()}" for code, n in sorted(counts.items()))
            or "no pairs"
        )

    def __repr__(self) -> str:
        return f"GeodesicResult({tuple(self.length.shape)}: {self._told()})"

    def _told(self) -> str:
        """What there is to say of all pairs together."""
        if not self.length.numel():
            return "no pairs"
        length = self.length.detach().flatten()
        good = self.converged.flatten()
        parts = [
            f"{self.summary()} at rtol={self.rtol:g}",
            f"{int(self.is_local_minimum.sum())} locally minimising",
        ]
        measured = length[~length.isnan()]
        if len(measured):
            parts.append(f"length {measured.min():.4g} to {measured.max():.4g}")
        if bool(good.any()):
            relative = (self.error / self.length).flatten()[good]
            error = relative.nan_to_num(0.0).max()  # 0/0 on a point
            parts.append(f"relative error at most {error:.1e}")
            parts.append(f"speed even to {self.speed_deviation.flatten()[good].max():.1e}")
            if "residual" in self.__dict__:  # not computed for the sake of printing it
                parts.append(
                    f"residual at most {self.residual.flatten()[good].nan_to_num(0.0).max():.1e}"
                )
        if self.alternatives is not None:
            parts.append(
                f"{int((self.alternatives.status != Status.ABSENT).sum())} distinct geodesics found"
            )
        parts.append(f"up to {int(self.stats['segments'].max())} segments")
        return "; ".join(parts)

    def _repr_html_(self) -> str:
        """The first pairs as a table, for notebooks."""
        numbers = [_column(getattr(self, name))[:_SHOWN] for name in _NUMBERS[:4]]
        rows = [
            (i, f"{length:.6g}", f"{error:.1e}", Status(status).name.lower(), index)
            for i, (length, error, status, index) in enumerate(zip(*numbers, strict=True))
        ]
        header = ("pair", "length", "error", "status", "index")
        left = self.length.numel() - len(rows)
        shape = " × ".join(map(str, self.length.shape)) or "1"
        more = f"and {left} more pairs; " if left else ""
        return table(f"GeodesicResult, pairs: {shape}", rows, header, more + self._told())


def _column(values: Tensor) -> np.ndarray:
    """One number for each pair, flat, on the host."""
    flat: np.ndarray = values.detach().reshape(-1).cpu().numpy()
    return flat


def _packed(result: GeodesicResult, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a result and of its alternatives by name, and what else there is."""
    tensors = {f"{prefix}{name}": getattr(result, name) for name in _NUMBERS}
    tensors[f"{prefix}curve.nodes"] = result.curve.nodes
    tensors[f"{prefix}curve.slopes"] = result.curve.slopes
    tensors |= {f"{prefix}stats.{name}": value for name, value in result.stats.items()}
    metadata: dict[str, Any] = {"rtol": float(result.rtol), "stats": list(result.stats)}
    if "residual" in result.__dict__:
        tensors[f"{prefix}residual"] = result.residual
    metadata["residual"] = "residual" in result.__dict__
    metadata["alternatives"] = None
    if result.alternatives is not None:
        more, metadata["alternatives"] = _packed(result.alternatives, f"{prefix}alternatives.")
        tensors |= more
    return tensors, metadata


def _unpacked(tensors: dict[str, Tensor], metadata: dict[str, Any], prefix: str) -> GeodesicResult:
    alternatives = None
    if metadata["alternatives"] is not None:
        alternatives = _unpacked(tensors, metadata["alternatives"], f"{prefix}alternatives.")
    numbers: dict[str, Any] = {name: tensors[f"{prefix}{name}"] for name in _NUMBERS}
    result = GeodesicResult(
        **numbers,
        curve=Curve(tensors[f"{prefix}curve.nodes"], tensors[f"{prefix}curve.slopes"]),
        rtol=metadata["rtol"],
        stats={name: tensors[f"{prefix}stats.{name}"] for name in metadata["stats"]},
        alternatives=alternatives,
    )
    if metadata["residual"]:
        result.__dict__["residual"] = tensors[f"{prefix}residual"]
    return result


def _under(index: object) -> tuple[object, ...]:
    """The index of the same pairs behind a leading axis."""
    return (slice(None), *(index if isinstance(index, tuple) else (index,)))


def remedies(status: Tensor) -> str:
    """The hints of all failures among ``status``, as sentences."""
    codes = sorted(set(torch.unique(status).tolist()) - {int(Status.CONVERGED)})
    return " ".join(f"{Status(c).name}: {HINTS[Status(c)]}." for c in codes)

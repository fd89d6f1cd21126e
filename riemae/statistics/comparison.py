"""How much distances depend on the training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import DTypeError, OptionError, ShapeError
from riemae.geometry.arrays import is_array
from riemae.solvers.pairs import expect_point_sets
from riemae.solvers.space import space_of
from riemae.statistics.arguments import codes_of
from riemae.statistics.tangents import Somewhere, paths


@dataclass(frozen=True, eq=False)
class DistanceDistribution:
    """Distances of the same pairs of data in K retrained models.

    Attributes:
        geodesic: ``(K, p)``, lengths of geodesics.
        chord: ``(K, p)``, ambient distances of the decoded codes; NaN where a metric has none.
        euclidean: ``(K, p)``, distances of the codes.
        error: ``(K, p)``, estimated errors of the geodesics: what computing them adds.
        status: ``(K, p)`` codes of :class:`~riemae.solvers.Status`.
    """

    geodesic: Tensor
    chord: Tensor
    euclidean: Tensor
    error: Tensor
    status: Tensor

    def variation(self, kind: str = "geodesic") -> Tensor:  # -> (p,)
        """Coefficients of variation over the models: what another training run changes.

        Args:
            kind: ``"geodesic"``, ``"chord"`` or ``"euclidean"``.

        Raises:
            OptionError: For another kind.
        """
        values = self._of(kind)
        return values.std(0) / values.mean(0)

    def standard_error(self, kind: str = "geodesic") -> Tensor:  # -> (p,)
        """Of the mean over the models: what more of them would make smaller.

        Raises:
            OptionError: For another kind.
        """
        values = self._of(kind)
        return values.std(0) / len(values) ** 0.5

    def summary(self) -> str:
        """Median coefficients of variation, and the numerical error beside them."""
        parts = [
            f"{kind} {float(self.variation(kind).nanmedian()):.1%}"
            for kind in ("geodesic", "chord", "euclidean")
            if not bool(self._of(kind).isnan().all())
        ]
        numerical = float((self.error / self.geodesic).nanmedian())
        return f"coefficient of variation: {', '.join(parts)}; numerical error {numerical:.1e}"

    def __repr__(self) -> str:
        models, pairs = self.geodesic.shape
        return f"DistanceDistribution({pairs} pairs in {models} models: {self.summary()})"

    def _of(self, kind: str) -> Tensor:
        if kind not in ("geodesic", "chord", "euclidean"):
            wanted = "'geodesic', 'chord' or 'euclidean'"
            raise OptionError("DistanceDistribution", wanted, repr(kind), "")
        values: Tensor = getattr(self, kind)
        return values


def compare_distances(
    geometries: Sequence[Somewhere],
    codes: Sequence[Tensor],
    pairs: Tensor,
    *,
    rtol: float = 1e-3,
) -> DistanceDistribution:
    """Distances of the same pairs of data in several models, such as training runs of one.

    Codes are not identifiable, so that their Euclidean distances change from run to run; geodesic
    distances depend on the decoded data alone (S. Syrota, E. Zainchkovskyy, J. Xi, B. Bloem-Reddy,
    S. Hauberg, Identifying metric structures of deep latent variable models, ICML 2025).

    Args:
        geometries: K manifolds, or spaces.
        codes: Of each, the codes ``(n, m_k)`` of the same n data.
        pairs: ``(p, 2)`` integers: which data.
        rtol: Relative accuracy of the geodesics. Pairs that miss it say so in ``status``.

    Raises:
        OptionError: For fewer than two models, or pairs that are none of the data.
        ShapeError: When ``pairs`` or the codes have another shape.
        DTypeError: When ``pairs`` are not integers, or codes are not what solvers work with.
        NonFiniteError: When a code is NaN or infinite.
    """
    where = "compare_distances"
    if not isinstance(geometries, Sequence) or not isinstance(codes, Sequence):
        got = f"{type(geometries).__name__} and {type(codes).__name__}"
        raise DTypeError(where, "a list of manifolds and one of their codes", got, "Use lists.")
    if len(geometries) < 2 or len(geometries) != len(codes):
        got = f"{len(geometries)} manifolds and {len(codes)} sets of codes"
        raise OptionError(where, "at least two manifolds, with codes for each", got, "")
    codes = [codes_of(where, geometry, z) for geometry, z in zip(geometries, codes, strict=True)]
    if is_array(pairs) and np.asarray(pairs).dtype.kind in "iu":
        pairs = torch.from_numpy(np.asarray(pairs, dtype=np.int64))
    if not isinstance(pairs, Tensor) or pairs.is_floating_point() or pairs.dtype == torch.bool:
        got = str(pairs.dtype) if isinstance(pairs, Tensor) else type(pairs).__name__
        raise DTypeError(where, "pairs as a tensor of integers", got, "Try torch.tensor(pairs).")
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ShapeError(where, "pairs of shape (p, 2)", str(tuple(pairs.shape)), "")
    for z in codes:
        expect_point_sets(where, codes=z)
    n = len(codes[0])
    if any(len(z) != n for z in codes):
        got = ", ".join(str(tuple(z.shape)) for z in codes)
        raise ShapeError(where, "codes (n, m) of the same n data", got, "")
    if bool(((pairs < 0) | (pairs >= n)).any()):
        raise OptionError(where, f"pairs of numbers from 0 to {n - 1}", "others", "")
    parts = []
    with torch.no_grad():
        for geometry, z in zip(geometries, codes, strict=True):
            a, b = (z.detach()[i] for i in pairs.to(z.device).T)
            r = paths(geometry, a, b, rtol)
            chord = space_of(geometry, z).ambient_distance(a, b)
            if chord is None:
                chord = torch.full_like(r.length, torch.nan)
            parts.append((r.length, chord, (a - b).norm(dim=-1), r.error, r.status))
    device = codes[0].device
    columns = zip(*parts, strict=True)
    table = [torch.stack([x.to(device) for x in column]) for column in columns]
    return DistanceDistribution(*table)

"""A metric that is cheap where data are and expensive elsewhere."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from riemae.ambient.base import DiagonalMetric
from riemae.ambient.features import check_floating, fitting
from riemae.exceptions import AmbientError
from riemae.numerics.checks import expect_choice

Kind = Literal["diagonal", "conformal", "density"]

# Rows of distances held at once while the bandwidth is looked for.
_ROWS = 512
_NEIGHBOR = 10


class Density(DiagonalMetric):
    """Inverse local variance of data: geodesics keep to where the data are.

    With weights ``w_n(x) = exp(−|x_n − x|²/2σ²)`` and ``s_d(x) = Σ_n w_n(x) (x_nd − x_d)²``:

    =============== ===================================== =======================================
    kind            metric                                from
    =============== ===================================== =======================================
    ``diagonal``    ``H = diag(1/(s_d(x) + ρ))``          Arvanitidis et al. (2016)
    ``conformal``   ``H = I/(s̄(x) + ρ)``, ``s̄`` the mean  the same without regard to directions
                    over d
    ``density``     ``H = I/(h(x) + ρ)``,                 Arvanitidis et al. (2020); h is near 1
                    ``h(x) = Σ w_n(x)/max_data Σ w``      on data
    =============== ===================================== =======================================

    Far from all data every kind is ``I/ρ``.

    Args:
        data: ``(N, *shape)``, as the decoder returns them.
        bandwidth: σ; by default the median distance of a datum to its tenth neighbour.
        kind: One of the table.
        floor: ρ, positive: in squared units of the data, without unit for ``"density"``. By
            default a hundredth of the mean, over the data, of what it is added to.
        neighbors: How many data, those nearest to ``x``, the sums run over; by default all. Fewer
            make derivatives cheaper. Where the set changes, the metric jumps by the weight of the
            datum that leaves, so take enough that it is several σ away.

    Raises:
        AmbientError: For data that are not such a tensor, coincide or hold NaN, or for numbers
            that are not positive.
        OptionError: For an unknown kind.

    Example:
        >>> import torch
        >>> from riemae import Manifold, ambient
        >>> ring = torch.linspace(0, 6.2, 60).double()
        >>> data = torch.stack([ring.cos(), ring.sin()], -1)
        >>> M = Manifold(lambda z: z, ambient=ambient.Density(data, bandwidth=0.2))
        >>> on, off = torch.tensor([[1., 0.]]).double(), torch.tensor([[0., 0.]]).double()
        >>> bool(M.volume_density(off) > 20 * M.volume_density(on))
        True
    """

    data: Tensor
    centre: Tensor

    def __init__(
        self,
        data: Tensor,
        bandwidth: float | None = None,
        kind: Kind = "diagonal",
        floor: float | None = None,
        neighbors: int | None = None,
    ) -> None:
        super().__init__()
        check_floating("Density", data)
        if data.ndim < 2 or len(data) < 2 or not bool(data.isfinite().all()):
            expected = "finite data (N, *shape), N of at least 2"
            hint = "Put samples on the first axis, and remove those with NaN."
            raise AmbientError("Density", expected, str(tuple(data.shape)), hint)
        expect_choice("Density", "kind", kind, get_args(Kind))
        for name, value in (("bandwidth", bandwidth), ("floor", floor), ("neighbors", neighbors)):
            if value is not None and not 0 < value < float("inf"):
                hint = f"Leave {name} out for the default."
                raise AmbientError("Density", f"a positive {name}", str(value), hint)
        flat = data.detach().flatten(1)
        self.kind = kind
        self.neighbors = neighbors
        # Differences are all that matters; about their mean, rounding is smallest.
        centre = flat.mean(0)
        self.register_buffer("centre", centre)
        self.register_buffer("data", flat - centre)
        if bandwidth is None:
            self.bandwidth = _typical_distance(self.data)
        else:
            self.bandwidth = float(bandwidth)
        if not self.bandwidth > 0:
            raise AmbientError(
                "Density", "data that differ", "neighbours at distance 0", "Give a bandwidth."
            )
        parts = [self._local(rows) for rows in self.data.split(_ROWS)]
        local = torch.cat(parts)
        self._largest = 1.0
        if kind == "density":
            self._largest = float(local.max())
            local = local / self._largest
        if floor is None:
            self.floor = 0.01 * float(local.mean())
        else:
            self.floor = float(floor)

    def diagonal(self, x: Tensor) -> Tensor:  # (k, D) -> (k, D)
        """The diagonal of ``H``."""
        fitting("Density", self.centre, x)
        local = self._local(x - self.centre) / self._largest
        weights = 1 / (local + self.floor)
        return weights.expand_as(x)

    def extra_repr(self) -> str:
        """The size of the data and the settings."""
        data = "×".join(map(str, self.data.shape))
        bandwidth = f"bandwidth={self.bandwidth:.4g}"
        floor = f"floor={self.floor:.4g}"
        return f"{data}, {bandwidth}, kind={self.kind!r}, {floor}"

    def _local(self, x: Tensor) -> Tensor:  # (k, D) -> (k, D) or (k, 1)
        """What the metric is the inverse of, without the floor, at centred points."""
        squared = _squared_distances(x, self.data)
        if self.neighbors is None or self.neighbors >= len(self.data):
            weights = (-squared / (2 * self.bandwidth**2)).exp()
            if self.kind == "density":
                return weights.sum(-1, keepdim=True)
            # Σ w (x_n − x)² by three sums: no k × N × D array. Rounding may push what vanishes
            # below 0.
            first = weights @ self.data
            second = weights @ self.data.square()
            total = weights.sum(-1, keepdim=True)
            variance = second - 2 * x * first + x.square() * total
            variance = variance.clamp(min=0)
        else:
            nearest = squared.detach().topk(self.neighbors, largest=False)
            near = self.data[nearest.indices]
            gap = (near - x[:, None]).square()
            weights = (-gap.sum(-1) / (2 * self.bandwidth**2)).exp()
            if self.kind == "density":
                return weights.sum(-1, keepdim=True)
            variance = (weights[..., None] * gap).sum(1)
        if self.kind == "conformal":
            return variance.mean(-1, keepdim=True)
        return variance


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:  # (k, D), (N, D) -> (k, N)
    size_x = x.square().sum(-1, keepdim=True)
    size_y = y.square().sum(-1)
    squared = size_x - 2 * x @ y.T + size_y
    return squared.clamp(min=0)


def _typical_distance(data: Tensor) -> float:
    """The median distance to the tenth neighbour, or to the last of fewer."""
    count = min(_NEIGHBOR, len(data) - 1) + 1  # the nearest is the datum itself
    far = []
    for rows in data.split(_ROWS):
        distances = torch.cdist(rows, data)
        nearest = distances.topk(count, largest=False)
        far.append(nearest.values[:, -1])
    return float(torch.cat(far).median())

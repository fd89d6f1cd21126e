"""How the derivatives of a decoder are computed, and what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from riemae.geometry.pullback import PullbackMetric

# What a first and a second derivative in all directions should cost at most, in decodings, for m
# latent dimensions.
_SWEEP = 2.0
_EXPANSION = 4.0
_RUNS = 5


@dataclass(frozen=True)
class Explanation:
    """How a manifold differentiates its decoder at given points.

    Attributes:
        modes: The mode for each kind of derivative: "jacobian", "contraction" (second derivatives
            along a covector), "vjp".
        generic: Functions of torch in the decoder without a rule of their own in Taylor mode:
            they are differentiated by nested forward mode, which is slower.
        sweep: Time of the value and the full Jacobian, in decodings of the same points.
        expansion: Time of the same and second derivatives along one covector.
        decoding: Seconds of one decoding of the points.
        points: How many points.
        latent_dim: m.
        compiled: Which passes ``torch.compile`` has compiled, and why not all of them, in a
            sentence; None without ``compile=``.
    """

    modes: dict[str, str]
    generic: tuple[str, ...]
    sweep: float
    expansion: float
    decoding: float
    points: int
    latent_dim: int
    compiled: str | None = None

    def __str__(self) -> str:
        """A few lines for people."""
        m = self.latent_dim
        lines = [
            f"{kind}: {name}"
            for kind, name in zip(_KINDS.values(), self.modes.values(), strict=True)
        ]
        lines.append(
            f"one decoding of {self.points} points: {1e3 * self.decoding:.3g} ms; value and "
            f"Jacobian: {self.sweep:.3g} decodings ({m + _SWEEP:.3g} or less is good); second "
            f"derivatives along a covector: {self.expansion:.3g} ({_EXPANSION * (m + 2):.3g} or "
            "less is good)"
        )
        if self.generic:
            lines.append(
                f"without a rule of their own, differentiated by nested forward mode: "
                f"{', '.join(self.generic)}"
            )
        elif all(name.startswith("Taylor") for name in self.modes.values()):
            lines.append("every operation has a rule of its own")
        if self.compiled is not None:
            lines.append(f"compiled: {self.compiled}")
        return "\n".join(lines)


_KINDS = {
    "jacobian": "first derivatives",
    "contraction": "second derivatives",
    "vjp": "reverse products",
}


def explained(pullback: PullbackMetric, flat: Tensor) -> Explanation:  # (k, m)
    """The modes of the composition that the metric is made of, and times of a few runs."""
    map_ = pullback.first_order
    modes, generic = map_.modes(flat)
    with torch.no_grad():
        decoding = _seconds(lambda: map_.value(flat), flat)
        sweep = _seconds(lambda: map_.jets(flat), flat)
        expansion = _seconds(lambda: map_.expansion(flat, torch.ones_like), flat)
    compiler = map_.compiler
    return Explanation(
        {kind: mode.name for kind, mode in modes.items()},
        tuple(generic),
        sweep / decoding,
        expansion / decoding,
        decoding,
        len(flat),
        flat.shape[-1],
        None if compiler is None else compiler.report(),
    )


def _seconds(call: Callable[[], object], z: Tensor) -> float:
    """The median of a few runs after one that warms up."""
    call()
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        call()
        if z.is_cuda:
            torch.cuda.synchronize(z.device)
        times.append(time.perf_counter() - start)
    return median(times)

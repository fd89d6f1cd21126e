"""The Fisher information of any family of distributions, from its divergence or from its score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributions as td
from torch import Tensor
from torch.func import grad, vjp

from riemae.families import Family, Free, Params
from riemae.randomness import seeded
from riemae.solvers.threads import Shared, jvp

# Draws a point, and where they start: the same for every point, so that the metric varies smoothly.
_DRAWS, _SEED = 4096, 0
# Nodes of a quadrature over quantiles.
_NODES = 96


@contextmanager
def _without_validation() -> Iterator[None]:
    before = td.Distribution._validate_args
    td.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        td.Distribution.set_default_validate_args(before)


# A context without validation of distributions' arguments, which looks at values and so fails under ``vmap``.
unvalidated = Shared(_without_validation)


class Divergence(Family):
    """Any family whose Kullback-Leibler divergence torch knows: ``H`` is its Hessian where both arguments agree."""

    def flat(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry a parameter."""
        point = {name: p[name] for name in v}

        def divergence(q: Params) -> Tensor:
            with unvalidated():
                return td.kl_divergence(self.distribution(**p), self.distribution(**{**p, **q})).sum()

        return jvp(grad(divergence), (point,), (v,))[1]


class Quantiles(Family):
    """Any family of single continuous variables whose quantiles torch knows: ``H = ∫ s sᵀ du`` over the quantile u.

    By the double-exponential rule, ``u = ½ + ½ tanh(π/2 sinh t)``, which does not mind singularities at the ends.
    """

    def flat(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry a parameter."""
        point = {name: p[name] for name in v}
        like = next(iter(point.values()))
        # As far as 1 − u is still a number of this precision.
        reach = math.asinh(-math.log(8 * torch.finfo(like.dtype).eps) / math.pi)
        t = torch.linspace(-reach, reach, _NODES, dtype=like.dtype, device=like.device)
        u = torch.sigmoid(math.pi * t.sinh())
        weight = u * torch.sigmoid(-math.pi * t.sinh()) * math.pi * t.cosh() * (2 * reach / (_NODES - 1))
        column = (-1, *(1,) * like.ndim)
        with unvalidated():
            y = self.distribution(**p).icdf(u.view(column))

        def log_prob(q: Params) -> Tensor:  # -> (nodes, k, ...)
            with unvalidated():
                return self.distribution(**{**p, **q}).log_prob(y)

        pushed = jvp(log_prob, (point,), (v,))[1]
        return vjp(log_prob, point)[1](pushed * weight.view(column))[0]


class Score(Family):
    """Any family with a density: ``H = E[s sᵀ]``, the covariance of the score, over fixed draws.

    The draws at a point depend on that point alone. Where H is differentiated, each draw carries its likelihood ratio,
    so that derivatives are unbiased too, but they are not those of the estimate: path solvers may stall.
    """

    def flat(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry a parameter."""
        point = {name: p[name] for name in v}
        names = tuple(p)
        y = _Draw.apply(self.distribution, names, *(value.detach() for value in p.values()))

        def log_prob(q: Params) -> Tensor:  # -> (draws, k, ...)
            with unvalidated():
                return self.distribution(**{**p, **q}).log_prob(y)

        value, pushed = jvp(log_prob, (point,), (v,))[:2]
        ratio = (value - value.detach()).exp()
        return vjp(log_prob, point)[1](pushed * ratio / len(y))[0]


class _Draw(torch.autograd.Function):
    """Draws ``(draws, k, ...)`` as constants. A function of its own because ``vmap`` forbids random numbers."""

    @staticmethod
    def forward(distribution: Callable[..., Any], names: tuple[str, ...], *values: Tensor) -> Tensor:
        rows = max((len(value) for value in values if value.ndim), default=1)
        draws = []
        for i in range(rows):
            row = (value[i : i + 1] if value.ndim else value for value in values)
            with unvalidated(), seeded(values[0].device, _SEED):
                draws.append(distribution(**dict(zip(names, row, strict=True))).sample((_DRAWS,)))
        return torch.cat(draws, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        return (None,) * len(ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        distribution, names, *values = args
        size = info.batch_size
        rows = [
            (value.movedim(d, 0) if d is not None else value.expand(size, *value.shape))
            for value, d in zip(values, in_dims[2:], strict=True)
        ]
        k = max(value.shape[1] for value in rows if value.ndim > 1)
        flat = [value.flatten(0, 1) if value.ndim > 1 else value[0] for value in rows]
        y = _Draw.apply(distribution, names, *flat)
        return y.unflatten(1, (size, k)), 1

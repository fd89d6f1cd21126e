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

from riemae.distributions.family import Family, Free, Params
from riemae.exceptions import AmbientError
from riemae.numerics.random import seeded
from riemae.numerics.threads import Shared, jvp
from riemae.numerics.transforms import transforms

# Draws per point, and their seed: the same for every point, so that the metric varies smoothly.
_DRAWS = 4096
_SEED = 0
# Numbers that are drawn at once, for some points and some of their draws.
_NUMBERS_AT_ONCE = 2**21
# A graph through one call keeps about this many arrays of the size of its draws, and may take this
# many bytes. Without a graph the limit is the time: drawing this many numbers takes minutes.
_ARRAYS = 8
_GRAPH_BYTES = 4 * 2**30
_NUMBERS = 2**34
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


# A context without validation of distributions' arguments, which looks at values and so fails under
# ``vmap``.
unvalidated = Shared(_without_validation)


class Divergence(Family):
    """Any family whose Kullback-Leibler divergence torch knows.

    ``H`` is the Hessian of the divergence where both arguments agree.
    """

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""
        point = {name: p[name] for name in v}

        def divergence(q: Params) -> Tensor:
            with unvalidated():
                here = self.distribution(**p)
                there = self.distribution(**{**p, **q})
                return td.kl_divergence(here, there).sum()

        _, product = jvp(grad(divergence), (point,), (v,))
        return product


class Quantiles(Family):
    """Any family of single continuous variables whose quantiles torch knows.

    ``H = ∫ s sᵀ du`` over the quantile u, by the double-exponential rule
    ``u = ½ + ½ tanh(π/2 sinh t)``, which singularities at the ends do not harm.
    """

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""
        point = {name: p[name] for name in v}
        like = next(iter(point.values()))
        # t as far as 1 − u is still a number of this precision.
        smallest = 8 * torch.finfo(like.dtype).eps
        reach = math.asinh(-math.log(smallest) / math.pi)
        t = torch.linspace(-reach, reach, _NODES, dtype=like.dtype, device=like.device)
        u = torch.sigmoid(math.pi * t.sinh())
        rest = torch.sigmoid(-math.pi * t.sinh())  # 1 − u
        step = 2 * reach / (_NODES - 1)
        weight = u * rest * math.pi * t.cosh() * step
        column = (-1, *(1,) * like.ndim)
        with unvalidated():
            distribution = self.distribution(**p)
            y = distribution.icdf(u.view(column))

        def log_prob(q: Params) -> Tensor:  # -> (nodes, k, ...)
            with unvalidated():
                moved = self.distribution(**{**p, **q})
                return moved.log_prob(y)

        _, scores = jvp(log_prob, (point,), (v,))
        pull = vjp(log_prob, point)[1]
        (product,) = pull(scores * weight.view(column))
        return product


class Score(Family):
    """Any family with a density: ``H = E[s sᵀ]``, the covariance of the score, over fixed draws.

    The draws at a point depend on that point alone. Where H is differentiated, each draw carries
    its likelihood ratio, so that derivatives are unbiased too, but they are not those of the
    estimate: path solvers may stall.

    Draws are made and used in chunks, so that the metric itself takes a bounded memory whatever the
    number of points and variables. A graph through it cannot be had in chunks.
    """

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""
        tensors = [value for value in p.values() if _is_batch(value)]
        rows = max(len(value) for value in tensors)
        width = max(value[0].numel() for value in tensors) if rows else 0
        self._refuse_hopeless(rows, width, tensors)
        per_draw = max(1, width)
        draws = min(_DRAWS, max(1, _NUMBERS_AT_ONCE // per_draw))
        at_once = max(1, _NUMBERS_AT_ONCE // (draws * per_draw))
        parts = []
        for start in range(0, max(1, rows), at_once):
            few = slice(start, start + at_once)
            some_p = {name: value[few] if _is_batch(value) else value for name, value in p.items()}
            some_v = {name: dv[few] for name, dv in v.items()}
            parts.append(self._mean(some_p, some_v, draws))
        out = {}
        for name in v:
            out[name] = torch.cat([part[name] for part in parts])
        return out

    def _mean(self, p: Params, v: Params, draws: int) -> Params:
        """``H(p) v`` of a few points, over all draws, ``draws`` at a time."""
        point = {name: p[name] for name in v}
        total: Params = {}
        for start in range(0, _DRAWS, draws):
            count = min(draws, _DRAWS - start)
            constants = map(_constant, p.values())
            y = _Draw.apply(self.distribution, tuple(p), count, _SEED + start, *constants)

            def log_prob(q: Params, y: Tensor = y) -> Tensor:  # -> (draws, k, ...)
                with unvalidated():
                    moved = self.distribution(**{**p, **q})
                    return moved.log_prob(y)

            value, scores = jvp(log_prob, (point,), (v,))
            ratio = (value - value.detach()).exp()
            pull = vjp(log_prob, point)[1]
            (part,) = pull(scores * ratio / _DRAWS)
            if total:
                part = {name: total[name] + part[name] for name in v}
            total = part
        return total

    def _refuse_hopeless(self, rows: int, width: int, values: list[Tensor]) -> None:
        """Refuse what takes too much memory or time, before anything is drawn.

        Raises:
            AmbientError: With what it would take.
        """
        numbers = _DRAWS * rows * width
        transformed = bool({"Grad", "Jvp"} & set(transforms()))
        wanted = torch.is_grad_enabled() and any(value.requires_grad for value in values)
        kept = transformed or wanted
        size = numbers * values[0].element_size() * _ARRAYS
        if numbers <= _NUMBERS and not (kept and size > _GRAPH_BYTES):
            return
        need = ""
        if kept:
            need = f"about {size / 2**30:.3g} GiB for a graph through "
        raise AmbientError(
            "FisherRao",
            f"a Fisher information of {self.name} that can be estimated",
            f"{rows} points of {width} numbers, which would need {need}{numbers:.3g} "
            "random numbers",
            "Give its Fisher information in closed form (ambient.register_family), ask for fewer "
            "points at a time (Manifold(..., chunk_size=16)), or use another ambient metric.",
        )


def _is_batch(value: Any) -> bool:
    """Whether a parameter has a row for each point, rather than being one number for all."""
    return isinstance(value, Tensor) and value.ndim > 0


def _constant(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return value


class _Draw(torch.autograd.Function):
    """Draws ``(draws, k, ...)`` as constants.

    An autograd function, because ``vmap`` forbids random numbers elsewhere.
    """

    @staticmethod
    def forward(
        distribution: Callable[..., Any],
        names: tuple[str, ...],
        count: int,
        seed: int,
        *values: Any,
    ) -> Tensor:
        several = [value for value in values if _is_batch(value)]
        draws = []
        for i in range(max(map(len, several))):
            # Each point by itself, from the same seed: its draws depend on that point alone.
            row = (value[i : i + 1] if _is_batch(value) else value for value in values)
            parameters = dict(zip(names, row, strict=True))
            with unvalidated(), seeded(several[0].device, seed):
                own = distribution(**parameters)
                draws.append(own.sample((count,)))
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
        distribution, names, count, seed, *values = args
        size = info.batch_size
        flat = []
        k = 1
        for value, d in zip(values, in_dims[4:], strict=True):
            if isinstance(value, Tensor):
                if d is not None:
                    value = value.movedim(d, 0)
                else:
                    value = value.expand(size, *value.shape)
                if value.ndim > 1:
                    k = max(k, value.shape[1])
                    value = value.flatten(0, 1)
                else:
                    value = value[0]
            flat.append(value)
        y = _Draw.apply(distribution, names, count, seed, *flat)
        return y.unflatten(1, (size, k)), 1

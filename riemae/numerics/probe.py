"""What is asked of a user's function before its numbers are trusted: rows apart, no chance, and its
own derivative.

Three questions, each at generic points: the given ones, moved by seeded noise of the size of their
spread, because the origin, the natural first query, hides much (odd functions, inactive branches).
Callers turn answers into typed errors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from riemae.numerics.threads import Shared
from riemae.numerics.tolerances import tolerance

# Rows that are compared with each other; fewer where one row's output is large.
ROWS, FEW, LARGE_OUTPUT = 16, 4, 4096
# A batch of this size shows what smaller ones may hide, and is looked at once more.
LARGE_BATCH = 64
_SEED = 20_011
# What a function may raise outside of its domain.
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, ArithmeticError)

RowMap = Callable[[Tensor], Tensor]


def generator() -> torch.Generator:
    """The same random numbers at every probe, which leave the global generator alone."""
    return torch.Generator().manual_seed(_SEED)


def normal(like: Tensor, *shape: int, source: torch.Generator) -> Tensor:
    """Normal random numbers of another tensor's dtype and device."""
    return torch.randn(shape, generator=source, dtype=torch.float64).to(like)


def spread(z: Tensor) -> Tensor:  # (k, m) -> (m,)
    """The size of a step that leaves a neighbourhood: the spread of points, or their size where
    they do not differ.
    """
    size = z.abs().amax() if z.numel() else z.new_zeros(())
    size = torch.where(size > 0, size, torch.ones_like(size))
    if len(z) < 2 or bool((z == z[:1]).all()):
        return size.expand(z.shape[-1])
    return torch.maximum(z.std(0, unbiased=False), size / 8)


def moved(
    z: Tensor, count: int, scale: float = 1.0
) -> tuple[Tensor, Tensor]:  # (k, m) -> (count, m), (count, m)
    """Rows of ``z``, first and last among them, and the noise to be added to each."""
    source = generator()
    rows = torch.randint(len(z), (count,), generator=source)
    rows[:2] = torch.tensor([0, len(z) - 1])[: min(2, count)]
    base = z.detach()[rows.to(z.device)]
    return base, scale * spread(z.detach()) * normal(z, *base.shape, source=source)


def generic(
    f: RowMap, z: Tensor, count: int, rows: int | None = None
) -> Tensor:  # (k, m) -> (count, m)
    """Points that are typical of ``z`` and special in nothing, inside the domain of ``f``.

    At least of size 1 the last.

    Args:
        f: Rows to rows.
        z: Points.
        count: How many are wanted.
        rows: At most so many in one call of ``f``.
    """
    base, noise = moved(z, count)
    # Near-duplicates say nothing of the size of the space: one point looks further away.
    size = noise[-1].norm()
    noise[-1] = noise[-1] * torch.where(
        size < 1, 1 / size.clamp(min=torch.finfo(z.dtype).tiny), 1.0
    )
    points, missing = base.clone(), torch.ones(count, dtype=torch.bool, device=z.device)
    for factor in (1.0, 1 / 8, 1 / 64):
        trial = base + factor * noise
        with torch.no_grad():
            try:
                finite = torch.cat([_finite(f(part)) for part in trial.split(rows or count)])
            except FAILURES:
                continue
        points = torch.where((finite & missing)[:, None], trial, points)
        missing = missing & ~finite
        if not bool(missing.any()):
            break
    return points


def _finite(x: Tensor) -> Tensor:  # (k, *shape) -> (k,)
    return x.isfinite().reshape(len(x), -1).all(-1)


# Rows and chance.


@dataclass(frozen=True)
class Dependence:
    """What the output of a row depends on beside the row: ``"chance"``, ``"rows"``, or only
    ``"rounding"``.

    Attributes:
        kind: Which of these.
        size: The difference, relative to the output.
    """

    kind: str
    size: float

    def message(self, what: str) -> tuple[str, str, str]:
        """Expected, got, try: for an error about a function of this name."""
        if self.kind == "chance":
            return (
                f"a deterministic {what}",
                f"two different outputs for one input (by {self.size:.1g})",
                f"Switch sampling and dropout off: {what}.eval(), or return the mean instead of a sample.",
            )
        if self.kind == "rounding":
            return (
                f"a {what} that treats every row alone, in float64",
                f"outputs that differ by {self.size:.1g} with the other rows of the batch, as rounding in float32 does",
                f"Convert all of it with .double(), or use float32 points: something inside the {what} is in float32.",
            )
        return (
            f"a {what} that treats every row alone",
            f"an output that depends on the other rows of the batch, or on their number or order (by {self.size:.1g})",
            f"Switch batch statistics off: {what}.eval(); attention must not run across the batch axis.",
        )


def dependence_around(
    f: RowMap, z: Tensor, size: int, limit: int | None = None
) -> Dependence | None:  # (k, m)
    """:func:`dependence` among many rows: points that are given, and others near them and further
    away.

    Where very many are given it is these alone. Rows that nobody has asked for may lie outside of
    the domain; if the function fails on them, the given ones have to do.

    Args:
        f: Rows to rows.
        z: The given points, at least one.
        size: Numbers in the output of one row.
        limit: At most so many rows in one call.
    """
    count = min(ROWS if size <= LARGE_OUTPUT else FEW, limit or ROWS)
    alone = None if count == ROWS else 2
    given = z[torch.linspace(0, len(z) - 1, min(len(z), count)).long().to(z.device)]
    if len(z) < LARGE_BATCH:
        near, far = (torch.add(*moved(z, count, scale)) for scale in (1.0, 4.0))
        half, few = count // 2, max(1, count // 4)
        try:
            return dependence(f, torch.cat([given[:few], near[:half], far])[:count], alone)
        except FAILURES:
            return dependence(f, given, alone)
    return dependence(f, given, alone)


def dependence(
    f: RowMap, points: Tensor, alone: int | None = None
) -> Dependence | None:  # (k, ...)
    """Whether a row's output depends on chance, on the other rows, on their number, or on its place
    among them.

    Args:
        f: Rows to rows.
        points: The rows.
        alone: How many rows are also taken by themselves; first, last and those furthest out unless
            given.
    """
    count = len(points)
    x = _kept(f, points)
    again = _kept(f, points)
    if (size := _difference(x, again)) > 0:
        return Dependence("chance", size)
    shuffled, single = x.clone(), x.clone()
    if count <= 2:  # each among copies of itself: some layers refuse a single row
        for i in range(count):
            single[i] = _kept(f, points[i].expand(2, *points.shape[1:]).contiguous())[i]
    else:
        order = torch.randperm(count, generator=generator()).to(points.device)
        for half in order.tensor_split(2):
            shuffled[half] = _kept(f, points[half])
        for i in (
            _extremes(points)
            if alone is None
            else {0, count - 1, *order[: max(alone - 2, 0)].tolist()}
        ):
            single[i] = _kept(f, points[i : i + 1])[0]
    size = max(_difference(x, shuffled), _difference(x, single))
    if not size:
        return None
    # Rounding that the function itself blows up is no coupling: a row moved by its last digits
    # shows how much that is.
    eps = tolerance(points.dtype).eps
    near = _kept(f, points * (1 + 4 * eps))
    if not torch.equal(near.isfinite(), x.isfinite()):
        return Dependence("rows", size)
    if size <= 32 * _difference(x, near, exact=True):
        return None
    # float32 arithmetic behind float64 points leaves differences of its own size between batches.
    rounded = points.dtype == torch.float64 and size < 256 * tolerance(torch.float32).eps
    return Dependence("rounding" if rounded else "rows", size)


def _extremes(points: Tensor) -> set[int]:
    """First and last row, and those with the largest and smallest first coordinates, sum, and
    size.
    """
    flat = points.reshape(len(points), -1)
    looks = [*flat[:, :2].unbind(-1), flat.sum(-1), flat.square().sum(-1)]
    return {0, len(points) - 1, *(int(i) for look in looks for i in (look.argmax(), look.argmin()))}


def _kept(f: RowMap, points: Tensor) -> Tensor:
    """A copy of the output: a function may write its next one into the same memory."""
    return f(points).detach().clone()


def _difference(a: Tensor, b: Tensor, exact: bool = False) -> float:
    """The largest difference relative to a row's size, 0 where it is rounding.

    NaN in ``a`` says nothing.
    """
    if not a.numel():
        return 0.0
    rows = a.nan_to_num(0.0, 0.0, 0.0).abs().reshape(len(a), -1).amax(-1)
    scale = torch.maximum(rows, rows.median() / 128).view(-1, *(1,) * (a.ndim - 1))
    gap = torch.where(a.isfinite(), (a - b).abs() / torch.where(scale > 0, scale, 1.0), 0.0)
    gap = torch.where(gap.isnan(), torch.inf, gap)  # a number here, none there
    size = float(gap.amax())
    return size if exact or size > tolerance(a.dtype).probe else 0.0


# The derivative.


@dataclass(frozen=True)
class Contradiction:
    """A derivative that is not that of the map.

    Attributes:
        reported: What autograd says, along a direction, tested by a covector.
        actual: What differences of the map say.
        point: Where.
        constant: Whether the map is locally constant there.
        attached: Whether autograd sees the input at all.
    """

    reported: float
    actual: float
    point: Tensor
    constant: bool
    attached: bool


def contradiction(
    f: RowMap,
    path: Callable[[Tensor], Tensor],
    count: int,
    like: Tensor,
    rows: int | None = None,
    plain: Callable[[], Any] | None = None,
) -> Contradiction | None:
    """Compare the derivative that autograd reports for ``f`` with central differences of ``f``,
    along a curve of rows.

    Only differences that agree for two steps count, and only what most points say.

    Args:
        f: Rows to rows, ``(k, …) -> (k, …)``.
        path: Times ``(k,)`` to the rows at which ``f`` is asked, a smooth curve for each; the unit
            of time is large.
        count: k.
        like: Of the dtype and device of the times.
        rows: At most so many in one call of ``f``.
        plain: Makes the context in which autograd may be asked.

    Returns:
        None where they agree, and where nothing can be said.
    """
    eps = tolerance(like.dtype).eps
    base = path(like.new_zeros(count)).detach()
    try:
        reported, values, attached = _reported(f, base, rows, plain)
    except (
        FAILURES
    ):  # what autograd cannot differentiate at all is refused elsewhere, with its own words
        return None
    weight = reported.weight

    def difference(step: float) -> tuple[Tensor, Tensor]:  # -> (k, q), (k,)
        with torch.no_grad():
            ahead, behind = (
                path(like.new_full((count,), sign * step)).detach() for sign in (1, -1)
            )
            moved = (_by_rows(f, ahead, rows) - _by_rows(f, behind, rows)).reshape(count, -1)
            along = ((ahead - behind) * reported.slope).reshape(count, -1).sum(-1)
        return moved / (2 * step), along / (2 * step)

    step = eps ** (1 / 3)
    try:
        (wide, first), (narrow, second) = difference(step), difference(step / 2)
    except FAILURES:
        return None
    found = (weight * narrow).sum(-1)
    errors = torch.minimum((weight * wide).sum(-1).sub(first).abs(), (found - second).abs())
    size = (weight * narrow).abs().sum(-1)
    doubt = 8 * (weight * (wide - narrow)).abs().sum(-1) + 16 * eps / step * (
        weight * values
    ).abs().sum(-1)
    limit = doubt + (1e-5 if like.dtype == torch.float64 else 3e-3) * (size + second.abs())
    bad = errors > limit
    good = ~bad & (limit < 0.1 * (size + second.abs()))
    flat = bad & (size < 1e-3 * second.abs())
    if bool(
        flat.any()
    ):  # steps of the map's own: much finer than the points are apart, they are rounding
        coarse = 32 * step if like.dtype == torch.float32 else 2**-5
        for far in (coarse, coarse / 4, 1e-3):
            try:
                secant, tangent = difference(far)
            except FAILURES:
                continue
            close = ((weight * secant).sum(-1) - tangent).abs() < 0.3 * tangent.abs()
            bad = bad & ~(flat & close)
    if int(bad.sum()) < min(2, count) or int(bad.sum()) < int(good.sum()):
        return None
    i = int(bad.nonzero()[0])
    return Contradiction(
        float(second[i]), float(found[i]), base[i], bool((flat & bad)[i]), attached
    )


@dataclass(frozen=True)
class _Reported:
    weight: Tensor  # (k, q)
    slope: Tensor  # (k, …)


def _reported(
    f: RowMap, base: Tensor, rows: int | None, plain: Callable[[], Any] | None
) -> tuple[_Reported, Tensor, bool]:
    """Random covectors, the rows of ``Jᵀw`` by autograd, the values, and whether there is a graph
    at all.
    """
    source = generator()
    weights, slopes, values, attached = [], [], [], False
    for part in base.split(rows or len(base)):
        with torch.enable_grad(), _unheard(), plain() if plain is not None else nullcontext():
            start = part.detach().clone().requires_grad_()
            x = f(start)
            x = x.reshape(len(part), -1)
            weight = normal(x, *x.shape, source=source)
            slope = torch.zeros_like(part)
            if x.requires_grad:
                (found,) = torch.autograd.grad((weight * x).sum(), start, allow_unused=True)
                attached = attached or found is not None
                slope = slope if found is None else found
        weights.append(weight)
        slopes.append(slope)
        values.append(x.detach())
    return _Reported(torch.cat(weights), torch.cat(slopes)), torch.cat(values), attached


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Warnings of a function that is run for our own purposes, such as float() of what requires a
    gradient.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


_unheard = Shared(_without_warnings)


def _by_rows(f: RowMap, points: Tensor, rows: int | None) -> Tensor:
    parts = [f(part).detach().clone() for part in points.split(rows or len(points))]
    return torch.cat(parts)


_CUTS = {
    "detach": "detach()",
    "detach_": "detach_()",
    "item": ".item()",
    "tolist": ".tolist()",
    "numpy": ".numpy()",
    "__array__": "numpy",
    "__float__": "float()",
    "data": ".data",
}
_STEPS = frozenset(
    "round round_ floor floor_ ceil trunc sign argmax argmin argsort bucketize searchsorted one_hot heaviside".split()
)


class _Watcher(TorchFunctionMode):
    """Notes what cuts a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.cuts: list[str] = []
        self.steps: list[str] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
            name = name if name == "data" else ""
        if torch.is_inference_mode_enabled():
            self._note(self.cuts, "torch.inference_mode()")
        elif not torch.is_grad_enabled():
            self._note(self.cuts, "torch.no_grad()")
        if name in _CUTS:
            self._note(self.cuts, _CUTS[name])
        elif name in _STEPS:
            self._note(self.steps, f"{name}()")
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _note(names: list[str], name: str) -> None:
        if name not in names:
            names.append(name)


def explained(found: Contradiction, f: RowMap) -> tuple[str, str]:
    """What came, and what to try, for an error: the cause is looked for by running ``f`` once
    more.
    """
    watcher, functions = _Watcher(), []
    with torch.enable_grad(), _unheard():
        try:
            with watcher:
                x = f(found.point.detach()[None].clone().requires_grad_())
            functions = _own_functions(x)
        except FAILURES:  # the search for a cause must not hide what has been found
            functions = []
    where = [round(value, 4) for value in found.point.reshape(-1)[:8].tolist()]
    got = (
        f"{found.reported:.4g} from torch.autograd where the map itself changes by {found.actual:.4g} "
        f"(one direction, at {where})"
    )
    blocks = [cut for cut in watcher.cuts if cut.startswith("torch.")]
    if found.constant:
        steps = f" ({', '.join(watcher.steps)})" if watcher.steps else ""
        return (
            got
            + f": between steps the map is constant{steps}, and its gradient is made up (straight-through)",
            (
                "A quantised map has no geometry: leave the quantiser out, and decode the continuous latent."
            ),
        )
    if (
        functions and found.attached
    ):  # their forward runs without gradients, and may detach what it likes
        names = ", ".join(functions)
        return got + f": the backward of {names} is not its derivative", (
            f"Leave {names} out (gradient reversal, straight-through, scaled gradients), or correct its backward."
        )
    if blocks:
        return got + f": it runs under {blocks[0]}", (
            f"Remove {blocks[0]} from it; to freeze weights, use requires_grad_(False)."
        )
    if watcher.cuts:
        cuts = ", ".join(watcher.cuts)
        return (
            got + f": {cuts} cuts the graph",
            f"Remove {cuts}: what depends on the input must stay in torch's graph.",
        )
    if watcher.steps:
        return got + f": {', '.join(watcher.steps)} has no derivative", (
            "A quantised map has no geometry: leave the quantiser out, and decode the continuous latent."
        )
    return (
        got,
        "An operation inside has no derivative in torch, or a wrong one: write it with other torch operations.",
    )


def _own_functions(x: Tensor) -> list[str]:
    """Names of the user's ``torch.autograd.Function`` classes in the graph of a result."""
    seen: set[Any] = set()
    names: list[str] = []
    left = [x.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = getattr(getattr(type(node), "_forward_cls", None), "__name__", "")
        if name and name not in names:
            names.append(name)
        left += [following for following, _ in node.next_functions]
    return names

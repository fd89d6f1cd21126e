"""Whether the derivative that autograd reports for a function is that of its values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from riemae.numerics.probe import FAILURES, RowMap, generator, normal
from riemae.numerics.threads import Shared
from riemae.numerics.tolerances import Tolerance, coarser, tolerance

# How many times shorter steps are tried where differences contradict autograd; what they may differ
# by, and how much of them may be rounding, relative to what they tell.
_CLOSER = (8, 64, 512, 4096, 32768)
_FOLLOWS = 1e-3
_SHARP = 5e-3


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


@dataclass(frozen=True)
class _Reported:
    """What autograd says of k rows.

    Attributes:
        weight: Random covectors w, ``(k, q)``.
        slope: ``Jᵀw``, ``(k, …)``.
        values: ``(k, q)``.
        attached: Whether there is a graph at all.
    """

    weight: Tensor
    slope: Tensor
    values: Tensor
    attached: bool


@dataclass(frozen=True)
class _Curves:
    """A function along a curve of rows, and what autograd says at its start.

    Attributes:
        f: Rows to rows.
        path: Times ``(k,)`` to rows.
        zero: The time 0 for each of the rows.
        rows: The largest number of rows in one call of ``f``; None for any.
        reported: What autograd says at time 0.
    """

    f: RowMap
    path: Callable[[Tensor], Tensor]
    zero: Tensor
    rows: int | None
    reported: _Reported

    def differences(self, step: float) -> tuple[Tensor, Tensor]:  # -> (k, q), (k,)
        """Central differences of the values, and what ``Jᵀw`` says of them."""
        count = len(self.zero)
        with torch.no_grad():
            ahead = self.path(torch.full_like(self.zero, step)).detach()
            behind = self.path(torch.full_like(self.zero, -step)).detach()
            after = _by_rows(self.f, ahead, self.rows)
            before = _by_rows(self.f, behind, self.rows)
            change = after - before
            products = (ahead - behind) * self.reported.slope
            along = products.reshape(count, -1).sum(-1)
        return change.reshape(count, -1) / (2 * step), along / (2 * step)


@dataclass(frozen=True)
class _Verdict:
    """What differences with two steps say, per row.

    Attributes:
        reported: ``⟨w, Jv⟩`` by autograd.
        actual: ``⟨w, Jv⟩`` by differences.
        bad: Whether they contradict each other.
        good: Whether they agree, and differences are sharp enough to tell.
        flat: Where they contradict each other, whether the map is constant.
    """

    reported: Tensor
    actual: Tensor
    bad: Tensor
    good: Tensor
    flat: Tensor


def contradiction(
    f: RowMap,
    path: Callable[[Tensor], Tensor],
    count: int,
    like: Tensor,
    rows: int | None = None,
    plain: Callable[[], Any] | None = None,
    roundoff: float = 0.0,
) -> Contradiction | None:
    """Compare the derivative that autograd reports for ``f`` with differences along curves of rows.

    Differences are central. They count only where two steps agree, and only what most points say
    counts.

    Args:
        f: Rows to rows, ``(k, …) -> (k, …)``.
        path: Times ``(k,)`` to the rows at which ``f`` is asked, a smooth curve for each; the unit
            of time is large.
        count: k.
        like: A tensor of the dtype and device of the times.
        rows: The largest number of rows in one call of ``f``; None for any.
        plain: Makes the context in which autograd may be asked.
        roundoff: Relative rounding inside ``f``; 0 for that of its dtype.

    Returns:
        None where they agree, and where nothing can be said.
    """
    zero = like.new_zeros(count)
    base = path(zero).detach()
    known = coarser(like.dtype, roundoff)
    step = known.eps ** (1 / 3)
    try:
        curves = _Curves(f, path, zero, rows, _reported(f, base, rows, plain))
        verdict = _verdict(curves, step, known)
    except FAILURES:
        # What autograd cannot differentiate at all is refused elsewhere, with its own words.
        return None
    bad = verdict.bad
    if bool(bad.any()):
        bad = bad & ~_followed_closer(curves, verdict, step, known)
    if bool(verdict.flat.any()):
        bad = bad & ~_finely_stepped(curves, verdict, step)
    if int(bad.sum()) < min(2, count) or int(bad.sum()) < int(verdict.good.sum()):
        return None
    i = int(bad.nonzero()[0])
    return Contradiction(
        reported=float(verdict.reported[i]),
        actual=float(verdict.actual[i]),
        point=base[i],
        constant=bool((verdict.flat & bad)[i]),
        attached=curves.reported.attached,
    )


def _verdict(curves: _Curves, step: float, known: Tolerance) -> _Verdict:
    """Differences with a step and with half of it, compared with autograd."""
    dtype = curves.zero.dtype
    weight = curves.reported.weight
    wide, wide_reported = curves.differences(step)
    narrow, reported = curves.differences(step / 2)
    actual = (weight * narrow).sum(-1)
    wide_error = (weight * wide).sum(-1).sub(wide_reported).abs()
    errors = torch.minimum(wide_error, (actual - reported).abs())
    size = (weight * narrow).abs().sum(-1)
    # Truncation shows in the difference between the steps; rounding grows as the step shrinks.
    truncation = 8 * (weight * (wide - narrow)).abs().sum(-1)
    eps = known.eps
    added_up = (weight * curves.reported.values).abs().sum(-1)
    rounding = 16 * eps / step * added_up
    doubt = truncation + rounding
    allowed = 1e-5 if dtype == torch.float64 else 3e-3
    if eps > tolerance(dtype).eps:
        allowed = max(allowed, known.check)
    limit = doubt + allowed * (size + reported.abs())
    bad = errors > limit
    good = ~bad & (limit < 0.1 * (size + reported.abs()))
    flat = bad & (size < 1e-3 * reported.abs())
    return _Verdict(reported, actual, bad, good, flat)


def _followed_closer(
    curves: _Curves, verdict: _Verdict, step: float, known: Tolerance
) -> Tensor:  # -> (k,)
    """Where the map follows its derivative over shorter steps, as long as rounding lets them tell.

    Far from the origin steps are long, and a map that swings may have come round: over both, z +
    sin z grows as z does.
    """
    weight = curves.reported.weight
    added_up = (weight * curves.reported.values).abs().sum(-1)
    found = torch.zeros_like(verdict.bad)
    for shrink in _CLOSER:
        try:
            secant, tangent = curves.differences(step / shrink)
        except FAILURES:
            continue
        size = (weight * secant).abs().sum(-1) + tangent.abs()
        rounding = 16 * known.eps * shrink / step * added_up
        gap = ((weight * secant).sum(-1) - tangent).abs()
        follows = gap <= rounding + _FOLLOWS * size
        found = found | (verdict.bad & follows & (rounding < _SHARP * size))
    return found


def _finely_stepped(curves: _Curves, verdict: _Verdict, step: float) -> Tensor:  # -> (k,)
    """Where a map that seems constant follows its derivative over longer steps.

    Its own steps are then much finer than the points are apart, as rounding is.
    """
    weight = curves.reported.weight
    coarse = 32 * step if curves.zero.dtype == torch.float32 else 2**-5
    found = torch.zeros_like(verdict.flat)
    for far in (coarse, coarse / 4, 1e-3):
        try:
            secant, tangent = curves.differences(far)
        except FAILURES:
            continue
        gap = (weight * secant).sum(-1) - tangent
        close = gap.abs() < 0.3 * tangent.abs()
        found = found | (verdict.flat & close)
    return found


def _reported(
    f: RowMap, base: Tensor, rows: int | None, plain: Callable[[], Any] | None
) -> _Reported:
    """Random covectors, and what autograd says of them."""
    source = generator()
    weights: list[Tensor] = []
    slopes: list[Tensor] = []
    values: list[Tensor] = []
    attached = False
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
    return _Reported(torch.cat(weights), torch.cat(slopes), torch.cat(values), attached)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """No warnings of a function that is run to look at it, such as float() of a leaf."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


_unheard = Shared(_without_warnings)


def _by_rows(f: RowMap, points: Tensor, rows: int | None) -> Tensor:
    parts = [f(part).detach().clone() for part in points.split(rows or len(points))]
    return torch.cat(parts)


# The cause.

_QUANTISED = (
    "A quantised map has no geometry: leave the quantiser out, and decode the continuous latent."
)
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
    "round round_ floor floor_ ceil trunc sign argmax argmin argsort bucketize searchsorted "
    "one_hot heaviside".split()
)


class _Watcher(TorchFunctionMode):
    """Notes what cuts a graph, and what has no derivative."""

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


@dataclass(frozen=True)
class _Cause:
    """What a run of the function shows.

    Attributes:
        cuts: What cuts the graph.
        steps: Functions without derivative.
        functions: The user's ``torch.autograd.Function`` classes.
    """

    cuts: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)


def explained(found: Contradiction, f: RowMap) -> tuple[str, str]:
    """What came, and what to try, for an error: ``f`` is run once more to find the cause."""
    cause = _cause(found, f)
    first = found.point.reshape(-1)[:8].tolist()
    where = [round(value, 4) for value in first]
    got = (
        f"{found.reported:.4g} from torch.autograd where the map itself changes by "
        f"{found.actual:.4g} (one direction, at {where})"
    )
    reason, remedy = _explanation(found, cause)
    return got + reason, remedy


def _cause(found: Contradiction, f: RowMap) -> _Cause:
    watcher = _Watcher()
    functions: list[str] = []
    start = found.point.detach()[None].clone().requires_grad_()
    with torch.enable_grad(), _unheard():
        try:
            with watcher:  # of the map alone
                x = f(start)
            functions = _own_functions(x)
        except FAILURES:  # the search for a cause must not hide what has been found
            functions = []
    return _Cause(watcher.cuts, watcher.steps, functions)


def _explanation(found: Contradiction, cause: _Cause) -> tuple[str, str]:
    """The cause, to be appended to what came, and what to try."""
    blocks = [cut for cut in cause.cuts if cut.startswith("torch.")]
    if found.constant:
        steps = f" ({', '.join(cause.steps)})" if cause.steps else ""
        return (
            f": between steps the map is constant{steps}, and its gradient is made up "
            "(straight-through)",
            _QUANTISED,
        )
    if cause.functions and found.attached:
        # Their forward runs without gradients, and may detach what it likes.
        names = ", ".join(cause.functions)
        return (
            f": the backward of {names} is not its derivative",
            f"Leave {names} out (gradient reversal, straight-through, scaled gradients), or "
            "correct its backward.",
        )
    if blocks:
        return (
            f": it runs under {blocks[0]}",
            f"Remove {blocks[0]} from it; to freeze weights, use requires_grad_(False).",
        )
    if cause.cuts:
        cuts = ", ".join(cause.cuts)
        return (
            f": {cuts} cuts the graph",
            f"Remove {cuts}: what depends on the input must stay in torch's graph.",
        )
    if cause.steps:
        return f": {', '.join(cause.steps)} has no derivative", _QUANTISED
    return (
        "",
        "An operation inside has no derivative in torch, or a wrong one: write it with other "
        "torch operations.",
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

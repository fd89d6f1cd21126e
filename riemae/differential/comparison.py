"""A mode compared with plain autograd at a few points: what it reports must be the same numbers.

Modes fail, or are silently wrong, through hand-written ``jvp`` rules; ``torch.no_grad`` inside of
the map (forward mode does not heed it); fused layers whose first derivative is wrong when it is
differentiated again (pytorch#198017); second derivatives of torch's linear algebra; in Taylor mode,
intermediate results that do not keep the points apart along their first axis; and
``torch.jit.script`` hidden in a closure, which loses derivatives from its second call on
(pytorch#73972).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from riemae.differential.modes import NESTED, Mode, Nested, basis
from riemae.differential.rowwise import Rowwise
from riemae.differential.tape import Pairs
from riemae.exceptions import DifferentiationError
from riemae.numerics import probe
from riemae.numerics.tolerances import Tolerance, coarser

# Kinds of derivatives: those of second order, and those whose formulas need a graph whatever the
# caller's gradient mode.
SECOND_ORDER = ("second derivatives", "contraction", "pushforward")
IN_GRADIENT_MODE = (*SECOND_ORDER, "gram", "vjp")

# Of coarse arithmetic, rounding explains no more of a sum than this.
_COARSE = 1e-2

# Points at which a mode is compared with autograd. Several tries: hidden scripts fail from their
# second call on, and each point is once among other ones.
TRIES = ([0, 1, 2], [3, 0], [2, 3, 1])
POINTS = 4


class Number(NamedTuple):
    """A number per point that a mode reports: ``⟨w, Jv⟩`` or ``⟨w, ∂²f(v, v)⟩``.

    Attributes:
        value: ``(k,)``.
        covector: ``w``, ``(k, D)``.
        power: How many times as fast as with a constant w the number changes with the point: twice
            where ``w = Jv``.
    """

    value: Tensor
    covector: Tensor
    power: int


class _Comparison(NamedTuple):
    """Two numbers per point that should agree, ``(k,)`` or ``(k, m)``.

    Attributes:
        ours: What the mode says.
        theirs: What plain autograd says; not a number where it does not know.
        size: The size of what was added up.
        floor: A difference that rounding explains.
    """

    ours: Tensor
    theirs: Tensor
    size: Tensor
    floor: Tensor


@dataclass(frozen=True)
class Comparison:
    """The comparison of a mode with plain autograd.

    Attributes:
        kind: Of derivatives.
        mode: The mode.
        comparable: Whether there are numbers to compare: not on the meta device, nor inside a
            caller's transforms. Otherwise the mode is only tried.
        derived: Whether the map is built on derivatives that have been compared, so that its
            values may vanish except for rounding of numbers of size 1.
        roundoff: Relative rounding inside the map; 0 for that of the points' dtype.
    """

    kind: str
    mode: Mode
    comparable: bool = True
    derived: bool = False
    roundoff: float = 0.0

    @property
    def create_graph(self) -> bool:
        """Whether the caller may differentiate the results."""
        return torch.is_grad_enabled() and self.kind not in SECOND_ORDER

    def _tolerance(self, point: Tensor) -> Tolerance:
        return coarser(point.dtype, self.roundoff)

    def check(
        self, f: Rowwise, points: Tensor, limit: int, tries: Sequence[list[int]] = TRIES
    ) -> bool:  # (k, m)
        """Refuse a mode that fails or is silently wrong.

        Args:
            f: The map.
            points: Where it is tried, up to :data:`POINTS`.
            limit: The largest number of rows in one call.
            tries: The rows of each try.

        Returns:
            Whether the map has a value at one of the points, so that something has been learned.

        Raises:
            RuntimeError: When the numbers differ.
            DifferentiationError: When a row's value depends on the other rows.
        """
        source = probe.generator()
        known = False
        if not self.comparable:
            tries = ([0],)
        for chosen in tries:
            present = [row for row in chosen if row < len(points)]
            rows = present[: max(1, limit)]
            point = points.detach()[rows].clone()
            if self.comparable:
                point = point.requires_grad_()
            # One direction for all points, without memory of its own, like coordinate directions:
            # some layers have trouble with those.
            v = torch.linspace(1, 2, point.shape[-1], dtype=point.dtype, device=point.device)
            if self.comparable:
                v = probe.normal(point, *v.shape, source=source)
            v = v.expand_as(point)
            with torch.no_grad():
                x = f.flat(point.detach())
            if not self.comparable:
                self.report(f, point, v, torch.ones_like(x))
                return True
            allowed = Allowed(self._tolerance(point), x)
            _refuse_coupled_rows(f, point.detach(), x, allowed)
            w = probe.normal(x, *x.shape, source=source)
            value, numbers = self.report(f, point, v, w)
            if not allowed.equal(value, x):
                raise RuntimeError("its values are not those of the map")
            known = known or bool(x.isfinite().all(-1).any())
            if not self.agrees(f, point, v, numbers):
                return True  # no second backward: nothing to compare with
        return known

    def report(
        self, f: Rowwise, z: Tensor, v: Tensor, w: Tensor
    ) -> tuple[Tensor, list[Number]]:  # (k, m), (k, m), (k, D)
        """``f``, and numbers that the mode reports by the way that this kind takes."""
        graph = self.create_graph
        mode = self.mode
        g = f.for_mode(mode, graph, z)
        if self.kind == "jacobian":
            u = basis(z) if mode.together else v[None]
            x, first = mode.forward(g, z, u, None, graph)
            along = torch.einsum("cbd,bc->bd", first, v) if mode.together else first[0]
            return x, [Number((w * along).sum(-1), w, 1)]
        if self.kind == "vjp":
            x, pulled = mode.reverse(g, z, lambda x: w, graph)
            reported = (v * pulled).sum(-1)
            return x, [Number(reported, w, 1)]
        if self.kind == "gram":
            x, tangent, pulled = mode.gram(g, z, v, lambda x, tangent: tangent, graph)
            forward = (w * tangent).sum(-1)
            reverse = (pulled * v).sum(-1)
            return x, [Number(forward, w, 1), Number(reverse, tangent.detach(), 2)]
        if self.kind == "second derivatives" and mode.together:
            pairs = Pairs.all(z.shape[-1])
            x, _, parts = mode.forward(g, z, basis(z), pairs, graph)
            second_all = pairs.full(parts.movedim(0, -1))
            bent = torch.einsum("bdij,bi,bj->bd", second_all, v, v)
            return x, [Number((w * bent).sum(-1), w, 1)]
        if self.kind == "second derivatives":
            x, _, second = mode.forward(g, z, v[None], Pairs([0], [0]), graph)
            reported = (w * second[0]).sum(-1)
            return x, [Number(reported, w, 1)]
        x, _, forms = mode.expansion(g, z, lambda x, j: w[None], graph)
        reported = (v[:, None] @ forms[0] @ v[..., None])[:, 0, 0]
        return x, [Number(reported, w, 1)]

    def agrees(self, f: Rowwise, point: Tensor, v: Tensor, numbers: list[Number]) -> bool:
        """Compare with plain autograd; False when it has no answer.

        Raises:
            RuntimeError: When the numbers differ.
        """
        if self.mode.approximate and self.kind in SECOND_ORDER:
            return False
        nested = isinstance(self.mode, Nested)
        create_graph = self.create_graph  # before gradient mode is switched on below
        compared: list[_Comparison] = []
        try:
            with NESTED[-1].active(second_order=True):
                x = f.flat(point)
                if not x.requires_grad and not nested:
                    raise RuntimeError("the map is constant, or leaves torch")  # nested modes know
                for number in numbers:
                    compared += self._compared(x, point, v, number, create_graph)
        except _NotAgain as reason:
            raise RuntimeError(str(reason)) from reason
        except RuntimeError:
            if not nested:
                raise
            return False
        limit = self._tolerance(point).check
        sound = x.detach().isfinite().all(-1)  # elsewhere derivatives mean nothing
        for ours, theirs, size, floor in compared:
            allowed = limit * (size + ours.detach().abs()) + floor
            apart = (ours - theirs).abs()
            # What is not a number is larger than nothing, and must not pass for equal.
            missing = ~ours.isfinite() & theirs.isfinite()
            off = (apart > allowed) | missing
            if bool(off[sound].any()):
                raise RuntimeError("it contradicts torch.autograd")
        return True

    def _compared(
        self, x: Tensor, point: Tensor, v: Tensor, number: Number, create_graph: bool
    ) -> list[_Comparison]:
        """One number and, where the caller may differentiate it, its derivative in the point."""
        w = number.covector
        products = slope((w * x).sum(), point) * v
        expected = products.sum(-1)  # ⟨w, Jv⟩
        bend = self._slope_of(expected, point, create_graph)
        along = torch.zeros_like(point) if bend is None else bend * v
        # Rounding is relative to what was added up; to all of it where a row's own derivatives
        # vanish.
        size = products.detach().abs().sum(-1)
        bent = along.detach().abs().sum(-1)
        noise = (w * x).detach().abs().sum(-1) + size + bent
        if self.derived:
            noise = noise + w.abs().sum(-1)
        floor = _floor(self._tolerance(point)) * noise.nan_to_num(0.0, 0.0, 0.0).max()
        if self.kind in SECOND_ORDER:
            return [_Comparison(number.value, along.sum(-1), bent, floor)]
        compared = [_Comparison(number.value, expected, size, floor)]
        if create_graph and bend is not None and not self.mode.approximate:
            ours = _slope_again(number.value.sum(), point)
            theirs = number.power * bend
            size = theirs.detach().abs()
            compared.append(_Comparison(ours, theirs, size, floor))
        return compared

    def _slope_of(self, expected: Tensor, point: Tensor, create_graph: bool) -> Tensor | None:
        """The derivative of ``⟨w, Jv⟩`` in the point; None where it is not needed or unknown.

        Raises:
            RuntimeError: When it is needed, and autograd does not know it.
        """
        second_order = self.kind in SECOND_ORDER
        if not create_graph and not second_order:
            return None
        try:
            return slope(expected.sum(), point)
        except RuntimeError:  # the first derivative is compared all the same
            if second_order or not isinstance(self.mode, Nested):
                raise
            return None


def slope(x: Tensor, point: Tensor) -> Tensor:
    """The gradient of a number, with its graph; 0 where it does not depend on the point."""
    if not x.requires_grad:
        return torch.zeros_like(point)
    (found,) = torch.autograd.grad(x, point, create_graph=True, materialize_grads=True)
    return found


class _NotAgain(Exception):
    """Why a mode's results cannot be differentiated, where autograd's own can."""


def _slope_again(x: Tensor, point: Tensor) -> Tensor:
    """The gradient of a number that a mode reports.

    Raises:
        _NotAgain: When it has none.
    """
    try:
        return slope(x, point)
    except RuntimeError as reason:
        raise _NotAgain(str(reason)) from reason


def slopes(f: Rowwise, z: Tensor) -> Tensor:  # (k, m) -> (k, m)
    """``Jᵀw`` for one w, by plain autograd."""
    with torch.enable_grad():
        start = z if z.requires_grad else z.detach().requires_grad_()
        x = f.flat(start)
        w = torch.linspace(1, 2, x.shape[1], dtype=x.dtype, device=x.device)
        pulled = slope((w * x).sum(), start)
    return pulled if z.requires_grad else pulled.detach()


def _floor(known: Tolerance) -> float:
    """A share of what was added up that rounding explains."""
    return min(1e3 * known.eps, max(_COARSE, known.check))


class Allowed:
    """How far values of the map may be apart: by rounding in its arithmetic."""

    def __init__(self, known: Tolerance, x: Tensor) -> None:
        finite = x.detach().abs().nan_to_num(0.0, 0.0, 0.0)
        largest = float(finite.max()) if x.numel() else 0.0
        self.rtol = known.check
        self.atol = _floor(known) * largest

    def equal(self, a: Tensor, b: Tensor) -> bool:
        """Whether values are no further apart; what is not a number equals itself."""
        return torch.allclose(a, b, rtol=self.rtol, atol=self.atol, equal_nan=True)


def _refuse_coupled_rows(f: Rowwise, points: Tensor, x: Tensor, allowed: Allowed) -> None:
    """Refuse a map whose first row has another value by itself.

    Raises:
        DifferentiationError: When it has.
    """
    with torch.no_grad():
        alone = f.flat(points[:1])
    if not allowed.equal(x[:1], alone):
        raise DifferentiationError(
            "differential",
            "a map that treats every row alone",
            "an output that depends on the other rows of the batch",
            "Switch batch statistics off with eval(); attention must not run across the batch "
            "axis.",
        )

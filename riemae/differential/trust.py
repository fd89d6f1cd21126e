"""Which mode is trusted for a map.

A mode is compared with plain autograd before it is used
(:mod:`riemae.differential.comparison`), at several generic points
(:func:`riemae.numerics.probe.generic`); and once more at the first large batch, and at a few of the
points of every eighth, sixty-fourth … call of a kind. Plain autograd itself is compared with
differences of the map (:mod:`riemae.numerics.contradiction`).

A trusted mode of a map, per kind of derivative, dtype and device:

=============  =====================================================================
chosen         the first of :data:`riemae.differential.modes.MODES` that agrees
looked again   after 8, 64, … calls, and at the first batch of 64 points or more
refused        it disagreed, or failed: the next one is chosen, and this one not again
=============  =====================================================================
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from riemae.differential.chunks import Chunks
from riemae.differential.comparison import IN_GRADIENT_MODE, POINTS, TRIES, Comparison, slopes
from riemae.differential.known import Known, Trusted
from riemae.differential.modes import MODES, NESTED, Mode, Nested
from riemae.differential.rowwise import Rowwise
from riemae.exceptions import (
    ApproximationWarning,
    DifferentiationError,
    FallbackWarning,
    RiemaeError,
    stack_level,
)
from riemae.numerics import probe
from riemae.numerics.arithmetic import coarsest, double_arithmetic, in_double, roundoff
from riemae.numerics.contradiction import Contradiction, contradiction, explained
from riemae.numerics.deferral import immediate
from riemae.numerics.dependence import batch_noise
from riemae.numerics.random import restored
from riemae.numerics.threads import TURN
from riemae.numerics.transforms import transformed
from riemae.numerics.values import concrete

# A trusted mode is looked at again after this number of calls, then after its square, its cube, …
_CALLS = 8

INFERENCE = (
    "Nothing can be differentiated through them. Make the module outside of it, and load their "
    "values: module.load_state_dict(other.state_dict())."
)


@dataclass
class Trust:
    """What has been found out about a map, for all of its copies.

    Attributes:
        chunks: How its rows are split.
        what: What the map is called in errors; None for a map that is built on derivatives which
            have been compared.
        known: What has been found out, alone or together with others: see :meth:`share`.
        announced: Whether a warning has been given.
        same: Whether the map is still the function that others know by :attr:`known`; None where it
            is not shared.
    """

    chunks: Chunks
    what: str | None
    known: Known = field(default_factory=Known)
    announced: bool = False
    same: Callable[[], bool] | None = None

    def share(self, known: Known, same: Callable[[], bool]) -> None:
        """Use what others know of the same function, and add to it as long as it is the same."""
        self.known = known
        self.same = same
        self.chunks.widths.update(known.widths)

    def key(self, kind: str, f: Rowwise, z: Tensor) -> tuple[Any, ...]:
        """What a choice of mode depends on.

        Kernels differ by dtype, and without gradient mode. Inside a caller's ``torch.func`` nothing
        can be compared, and ``torch.autograd`` cannot be used.
        """
        return (kind, *_place(f, z), torch.is_grad_enabled(), transformed())

    def mode(self, kind: str, f: Rowwise, z: Tensor) -> Mode:
        """The first mode that can differentiate the map, tried on a few points and remembered.

        Raises:
            DifferentiationError: When none can, or when what autograd says is not the derivative of
                the map.
            RiemaeError: What the map itself raises about its input.
        """
        key = self.key(kind, f, z)
        trusted = self.known.modes.get(key)
        count = z.shape[0]
        if trusted is not None and count:
            trusted.calls += 1
            unseen = count >= probe.LARGE_BATCH and not trusted.large
            if trusted.calls == trusted.due or unseen:
                with TURN, immediate():
                    self._look_again(key, trusted, f.at(trusted.calls), z)
                trusted = self.known.modes.get(key)
        if trusted is not None:
            return trusted.mode
        # Another thread that switches kernels off would make modes seem to work.
        with TURN, immediate():
            trusted = self.known.modes.get(key)
            if trusted is not None:
                return trusted.mode
            return self._found(key, f.at(0), z)

    def roundoff(self, f: Rowwise, z: Tensor) -> float:
        """Relative rounding inside of the map; 0 for that of the points' dtype."""
        return self.known.roundoff.get(_place(f, z), 0.0)

    def distrust(self, key: tuple[Any, ...], mode: Mode) -> None:
        """Never use a mode again where it was trusted."""
        self.known.refused.setdefault(key, set()).add(mode)
        self.known.modes.pop(key, None)

    def _comparison(
        self, kind: str, mode: Mode, place: tuple[Any, ...], comparable: bool = True
    ) -> Comparison:
        roundoff = self.known.roundoff.get(place, 0.0)
        return Comparison(kind, mode, comparable, self.what is None, roundoff)

    def _measure(self, f: Rowwise, place: tuple[Any, ...], sample: Tensor) -> None:
        """Find out, once, how coarse the arithmetic inside of the map is."""
        if place in self.known.roundoff:
            return
        with restored(sample.device), torch.inference_mode(False):
            inside = roundoff(f.flat, sample)
            try:
                noise = batch_noise(f.flat, sample)
            except probe.FAILURES:
                noise = 0.0
        self.known.roundoff[place] = max(inside, noise)
        if inside > noise:
            self.known.rounded.add(place)

    # The choice.

    def _found(self, key: tuple[Any, ...], f: Rowwise, z: Tensor) -> Mode:
        """:meth:`_chosen`, which others learn of if the map is the function that they know."""
        if self.same is not None and not self.same():
            self.known = self.known.copy()
            self.same = None
        mode = self._chosen(key, f, z)
        if self.same is not None:
            self.known.widths.update(self.chunks.widths)
        return mode

    def _chosen(self, key: tuple[Any, ...], f: Rowwise, z: Tensor) -> Mode:
        kind = key[0]
        inside = key[-1]
        place = _place(f, z)
        comparable = not z.is_meta and not inside and concrete(z) is not None
        if len(z):
            start = z.detach().contiguous()
        else:
            start = z.new_zeros(1, z.shape[-1])
        sample = start[:1]
        if comparable:
            rows = self.chunks.rows(f, start, 1)
            others = probe.generic(f.flat, start, POINTS - 1, rows)
            sample = torch.cat([others, sample])
            self._measure(f, place, sample[:rows])
            self._ask(f, start, sample)
        reasons: list[str] = []
        for mode in NESTED if inside or kind == "pushforward" else MODES:
            if mode in self.known.refused.get(key, ()) or (mode.approximate and not _once(reasons)):
                continue
            if mode.announced and not mode.approximate and comparable:
                if self._is_cut(f, start, sample):
                    reasons.append(f"{mode.name}: its derivative cannot be differentiated again")
                    continue
            try:
                known = self._tried(self._comparison(kind, mode, place, comparable), f, sample)
            except _Failed as failure:
                reasons.append(f"{mode.name}: {failure}")
                continue
            if known:  # where the map has no value, nothing has been learned
                large = not comparable or len(z) >= probe.LARGE_BATCH
                self.known.modes[key] = Trusted(mode, due=_CALLS if comparable else 0, large=large)
            if mode.announced:
                self._announce(reasons, mode.approximate)
            return mode
        raise self._no_mode(kind, f, sample, reasons)

    def _tried(self, comparison: Comparison, f: Rowwise, sample: Tensor) -> bool:
        """Whether anything has been learned.

        Raises:
            _Failed: When the mode cannot differentiate the map.
            RiemaeError: What the map itself raises about its input.
        """
        mode = comparison.mode
        try:
            with mode.active(comparison.kind in IN_GRADIENT_MODE):
                return comparison.check(f, sample, self.chunks.rows(f, sample, 1))
        except RiemaeError:
            raise
        except Exception as reason:
            expected = (RuntimeError, AssertionError, ValueError)
            if isinstance(mode, Nested) and not isinstance(reason, expected):
                raise
            # An assertion may say nothing.
            lines = str(reason).strip().splitlines() or [type(reason).__name__]
            raise _Failed(lines[0]) from reason

    def _no_mode(
        self, kind: str, f: Rowwise, sample: Tensor, reasons: list[str]
    ) -> DifferentiationError:
        """The error when no mode can differentiate the map."""
        if any("nference tensor" in reason for reason in reasons):
            got = "weights or constants made under torch.inference_mode()"
            remedy = INFERENCE
        elif (rounded := coarsest(f.flat, sample)) is not None:
            got = f"numbers of {rounded} inside of it"
            remedy = (
                f"Rounding has no derivative: convert all of it to {sample.dtype}, or z to the "
                "dtype that it computes in."
            )
        else:
            got = _distinct(reasons)
            remedy = "Is every operation of the decoder a differentiable torch operation?"
        wanted = f"a map that torch can differentiate ({kind})"
        return DifferentiationError("differential", wanted, got, remedy)

    def _announce(self, reasons: list[str], approximate: bool) -> None:
        """Warn, once, of a mode that is slow or approximate."""
        if self.announced:
            return
        self.announced = True
        reason = next(reason for reason in reasons if reason.startswith("forward mode"))
        if approximate:
            warnings.warn(
                f"Second derivatives do not exist for this map ({reason}): where they are needed, "
                "they are differences of first ones, right to some nine digits in float64 and "
                "three in float32. Results cannot be differentiated.",
                ApproximationWarning,
                stacklevel=stack_level(),
            )
            return
        warnings.warn(
            f"Forward-mode derivatives do not exist for this map ({reason}); using reverse mode "
            "twice, which is slower but exact.",
            FallbackWarning,
            stacklevel=stack_level(),
        )

    # Looking again.

    def _look_again(self, key: tuple[Any, ...], trusted: Trusted, f: Rowwise, z: Tensor) -> None:
        """Compare a trusted mode with autograd at points of this call.

        Branches, regions, and states may have changed.

        Raises:
            RiemaeError: What the map itself raises about its input, or what is wrong with its
                derivative.
        """
        if trusted.calls == trusted.due:
            trusted.due *= _CALLS
        if concrete(z) is None:
            return
        if not trusted.large and len(z) >= probe.LARGE_BATCH:
            rows = self.chunks.rows(f, z, 1)
            sample = probe.generic(f.flat, z.detach(), POINTS, rows)
            self.known.asked.discard(_place(f, z))
            self._ask(f, z.detach(), sample)
            trusted.large = True
        else:  # near the points, since they themselves may lie on a kink
            base, noise = probe.moved(z.detach(), POINTS, 1e-3)
            sample = base + noise
        kind = key[0]
        comparison = self._comparison(kind, trusted.mode, _place(f, z))
        try:
            with trusted.mode.active(kind in IN_GRADIENT_MODE):
                comparison.check(f, sample, self.chunks.rows(f, sample, 1), TRIES[:1])
        except RiemaeError:
            raise
        except (RuntimeError, AssertionError, ValueError, TypeError) as reason:
            self.distrust(key, trusted.mode)
            warnings.warn(
                f"{trusted.mode.name} fails for this map at some of these points "
                f"({str(reason).splitlines()[0]}): another one is used from now on. Earlier "
                f"results ({kind}) may be wrong there: compute them again.",
                FallbackWarning,
                stacklevel=stack_level(),
            )

    # Autograd itself.

    def _ask(self, f: Rowwise, z: Tensor, points: Tensor) -> None:
        """Compare what autograd reports with differences of the map, once per dtype and device.

        Raises:
            DifferentiationError: When it is not the derivative of the map.
        """
        place = _place(f, z)
        if self.what is None or place in self.known.asked:
            return
        # Of generic points: a given one may lie on a kink.
        found = self._contradiction(f, f.flat, z, points[: POINTS - 1])
        if found is None:
            self.known.asked.add(place)
            return
        with torch.inference_mode(False):
            got, remedy = explained(found, f.flat)
        wanted = f"{self.what} whose derivative torch.autograd knows"
        raise DifferentiationError("differential", wanted, got, remedy)

    def _is_cut(self, f: Rowwise, z: Tensor, points: Tensor) -> bool:
        """Whether autograd's second derivative lacks a part, silently.

        So it does where ``once_differentiable`` functions stand next to others. Reverse mode twice
        would lack that part of the first derivative.
        """
        place = _place(f, z)
        if place not in self.known.cut:
            found = self._contradiction(f, partial(slopes, f), z, points[: POINTS - 1])
            self.known.cut[place] = found is not None
        return self.known.cut[place]

    def _contradiction(
        self, f: Rowwise, g: Callable[[Tensor], Tensor], z: Tensor, points: Tensor
    ) -> Contradiction | None:
        """Where autograd's derivative of ``g`` is not that of its values, along straight lines."""
        with torch.inference_mode(False):
            v = probe.normal(points, *points.shape, source=probe.generator()) * probe.spread(z)

            def path(t: Tensor) -> Tensor:
                return points + t[:, None] * v

            rows = self.chunks.rows(f, z, 1)
            plain = partial(NESTED[-1].active, second_order=True)
            unit = self.known.roundoff.get(_place(f, z), 0.0)
            if (
                _place(f, z) in self.known.rounded
            ):  # in float64 differences are sharp; None where that is not possible
                exact = partial(contradiction, in_double(g), path, len(points), points.double())
                found = exact(rows, partial(_in_double, plain))
                if found is not None:
                    return found
            return contradiction(g, path, len(points), points, rows, plain, unit)


@contextmanager
def _in_double(plain: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    with plain(), double_arithmetic():
        yield


class _Failed(Exception):
    """Why a mode cannot differentiate a map."""


def _place(f: Rowwise, z: Tensor) -> tuple[Any, ...]:
    return (z.device.type, z.dtype, f.kind)


def _once(reasons: list[str]) -> bool:
    """Whether what is missing is a derivative of the derivative."""
    last = reasons[-1] if reasons else ""
    return "differentiated again" in last or "differentiate twice" in last


def _distinct(reasons: list[str]) -> str:
    """Each reason once, followed by the modes that it stopped."""
    found: dict[str, list[str]] = {}
    for reason in reasons:
        name, _, text = reason.partition(": ")
        found.setdefault(text, []).append(name)
    parts = []
    for text, names in found.items():
        listed = ", ".join(names)
        parts.append(f"{text} ({listed})")
    return "; ".join(parts)

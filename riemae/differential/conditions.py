"""Conditions of a decoder: what ``decoder(z, c)`` gets besides the points, row by row.

Examples are library size, class, and batch. At a fixed condition the decoder is a map of ``z``
alone, with a geometry of its own. Points, or pairs of points, with different conditions are
computed in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from riemae.exceptions import DeviceError, DifferentiationError, DTypeError, OptionError, ShapeError
from riemae.numerics.batch_invariance import padded_rows

# A tensor (*b, *shape), or a tuple, list or dict of them; None for a decoder of points alone.
Conditions = Any


@dataclass(frozen=True)
class Condition:
    """The conditions of ``k`` rows.

    Attributes:
        table: The different conditions, a tensor ``(c, *shape)``, or a tuple, list or dict of them.
        rows: ``(k,)`` int64, which of them each row has.
        count: c.
        kind: What the decoder gets, except for the values: structure, shapes and dtypes.
    """

    table: Any
    rows: Tensor
    count: int
    kind: Hashable

    @classmethod
    def of(
        cls, where: str, condition: Conditions, batch: torch.Size, device: torch.device
    ) -> Condition | None:
        """The conditions of points or pairs with these batch axes, one for each or one for all.

        Raises:
            DTypeError: For anything but tensors and tuples, lists and dicts of them.
            ShapeError: When the first axes of one of them are neither the batch axes nor 1.
            DeviceError: When one is on another device than the points.
        """
        if condition is None or isinstance(condition, Condition):
            return condition
        if isinstance(condition, Untransformed):
            further = len(batch) - condition.axes
            own = cls.of(where, condition.given, batch[further:], device)
            return (
                None if own is None else replace(own, rows=own.rows.repeat(batch[:further].numel()))
            )
        leaves = _leaves(_mapped(lambda x: _checked(where, x, batch, device), condition))
        if not leaves:
            raise DTypeError(
                where,
                "a condition that holds at least one tensor",
                repr(condition),
                "Leave condition= out.",
            )
        axes = len(batch)
        shared = all(x.shape[:axes].numel() == 1 for x in leaves)
        lead = torch.Size([1] * axes) if shared else batch
        count = lead.numel()
        table = _mapped(
            lambda x: x.expand(*lead, *x.shape[axes:]).reshape(count, *x.shape[axes:]), condition
        )
        rows = torch.arange(batch.numel(), device=device)
        return cls(table, torch.zeros_like(rows) if shared else rows, count, _kind(table))

    @classmethod
    def with_rows(cls, given: Condition | None, numbers: Tensor) -> Condition:  # (k, *s)
        """Conditions of k rows together with numbers that each row has for itself.

        :meth:`parted` takes them apart.
        """
        own = () if given is None else given.spread(len(numbers)).values()
        table = (own, numbers)
        rows = torch.arange(len(numbers), device=numbers.device)
        return cls(table, rows, len(numbers), _kind(table))

    def parted(self) -> tuple[Condition | None, Tensor]:
        """The conditions and the numbers of :meth:`with_rows`, row by row."""
        own, numbers = self.values()
        if isinstance(own, tuple) and not own:
            return None, numbers
        rows = torch.arange(len(numbers), device=numbers.device)
        return Condition(own, rows, len(numbers), _kind(own)), numbers

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, index: Any) -> Condition:
        """The conditions of some of the rows."""
        return replace(self, rows=self.rows[index])

    def chosen(self, index: Tensor) -> Condition:  # (k,) int64
        """The conditions at places of the table."""
        return replace(self, rows=index)

    def spread(self, count: int) -> Condition:
        """The conditions of ``count`` rows: each condition is repeated for consecutive rows."""
        k = len(self.rows)
        if k == count:
            return self
        times, rest = divmod(count, k)
        assert not rest, f"{count} rows for {k} conditions"  # callers keep rows and points aligned
        return replace(self, rows=self.rows.repeat_interleave(times))

    def padded_rows(self, multiple: int) -> Condition:
        """The last row repeated, up to a multiple of this number of rows."""
        return replace(self, rows=padded_rows(self.rows, multiple))

    def blank(self) -> Condition:
        """A condition of zeros for a single row, to find out shapes where there is no row."""
        table = _mapped(lambda x: x.new_zeros(1, *x.shape[1:]), self.table)
        return replace(self, table=table, rows=self.rows.new_zeros(1), count=1)

    def detached(self) -> Condition:
        """The same conditions as constants."""
        return replace(self, table=_mapped(lambda x: x.detach(), self.table))

    def holding(self, leaves: list[Tensor]) -> Condition:
        """The same conditions with these tensors in place of those of the table, in their order."""
        left = iter(leaves)
        return replace(self, table=_mapped(lambda _: next(left), self.table))

    def values(self) -> Any:
        """What the decoder gets: the given structure, with tensors ``(k, *shape)``."""
        return _mapped(self._gathered, self.table)

    @property
    def gathered(self) -> list[Tensor]:
        """All tensors that the decoder gets, with one row for each."""
        return [self._gathered(x) for x in self.leaves]

    def laid_out(self, gathered: list[Tensor]) -> Condition:
        """The conditions of rows whose tensors are these, those of :attr:`gathered` or others."""
        count = len(gathered[0])
        rows = torch.arange(count, device=gathered[0].device)
        return replace(self.holding(gathered), rows=rows, count=count)

    def _gathered(self, x: Tensor) -> Tensor:
        if x.is_inference() and not torch.is_inference_mode_enabled():
            x = x.clone()  # what is made in inference mode cannot be kept for a backward pass
        return x[self.rows]

    @property
    def leaves(self) -> list[Tensor]:
        """All tensors of the table."""
        return _leaves(self.table)

    def single(self, where: str) -> Condition:
        """The one condition that all rows share.

        Raises:
            OptionError: When there are several.
        """
        if self.count != 1:
            raise OptionError(
                where,
                "one condition for all points: a distance lies between two points under the same "
                "condition",
                f"{self.count} conditions",
                "Give it leading axes of length 1, such as condition[:1], and call once per "
                "condition; or give pairs of points, each with its condition, to "
                "Manifold.distance.",
            )
        return self.chosen(
            torch.zeros_like(self.rows[:1]) if len(self.rows) else self.rows.new_zeros(1)
        )


@dataclass(frozen=True)
class Untransformed:
    """Conditions that were given inside ``torch.func``, for use outside of it.

    There, the points have more axes in front.

    Attributes:
        given: As they were given.
        axes: Batch axes of the points inside.
    """

    given: Conditions
    axes: int

    @classmethod
    def of(cls, where: str, condition: Conditions, axes: int) -> Untransformed:
        """The conditions, if they are not transformed.

        Raises:
            DifferentiationError: When they are.
        """
        if any(
            torch._C._functorch.is_functorch_wrapped_tensor(x)
            for x in _leaves(_mapped(lambda x: x, condition))
        ):
            raise DifferentiationError(
                where,
                "plain conditions inside torch.func",
                "conditions that are transformed",
                "Use batch axes in place of vmap, and torch.autograd for gradients in conditions.",
            )
        return cls(condition, axes)


def _checked(where: str, x: Tensor, batch: torch.Size, device: torch.device) -> Tensor:
    axes = len(batch)
    if x.ndim < axes or any(a not in (1, b) for a, b in zip(x.shape, batch, strict=False)):
        hint = "Its first axes are the batch axes, as many as the points have."
        if axes:
            hint += f" One condition for all: condition[{', '.join(['None'] * axes)}]."
        raise ShapeError(
            where,
            f"a condition of shape {_written(batch)}, one for each, or "
            f"{_written((1,) * axes)}, one for all",
            str(tuple(x.shape)),
            hint,
        )
    if x.device != device:
        raise DeviceError(
            where, f"a condition on the points' device {device}", str(x.device), "Move one of them."
        )
    return x


def _written(batch: Any) -> str:
    return f"({', '.join([*map(str, batch), '*shape'])})"


def _mapped(f: Callable[[Tensor], Tensor], x: Any) -> Any:
    """The same structure with ``f`` of its tensors.

    Raises:
        DTypeError: When it holds something else.
    """
    if isinstance(x, Tensor):
        return f(x)
    if isinstance(x, dict):
        return {key: _mapped(f, value) for key, value in x.items()}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(_mapped(f, value) for value in x))
    if isinstance(x, (tuple, list)):
        return type(x)(_mapped(f, value) for value in x)
    raise DTypeError(
        "Manifold",
        "a condition as a tensor, or a tuple, list or dict of tensors",
        type(x).__name__,
        "Try torch.as_tensor(condition).",
    )


def _leaves(x: Any) -> list[Tensor]:
    if isinstance(x, Tensor):
        return [x]
    return [leaf for part in (x.values() if isinstance(x, dict) else x) for leaf in _leaves(part)]


def _kind(x: Any) -> Hashable:
    if isinstance(x, Tensor):
        return tuple(x.shape[1:]), x.dtype
    if isinstance(x, dict):
        return type(x), tuple((key, _kind(value)) for key, value in x.items())
    return type(x), tuple(_kind(value) for value in x)

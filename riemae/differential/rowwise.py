"""A map of rows ``f: (k, m) -> (k, *shape)``, together with the conditions of the rows at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from riemae.differential.chain import Chain, chain_of
from riemae.differential.conditions import Condition
from riemae.differential.modes import BatchedMap, Mode, Taylor
from riemae.differential.primitives import with_primitives
from riemae.exceptions import ShapeError
from riemae.numerics.checks import shape_in_words


def unoptimised(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``f`` with the optimiser of ``torch.jit.script`` switched off.

    Nested derivatives through optimised code are silently wrong (pytorch#73972, #84681).
    """
    owner = getattr(f, "__self__", f)
    scripts: list[Any] = [f] if isinstance(f, torch.jit.ScriptFunction) else []
    if isinstance(owner, nn.Module):
        scripts = [
            m.forward
            for m in owner.modules()
            if isinstance(m, torch.jit.ScriptModule) and hasattr(m, "forward")
        ]
        scripts = [m for m in scripts if hasattr(m, "_debug_flush_compilation_cache")]
    if not scripts:
        return f

    def call(*args: Any) -> Tensor:
        for script in scripts:  # plans made by earlier calls would still be used
            script._debug_flush_compilation_cache()
        with torch.jit.optimized_execution(False):
            return f(*args)

    return call


@dataclass(frozen=True)
class Rowwise:
    """A map under the conditions of some rows.

    Attributes:
        function: ``(k, m) -> (k, *shape)``; with conditions, they are its second argument.
        condition: The conditions, one per row, or one for each of equally many neighbours.
    """

    function: Callable[..., Tensor]
    condition: Condition | None = None

    @property
    def kind(self) -> Any:
        """The kind of the conditions: with those of another kind, it may be another map."""
        return None if self.condition is None else self.condition.kind

    def conditioned(self, condition: Condition | None) -> Rowwise:
        """The same map under other conditions."""
        return replace(self, condition=condition)

    def at(self, row: int) -> Rowwise:
        """The map under the condition of one row, for any points."""
        c = self.condition
        if c is None:
            return self
        if not len(c):
            return self.conditioned(c.blank())
        return self.conditioned(c.select([row % len(c)]))

    def part(self, first: int, count: int) -> Rowwise:
        """The map under the conditions of consecutive rows."""
        c = self.condition
        if c is None:
            return self
        rows = slice(first, first + count)
        return self.conditioned(c.select(rows))

    def spread(self, count: int) -> Rowwise:
        """The map with one condition for each of ``count`` rows."""
        c = self.condition
        if c is None:
            return self
        return self.conditioned(c.spread(count))

    def padded(self, multiple: int) -> Rowwise:
        """The map for rows that are padded to a multiple of this number."""
        c = self.condition
        if c is None:
            return self
        return self.conditioned(c.padded_rows(multiple))

    def output(self, z: Tensor) -> Any:
        """What the function returns."""
        if self.condition is None:
            return self.function(z)
        return self.function(z, self.condition.spread(len(z)))

    def flat(self, z: Tensor) -> Tensor:  # (k, m) -> (k, D)
        """Its values as rows.

        Raises:
            ShapeError: When it does not return one row per point.
        """
        x = self.output(z)
        if not isinstance(x, Tensor) or not x.ndim or x.shape[0] != z.shape[0]:
            raise ShapeError(
                "differential",
                f"a map (k, m) -> (k, *shape) that returns {len(z)} rows for {len(z)} points",
                shape_in_words(x),
                "The first axis of the output must be the batch.",
            )
        if x.ndim == 2:
            return x
        return x.reshape(len(z), -1)

    def exact(self, z: Tensor) -> Tensor:  # (k, m) -> (k, D)
        """The same, by primitives where torch's own derivatives are wrong or missing."""
        with with_primitives():
            return self.flat(z)

    def for_mode(self, mode: Mode, create_graph: bool, z: Tensor) -> BatchedMap:
        """The map as a mode differentiates it at the points ``z``.

        For Taylor mode, a chain of layers where it is one.

        Primitives replace functions inside of the map, not in the arithmetic around it. Jets bring
        primitives of their own, and a single reverse pass needs none.
        """
        if not isinstance(mode, Taylor) or create_graph:
            return self.exact
        return self.chain(z) or self.flat

    def chain(self, z: Tensor) -> Chain | None:
        """The chain of layers that the map is at the points ``z``; None where it is none."""
        return chain_of(self.function, z) if self.condition is None else None

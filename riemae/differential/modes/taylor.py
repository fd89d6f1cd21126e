"""Taylor mode: all derivatives in one pass (:mod:`riemae.differential.jets`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import riemae.differential.rules  # noqa: F401 (registers the rules)
from riemae.differential.chain import Chain
from riemae.differential.jets import Jet
from riemae.differential.modes.base import BatchedMap, Covectors, Mode, basis, leaf, pulled_back
from riemae.differential.tape import Pairs, Tape, bending


@dataclass(frozen=True)
class Taylor(Mode):
    """All derivatives in one pass: by jets, and for a chain of layers by its own formulas."""

    def forward(
        self, f: BatchedMap, z: Tensor, directions: Tensor, pairs: Pairs | None, create_graph: bool
    ) -> tuple[Tensor, ...]:
        """As in :class:`~riemae.differential.modes.base.Mode`."""
        if isinstance(f, Chain):
            return f.forward(z, directions, pairs)
        with torch.set_grad_enabled(create_graph):
            tape = Tape(create_graph, len(z), pairs)
            out = f(Jet(z, directions, None, tape))
            x, first, *second = self._parts(out, len(directions))
        if pairs is None:
            return x, first
        if not second:
            return x, first, first.new_zeros(len(pairs), *x.shape)
        return x, first, second[0]

    def reverse(
        self, f: BatchedMap, z: Tensor, covector: Callable[[Tensor], Tensor], create_graph: bool
    ) -> tuple[Tensor, Tensor]:
        """As in :class:`~riemae.differential.modes.base.Mode`."""
        if isinstance(f, Chain):
            return f.reverse(z, covector)
        start = leaf(z, create_graph)
        x = f(start)
        out = x if create_graph else x.detach()
        (pulled,) = pulled_back(x, [start], covector(out), create_graph)
        return out, pulled

    def gram(
        self,
        f: BatchedMap,
        z: Tensor,
        v: Tensor,
        lower: Callable[[Tensor, Tensor], Tensor],
        create_graph: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As in :class:`~riemae.differential.modes.base.Mode`.

        The reverse pass goes through the values of the forward one.
        """
        if isinstance(f, Chain):
            return f.gram(z, v, lower)
        start = leaf(z, create_graph)
        tape = Tape(create_graph, len(z))
        x, tangents, *_ = self._parts(f(Jet(start, v[None], None, tape)), 1)
        tangent = tangents[0]
        out = x if create_graph else x.detach()
        with torch.set_grad_enabled(create_graph):
            covector = lower(out, tangent)
        (pulled,) = pulled_back(x, [start], covector, create_graph)
        return out, tangent, pulled

    def expansion(
        self, f: BatchedMap, z: Tensor, covectors: Covectors, create_graph: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As in :class:`~riemae.differential.modes.base.Mode`.

        One forward pass, and one reverse pass per covector.
        """
        if isinstance(f, Chain):
            return f.expansion(z, basis(z), covectors)
        m = z.shape[-1]
        start = leaf(z, create_graph)
        tape = Tape(create_graph, len(z), Pairs.all(m), recorded=[])
        x, j, *_ = self._parts(f(Jet(start, basis(z), None, tape)), m)
        out = x if create_graph else x.detach()
        with torch.set_grad_enabled(create_graph):
            rows = covectors(out, j).unbind()
        forms = []
        for i, a in enumerate(rows):
            last = i + 1 == len(rows)
            pull = partial(pulled_back, x, a=a, create_graph=create_graph, keep=not last)
            forms.append(bending(tape, pull, z))
        with torch.set_grad_enabled(create_graph):
            return out, j, torch.stack(forms)

    @staticmethod
    def _parts(x: Any, k: int) -> tuple[Tensor, ...]:
        """Value, tangents, and second derivatives if they do not vanish."""
        if not isinstance(x, Jet):  # a constant map
            return x, x.new_zeros(k, *x.shape)
        if x.second is None:
            return x.value, x.first
        return x.value, x.first, x.second

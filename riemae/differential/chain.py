"""Chains of layers: all derivatives in one pass, without jets and without graphs.

Many decoders are one layer after the other: ``nn.Sequential`` of linear layers and activations. At
a few points, such a map costs in Taylor mode less for its arithmetic than for what is around it: a
jet for every result, a rule that is looked up for every function, a graph for the reverse pass.
Layers in a row need none of that. With ``x`` the input of a layer, ``y`` its output, ``x_i`` and
``x_ij`` derivatives, and ``δ`` covectors,

==========  ===========  ==========================  ===========
layer       ``y_i``      ``y_ij``                    ``δ_x``
==========  ===========  ==========================  ===========
``Wx + b``  ``W x_i``    ``W x_ij``                  ``Wᵀ δ_y``
``op(x)``   ``op′ x_i``  ``op′ x_ij + op″ x_i x_j``  ``op′ δ_y``
==========  ===========  ==========================  ===========

and every ``op`` adds ``Σ δ_y op″ x_i x_j`` to the second derivative along a covector
(:mod:`riemae.differential.tape`). Those are the operations of Taylor mode itself, so the numbers
are the same but for rounding.

What makes a chain is looked at again in every pass, layer by layer. Only classes in :data:`STEPS`
count, and no subclasses of them. Hooks, methods that somebody replaced, autocast, a caller's
transforms, and results that are to be differentiated again leave the map to jets. So nothing is
remembered of a module, and weights are those of the moment.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from riemae.differential.rules.elementwise import CLOSED, Elementwise
from riemae.differential.tangents import bent, plus
from riemae.differential.tape import Pairs, products
from riemae.numerics.batch_invariance import aligned
from riemae.numerics.transforms import transformed

# Tangents (k, b, n), or (k, 1, n) where they are those of every point; second derivatives
# (p, b, n), None where they vanish.
Parts = tuple[Tensor, Tensor | None]
# Products of tangents that all points share are written out up to so many numbers, of so many per
# product: longer sums several threads would share out, in an order that depends on the batch.
_TABLE, _TABLE_ROW = 2**17, 256
Covectors = Callable[[Tensor, Tensor], Tensor]


class Step(ABC):
    """One layer of a chain, ``(b, n) -> (b, o)``."""

    @property
    def width(self) -> int:
        """``o``; 0 where it is ``n``."""
        return 0

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """``y``."""

    @abstractmethod
    def pushed(self, x: Tensor, y: Tensor, parts: Parts, pairs: Pairs | None) -> Parts:
        """``y_i`` and, for ``pairs``, ``y_ij``; what is given may be overwritten."""

    @abstractmethod
    def pulled(self, x: Tensor, y: Tensor, a: Tensor) -> Tensor:
        """``δ_x`` of ``δ_y = a``."""


@dataclass(eq=False)
class Affine(Step):
    """``Wx + b``."""

    weight: Tensor
    bias: Tensor | None

    @property
    def width(self) -> int:
        """As in :class:`Step`."""
        return self.weight.shape[0]

    def value(self, x: Tensor) -> Tensor:
        """As in :class:`Step`."""
        return F.linear(x, self.weight, self.bias)

    def pushed(self, x: Tensor, y: Tensor, parts: Parts, pairs: Pairs | None) -> Parts:
        """As in :class:`Step`."""
        first, second = parts
        pushed = None if second is None else F.linear(second, self.weight)
        return F.linear(first, self.weight), pushed

    def pulled(self, x: Tensor, y: Tensor, a: Tensor) -> Tensor:
        """As in :class:`Step`."""
        return a @ self.weight


@dataclass(frozen=True, eq=False)
class Scaled(Step):
    """``center + scale x``, number by number."""

    center: Tensor
    scale: Tensor

    def value(self, x: Tensor) -> Tensor:
        """As in :class:`Step`."""
        return self.center + self.scale * x

    def pushed(self, x: Tensor, y: Tensor, parts: Parts, pairs: Pairs | None) -> Parts:
        """As in :class:`Step`."""
        first, second = parts
        return self.scale * first, None if second is None else self.scale * second

    def pulled(self, x: Tensor, y: Tensor, a: Tensor) -> Tensor:
        """As in :class:`Step`."""
        return a * self.scale


@dataclass(frozen=True, eq=False)
class Numberwise(Step):
    """A function of single numbers whose derivatives are known in closed form."""

    function: Callable[[Tensor], Tensor]
    rule: Elementwise
    constants: tuple[float, ...] = ()

    def value(self, x: Tensor) -> Tensor:
        """As in :class:`Step`."""
        return self.function(x)

    def derivatives(self, x: Tensor, y: Tensor, order: int) -> tuple[Tensor, Tensor | None]:
        """``op′`` and, for order 2, ``op″``; None where that vanishes."""
        assert self.rule.derivatives is not None
        return self.rule.derivatives(x, y, order, *self.constants)

    def pushed(self, x: Tensor, y: Tensor, parts: Parts, pairs: Pairs | None) -> Parts:
        """As in :class:`Step`."""
        first, second = parts
        if pairs is None:
            if self.rule.known is not None and len(first) == 1:
                return self.rule.known.tangent(first, x, y), None
            slope, _ = self.derivatives(x, y, 1)
            if first.shape[1] == x.shape[0]:  # in large batches, new memory takes longer than that
                return first.mul_(slope), None
            return slope * first, None
        slope, bend = self.derivatives(x, y, 2)
        pushed = None if second is None else slope * second
        if bend is not None:
            pushed = bent(bend * first, first.expand(-1, *x.shape), pushed, pairs, False)
        return slope * first, pushed

    def pulled(self, x: Tensor, y: Tensor, a: Tensor) -> Tensor:
        """As in :class:`Step`."""
        if self.rule.known is not None:
            return self.rule.known.tangent(a, x, y)
        slope, _ = self.derivatives(x, y, 1)
        return a * slope


@dataclass(eq=False)
class Chain:
    """A map ``(b, m) -> (b, D)`` that consists of steps, and its derivatives as modes give them.

    Those have no graph.
    """

    steps: list[Step]

    def __call__(self, z: Tensor) -> Tensor:
        """The values."""
        for step in self.steps:
            z = step.value(z)
        return z

    @torch.no_grad()
    def forward(
        self, z: Tensor, directions: Tensor, pairs: Pairs | None
    ) -> tuple[Tensor, ...]:  # (b, m), (c, b, m) -> (b, D), (c, b, D)[, (p, b, D)]
        """``f``, ``J u_i``, and for ``pairs`` ``∂²f(u_i, u_j)``."""
        x = z
        parts: Parts = (self._own(_once(directions)), None)
        for step in self.steps:
            y = step.value(x)
            parts = step.pushed(x, y, parts, pairs)
            x = y
        first = parts[0].expand(-1, *x.shape)
        if pairs is None:
            return x, first
        second = parts[1]
        if second is None:
            second = x.new_zeros(len(pairs), *x.shape)
        return x, first, second

    def reverse(
        self, z: Tensor, covector: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:  # (b, m), (b, D) -> (b, D), (b, m)
        """``f`` and ``Jᵀw`` with ``w = covector(f)``."""
        x, _, pulled = self.gram(z, None, lambda x, tangent: covector(x))
        return x, pulled

    def gram(
        self, z: Tensor, v: Tensor | None, lower: Callable[[Tensor, Any], Tensor]
    ) -> tuple[Tensor, Any, Tensor]:  # (b, m) twice -> (b, D), (b, D), (b, m)
        """``f``, ``Jv`` and ``Jᵀ lower(f, Jv)``; without v, no tangents."""
        results = [z]
        parts: Parts | None = None if v is None else (self._own(v[None]), None)
        with torch.no_grad():
            for step in self.steps:
                x = results[-1]
                results.append(step.value(x))
                if parts is not None:
                    parts = step.pushed(x, results[-1], parts, None)
        x = results[-1]
        tangent = None if parts is None else parts[0][0]
        a = lower(x, tangent)
        with torch.no_grad():
            for step in reversed(self.steps):
                y = results.pop()
                a = step.pulled(results[-1], y, a)
        return x, tangent, a

    @torch.no_grad()
    def expansion(
        self, z: Tensor, directions: Tensor, covectors: Covectors
    ) -> tuple[Tensor, Tensor, Tensor]:  # -> (b, D), (c, b, D), (s, b, c, c)
        """``f``, ``J u_i`` and ``a·∂²f(u_i, u_j)`` for ``a = covectors(f, J u)`` ``(s, b, D)``."""
        x = z
        first = _once(directions)
        passed: list[_Passed] = []  # from the first step that bends
        for step in self.steps:
            y = step.value(x)
            slope = bend = None
            if isinstance(step, Numberwise):
                slope, bend = step.derivatives(x, y, 2)
            if bend is not None or passed:
                passed.append(_Passed(step, x, y, slope, bend, first))
            if slope is None:
                first, _ = step.pushed(x, y, (first, None), None)
            else:
                first = slope * first
            x = y
        first = first.expand(-1, *x.shape)
        rows = covectors(x, first).unbind()
        return x, first, torch.stack([_bending(passed, a, first) for a in rows])

    def _own(self, directions: Tensor) -> Tensor:
        """Directions that a step may write into; a layer with weights makes others of them."""
        return directions if isinstance(self.steps[0], Affine) else directions.clone()


@dataclass(eq=False)
class _Passed:
    """What a reverse pass needs of a step: input, output, ``op′``, ``op″`` and the tangents."""

    step: Step
    x: Tensor
    y: Tensor
    slope: Tensor | None
    bend: Tensor | None
    first: Tensor


def _bending(passed: list[_Passed], a: Tensor, first: Tensor) -> Tensor:  # -> (b, c, c)
    """``a·∂²f``, from what a forward pass with the tangents ``first`` of its end has met."""
    c, b, _ = first.shape
    form = None
    for here in reversed(passed):
        if here.bend is not None:
            form = plus(form, _bent(a * here.bend, here.first))
        if here is passed[0]:  # nothing bends before it
            break
        if here.slope is None:
            a = here.step.pulled(here.x, here.y, a)
        else:
            a = a * here.slope
    return first.new_zeros(b, c, c) if form is None else form


def _bent(weight: Tensor, first: Tensor) -> Tensor:  # (b, n), (c, b, n) -> (b, c, c)
    """``Σ weight x_i x_j`` over the numbers of each point."""
    b, n = weight.shape
    c, points, _ = first.shape
    if points == b or n > _TABLE_ROW or c**2 * n > _TABLE:
        weighted = weight * first
        return products(weighted, first.expand_as(weighted), b)
    # Tangents that are those of every point: one product of matrices serves all of them.
    shared = aligned(first[:, 0], -1)
    table = (shared[:, None] * shared).flatten(0, 1)
    return F.linear(aligned(weight, -1), table).view(b, c, c)


def _once(directions: Tensor) -> Tensor:  # (c, b, m) -> (c, b, m) or (c, 1, m)
    """Directions that are those of every point, once: they meet the first layers once, too."""
    return directions if directions.stride(1) else directions[:, :1]


# Which layers make a chain.

# (layer, points, numbers in its input) -> the step; None where it is not the usual one.
Maker = Callable[[Any, Tensor, int], Step | None]


@dataclass(frozen=True)
class Link:
    """How the layers of a class become steps.

    Attributes:
        make: Makes them.
        forward: The method of the class that a step stands for.
    """

    make: Maker
    forward: Any


# By class, and not by its bases: a subclass may do something else.
STEPS: dict[type[nn.Module], Link] = {}
_CALL = nn.Module.__call__
_SEQUENCE = nn.Sequential.forward
_GLOBAL_HOOKS: tuple[dict[Any, Any], ...] = tuple(
    getattr(nn.modules.module, f"_global_{name}_hooks")
    for name in ("forward", "forward_pre", "backward", "backward_pre")
)


def step_of(*classes: type[nn.Module]) -> Callable[[Maker], Maker]:
    """A decorator that enters how layers of these classes become steps into :data:`STEPS`."""

    def register(make: Maker) -> Maker:
        STEPS.update({kind: Link(make, kind.forward) for kind in classes})
        return make

    return register


class Layered(ABC):
    """A map that may consist of the layers of a module, and nothing else."""

    @property
    @abstractmethod
    def layers(self) -> tuple[nn.Module, int] | None:
        """The module, and how many numbers it returns, 0 where that is unknown.

        None where there is more to the map.
        """


def chain_of(f: Any, z: Tensor) -> Chain | None:
    """The chain that a map of points ``(k, m)`` consists of, as it is now; None where it is none.

    Args:
        f: The map, a module or :class:`Layered`.
        z: The points.
    """
    found = f.layers if isinstance(f, Layered) else (f, 0)
    if found is None or not isinstance(found[0], nn.Module):
        return None
    root, numbers = found
    unusual = type(z) is not Tensor or z.is_inference() or z.is_meta or transformed()
    if unusual or torch.is_autocast_enabled(z.device.type):
        return None
    if nn.Module.__call__ is not _CALL or any(_GLOBAL_HOOKS):
        return None
    steps: list[Step] = []
    width = z.shape[-1]
    for layer in _in_order(root):
        kind = type(layer)
        link = STEPS.get(kind)
        if link is None or kind.forward is not link.forward or _altered(layer):
            return None
        step = link.make(layer, z, width)
        if step is None:
            return None
        steps.append(step)
        width = step.width or width
    return Chain(steps) if steps and width == (numbers or width) else None


def _in_order(layer: nn.Module) -> list[nn.Module]:
    """The layers that are called one after the other."""
    if type(layer) is not nn.Sequential or nn.Sequential.forward is not _SEQUENCE:
        return [layer]
    if _altered(layer):
        return [layer]
    parts = list(layer)
    if nn.Sequential not in map(type, parts):
        return parts
    return [inner for part in parts for inner in _in_order(part)]


def _altered(layer: nn.Module) -> bool:
    """Whether a call of a layer may do more than its class says."""
    own = vars(layer)
    hooks = own["_forward_hooks"] or own["_forward_pre_hooks"]
    backward = own["_backward_hooks"] or own["_backward_pre_hooks"]
    compiled = own.get("_compiled_call_impl") is not None
    return bool(hooks or backward or compiled or "forward" in own)


def fits(constant: Tensor, z: Tensor) -> bool:
    """Whether a constant is a plain tensor of the points' kind."""
    plain = type(constant) in (nn.Parameter, Tensor) and constant.layout is torch.strided
    return plain and constant.dtype is z.dtype and constant.device == z.device


@step_of(nn.Linear)
def _linear(layer: Any, z: Tensor, width: int) -> Step | None:
    own = vars(layer)["_parameters"]
    weight = own.get("weight")
    if weight is None or "bias" not in own:  # they are computed from others
        return None
    bias = own["bias"]
    usual = fits(weight, z) and weight.shape[-1] == width and (bias is None or fits(bias, z))
    return Affine(weight, bias) if usual else None


def _enter(kind: type[nn.Module], function: Callable[[Tensor], Tensor], name: str) -> None:
    step = Numberwise(function, CLOSED[name])
    step_of(kind)(lambda layer, z, width: step)


_enter(nn.SiLU, F.silu, "silu")
_enter(nn.Tanh, torch.tanh, "tanh")
_enter(nn.Sigmoid, torch.sigmoid, "sigmoid")
_enter(nn.ReLU, F.relu, "relu")


@step_of(nn.Softplus)
def _softplus(layer: Any, z: Tensor, width: int) -> Step:
    constants = layer.beta, layer.threshold
    return Numberwise(lambda x: F.softplus(x, *constants), CLOSED["softplus"], constants)


@step_of(nn.GELU)
def _gelu(layer: Any, z: Tensor, width: int) -> Step | None:
    return Numberwise(F.gelu, CLOSED["gelu"]) if layer.approximate == "none" else None


@step_of(nn.ELU)
def _elu(layer: Any, z: Tensor, width: int) -> Step:
    alpha = layer.alpha
    return Numberwise(lambda x: F.elu(x, alpha), CLOSED["elu"], (alpha,))

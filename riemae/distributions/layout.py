"""What a decoder may return besides a tensor: distributions, heads of them, ensemble members.

The geometry works on one tensor ``x`` per point. Here distributions are read into such a tensor,
and built from it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributions as td
from torch import Tensor
from torch.distributions import constraints

from riemae.differential.jets import Jet
from riemae.distributions.fallback import arguments_of, family_by_torch
from riemae.distributions.family import Family, Params
from riemae.distributions.numerical import Divergence, Quantiles, Score
from riemae.distributions.registry import family_of
from riemae.exceptions import DecoderError
from riemae.numerics.values import concrete


class Members(tuple[Any, ...]):
    """Outputs of the members of an ensemble at the same points: what an ensemble's decoder returns.

    Its length is the number of members; each entry is a tensor ``(k, *shape)``, a distribution, or
    a tuple or dict of distributions, all of one structure.
    """

    __slots__ = ()


@dataclass(frozen=True)
class Head:
    """How the parameters of one distribution lie in a flat vector.

    Attributes:
        family: The family of its independent variables.
        names: Parameters, in order.
        shapes: Their shapes without the batch axis.
        constants: Parameters without a batch axis, such as a temperature: never a function of the
            point.
        transforms: Fixed invertible maps after the family; they change no Fisher information.
        reinterpreted: Batch axes that ``Independent`` made part of the event.
        fixed: Parameters that do not depend on the latent point; None before this is known.
        moving_support: Whether the set of possible data depends on the latent point.
    """

    family: Family
    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    constants: dict[str, Any] = field(default_factory=dict, compare=False)
    transforms: tuple[td.Transform, ...] = ()
    reinterpreted: int = 0
    fixed: frozenset[str] | None = field(default=None, compare=False)
    moving_support: bool = field(default=False, compare=False)

    @property
    def free(self) -> frozenset[str]:
        """Parameters that vary."""
        fixed = self.fixed
        if fixed is None:
            fixed = self.family.support_parameters
        return frozenset(self.names) - fixed

    @property
    def size(self) -> int:
        """Numbers in the flat vector."""
        return sum(shape.numel() for shape in self.shapes)

    def split(self, x: Tensor) -> Params:  # (*b, size)
        """Parameters by name, each ``(*b, *shape)``."""
        parts = x.split([shape.numel() for shape in self.shapes], -1)
        p = {}
        for name, part, shape in zip(self.names, parts, self.shapes, strict=True):
            p[name] = part.reshape(*x.shape[:-1], *shape)
        return p

    def complete(self, p: Params) -> Params:
        """Parameters and constants together.

        As they came where the class itself is built from them.
        """
        if isinstance(self.family, (Divergence, Quantiles, Score)):
            return {**self.constants, **p}
        like = next(iter(p.values()))
        complete = {}
        for name, value in self.constants.items():
            complete[name] = torch.as_tensor(value).to(like)
        complete.update(p)
        return complete

    def join(self, p: Params) -> Tensor:  # -> (k, size)
        """The flat vector; zeros for parameters that are missing."""
        like = next(iter(p.values()))
        parts = []
        for name, shape in zip(self.names, self.shapes, strict=True):
            if name in p:
                parts.append(p[name].reshape(len(like), -1))
            else:
                parts.append(like.new_zeros(len(like), shape.numel()))
        return joined(parts)

    def build(self, p: Params) -> td.Distribution:
        """The distribution with these parameters."""
        out = self.family.distribution(**p, **self.constants)
        if self.transforms:
            out = td.TransformedDistribution(out, list(self.transforms))
        if self.reinterpreted:
            out = td.Independent(out, self.reinterpreted)
        return out


@dataclass(frozen=True)
class Layout:
    """How one distribution, or several heads, lie in ``x``.

    Attributes:
        heads: In the order in which the decoder returns them.
        keys: Keys of a dict of heads, None for a tuple of them, ``()`` for a single distribution.
    """

    heads: tuple[Head, ...]
    keys: tuple[Any, ...] | None = ()

    @property
    def shape(self) -> torch.Size:
        """Shape of ``x`` at one point.

        A single parameter keeps its own shape; several are flattened and joined.
        """
        if len(self.heads) == 1 and len(self.heads[0].names) == 1:
            (shape,) = self.heads[0].shapes
            if shape:
                return shape
        size = sum(head.size for head in self.heads)
        return torch.Size([size])

    def split(self, x: Tensor) -> list[Params]:  # (*b, P)
        """Parameters of each head."""
        parts = x.split([head.size for head in self.heads], -1)
        return [head.split(part) for head, part in zip(self.heads, parts, strict=True)]

    def build(self, x: Tensor) -> Any:  # (*b, P)
        """The distributions, in the structure in which the decoder returned them."""
        built = [head.build(p) for head, p in zip(self.heads, self.split(x), strict=True)]
        if self.keys is None:
            return tuple(built)
        if not self.keys:
            return built[0]
        return dict(zip(self.keys, built, strict=True))


@dataclass(frozen=True)
class EnsembleLayout:
    """Members of an ensemble side by side: ``x`` is ``(k, count, *member's shape)``.

    Attributes:
        member: Layout of each, or None for tensors.
        count: Number of members.
    """

    member: Layout | None
    count: int


AnyLayout = Layout | EnsembleLayout


def read(output: Any) -> tuple[Tensor, AnyLayout | None]:
    """A decoder's output as one tensor, and what it holds; None for a tensor.

    Raises:
        DecoderError: For anything that cannot be read.
    """
    if isinstance(output, Tensor):
        return output, None
    if isinstance(output, Members):
        return _read_members(output)
    keys, found = _outputs(output)
    pairs = [_read_head(d) for d in found]
    layout = Layout(tuple(head for head, _ in pairs), keys)
    rows = [len(x) for _, x in pairs]
    if len(set(rows)) > 1:
        got = " and ".join(map(str, rows))
        raise DecoderError(
            "Manifold",
            "heads with one row per point",
            f"{got} rows",
            "The first axis of every distribution's parameters must be the batch.",
        )
    flat = joined([x for _, x in pairs])
    return flat.reshape(len(flat), *layout.shape), layout


def joined(parts: Sequence[Tensor]) -> Tensor:  # (k, n) each -> (k, Σ n)
    """Side by side; a single one as it is, without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), -1)


def distributions(output: Any) -> list[td.Distribution]:
    """All distributions in a decoder's output, members of ensembles one after the other.

    None in a tensor.
    """
    if isinstance(output, Tensor):
        return []
    if isinstance(output, Members):
        return [d for member in output for d in distributions(member)]
    _, found = _outputs(output)
    return found


def parameters(distribution: td.Distribution) -> Params:
    """The parameters that ``x`` holds of a distribution, by name."""
    _, p, _, _ = _read(distribution)
    return p


def invalid_rows(output: Any) -> Tensor | None:  # -> (k,)
    """Where a parameter lies outside of its family's range, such as a negative scale.

    None where all are inside.

    Only values are looked at; inside ``vmap`` there are none.
    """
    bad: Tensor | None = None
    for distribution in distributions(output):
        base = distribution
        while isinstance(base, (td.Independent, td.TransformedDistribution)):
            base = base.base_dist
        for name, value in parameters(distribution).items():
            constraint = base.arg_constraints.get(name)
            if isinstance(value, Jet):
                value = value.value
            value = value.detach()
            inside = None if constraint is None else _inside(constraint, value)
            if inside is None:
                continue
            everywhere = concrete(inside.all())
            if everywhere is None or bool(everywhere):
                continue
            rows = ~inside.reshape(len(value), -1).all(-1)
            bad = rows if bad is None else bad | rows
    return bad


def _inside(constraint: Any, value: Tensor) -> Tensor | None:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    if constraint is constraints.simplex:
        # Torch's own check of the sum is too strict for many classes in float32.
        return value >= 0
    anything = constraint is constraints.real or constraint is constraints.real_vector
    if anything or constraints.is_dependent(constraint):
        return None
    return constraint.check(value)


def _outputs(output: Any) -> tuple[tuple[Any, ...] | None, list[td.Distribution]]:
    keys: tuple[Any, ...] | None = None
    found: list[Any] = []
    if isinstance(output, td.Distribution):
        keys = ()
        found = [output]
    elif isinstance(output, dict):
        keys = tuple(output)
        found = list(output.values())
    elif isinstance(output, (tuple, list)):
        found = list(output)
    if not found or not all(isinstance(d, td.Distribution) for d in found):
        kinds = ", ".join(sorted({type(d).__name__ for d in found}))
        of = f" of {kinds}" if found else ""
        raise DecoderError(
            "Manifold",
            "a decoder that returns one tensor (k, *shape), or torch distributions",
            type(output).__name__ + of,
            "Return the mean, or pick one output: Manifold(lambda z: decoder(z)[0]).",
        )
    return keys, found


def _read_members(members: Members) -> tuple[Tensor, EnsembleLayout]:
    pairs = [read(member) for member in members]
    layouts = [layout for _, layout in pairs]
    shapes = sorted({tuple(x.shape) for x, _ in pairs})
    if len(shapes) != 1 or any(layout != layouts[0] for layout in layouts):
        raise DecoderError(
            "Manifold",
            "an ensemble whose members all return the same structure",
            f"shapes {shapes}" if len(shapes) != 1 else "different distributions",
            "All members must describe the same data.",
        )
    if isinstance(layouts[0], EnsembleLayout):
        raise DecoderError(
            "Manifold",
            "an ensemble of decoders",
            "an ensemble of ensembles",
            "Join their members in one.",
        )
    joined = torch.stack([x for x, _ in pairs], 1)
    return joined, EnsembleLayout(layouts[0], len(pairs))


def _read_head(distribution: td.Distribution) -> tuple[Head, Tensor]:
    reinterpreted = 0
    while isinstance(distribution, td.Independent):
        reinterpreted += distribution.reinterpreted_batch_ndims
        distribution = distribution.base_dist
    family, p, constants, transforms = _read(distribution)
    shapes = tuple(value.shape[1:] for value in p.values())
    head = Head(family, tuple(p), shapes, constants, transforms, reinterpreted)
    return head, head.join(p)


def _read(
    distribution: td.Distribution,
) -> tuple[Family, Params, dict[str, Any], tuple[td.Transform, ...]]:
    """Family, parameters, constants and fixed transforms of a distribution.

    Raises:
        DecoderError: When it has no parameters of its own, or not one row per point.
    """
    while isinstance(distribution, td.Independent):
        distribution = distribution.base_dist
    transforms: tuple[td.Transform, ...] = ()
    family = family_of(distribution)
    if (
        family is None
        and isinstance(distribution, td.TransformedDistribution)
        and _is_fixed(distribution.transforms)
    ):
        transforms = tuple(distribution.transforms)
        distribution = distribution.base_dist
        while isinstance(distribution, td.Independent):
            distribution = distribution.base_dist
        family = family_of(distribution)
    found = family.read(distribution) if family is not None else arguments_of(distribution)
    p = {name: value for name, value in found.items() if isinstance(value, Tensor) and value.ndim}
    constants = {name: value for name, value in found.items() if name not in p}
    if not p or len({len(value) for value in p.values()}) > 1:
        named = [f"{name} {tuple(value.shape)}" for name, value in p.items()]
        shapes = ", ".join(named)
        raise DecoderError(
            "Manifold",
            "distributions with one row of parameters per point",
            f"{type(distribution).__name__} with {shapes or 'none'}",
            "Build them from tensors (k, ...) that depend on z; "
            "mixtures have no parameters of their own.",
        )
    if family is None:
        family = family_by_torch(distribution, p, constants)
    return family, p, constants, transforms


def _is_fixed(transforms: Iterable[td.Transform]) -> bool:
    """Whether maps are invertible and hold no tensor, so that they cannot depend on the point."""
    parts = list(transforms)
    for transform in parts:
        parts.extend(getattr(transform, "parts", ()))  # of a composition
        inner = getattr(transform, "base_transform", None)
        if inner is not None:
            parts.append(inner)
    return not any(_may_move(part) for part in parts)


def _may_move(transform: td.Transform) -> bool:
    if not transform.bijective:
        return True
    return any(isinstance(value, Tensor) for value in vars(transform).values())

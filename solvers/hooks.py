"""What a space may offer beyond the :class:`~riemae.solvers.space.Space` protocol.

Every hook is optional. Each is a small protocol below, next to the function that solvers call: it
uses the hook where the space has it, and does something sensible where it has not. No solver asks a
space for anything in any other way.

=======================  ===========================================  ==============================
hook                     what it gives                                without it
=======================  ===========================================  ==============================
``energy_and_gradient``  the discrete energy and its gradient, by a   reverse mode through
                         faster way than the chords                   ``squared_chords``
``between``              the same space, which may keep what it        the space itself
                         knows of these end points
``products``             the energy's Hessian as products with        ``squared_chords`` are
                         vectors, for the matrix-free solver          differentiated twice
``embedded``             images of points in a Euclidean space where  lengths come from ``norm``
                         curves have the lengths that they have here  alone; error estimates have
                                                                      one witness less
``pulled``               forces on images of points, pulled back to   no curve is tried as a
                         the points by a reverse pass                 polynomial
``velocities``           the velocities with which a geodesic passes  curves are splines through
                         its nodes                                    their nodes
``labels``               how many coordinates, the last ones, only    0: all coordinates move
                         say which member of a family of spaces a
                         point is of
``restored``             the curves of a result with the labels that  curves are taken as they are
                         solvers do not see
``ambient_features``     points of the ambient space whose Euclidean  ``ambient_distance``, row by
                         distance is the ambient distance             row
``roundoff``             relative rounding inside, where it is      0: that of the points' dtype
                         more than that of the points' dtype
``width``                numbers per point that a derivative holds:   as many as there are
                         the widest layer of a decoder                coordinates
``gradients_only``       whether second derivatives cost far too      they do not
                         much
``turning``              how parallel vectors turn along a         differences of accelerations
                         velocity: ``Γ(v, ·)``
``deviation``            that, and how neighbouring geodesics move    forward mode through
                         apart: ``R(·, v) v``                         accelerations
``geodesic``             a path solver of its own, which knows        ``riemae.solvers.geodesic``
                         better where to start
=======================  ===========================================  ==============================

A hook may also answer None where it has nothing to say for these arguments (``embedded``,
``pulled``, ``velocities``, ``ambient_features``, ``turning``, ``deviation``): that counts as not
having it. The required methods ``residual`` and ``ambient_distance`` may do the same.

All points of a pair have the same labels, along which nothing moves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from riemae.numerics.offers import offers
from riemae.numerics.tolerances import Tolerance, coarser
from riemae.solvers.curve import Curve
from riemae.solvers.energy import differentiated
from riemae.solvers.products import Products, from_graph
from riemae.solvers.space import Space

# A function of the images (p, c, D) of points, -> (p, …).
Then = Callable[[Tensor], Tensor]
Embedding = Callable[[Tensor, Then], "Tensor | None"]
# Of images (p, c, D): forces on them, and numbers (p, …) to hand on.
Force = Callable[[Tensor], tuple[Tensor, Tensor]]


class HasEnergyAndGradient(Protocol):
    """A space with a faster gradient than reverse mode through its chords."""

    def energy_and_gradient(
        self, nodes: Tensor
    ) -> tuple[Tensor, Tensor]:  # (p, n + 1, m) -> (p,), (p, n - 1, m)
        """The discrete energy and its gradient in the interior nodes."""
        ...


class HasBetween(Protocol):
    """A space that may keep what it knows of the ends of curves, which do not move."""

    def between(self, z0: Tensor, z1: Tensor) -> Space:  # (p, m), (p, m)
        """The same space, for one batch of curves between these points and no longer."""
        ...


class HasProducts(Protocol):
    """A space that multiplies by the Hessian of the discrete energy without writing it down."""

    def products(self, nodes: Tensor) -> Products:  # (p, n + 1, m)
        """The energy to second order about curves."""
        ...


class HasEmbedded(Protocol):
    """A space inside a Euclidean one."""

    def embedded(self, points: Tensor, then: Then) -> Tensor | None:  # (p, c, m) -> (p, …)
        """``then`` of the images ``(p, c, D)`` of points.

        None where curves have other lengths there.
        """
        ...


class HasPulled(Protocol):
    """A space inside a Euclidean one, which knows how forces there act on its points."""

    def pulled(
        self, points: Tensor, force: Force, ends: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:  # (p, c, m) -> (p, c, m), (p, …)
        """``Jᵀ`` of the forces on the images of points, and what else ``force`` tells of them.

        With images ``(p, 2, D)`` of end points that do not move, ``force`` gets those, too: before
        and after the images of the points.

        None where curves have other lengths in the Euclidean space.
        """
        ...


class HasVelocities(Protocol):
    """A space that knows how a geodesic passes given nodes."""

    def velocities(self, nodes: Tensor) -> Tensor | None:  # (p, n + 1, m) -> (p, n + 1, m)
        """``dz/dt`` at the nodes, or None.

        Where coordinates move unevenly they make a better curve than a spline through the nodes.
        """
        ...


class HasLabels(Protocol):
    """A family of spaces, given as one."""

    @property
    def labels(self) -> int:
        """How many coordinates, the last ones, only name the member of the family."""
        ...


class HasRestored(Protocol):
    """A space whose results lack the labels of their points."""

    def restored(self, curve: Curve, stats: dict[str, Tensor]) -> Curve:
        """The curves of a result with their labels; ``stats`` are the result's."""
        ...


class HasAmbientFeatures(Protocol):
    """A space whose ambient distance is a Euclidean one."""

    def ambient_features(self, z: Tensor) -> Tensor | None:  # (k, m) -> (k, F)
        """Points whose Euclidean distance is the ambient distance, or None."""
        ...


class HasRoundoff(Protocol):
    """A space that computes in coarser arithmetic than that of the points' dtype."""

    @property
    def roundoff(self) -> float:
        """Relative rounding of images and lengths; 0 for that of the dtype."""
        ...


class HasWidth(Protocol):
    """A space that knows how much memory a derivative takes."""

    def width(self, z: Tensor) -> int:  # (k, m)
        """Numbers per point, and per direction, that a derivative holds at once."""
        ...


class HasGradientsOnly(Protocol):
    """A space that knows when second derivatives cost far more than gradients."""

    def gradients_only(self, z: Tensor) -> bool:  # (k, m)
        """Whether solvers should do without second derivatives."""
        ...


class HasTurning(Protocol):
    """A space that knows its connection along a velocity."""

    def turning(self, z: Tensor, v: Tensor) -> Tensor | None:  # (k, m), (k, m) -> (k, m, m)
        """The matrices of ``w ↦ Γ(v, w)``, or None."""
        ...


class HasDeviation(Protocol):
    """A space that knows its curvature along a velocity."""

    def deviation(self, z: Tensor, v: Tensor) -> Tensor | None:  # (k, m), (k, m) -> (k, 2, m, m)
        """The matrices of ``w ↦ Γ(v, w)`` and of ``w ↦ R(w, v) v``, or None."""
        ...


class HasGeodesic(Protocol):
    """A space with its own path solver, such as one with periodic coordinates."""

    def geodesic(self, z0: Tensor, z1: Tensor, **options: Any) -> Any:
        """As :func:`riemae.solvers.geodesic`, without the space."""
        ...


def energy_and_gradient(
    space: Space, nodes: Tensor
) -> tuple[Tensor, Tensor]:  # (p, n + 1, m) -> (p,), (p, n - 1, m)
    """The discrete energy and its gradient in the interior nodes; by default by reverse mode."""
    if offers(space, HasEnergyAndGradient):
        return space.energy_and_gradient(nodes)
    return differentiated(space.squared_chords, nodes)


def between(space: Space, z0: Tensor, z1: Tensor) -> Space:  # (p, m), (p, m)
    """The space for curves between these points; by default itself."""
    if offers(space, HasBetween):
        return space.between(z0, z1)
    return space


def products(space: Space, nodes: Tensor) -> Products:  # (p, n + 1, m)
    """The energy to second order; by default the chords are differentiated twice."""
    if offers(space, HasProducts):
        return space.products(nodes)
    with torch.enable_grad():
        interior = nodes[:, 1:-1].detach().requires_grad_()
        chords = space.squared_chords(torch.cat([nodes[:, :1], interior, nodes[:, -1:]], 1))
    start = nodes[:, :-1]
    size = space.norm(start.flatten(0, 1), start.flatten(0, 1)).view(start.shape[:2])
    return from_graph(interior, chords, size)


def embedding_of(space: Space) -> Embedding | None:
    """The space's ``embedded``; by default None."""
    if offers(space, HasEmbedded):
        return space.embedded
    return None


def pulled_of(
    space: Space, points: Tensor, force: Force, ends: Tensor | None = None
) -> tuple[Tensor, Tensor] | None:
    """Forces on images ``(p, c, D)`` of points ``(p, c, m)``, at the points; by default None.

    With images ``(p, 2, D)`` of end points, they are on those as well.
    """
    if offers(space, HasPulled):
        return space.pulled(points, force, ends)
    return None


def velocities_of(space: Space, nodes: Tensor) -> Tensor | None:  # (p, n + 1, m) -> (p, n + 1, m)
    """The velocities with which a geodesic passes its nodes; by default None."""
    if offers(space, HasVelocities):
        return space.velocities(nodes)
    return None


def labels_of(space: Space) -> int:
    """How many coordinates, the last ones, are labels; by default 0."""
    if offers(space, HasLabels):
        return int(space.labels)
    return 0


def restored(space: Space, curve: Curve, stats: dict[str, Tensor]) -> Curve:
    """The curves of a result as the space takes them; by default as they are."""
    if offers(space, HasRestored):
        return space.restored(curve, stats)
    return curve


def features_of(space: Space, z: Tensor) -> Tensor | None:  # (k, m) -> (k, F)
    """Points whose Euclidean distance is the ambient distance; by default None."""
    if offers(space, HasAmbientFeatures):
        return space.ambient_features(z)
    return None


def precision_of(space: Space, dtype: torch.dtype) -> Tolerance:
    """What results of this dtype can promise in this space; by default what the dtype can."""
    inside = space.roundoff if offers(space, HasRoundoff) else 0.0
    return coarser(dtype, inside)


def width_of(space: Space, z: Tensor) -> int:  # (k, m)
    """Numbers per point that a derivative holds; by default as many as there are coordinates."""
    if offers(space, HasWidth):
        return space.width(z)
    return z.shape[-1]


def gradients_only(space: Space, z: Tensor) -> bool:  # (k, m)
    """Whether solvers should do without second derivatives; by default not."""
    return offers(space, HasGradientsOnly) and space.gradients_only(z)


def turning_of(space: Space, z: Tensor, v: Tensor) -> Tensor | None:  # -> (k, m, m)
    """The matrices of ``w ↦ Γ(v, w)``; by default None."""
    if offers(space, HasTurning):
        return space.turning(z, v)
    return None


def deviation_of(space: Space, z: Tensor, v: Tensor) -> Tensor | None:  # -> (k, 2, m, m)
    """The matrices of ``w ↦ Γ(v, w)`` and of ``w ↦ R(w, v) v``; by default None."""
    if offers(space, HasDeviation):
        return space.deviation(z, v)
    return None


def solver_of(space: Space, default: Callable[..., Any]) -> Callable[..., Any]:
    """The space's ``geodesic``; by default ``default`` with the space as first argument."""
    if offers(space, HasGeodesic):
        return space.geodesic
    return partial(default, space)

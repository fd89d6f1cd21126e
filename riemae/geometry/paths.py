"""The energy of discrete curves under a pull-back metric, with what solvers derive from it.

With a feature map φ of the ambient metric, a curve's images ``x_i = φ(f(z_i))`` lie in a Euclidean
space, and the energy is ``n Σ |x_{i+1} − x_i|²``. Without one, the segments are measured by the
ambient metric at both of their ends: ``n Σ Δxᵀ ½(H(x_i) + H(x_{i+1})) Δx``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import repeat
from typing import TypeVar

import torch
from torch import Tensor
from torch.func import grad
from torch.nn import functional as F

from riemae.ambient import FeatureMetric
from riemae.differential.modes import PORTABLE
from riemae.geometry.composition import Composition
from riemae.geometry.ends import Ends
from riemae.geometry.variation import laid_out, positive_part, remaining_part
from riemae.numerics.batch_invariance import aligned
from riemae.numerics.deferral import left_to_the_caller
from riemae.numerics.metric import safe_sqrt
from riemae.numerics.tolerances import tolerance
from riemae.solvers.energy import (
    Expansion,
    bending,
    chord_force,
    differentiated,
    discrete_energy,
    expand_chord,
    image_velocity,
    rounding,
)
from riemae.solvers.hooks import Force
from riemae.solvers.linear import BlockTridiagonal
from riemae.solvers.products import Products, from_graph, pulled

Self = TypeVar("Self", bound="PathMetric")

# A pass without tangents holds what the widest layer gets and what it gives.
_VALUES = 2


class PathMetric(Composition):
    """What a pull-back metric says of discrete curves, given by their nodes ``(p, n + 1, m)``.

    Attributes:
        ends: Images of the ends of curves, after :meth:`between`; else None.
    """

    ends: Ends | None = None

    def between(self: Self, z0: Tensor, z1: Tensor) -> Self:  # (p, m), (p, m)
        """The same for curves between these points, whose images are kept.

        Itself where there are no features, and where keeping them would be dear. What it returns is
        for one call: it does not see that the decoder changes.
        """
        if self.condition is not None or not len(z0) or not Ends.can_be_told(z0):
            return self
        self.bind(z0)
        if self.embedding is None:
            return self
        points = torch.stack([z0, z1], 1)
        images = self._images(points)
        if not Ends.can_be_kept(images):
            return self
        twin: Self = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.ends = Ends(points, images)
        return twin

    def squared_chords(self, nodes: Tensor) -> Tensor:  # (p, n + 1, m) -> (p, n)
        """Squared lengths of the segments of discrete curves."""
        self.bind(nodes[:, 0])
        x = self._images(nodes)
        steps = x.diff(dim=1)
        return self._squared_steps(x, steps)

    def embedded(
        self, points: Tensor, then: Callable[[Tensor], Tensor]
    ) -> Tensor | None:  # (p, c, m) -> (p, …)
        """``then`` ``(p, c, D) -> (p, …)`` of the features along curves, some curves at a time.

        None without a feature map, and where the features of one curve are too many to be held at
        once.
        """
        self.bind(points[:, 0])
        if self.embedding is None:
            return None
        rows = self.batch_invariant.chunk(points.flatten(0, 1), _VALUES)
        curves = rows // points.shape[1]
        if not curves:
            return None
        only_ends = points.shape[1] == 2
        parts = [
            then(part._images_of_ends(x) if only_ends else part._images(x))
            for part, x in self.parts(points, curves)
        ]
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts)

    def expand(self, nodes: Tensor, second_order: bool = True) -> Expansion:
        """The energy with its derivatives in the interior nodes, some curves at a time."""
        self.bind(nodes[:, 0])
        m = nodes.shape[-1]
        orders = 2 if second_order else 1
        curves = self._curves_at_once(nodes[:, 1:-1], 1 + orders * m)  # the ends do not move
        parts = self.parts(nodes, curves)
        if self.embedding is None:
            expansions = [part._expand_general(x, second_order) for part, x in parts]
        else:
            expansions = [part._expand_features(x, second_order) for part, x in parts]
        joined = Expansion.cat(expansions)
        return replace(joined, noise=self._noise(joined.noise))

    def _noise(self, noise: Tensor) -> Tensor:
        """Rounding of an energy, in the decoder's own arithmetic."""
        eps = tolerance(noise.dtype).eps
        if self.roundoff <= eps:
            return noise
        return noise * (self.roundoff / eps)

    def energy_and_gradient(
        self, nodes: Tensor
    ) -> tuple[Tensor, Tensor]:  # (p, n + 1, m) -> (p,), (p, n - 1, m)
        """The energy and its gradient, by one reverse pass, some curves at a time."""
        self.bind(nodes[:, 0])
        curves = self._curves_at_once(nodes, 2)
        parts = [part._slope(x) for part, x in self.parts(nodes, curves)]
        if len(parts) == 1:
            return parts[0]
        energies, gradients = zip(*parts, strict=True)
        return torch.cat(energies), torch.cat(gradients)

    def pulled(
        self, points: Tensor, force: Force, ends: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:  # (p, c, m) -> (p, c, m), (p, …)
        """``Jᵀ`` of forces on the images of points, by one reverse pass, some curves at a time.

        With images ``(p, 2, D)`` of the curves' end points, the force is on those as well, before
        and after the others, and only what acts on the others is pulled back. None without a
        feature map.
        """
        self.bind(points[:, 0])
        if self.embedding is None:
            return None
        curves = self._curves_at_once(points, 2)
        beside = ends.split(curves) if ends is not None else repeat(None)
        some = zip(self.parts(points, curves), beside, strict=False)
        parts = [part._pulled(x, force, fixed) for (part, x), fixed in some]
        if len(parts) == 1:
            return parts[0]
        lowered, told = zip(*parts, strict=True)
        return torch.cat(lowered), torch.cat(told)

    def products(self, nodes: Tensor) -> Products:  # (p, n + 1, m)
        """The energy with products of its Hessian, by reverse passes through one kept graph.

        The Gauss-Newton product is ``Jᵀ(W (Jv))``, with ``Jv`` as the derivative of ``Jᵀw`` in w,
        and W the path's Laplacian.
        """
        self.bind(nodes[:, 0])
        p, count, _ = nodes.shape
        n = count - 1
        # Fused kernels often lack second backward passes.
        with PORTABLE.active(second_order=True):
            ends = self._images_of_ends(nodes[:, ::n].detach()).detach()
            interior = nodes[:, 1:-1].detach().requires_grad_()
            x = self.batch_invariant.value(interior.flatten(0, 1))
            x = x.view(p, n - 1, -1)
            w = torch.zeros_like(x).requires_grad_()
            path = _joined(ends, x)
            steps = path.diff(dim=1)
            chords = self._squared_steps(path, steps)
        points = path.detach()
        pulled_w: list[Tensor] = []  # Jᵀw with its graph, made when it is first asked for

        def gauss_newton(v: Tensor) -> Tensor:
            if not x.requires_grad:
                return torch.zeros_like(v)
            if not pulled_w:
                options = {"create_graph": True, "materialize_grads": True}
                with torch.enable_grad():
                    found = torch.autograd.grad(x, interior, w, **options)
                pulled_w.extend(found)
            pushed = pulled(pulled_w[0], w, v)
            # The ends do not move.
            step = F.pad(pushed, (0, 0, 1, 1)).diff(dim=1)
            bend = self._lowered(points, step).diff(dim=1)
            return pulled(x, interior, -2 * n * bend)

        squared = self._squared_steps(points, points[:, :-1])
        size = safe_sqrt(squared)
        found = from_graph(interior, chords, size, gauss_newton)
        return replace(found, noise=self._noise(found.noise))

    def residual(self, nodes: Tensor) -> Tensor | None:  # (p, n + 1, m) -> (p, n - 1, m)
        """The energy's gradient with second differences of sixth order; None without features."""
        self.bind(nodes[:, 0])
        if self.embedding is None:
            return None
        x = self._images(nodes)
        interior = nodes[:, 1:-1]
        # A multiple of 16 curves, so that one of them alone has the same bits: see
        # riemae.numerics.batch_invariance.
        padded = bending(aligned(x, -3))
        bend = padded[: len(x)]
        flat = interior.flatten(0, 1)
        covectors = bend.flatten(0, 1)
        _, lowered = self.batch_invariant.vjp(flat, covectors)
        return lowered.view(interior.shape)

    def velocities(self, nodes: Tensor) -> Tensor | None:  # (p, n + 1, m) -> (p, n + 1, m)
        """The velocities of a geodesic at its nodes: ``ż`` with ``Jż`` closest to ``ẋ``.

        The image x of a geodesic bends in directions normal to the manifold only, however unevenly
        its coordinates move: its velocity is taken from finite differences.

        None without a feature map, or with more latent dimensions than features; NaN or far too
        fast where J is singular.
        """
        self.bind(nodes[:, 0])
        if self.embedding is None:
            return None
        curves = self._curves_at_once(nodes, 1 + nodes.shape[-1])
        found = []
        for part, x in self.parts(nodes, curves):
            projected = part._projected(x)
            if projected is None:
                return None
            found.append(projected)
        return torch.cat(found)

    def ambient_distance(
        self, z0: Tensor, z1: Tensor
    ) -> Tensor | None:  # (*b, m), (*b, m) -> (*b,)
        """Distance of the decoded points in the ambient space, a lower bound of the geodesic's.

        None where it is unknown.
        """
        batch = z0.shape[:-1]
        first = z0.reshape(-1, z0.shape[-1])
        last = z1.reshape(-1, z1.shape[-1])
        self.bind(first)
        euclidean = type(self.ambient).distance is FeatureMetric.distance
        if self.embedding is not None and euclidean:
            start, stop = self._images_of_ends(torch.stack([first, last], 1)).unbind(1)
            chord = stop - start
            return chord.norm(dim=-1).view(batch)
        start = self.shaped(self.immersion.value(first))
        stop = self.shaped(self.immersion.value(last))
        distance = self.ambient.distance(start, stop)
        if distance is None:
            return None
        return distance.view(batch)

    def ambient_features(self, z: Tensor) -> Tensor | None:  # (k, m) -> (k, F)
        """``φ(f(z))``, whose Euclidean distances are the ambient ones; None without features."""
        self.bind(z)
        if self.embedding is None:
            return None
        return self.embedding.value(z)

    def _curves_at_once(self, nodes: Tensor, passes: int) -> int:
        """How many curves fit into memory with so many tangents at each node; at least one."""
        rows = self.immersion.chunk(nodes.flatten(0, 1), passes)
        return max(1, rows // max(1, nodes.shape[1]))

    def _images(self, nodes: Tensor) -> Tensor:  # (p, c, m) -> (p, c, D)
        images = self.batch_invariant.value(nodes.flatten(0, 1))
        return images.view(*nodes.shape[:2], images.shape[-1])

    def _images_of_ends(self, points: Tensor) -> Tensor:  # (p, 2, m) -> (p, 2, D)
        known = None if self.ends is None else self.ends.images(points)
        return self._images(points) if known is None else known

    def _projected(self, nodes: Tensor) -> Tensor | None:  # (p, n + 1, m) -> (p, n + 1, m)
        """The least-squares solution ``ż`` of ``Jż = ẋ`` at every node, or None: see above."""
        flat_x, flat_j = self.batch_invariant.value_and_jacobian(nodes.flatten(0, 1))
        if flat_x.shape[-1] < nodes.shape[-1]:
            return None
        x = flat_x.unflatten(0, nodes.shape[:2])
        j = flat_j.unflatten(0, nodes.shape[:2])
        padded = image_velocity(aligned(x, -3))  # as in `residual`
        return _least_squares(j, padded[: len(x)])

    def _squared_steps(
        self, x: Tensor, step: Tensor
    ) -> Tensor:  # (p, n + 1, D), (p, n, D) -> (p, n)
        """``stepᵀ ½(H(x_i) + H(x_{i+1})) step``, or its square where x are features."""
        if self.embedding is not None:
            return step.square().sum(-1)
        if self.ambient.is_diagonal:
            return (self._weights(x) * step.square()).sum(-1)
        flat = step.flatten(0, 1)
        starts = x[:, :-1].flatten(0, 1)
        stops = x[:, 1:].flatten(0, 1)
        first = self.ambient.squared_norm(starts, flat)
        last = self.ambient.squared_norm(stops, flat)
        mean = (first + last) / 2
        return mean.view(step.shape[:2])

    def _lowered(self, x: Tensor, step: Tensor) -> Tensor:  # (p, n + 1, D), (p, n, D) -> (p, n, D)
        """``½(H(x_i) + H(x_{i+1})) step``."""
        if self.embedding is not None:
            return step
        if self.ambient.is_diagonal:
            return self._weights(x) * step
        flat = step.flatten(0, 1)
        starts = x[:, :-1].flatten(0, 1)
        stops = x[:, 1:].flatten(0, 1)
        first = self.ambient.product(starts, flat)
        last = self.ambient.product(stops, flat)
        mean = (first + last) / 2
        return mean.view(step.shape)

    def _weights(self, x: Tensor) -> Tensor:  # (p, n + 1, D) -> (p, n, D)
        """``½(H(x_i) + H(x_{i+1}))`` of a diagonal metric, which is read once at each point."""
        h = self.ambient.diagonal(x.flatten(0, 1)).view(x.shape)
        return (h[:, :-1] + h[:, 1:]) / 2

    def _slope(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Energy and gradient of curves that fit into memory together."""
        if self.embedding is None:
            return differentiated(self.squared_chords, nodes)
        _, count, m = nodes.shape
        ends = None if self.ends is None else self.ends.images(nodes[:, :: count - 1])

        def force(x: Tensor) -> tuple[Tensor, Tensor]:
            step = x[:, 1:] - x[:, :-1]
            return F.pad(chord_force(step), (0, 0, 1, 1)), step

        if ends is None:
            along, step = self._pulled(nodes, force)
            along = along[:, 1:-1]
        else:
            along, step = self._pulled(nodes[:, 1:-1], force, ends)
        squares = aligned(step, -1, m).square()
        chords = squares.sum(-1)
        return discrete_energy(chords), 2 * (count - 1) * along

    def _pulled(
        self, points: Tensor, force: Force, ends: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``Jᵀ force(x)`` at points of curves that fit into memory together, and what else it says.

        Rows that were padded have no force.
        """
        p, count, _ = points.shape
        told = []

        def padded(x: Tensor) -> Tensor:
            own = x[: p * count].view(p, count, -1)
            if ends is None:
                covectors, more = force(own)
            else:
                covectors, more = force(_joined(ends, own))
                covectors = covectors[:, 1:-1]
            told.append(more)
            return F.pad(covectors.flatten(0, 1), (0, 0, 0, len(x) - p * count))

        _, lowered = self.batch_invariant.slope(points.flatten(0, 1), padded)
        return lowered.view(points.shape), told[0]

    def _expand_features(self, nodes: Tensor, second_order: bool) -> Expansion:
        p, count, m = nodes.shape
        # The end points do not move: their values are needed, their derivatives are not.
        ends = self._images_of_ends(nodes[:, :: count - 1])
        interior = nodes[:, 1:-1].flatten(0, 1)

        def joined(x: Tensor) -> Tensor:
            return _joined(ends, x.view(p, count - 2, -1))

        def force(x: Tensor) -> Tensor:
            path = joined(x)
            step = path[:, 1:] - path[:, :-1]
            return chord_force(step).flatten(0, 1)

        form = None
        # Where the map has no value, the energy has none either: solvers look at that.
        with left_to_the_caller():
            if second_order:
                x, j, form = self.batch_invariant.expansion(interior, force)
                form = form.view(p, count - 2, m, m)
            else:
                x, j = self.batch_invariant.value_and_jacobian(interior)
        # In one layout for any number of curves, each Jacobian aligned alike: products must have
        # the same bits.
        along = j.view(p, count - 2, *j.shape[1:])
        j = aligned(along, -2, m).contiguous()
        path = aligned(joined(x), -1, m)
        return expand_chord(path, j, form)

    def _expand_general(self, nodes: Tensor, second_order: bool) -> Expansion:
        """Without a feature map: see :mod:`riemae.geometry.variation`."""
        assert self.variation is not None
        p = len(nodes)
        x = self._images(nodes)
        steps = x.diff(dim=1)
        interior = nodes[:, 1:-1].flatten(0, 1)
        correction = None
        if second_order:
            j, correction = self._remaining(interior, x, steps)
        else:
            across = self.batch_invariant.jets(interior, then=lambda x, j: j.mT)
            along = across.mT.unflatten(0, (p, -1))
            j = laid_out(along)[..., : x.shape[-1], :]
        squared = self._squared_steps(x, steps)
        starts = x[:, :-1].flatten(0, 1)
        sizes = self.ambient.squared_norm(starts, starts).view(squared.shape)
        force = aligned(self._force(x), -1)[..., None]
        energy = discrete_energy(squared)
        lowered = laid_out(j).mT @ force
        weighted = self.variation.weighted(x, j)
        return Expansion(
            energy=energy,
            gradient=lowered[..., 0],
            gauss_newton=positive_part(weighted, j),
            correction=correction,
            noise=rounding(safe_sqrt(sizes), safe_sqrt(squared)),
            scalable=True,
        )

    def _remaining(
        self, interior: Tensor, x: Tensor, steps: Tensor
    ) -> tuple[Tensor, BlockTridiagonal]:  # -> (p, n - 1, D, m)
        """Jacobians at the interior nodes ``(p (n − 1), m)``, and what Gauss-Newton leaves out."""
        assert self.variation is not None
        assert self.varied is not None
        p, _, d = steps.shape
        sides = (steps[:, :-1], steps[:, 1:])
        before = sides[0].flatten(0, 1)
        after = sides[1].flatten(0, 1)
        covector = self._covector(x, steps, before, after)
        condition = self.variation.condition(self.condition, before, after)
        varied = self.varied.conditioned(condition)
        _, flat, forms = varied.contractions(interior, covector[:, None], lambda x, j, a: a)
        slopes = flat.unflatten(0, (p, -1))
        form = forms[:, 0].unflatten(0, (p, -1))
        of_data = slopes[..., :d, :]
        of_numbers = slopes[..., d:, :]
        # What is made of them keeps this layout.
        j = laid_out(of_data)[..., :d, :]
        of_numbers = laid_out(of_numbers)[..., : of_numbers.shape[-2], :]
        changes = self.variation.changes(of_numbers, *sides)
        return j, remaining_part(changes, form, j)

    def _covector(
        self, x: Tensor, steps: Tensor, before: Tensor, after: Tensor
    ) -> Tensor:  # -> (p (n − 1), D + c)
        """The covector of the second derivatives that is held fixed, of data and of numbers."""
        assert self.variation is not None
        n = steps.shape[1]
        lowered = self._lowered(x, steps)
        force = -2 * n * lowered.diff(dim=1)
        along_numbers = n / 2 * self.variation.covector(before, after)
        return torch.cat([force.flatten(0, 1), along_numbers], -1)

    def _force(self, x: Tensor) -> Tensor:  # (p, n + 1, D) -> (p, n - 1, D)
        """The gradient of the energy in the images of the interior nodes."""

        def energy(images: Tensor) -> Tensor:
            steps = images.diff(dim=1)
            squared = self._squared_steps(images, steps)
            return discrete_energy(squared).sum()

        slope = grad(energy)(x)
        return slope[:, 1:-1]


def _joined(ends: Tensor, interior: Tensor) -> Tensor:  # (p, 2, D), (p, n - 1, D) -> (p, n + 1, D)
    """Images of all nodes."""
    return torch.cat([ends[:, :1], interior, ends[:, 1:]], 1)


def _least_squares(j: Tensor, x: Tensor) -> Tensor:  # (*b, D, m), (*b, D) -> (*b, m)
    """The vectors ``z`` with ``Jz`` closest to ``x``."""
    # With columns of unit length, the units of the coordinates do not matter for the condition.
    squares = j.square().sum(-2, keepdim=True)
    scale = safe_sqrt(squares)
    q, r = torch.linalg.qr(j / scale)
    lowered = q.mT @ x[..., None]
    column = torch.linalg.solve_triangular(r, lowered, upper=True)
    solved = column[..., 0]
    return solved / scale[..., 0, :]

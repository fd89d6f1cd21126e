"""The energy of discrete curves under a pull-back metric, with what solvers derive from it.

With a feature map φ of the ambient metric, a curve's images ``x_i = φ(f(z_i))`` lie in a Euclidean
space, and the energy is ``n Σ |x_{i+1} − x_i|²``. Without one, the segments are measured by the
ambient metric at both of their ends: ``n Σ Δxᵀ ½(H(x_i) + H(x_{i+1})) Δx``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from riemae.ambient import FeatureMetric
from riemae.differential.modes import PORTABLE
from riemae.geometry.composition import Composition
from riemae.numerics.batch_invariance import aligned
from riemae.numerics.metric import safe_sqrt
from riemae.solvers.energy import (
    Expansion,
    bending,
    chord_force,
    discrete_energy,
    expand_by_autodiff,
    expand_chord,
    gauss_newton_blocks,
    image_velocity,
    rounding,
)
from riemae.solvers.products import Products, from_graph, pulled
from riemae.solvers.space import differentiated


class PathMetric(Composition):
    """What a pull-back metric says of discrete curves, given by their nodes ``(p, n + 1, m)``."""

    def squared_chords(self, nodes: Tensor) -> Tensor:  # (p, n + 1, m) -> (p, n)
        """Squared lengths of the segments of discrete curves."""
        self.bind(nodes[:, 0])
        x = self._images(nodes)
        return self._squared_steps(x, x.diff(dim=1))

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
        curves = self.batch_invariant.chunk(points.flatten(0, 1), 1) // points.shape[1]
        if not curves:
            return None
        parts = [then(part._images(x)) for part, x in self.parts(points, curves)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def expand(self, nodes: Tensor, second_order: bool = True) -> Expansion:
        """The energy with its derivatives in the interior nodes, some curves at a time."""
        self.bind(nodes[:, 0])
        count, m = nodes.shape[1:]
        passes = 1 + (2 if second_order else 1) * m
        curves = max(1, self.immersion.chunk(nodes.flatten(0, 1), passes) // count)
        parts = self.parts(nodes, curves)
        if self.embedding is None:
            return Expansion.cat([part._expand_general(x, second_order) for part, x in parts])
        return Expansion.cat([part._expand_features(x, second_order) for part, x in parts])

    def energy_and_gradient(
        self, nodes: Tensor
    ) -> tuple[Tensor, Tensor]:  # (p, n + 1, m) -> (p,), (p, n - 1, m)
        """The energy and its gradient, by one reverse pass, some curves at a time."""
        self.bind(nodes[:, 0])
        curves = max(1, self.immersion.chunk(nodes.flatten(0, 1), 2) // nodes.shape[1])
        parts = [part._slope(x) for part, x in self.parts(nodes, curves)]
        if len(parts) == 1:
            return parts[0]
        energies, gradients = zip(*parts, strict=True)
        return torch.cat(energies), torch.cat(gradients)

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
            ends = self._images(nodes[:, ::n].detach()).detach()
            interior = nodes[:, 1:-1].detach().requires_grad_()
            x = self.batch_invariant.value(interior.flatten(0, 1)).view(p, n - 1, -1)
            w = torch.zeros_like(x).requires_grad_()
            path = torch.cat([ends[:, :1], x, ends[:, 1:]], 1)
            chords = self._squared_steps(path, path.diff(dim=1))
        points = path.detach()
        pulled_w: list[Tensor] = []  # Jᵀw with its graph, made when it is first asked for

        def gauss_newton(v: Tensor) -> Tensor:
            if not x.requires_grad:
                return torch.zeros_like(v)
            if not pulled_w:
                options = {"create_graph": True, "materialize_grads": True}
                with torch.enable_grad():
                    pulled_w.extend(torch.autograd.grad(x, interior, w, **options))
            pushed = pulled(pulled_w[0], w, v)
            step = torch.nn.functional.pad(pushed, (0, 0, 1, 1)).diff(dim=1)
            return pulled(x, interior, -2 * n * self._lowered(points, step).diff(dim=1))

        size = safe_sqrt(self._squared_steps(points, points[:, :-1]))
        return from_graph(interior, chords, size, gauss_newton)

    def residual(self, nodes: Tensor) -> Tensor | None:  # (p, n + 1, m) -> (p, n - 1, m)
        """The energy's gradient with second differences of sixth order; None without features."""
        self.bind(nodes[:, 0])
        if self.embedding is None:
            return None
        x = self._images(nodes)
        interior = nodes[:, 1:-1]
        # A multiple of 16 curves, so that one of them alone has the same bits: see
        # riemae.numerics.batch_invariance.
        bend = bending(aligned(x, -3))[: len(x)]
        lowered = self.batch_invariant.vjp(interior.flatten(0, 1), bend.flatten(0, 1))[1]
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
        count, m = nodes.shape[1:]
        features = self.select(slice(1)).batch_invariant.value(nodes[:1, 0]).shape[-1]
        if features < m:
            return None
        curves = max(1, self.immersion.chunk(nodes.flatten(0, 1), 1 + m) // count)
        return torch.cat([part._projected(x) for part, x in self.parts(nodes, curves)])

    def ambient_distance(
        self, z0: Tensor, z1: Tensor
    ) -> Tensor | None:  # (*b, m), (*b, m) -> (*b,)
        """Distance of the decoded points in the ambient space, a lower bound of the geodesic's.

        None where it is unknown.
        """
        batch = z0.shape[:-1]
        first, last = (z.reshape(-1, z.shape[-1]) for z in (z0, z1))
        self.bind(first)
        if self.embedding is not None and type(self.ambient).distance is FeatureMetric.distance:
            ends = torch.stack([first, last], 1).flatten(0, 1)
            start, stop = self.batch_invariant.value(ends).unflatten(0, (-1, 2)).unbind(1)
            return (stop - start).norm(dim=-1).view(batch)
        start, stop = (self.shaped(self.immersion.value(z)) for z in (first, last))
        distance = self.ambient.distance(start, stop)
        return None if distance is None else distance.view(batch)

    def ambient_features(self, z: Tensor) -> Tensor | None:  # (k, m) -> (k, F)
        """``φ(f(z))``, whose Euclidean distances are the ambient ones; None without features."""
        self.bind(z)
        return None if self.embedding is None else self.embedding.value(z)

    def _images(self, nodes: Tensor) -> Tensor:  # (p, c, m) -> (p, c, D)
        return self.batch_invariant.value(nodes.flatten(0, 1)).unflatten(0, nodes.shape[:2])

    def _projected(self, nodes: Tensor) -> Tensor:  # (p, n + 1, m) -> (p, n + 1, m)
        """The least-squares solution ``ż`` of ``Jż = ẋ`` at every node."""
        found = self.batch_invariant.value_and_jacobian(nodes.flatten(0, 1))
        x, j = (y.unflatten(0, nodes.shape[:2]) for y in found)
        velocity = image_velocity(aligned(x, -3))[: len(x)]  # as in `residual`
        # With columns of unit length, the units of the coordinates do not matter for the condition.
        scale = safe_sqrt(j.square().sum(-2, keepdim=True))
        q, r = torch.linalg.qr(j / scale)
        lowered = q.mT @ velocity[..., None]
        solved = torch.linalg.solve_triangular(r, lowered, upper=True)[..., 0]
        return solved / scale[..., 0, :]

    def _squared_steps(
        self, x: Tensor, step: Tensor
    ) -> Tensor:  # (p, n + 1, D), (p, n, D) -> (p, n)
        """``stepᵀ ½(H(x_i) + H(x_{i+1})) step``, or its square where x are features."""
        if self.embedding is not None:
            return step.square().sum(-1)
        flat = step.flatten(0, 1)
        first = self.ambient.squared_norm(x[:, :-1].flatten(0, 1), flat)
        last = self.ambient.squared_norm(x[:, 1:].flatten(0, 1), flat)
        return ((first + last) / 2).view(step.shape[:2])

    def _lowered(self, x: Tensor, step: Tensor) -> Tensor:  # (p, n + 1, D), (p, n, D) -> (p, n, D)
        """``½(H(x_i) + H(x_{i+1})) step``."""
        if self.embedding is not None:
            return step
        flat = step.flatten(0, 1)
        first = self.ambient.product(x[:, :-1].flatten(0, 1), flat)
        last = self.ambient.product(x[:, 1:].flatten(0, 1), flat)
        return ((first + last) / 2).view(step.shape)

    def _slope(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Energy and gradient of curves that fit into memory together."""
        if self.embedding is None:
            return differentiated(self.squared_chords, nodes)
        p, count, m = nodes.shape
        steps = []

        def force(x: Tensor) -> Tensor:
            """The gradient in the images; rows that were padded have none."""
            out = torch.zeros_like(x)
            x = x[: p * count].view(p, count, -1)
            steps.append(x[:, 1:] - x[:, :-1])
            out[: p * count].view(x.shape)[:, 1:-1] = chord_force(steps[0])
            return out

        lowered = self.batch_invariant.slope(nodes.flatten(0, 1), force)[1]
        energy = discrete_energy(aligned(steps[0], -1, m).square().sum(-1))
        return energy, 2 * (count - 1) * lowered.view(p, count, m)[:, 1:-1]

    def _expand_features(self, nodes: Tensor, second_order: bool) -> Expansion:
        p, count, m = nodes.shape
        # The end points do not move: their values are needed, their derivatives are not.
        ends = self._images(nodes[:, :: count - 1])
        interior = nodes[:, 1:-1].flatten(0, 1)

        def joined(x: Tensor) -> Tensor:
            return torch.cat([ends[:, :1], x.view(p, count - 2, -1), ends[:, 1:]], 1)

        def force(x: Tensor) -> Tensor:
            return chord_force(joined(x).diff(dim=1)).flatten(0, 1)

        form = None
        if second_order:
            x, j, form = self.batch_invariant.expansion(interior, force)
            form = form.view(p, count - 2, m, m)
        else:
            x, j = self.batch_invariant.value_and_jacobian(interior)
        # In one layout for any number of curves, each Jacobian aligned alike: products must have
        # the same bits.
        j = aligned(j.unflatten(0, (p, -1)), -2, m).contiguous()
        return expand_chord(aligned(joined(x), -1, m), j, form)

    def _expand_general(self, nodes: Tensor, second_order: bool) -> Expansion:
        count = nodes.shape[1]
        found = self.batch_invariant.value_and_jacobian(nodes.flatten(0, 1))
        x, j = (y.unflatten(0, (-1, count)) for y in found)
        first = x[:, :-1].flatten(0, 1)
        last = x[:, 1:].flatten(0, 1)

        def weighted(columns: Tensor) -> Tensor:
            """``½(H_i + H_{i+1})`` of each segment times columns ``(p, n, D, c)``."""
            flat = columns.flatten(0, 1)
            both = self.ambient.apply_to(first, flat) + self.ambient.apply_to(last, flat)
            return (both / 2).view(columns.shape)

        def length(vectors: Tensor) -> Tensor:  # (p, n, D) -> (p, n)
            squared = self.ambient.squared_norm(first, vectors.flatten(0, 1))
            return safe_sqrt(squared).view(vectors.shape[:2])

        left, right = j[:, :-1], j[:, 1:]
        weighted_left, weighted_right = weighted(left), weighted(right)
        blocks = gauss_newton_blocks(
            left.mT @ weighted_left, right.mT @ weighted_right, left.mT @ weighted_right
        )
        return expand_by_autodiff(
            self.squared_chords,
            nodes,
            blocks,
            rounding(length(x[:, :-1]), length(x.diff(dim=1))),
            second_order,
            self.immersion.pushforward,
        )

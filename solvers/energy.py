"""Discrete curve energies and their derivatives in the interior nodes.

For a feature map φ with ``H = JφᵀJφ`` and ``x_i = φ(f(z_i))`` the chord energy is
``n Σ |x_{i+1} − x_i|²``. With ``a_i = (x_i − x_{i−1}) − (x_{i+1} − x_i)`` its gradient block is
``2n J_iᵀ a_i``. Its Hessian blocks are ``2n (2 J_iᵀJ_i + a_i·∂²φ∘f(z_i))`` on the diagonal, and
``−2n J_iᵀ J_{i+1}`` next to it; without ``a·∂²`` it is Gauss-Newton.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from riemae.numerics.constants import constant
from riemae.numerics.threads import jvp
from riemae.solvers.linear import BlockTridiagonal

# (function, point, tangent) -> directional derivative; torch.func.jvp unless a space brings its
# own.
Pushforward = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Expansion:
    """A discrete energy about ``p`` curves with ``n − 1`` interior nodes in ``m`` dimensions.

    Attributes:
        energy: ``(p,)``.
        gradient: ``(p, n − 1, m)``.
        gauss_newton: Positive semi-definite part of the Hessian: tangents only, no second
            derivatives.
        correction: What is missing to the Hessian, or None when it was not asked for.
        noise: ``(p,)``, the rounding error to expect in ``energy``.
        scalable: Whether both serve a finer level too, interpolated. But for terms smaller by
            ``h²``, Gauss-Newton's blocks are ``4n J_iᵀJ_i`` and ``−2n J_iᵀJ_{i+1}``. The
            correction's diagonal blocks fall like 1/n; of those next to them the symmetric part
            falls like 1/n, and the antisymmetric part stays.
        separate: Whether they are these blocks without other terms, and the correction is block
            diagonal: so it is with a feature map.
    """

    energy: Tensor
    gradient: Tensor
    gauss_newton: BlockTridiagonal
    correction: BlockTridiagonal | None
    noise: Tensor
    scalable: bool = False
    separate: bool = False

    @property
    def hessian(self) -> BlockTridiagonal | None:
        """The full Hessian, or None when second derivatives were not asked for."""
        if self.correction is None:
            return None
        return self.gauss_newton + self.correction

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All numbers that a step works with."""
        gn = self.gauss_newton
        parts = (self.energy, self.gradient, gn.diagonal, gn.upper)
        if self.correction is None:
            return parts
        return (*parts, self.correction.diagonal, self.correction.upper)

    def select(self, index: Tensor) -> Expansion:
        """The curves at ``index``."""
        correction = None
        if self.correction is not None:
            correction = self.correction.select(index)
        return Expansion(
            energy=self.energy[index],
            gradient=self.gradient[index],
            gauss_newton=self.gauss_newton.select(index),
            correction=correction,
            noise=self.noise[index],
            scalable=self.scalable,
            separate=self.separate,
        )

    @classmethod
    def cat(cls, parts: list[Expansion]) -> Expansion:
        """One batch from several of the same space and order."""
        if len(parts) == 1:
            return parts[0]
        corrections = [part.correction for part in parts if part.correction is not None]
        return cls(
            energy=torch.cat([part.energy for part in parts]),
            gradient=torch.cat([part.gradient for part in parts]),
            gauss_newton=BlockTridiagonal.cat([part.gauss_newton for part in parts]),
            correction=BlockTridiagonal.cat(corrections) if corrections else None,
            noise=torch.cat([part.noise for part in parts]),
            scalable=parts[0].scalable,
            separate=parts[0].separate,
        )


def discrete_energy(squared_chords: Tensor) -> Tensor:  # (p, n) -> (p,)
    """``n Σ chord²``."""
    return squared_chords.shape[1] * squared_chords.sum(-1)


def differentiated(
    squared_chords: Callable[[Tensor], Tensor], nodes: Tensor
) -> tuple[Tensor, Tensor]:  # (p, n + 1, m) -> (p,), (p, n - 1, m)
    """The discrete energy and its gradient by reverse mode through ``squared_chords``."""
    with torch.inference_mode(False), torch.enable_grad():
        # What is made in inference mode has no derivative.
        if nodes.is_inference():
            nodes = nodes.clone()
        interior = nodes[:, 1:-1].detach().requires_grad_()
        trial = torch.cat([nodes[:, :1], interior, nodes[:, -1:]], 1)
        energy = discrete_energy(squared_chords(trial))
        (gradient,) = torch.autograd.grad(energy.sum(), interior)
    return energy.detach(), gradient


def chord_force(step: Tensor) -> Tensor:  # (p, n, D) -> (p, n - 1, D)
    """``a_i = (x_i − x_{i−1}) − (x_{i+1} − x_i)`` at the interior nodes.

    It is the change of the chords' direction.
    """
    before = step[:, :-1]
    after = step[:, 1:]
    return before - after


def expand_chord(x: Tensor, jacobian: Tensor, form: Tensor | None) -> Expansion:
    """Derivatives of the chord energy from features and their derivatives.

    Args:
        x: Features at the nodes, ``(p, n + 1, D)``.
        jacobian: Their Jacobians at the interior nodes, ``(p, n − 1, D, m)``.
        form: ``a·∂²`` there, ``(p, n − 1, m, m)``; None for Gauss-Newton alone.
    """
    n = x.shape[1] - 1
    step = x[:, 1:] - x[:, :-1]
    across = jacobian.mT
    links = across[:, :-1] @ jacobian[:, 1:]
    upper = -2 * n * links
    squares = step.square().sum(-1)
    force = chord_force(step)[..., None]
    pulled = (across @ force)[..., 0]
    diagonal = 4 * n * (across @ jacobian)
    correction = None
    if form is not None:
        correction = BlockTridiagonal(2 * n * form, torch.zeros_like(upper))
    size = torch.linalg.vector_norm(x[:, :-1], dim=-1)
    return Expansion(
        energy=discrete_energy(squares),
        gradient=2 * n * pulled,
        gauss_newton=BlockTridiagonal(diagonal, upper),
        correction=correction,
        noise=rounding(size, squares.sqrt()),
        scalable=True,
        separate=True,
    )


def bending(x: Tensor) -> Tensor:  # (p, n + 1, D) -> (p, n - 1, D)
    """``−2 x″ h² n`` at the interior nodes, to sixth order.

    For a geodesic it is normal to the manifold. ``Jᵀ bending(x)`` is the gradient of the chord
    energy but for its second-order error.
    """
    n = x.shape[1] - 1
    second = constant(_differences, (n, 2, 7), x)[1:-1]
    return -2 * n * torch.einsum("ij,pjd->pid", second, x)


def image_velocity(x: Tensor) -> Tensor:  # (p, n + 1, D) -> (p, n + 1, D)
    """``dx/dt`` at all nodes, to fourth order, exact where they lie evenly on a straight line."""
    n = x.shape[1] - 1
    first = constant(_differences, (n, 1, 5), x)
    return n * torch.einsum("ij,pjd->pid", first, x)


def _differences(n: int, order: int, width: int) -> np.ndarray:  # -> (n + 1, n + 1)
    """Derivatives (times h to the order) at the nodes of an even grid.

    The stencils have up to ``width`` points.
    """
    width = min(width, n + 1)
    rows = np.zeros((n + 1, n + 1))
    for i in range(n + 1):
        latest = n + 1 - width
        first = min(max(i - width // 2, 0), latest)
        offsets = np.arange(first, first + width) - i
        powers = np.vander(offsets, width, increasing=True).T
        chosen = np.arange(width) == order
        wanted = math.factorial(order) * chosen
        stop = first + width
        rows[i, first:stop] = np.linalg.solve(powers, wanted)
    return rows


def gauss_newton_blocks(left: Tensor, right: Tensor, cross: Tensor) -> BlockTridiagonal:
    """Gauss-Newton matrix of ``n Σ Δxᵀ W Δx`` in the interior nodes.

    Args:
        left: ``J_iᵀ W J_i`` of each segment (i, i + 1), ``(p, n, m, m)``.
        right: ``J_{i+1}ᵀ W J_{i+1}``, ``(p, n, m, m)``.
        cross: ``J_iᵀ W J_{i+1}``, ``(p, n, m, m)``.
    """
    n = left.shape[1]
    blocks = right[:, :-1] + left[:, 1:]
    links = cross[:, 1:-1]
    return BlockTridiagonal(2 * n * blocks, -2 * n * links)


def expand_by_autodiff(
    squared_chords: Callable[[Tensor], Tensor],
    nodes: Tensor,
    gauss_newton: BlockTridiagonal,
    noise: Tensor,
    second_order: bool,
    pushforward: Pushforward | None = None,
    scalable: bool = False,
) -> Expansion:
    """Derivatives of any energy whose terms couple only neighbouring nodes.

    The Hessian is block tridiagonal, so ``3 m`` directional derivatives of the gradient give all of
    it: every third node moves at once.

    Args:
        squared_chords: ``(p, n + 1, m) -> (p, n)``.
        nodes: ``(p, n + 1, m)``.
        gauss_newton: The positive semi-definite part of the Hessian.
        noise: ``(p,)``, rounding error of the energy.
        second_order: Whether the full Hessian is wanted.
        pushforward: How to take directional derivatives; by default by forward mode.
        scalable: As in :class:`Expansion`; so where a smooth metric measures the segments.
    """
    push = pushforward or (lambda f, z, v: jvp(f, (z,), (v,))[1])

    def energy(z: Tensor) -> Tensor:
        return discrete_energy(squared_chords(z))

    def total(interior: Tensor) -> Tensor:
        whole = torch.cat([nodes[:, :1], interior, nodes[:, -1:]], 1)
        return energy(whole).sum()

    def gradient(interior: Tensor) -> Tensor:
        return grad(total)(interior)

    interior = nodes[:, 1:-1]
    correction = None
    if second_order:
        hessian = _hessian(lambda v: push(gradient, interior, v), interior)
        correction = hessian + gauss_newton.scaled(-1.0)
    return Expansion(
        energy=energy(nodes),
        gradient=gradient(interior),
        gauss_newton=gauss_newton,
        correction=correction,
        noise=noise,
        scalable=scalable,
    )


def _hessian(product: Callable[[Tensor], Tensor], interior: Tensor) -> BlockTridiagonal:
    p, n, m = interior.shape
    colours = min(3, n)
    node = torch.arange(n, device=interior.device)
    probes = interior.new_zeros(colours, m, n, m)
    for colour in range(colours):
        probes[colour, :, colour::3] = torch.eye(m).to(interior)[:, None]
    # [colour, direction, p, node, component]
    wide = probes.flatten(0, 1)[:, None]
    every = wide.expand(-1, p, n, m)
    columns = vmap(product)(every).view(colours, m, p, n, m)
    own = columns[node % 3, :, :, node]
    diagonal = own.permute(2, 0, 3, 1)
    following = node[1:] % 3
    beside = columns[following, :, :, node[:-1]]
    upper = beside.permute(2, 0, 3, 1)
    return BlockTridiagonal((diagonal + diagonal.mT) / 2, upper)


def rounding(size: Tensor, step: Tensor) -> Tensor:  # (p, n), (p, n) -> (p,)
    """Rounding error of ``n Σ step²`` when each step is a difference of points of norm ``size``."""
    eps = torch.finfo(step.dtype).eps
    each = step * (size + step)
    return 4 * eps * step.shape[1] * each.sum(-1)

"""Gradient, divergence and Laplacian of functions and fields on a manifold.

Everything is a trace over an orthonormal frame ``e_a`` (the columns of the inverse of the metric's
factor): ``Δf = Σ_a [∂²f(e_a, e_a) − df(Γ(e_a, e_a))]`` and ``div V = Σ_a ⟨e_a, ∇_{e_a} V⟩``. The
connection enters as geodesic accelerations ``−Γ(v, v)``, so that no Christoffel symbols are written
down: m of them for a Laplacian, 2 m + 1 for a divergence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from riemae.exceptions import DifferentiationError, DTypeError, ShapeError
from riemae.numerics import probe

Function = Callable[[Tensor], Tensor]


class Geometry(Protocol):
    """What is asked of a manifold."""

    def metric_factor(self, z: Tensor) -> Tensor:  # (k, m) -> (k, m, m)
        """Upper triangular factor of the metric."""
        ...

    def acceleration(self, z: Tensor, v: Tensor) -> Tensor:  # (k, m), (k, m) -> (k, m)
        """Geodesic acceleration."""
        ...


Operator = Callable[["Geometry", str, Function, Tensor], Tensor]


def _detached(operator: Operator) -> Operator:
    """The operator, at points and with results that autograd does not follow."""

    @functools.wraps(operator)
    def called(geometry: Geometry, where: str, f: Function, z: Tensor) -> Tensor:
        if not callable(f):
            wanted = "a function of points (k, m)"
            raise DTypeError(where, wanted, type(f).__name__, "Give a function.")
        # Inference tensors cannot be differentiated.
        with torch.inference_mode(False), torch.no_grad():
            return operator(geometry, where, f, z.detach().clone())

    return called


@_detached
def gradient(geometry: Geometry, where: str, f: Function, z: Tensor) -> Tensor:  # (k, m) -> (k, m)
    """``G⁻¹ df``."""
    slope = _slope(where, f, z)
    factor = geometry.metric_factor(z)
    half = torch.linalg.solve_triangular(factor.mT, slope[..., None], upper=False)
    return torch.linalg.solve_triangular(factor, half, upper=True)[..., 0]


@_detached
def laplacian(geometry: Geometry, where: str, f: Function, z: Tensor) -> Tensor:  # (k, m) -> (k,)
    """``g^{ij} (∂_ij f − Γ^k_ij ∂_k f)``."""
    m = z.shape[-1]
    frame = _frame(geometry, z)
    bent = torch.zeros_like(z)
    for a in range(m):
        bent = bent + geometry.acceleration(z, frame[:, :, a])
    with torch.enable_grad():
        points = z.detach().requires_grad_()
        slope = _derivative(where, f, points)
        second = torch.zeros_like(z[:, 0])
        for a in range(m):
            along = (slope * frame[:, :, a]).sum()
            if along.requires_grad:
                (turned,) = torch.autograd.grad(along, points, retain_graph=True, allow_unused=True)
                if turned is not None:
                    second = second + (turned * frame[:, :, a]).sum(-1)
    return second + (slope.detach() * bent).sum(-1)


@_detached
def divergence(
    geometry: Geometry, where: str, field: Function, z: Tensor
) -> Tensor:  # (k, m) -> (k,)
    """``∂_i Vⁱ + Γⁱ_ij Vʲ``."""
    m = z.shape[-1]
    with torch.enable_grad():
        points = z.detach().requires_grad_()
        v = _values(where, field, points, z.shape)
        total = torch.zeros_like(z[:, 0])
        if _varies(where, field, points, v):
            for i in range(m):
                (slope,) = torch.autograd.grad(
                    v[:, i].sum(), points, retain_graph=True, allow_unused=True
                )
                if slope is not None:
                    total = total + slope[:, i]
    v = v.detach()
    factor = geometry.metric_factor(z)
    frame = _frame(geometry, z)
    own = geometry.acceleration(z, v)
    for a in range(m):
        e = frame[:, :, a]
        # By polarisation: −2 Γ(e, V).
        bent = geometry.acceleration(z, e + v) - geometry.acceleration(z, e) - own
        total = total - torch.einsum("ki,ki->k", factor[:, a], bent) / 2
    return total


def _frame(geometry: Geometry, z: Tensor) -> Tensor:  # (k, m) -> (k, m, m)
    """Columns that are orthonormal in the metric."""
    factor = geometry.metric_factor(z)
    eye = torch.eye(z.shape[-1]).to(z).expand_as(factor)
    return torch.linalg.solve_triangular(factor, eye, upper=True)


def _slope(where: str, f: Function, z: Tensor) -> Tensor:  # (k, m) -> (k, m)
    """The differential of a function."""
    with torch.enable_grad():
        return _derivative(where, f, z.detach().requires_grad_()).detach()


def _derivative(where: str, f: Function, points: Tensor) -> Tensor:  # (k, m) -> (k, m)
    """The differential, with its graph."""
    values = _values(where, f, points, points.shape[:1])
    if not _varies(where, f, points, values):
        return torch.zeros_like(points)
    (slope,) = torch.autograd.grad(values.sum(), points, create_graph=True, allow_unused=True)
    return torch.zeros_like(points) if slope is None else slope


def _values(where: str, f: Function, points: Tensor, shape: torch.Size) -> Tensor:
    """Values of a function or field, row by row.

    Raises:
        DTypeError: When they are not a tensor of the points' dtype.
        ShapeError: When they have another shape.
    """
    # Multiplied by 1: a function may write to what it gets, which a leaf does not allow.
    values = f(1 * points)
    if not isinstance(values, Tensor) or values.dtype != points.dtype:
        got = str(values.dtype) if isinstance(values, Tensor) else type(values).__name__
        hint = "Make its constants like the points."
        raise DTypeError(where, f"values of dtype {points.dtype}", got, hint)
    if values.shape != shape:
        wanted = f"values of shape {tuple(shape)} for points of shape {tuple(points.shape)}"
        hint = "The function gets a batch of points (k, m): one value, or one vector, for each."
        raise ShapeError(where, wanted, str(tuple(values.shape)), hint)
    return values


def _varies(where: str, f: Function, points: Tensor, values: Tensor) -> bool:
    """Whether the values depend on the points, as far as autograd knows.

    Raises:
        DifferentiationError: When they do and autograd does not know.
    """
    if values.requires_grad:
        return True
    with torch.no_grad():
        near = points + 1e-2 * probe.normal(points, *points.shape, source=probe.generator())
        moved = f(near)
    if len(points) and not torch.equal(moved, values):
        raise DifferentiationError(
            where,
            "a function that torch.autograd can differentiate",
            "values without a gradient that change with the points",
            "Does it run under no_grad, detach, or leave torch?",
        )
    return False

"""The contract of a manifold, as checks that run on anybody's decoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from riemae.differential.conditions import Condition, Conditions
from riemae.manifold import Manifold
from riemae.numerics.tolerances import tolerance
from riemae.testing.laws import expect_points, normal, relative, source, verdict

_HINT = "Is the decoder smooth and deterministic, and are hand-written derivatives right?"


def check_manifold(
    manifold: Manifold,
    z: Tensor,
    generator: torch.Generator | int | None = 0,
    *,
    condition: Conditions = None,
) -> dict[str, float]:
    """Check on points of your choice that a manifold obeys the laws that everything else relies on.

    ================= ==============================================================================
    check             law
    ================= ==============================================================================
    metric            ``G`` is symmetric and positive semi-definite
    metric product    ``metric_product(z, v) = G v``; ``inner`` and ``norm`` agree with it
    adjoint           ``⟨w, Jv⟩ = ⟨Jᵀw, v⟩``, and ``pushforward`` agrees with ``jacobian``
    taylor            ``f(z + hv) − f(z) − hJv`` falls at least like h² (float64), or is small
                      (float32)
    connection        ``∂_l G_ij = G_kj Γᵏ_li + G_ik Γᵏ_lj``: transport keeps inner products
    acceleration      ``acceleration(z, v) = −Γ(v, v)``
    reparametrisation in other coordinates the metric changes as a tensor, geodesics stay geodesics
    batch             a point's result does not depend on its neighbours in the batch
    inputs, dtype     no input is changed; dtype, device and shapes are kept
    ================= ==============================================================================

    Args:
        manifold: Any :class:`~riemae.Manifold`.
        z: Points ``(k, m)`` inside the decoder's domain, where the metric is positive definite.
        generator: Randomness of the test vectors; an integer is a seed.
        condition: What the decoder gets besides the points, one for each, ``(k, *shape)``, or one
            for all, ``(1, *shape)``; as in :class:`~riemae.Manifold`.

    Returns:
        The worst relative deviation found by each check.

    Raises:
        DTypeError: When ``z`` is not a tensor, or the condition neither a tensor nor a tuple, list
            or dict of them.
        ShapeError: When ``z`` is not ``(k, m)`` with k of at least 1, or the number of conditions
            is neither k nor 1.
        DeviceError: When a condition is on another device than the points.
        ContractError: Naming every law that is broken, and by how much.
        SingularMetricError: When the metric is singular at some point.

    Example:
        >>> import torch
        >>> from riemae import Manifold
        >>> from riemae.testing import check_manifold
        >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh())
        >>> sorted(check_manifold(Manifold(decoder), torch.zeros(3, 2)))[:3]
        ['acceleration', 'adjoint', 'batch']
    """
    where = "check_manifold"
    expect_points(where, "points", z, "(k, m), k of at least 1", 2)
    vectors = source(where, generator)
    z = z.detach()
    u, v = (normal(z, vectors) for _ in range(2))
    tol = tolerance(z.dtype).check
    M = _Under(manifold, Condition.of(where, condition, z.shape[:-1], z.device))
    checks: dict[str, Callable[[], float]] = {
        "metric": lambda: _metric(M, z),
        "metric product": lambda: _metric_product(M, z, u, v),
        "adjoint": lambda: _adjoint(M, z, v, vectors),
        "taylor": lambda: _taylor(M, z, v),
        "connection": lambda: _connection(M, z),
        "acceleration": lambda: _acceleration(M, z, v),
        "reparametrisation": lambda: _reparametrisation(M, z, v, vectors),
        "batch": lambda: _batch(M, z),
    }
    with torch.no_grad():
        # First, and alone when it fails: the other checks calculate with these outputs.
        report = _signatures(M, z, u, v)
        if not any(report.values()):
            report |= {name: check() for name, check in checks.items()}
    return verdict(where, report, tol, dict.fromkeys(report, _HINT))


class _Under:
    """A manifold under the conditions of the points: the same methods, without ``condition=``."""

    def __init__(self, manifold: Manifold, condition: Condition | None) -> None:
        self.manifold, self.condition = manifold, condition

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.manifold, name)
        return method if self.condition is None else partial(method, condition=self.condition)

    def select(self, rows: Any) -> _Under:
        """The same for some of the points."""
        return _Under(
            self.manifold, None if self.condition is None else self.condition.select(rows)
        )

    def composed(self, inner: Callable[[Tensor], Tensor]) -> _Under:
        """The manifold of the decoder after another map of the points."""
        decoder = self.manifold.decoder
        composition = Manifold(lambda y, *given: decoder(inner(y), *given), self.manifold.ambient)
        return _Under(composition, self.condition)


def _metric(M: _Under, z: Tensor) -> float:
    g = M.metric(z)
    values = torch.linalg.eigvalsh(g)
    negative = (-values[:, 0] / values.abs().amax(1)).clamp(min=0).max()
    return max(relative(g, g.mT), float(negative))


def _metric_product(M: _Under, z: Tensor, u: Tensor, v: Tensor) -> float:
    g = M.metric(z)
    gv = (g @ v[..., None])[..., 0]
    # uᵀGv may cancel: judge it by |u||v|, which bounds it.
    bound = M.norm(z, u) * M.norm(z, v)
    inner = float(((M.inner(z, u, v) - (u * gv).sum(-1)).abs() / bound).max())
    return max(
        relative(M.metric_product(z, v), gv), inner, relative(M.norm(z, v) ** 2, (v * gv).sum(-1))
    )


def _adjoint(M: _Under, z: Tensor, v: Tensor, generator: torch.Generator) -> float:
    j = M.jacobian(z)
    pushed = M.pushforward(z, v)
    w = normal(pushed, generator)
    gap = ((w * pushed).sum(-1) - (M.pullback(z, w) * v).sum(-1)).abs() / (
        w.norm(dim=-1) * pushed.norm(dim=-1)
    )
    return max(float(gap.max()), relative(pushed, (j @ v[..., None])[..., 0]))


def _taylor(M: _Under, z: Tensor, v: Tensor) -> float:
    """How much slower than h² the first-order remainder falls.

    Its size instead, where rounding hides the slope.
    """
    tol = tolerance(z.dtype)
    x = M.decode(z).flatten(1)
    jv = M.pushforward(z, v)
    steps = [2.0**-k for k in (8, 9, 10)]
    remainders = torch.stack(
        [(M.decode(z + h * v).flatten(1) - x - h * jv).norm(dim=-1) for h in steps]
    )
    rounding = 64 * tol.eps * (x.norm(dim=-1) + steps[0] * jv.norm(dim=-1))
    relative = remainders[-1] / (steps[-1] * jv.norm(dim=-1) + rounding)
    if z.dtype != torch.float64:
        # A first-order error of a quarter of |Jv| breaks the law.
        return float((relative * tol.check * 4).max())
    slope = (remainders[0] / remainders[-1]).log2() / 2
    visible = remainders[-1] > rounding
    return float(torch.where(visible, (1.5 - slope).clamp(min=0), 0.0).max())


def _connection(M: _Under, z: Tensor) -> float:
    g, gamma = M.metric(z), M.christoffel(z)
    slopes = []
    for direction in torch.eye(z.shape[-1]).to(z):
        with torch.enable_grad():
            point = z.clone().requires_grad_()
            slopes.append(_directional(M.metric(point), point, direction))
    transported = torch.einsum("bkj,bkli->bijl", g, gamma)
    expected = transported + transported.transpose(1, 2)
    actual = torch.stack(slopes, -1)
    # Where the metric is constant both sides are rounding errors of the metric itself.
    scale = g.abs().amax((1, 2))[:, None, None, None]
    # No inner product and no geodesic shows torsion; of a constant metric it is rounding too.
    twist = torch.einsum("bkj,bkli->bjli", g, gamma - gamma.mT)
    torsion = min(relative(gamma, gamma.mT), float((twist / scale).abs().max()))
    return max(
        torsion, min(relative(actual, expected), float(((actual - expected) / scale).abs().max()))
    )


def _directional(out: Tensor, point: Tensor, direction: Tensor) -> Tensor:
    """Derivative of ``out`` ``(k, ...)`` along one direction, by reverse mode twice."""
    if not out.requires_grad:  # a constant metric
        return torch.zeros_like(out)
    cotangent = torch.zeros_like(out, requires_grad=True)
    (pulled,) = torch.autograd.grad(
        out, point, cotangent, create_graph=True, materialize_grads=True
    )
    if not pulled.requires_grad:
        return torch.zeros_like(out)
    (slope,) = torch.autograd.grad(
        pulled, cotangent, direction.expand_as(pulled), materialize_grads=True
    )
    return slope.detach()


def _acceleration(M: _Under, z: Tensor, v: Tensor) -> float:
    expected = -torch.einsum("bkij,bi,bj->bk", M.christoffel(z), v, v)
    actual = M.acceleration(z, v)
    scale = v.square().sum(-1, keepdim=True)
    return min(relative(actual, expected), float(((actual - expected) / scale).abs().max()))


def _reparametrisation(M: _Under, z: Tensor, v: Tensor, generator: torch.Generator) -> float:
    """Go to ``y = arsinh(A z)`` and back.

    Lengths stay, and geodesic acceleration changes as a second derivative.
    """
    m = z.shape[-1]
    a = (torch.eye(m) + 0.3 * torch.randn(m, m, generator=generator) / m**0.5).to(z)
    back = torch.linalg.inv(a)
    y = (z @ a.T).asinh()
    other = M.composed(lambda y: y.sinh() @ back.T)
    stretch = y.cosh()
    w = (v @ a.T) / stretch  # the same velocity in the new coordinates
    acceleration = (other.acceleration(y, w) * stretch + y.sinh() * w**2) @ back.T
    expected = M.acceleration(z, v)
    scale = v.square().sum(-1, keepdim=True)
    change = min(
        relative(acceleration, expected), float(((acceleration - expected) / scale).abs().max())
    )
    return max(relative(other.norm(y, w), M.norm(z, v)), change)


def _batch(M: _Under, z: Tensor) -> float:
    rows = torch.arange(len(z), device=z.device)
    flipped = M.select(rows.flip(0)).metric(z.flip(0)).flip(0)
    alone = torch.cat([M.select(row).metric(z[row]) for row in rows.split(1)])
    together = M.metric(z)
    return max(relative(together, flipped), relative(together, alone))


def _signatures(M: _Under, z: Tensor, u: Tensor, v: Tensor) -> dict[str, float]:
    """Shapes, dtypes and devices of every method, and whether it leaves its arguments alone."""
    k, m = z.shape
    d = M.decode(z.clone()).flatten(1).shape[1]
    w = z.new_ones(k, d)
    calls: list[tuple[Callable[..., Tensor], tuple[Tensor, ...], tuple[int, ...]]] = [
        (lambda z: M.decode(z).flatten(1), (z,), (k, d)),
        (M.jacobian, (z,), (k, d, m)),
        (M.pushforward, (z, v), (k, d)),
        (M.pullback, (z, w), (k, m)),
        (M.metric, (z,), (k, m, m)),
        (M.metric_product, (z, v), (k, m)),
        (M.inner, (z, u, v), (k,)),
        (M.norm, (z, v), (k,)),
        (M.christoffel, (z,), (k, m, m, m)),
        (M.acceleration, (z, v), (k, m)),
    ]
    kept, changed = True, 0.0
    for method, given, shape in calls:
        inputs = tuple(x.clone() for x in given)
        out = method(*inputs)
        kept &= out.shape == shape and out.dtype == z.dtype and out.device == z.device
        changed = max(changed, *(relative(a, b) for a, b in zip(inputs, given, strict=True)))
    return {"dtype": 0.0 if kept else float("inf"), "inputs": changed}

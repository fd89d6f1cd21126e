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
from riemae.testing.laws import (
    Call,
    expect_points,
    first_order_share,
    kept_and_changed,
    normal,
    relative,
    run,
    source,
    verdict,
)

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
        z: Points ``(k, m)`` inside the decoder's domain, where the metric is positive definite; of
            a manifold with a ``latent_shape`` also ``(k, *latent_shape)``.
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
    code = manifold.latent_shape
    if code is not None and isinstance(z, Tensor) and z.shape[1:] == code:
        z = z.flatten(1)
    expect_points(where, "points", z, "(k, m), k of at least 1", 2)
    vectors = source(where, generator)
    z = z.detach()
    u = normal(z, vectors)
    v = normal(z, vectors)
    tol = tolerance(z.dtype).check
    of_points = Condition.of(where, condition, z.shape[:-1], z.device)
    M = _Under(manifold, of_points)
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
            report |= run(checks)
    hints = dict.fromkeys(report, _HINT)
    return verdict(where, report, tol, hints)


# Methods whose results have the shape of the codes.
_OF_CODES = frozenset({"pullback", "metric_product", "acceleration"})


class _Under:
    """A manifold under the conditions of the points: the same methods, without ``condition=``.

    Points and tangents are flat here, whatever the shape of the codes.
    """

    def __init__(self, manifold: Manifold, condition: Condition | None) -> None:
        self.manifold = manifold
        self.condition = condition

    def __getattr__(self, name: str) -> Any:
        method = self.given(name)
        if self.manifold.latent_shape is None or name not in _OF_CODES:
            return method
        return lambda *args: method(*args).flatten(1)

    def given(self, name: str) -> Any:
        """A method whose results have the shape that users get."""
        method = getattr(self.manifold, name)
        if self.condition is None:
            return method
        return partial(method, condition=self.condition)

    def select(self, rows: Any) -> _Under:
        """The same for some of the points."""
        if self.condition is None:
            return self
        return _Under(self.manifold, self.condition.select(rows))

    def composed(self, inner: Callable[[Tensor], Tensor]) -> _Under:
        """The manifold of the decoder after another map of the points."""
        decoder = self.manifold.decoder
        shape = self.manifold.latent_shape

        def composition(y: Tensor, *given: Any) -> Any:
            codes = inner(y)
            if shape is not None:
                codes = codes.unflatten(-1, shape)
            return decoder(codes, *given)

        composed = Manifold(composition, self.manifold.ambient, output=self.manifold.output)
        return _Under(composed, self.condition)


def _metric(M: _Under, z: Tensor) -> float:
    g = M.metric(z)
    asymmetry = relative(g, g.mT)
    values = torch.linalg.eigvalsh(g)
    lowest = values[:, 0] / values.abs().amax(1)
    negative = float((-lowest).clamp(min=0).max())
    return max(asymmetry, negative)


def _metric_product(M: _Under, z: Tensor, u: Tensor, v: Tensor) -> float:
    g = M.metric(z)
    gv = (g @ v[..., None])[..., 0]
    of_product = relative(M.metric_product(z, v), gv)
    # uᵀGv may cancel: judge it by |u||v|, which bounds it.
    bound = M.norm(z, u) * M.norm(z, v)
    gap = M.inner(z, u, v) - (u * gv).sum(-1)
    of_inner = float((gap.abs() / bound).max())
    squared = (v * gv).sum(-1)
    of_norm = relative(M.norm(z, v) ** 2, squared)
    return max(of_product, of_inner, of_norm)


def _adjoint(M: _Under, z: Tensor, v: Tensor, generator: torch.Generator) -> float:
    j = M.jacobian(z)
    pushed = M.pushforward(z, v)
    w = normal(pushed, generator)
    pulled = M.pullback(z, w)
    gap = (w * pushed).sum(-1) - (pulled * v).sum(-1)
    bound = w.norm(dim=-1) * pushed.norm(dim=-1)
    of_pairing = float((gap.abs() / bound).max())
    jv = (j @ v[..., None])[..., 0]
    return max(of_pairing, relative(pushed, jv))


def _taylor(M: _Under, z: Tensor, v: Tensor) -> float:
    """How much slower than h² the first-order remainder falls.

    Its size instead, where rounding hides the slope.
    """
    tol = tolerance(z.dtype)
    x = M.decode(z).flatten(1)
    jv = M.pushforward(z, v)
    speed = jv.norm(dim=-1)
    steps = [2.0**-k for k in (8, 9, 10)]
    remainders = []
    for h in steps:
        moved = M.decode(z + h * v).flatten(1)
        remainder = moved - x - h * jv
        remainders.append(remainder.norm(dim=-1))
    rounding = 64 * tol.eps * (x.norm(dim=-1) + steps[0] * speed)
    if z.dtype != torch.float64:
        # A first-order error of a quarter of |Jv| breaks the law.
        first_order = remainders[-1] / (steps[-1] * speed + rounding)
        return _largest(first_order * tol.check * 4)
    return first_order_share(remainders, remainders[-1] > rounding)


def _connection(M: _Under, z: Tensor) -> float:
    g = M.metric(z)
    gamma = M.christoffel(z)
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
    torsion = min(relative(gamma, gamma.mT), _largest(twist / scale))
    change = min(relative(actual, expected), _largest((actual - expected) / scale))
    return max(torsion, change)


def _largest(x: Tensor) -> float:
    return float(x.abs().max())


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
    return min(relative(actual, expected), _largest((actual - expected) / scale))


def _reparametrisation(M: _Under, z: Tensor, v: Tensor, generator: torch.Generator) -> float:
    """Go to ``y = arsinh(A z)`` and back.

    Lengths stay, and geodesic acceleration changes as a second derivative.
    """
    m = z.shape[-1]
    mixing = 0.3 * torch.randn(m, m, generator=generator) / m**0.5
    a = (torch.eye(m) + mixing).to(z)
    back = torch.linalg.inv(a)
    y = (z @ a.T).asinh()

    def inverse(y: Tensor) -> Tensor:
        return y.sinh() @ back.T

    other = M.composed(inverse)
    stretch = y.cosh()
    w = (v @ a.T) / stretch  # the same velocity in the new coordinates
    turned = other.acceleration(y, w) * stretch
    found = (turned + y.sinh() * w**2) @ back.T
    expected = M.acceleration(z, v)
    scale = v.square().sum(-1, keepdim=True)
    of_geodesics = min(relative(found, expected), _largest((found - expected) / scale))
    of_lengths = relative(other.norm(y, w), M.norm(z, v))
    return max(of_lengths, of_geodesics)


def _batch(M: _Under, z: Tensor) -> float:
    rows = torch.arange(len(z), device=z.device)
    reversed_order = M.select(rows.flip(0))
    flipped = reversed_order.metric(z.flip(0)).flip(0)
    single = [M.select(row).metric(z[row]) for row in rows.split(1)]
    together = M.metric(z)
    of_order = relative(together, flipped)
    of_neighbours = relative(together, torch.cat(single))
    return max(of_order, of_neighbours)


def _signatures(M: _Under, z: Tensor, u: Tensor, v: Tensor) -> dict[str, float]:
    """Shapes, dtypes and devices of every method, and whether it leaves its arguments alone."""
    k, m = z.shape
    code = M.manifold.latent_shape or (m,)
    d = M.decode(z.clone()).flatten(1).shape[1]
    w = z.new_ones(k, d)

    def decoded(z: Tensor) -> Tensor:
        return M.decode(z).flatten(1)

    calls: list[Call] = [
        (decoded, (z,), (k, d)),
        (M.jacobian, (z,), (k, d, m)),
        (M.pushforward, (z, v), (k, d)),
        (M.given("pullback"), (z, w), (k, *code)),
        (M.metric, (z,), (k, m, m)),
        (M.given("metric_product"), (z, v), (k, *code)),
        (M.inner, (z, u, v), (k,)),
        (M.norm, (z, v), (k,)),
        (M.christoffel, (z,), (k, m, m, m)),
        (M.given("acceleration"), (z, v), (k, *code)),
    ]
    kept, changed = kept_and_changed(calls, z)
    return {"dtype": 0.0 if kept else float("inf"), "inputs": changed}

"""Derivatives of distances: first ones are those of closed forms, second ones are as well where
they are asked for, and refused elsewhere, inside and outside torch.func.
"""

import math

import pytest
import spaces
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from riemae import Manifold, ambient, solvers
from riemae.exceptions import DecoderError, DifferentiationError

F64 = torch.float64
SPHERE = Manifold(spaces.sphere)
P = torch.tensor([0.3, 0.2], dtype=F64)
Q = torch.tensor([-0.5, 0.6], dtype=F64)
POINTS = torch.stack([P, Q + 0.1, P - 0.2])


def distance(x, y=Q):
    return SPHERE.distance(x, y, rtol=1e-6)


def arc(x, y=Q):
    return torch.acos((spaces.sphere(x[None]) * spaces.sphere(y[None])).sum())


def close(found, true):
    return torch.allclose(found, true, rtol=2e-4, atol=1e-6)


class TestFirst:
    def test_grad(self):
        assert close(grad(distance)(P), grad(arc)(P))
        assert close(grad(lambda x: distance(x) ** 2 / 2)(P), grad(lambda x: arc(x) ** 2 / 2)(P))
        both = grad(distance, argnums=(0, 1))(P, Q)
        assert all(
            close(found, true)
            for found, true in zip(both, grad(arc, argnums=(0, 1))(P, Q), strict=True)
        )

    def test_jvp_and_jacobians(self):
        value, slope = jvp(distance, (P,), (Q,))
        assert close(value, arc(P))
        assert close(slope, grad(arc)(P) @ Q)
        for transform in (jacrev, jacfwd):
            assert close(transform(distance)(P), grad(arc)(P))
            batch = transform(distance)(POINTS)
            assert close(
                batch,
                torch.stack(
                    [
                        torch.zeros(3, 2, dtype=F64).index_put((torch.tensor(i),), grad(arc)(x))
                        for i, x in enumerate(POINTS)
                    ]
                ),
            )

    def test_vmap(self):
        assert torch.allclose(vmap(distance)(POINTS), distance(POINTS), rtol=1e-10)
        table = vmap(vmap(distance, (None, 0)), (0, None))(POINTS, POINTS)
        assert torch.allclose(table, distance(POINTS[:, None], POINTS), rtol=1e-10)
        assert torch.allclose(
            vmap(distance, in_dims=(1, None))(POINTS.T, Q), distance(POINTS), rtol=1e-10
        )

    def test_vmap_of_grad_and_grad_of_vmap(self):
        true = vmap(grad(arc))(POINTS)
        assert close(vmap(grad(distance))(POINTS), true)
        assert close(grad(lambda x: vmap(distance)(x).sum())(POINTS), true)

    def test_half_plane_and_mahalanobis(self):
        # Up the half plane d = log(y1/y0); under a constant metric |A (x − y)|.
        M = Manifold(lambda z: z, ambient=lambda x: (1 / x[:, 1:] ** 2).expand_as(x))
        a, b = torch.tensor([0.2, 1.0], dtype=F64), torch.tensor([0.2, 3.0], dtype=F64)
        slopes = grad(M.distance, argnums=(0, 1))(a, b)
        assert close(torch.stack(slopes), torch.tensor([[0.0, -1.0], [0.0, 1 / 3]], dtype=F64))
        matrix = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=F64)
        M = Manifold(lambda z: z, ambient=ambient.Constant(matrix))
        step = matrix @ (b - a)
        assert close(grad(M.distance, argnums=1)(a, b), step / ((b - a) @ step).sqrt())

    def test_parameters_by_backward(self):
        f = torch.nn.Linear(2, 3).double()
        M = Manifold(f)
        length = (f.weight.detach() @ (P - Q)).norm()
        true = torch.outer(f.weight.detach() @ (P - Q), P - Q) / length
        for call in (lambda: M.distance(P, Q), lambda: vmap(M.distance)(P[None], Q[None]).sum()):
            assert close(torch.autograd.grad(call(), f.weight)[0], true)

    def test_at_a_point_itself(self):
        assert grad(lambda x: SPHERE.distance(x, P))(P).tolist() == [0, 0]


class TestSecond:
    @pytest.mark.parametrize(
        "call",
        [
            lambda: torch.autograd.functional.hessian(lambda x: distance(x) ** 2 / 2, P),
            lambda: hessian(distance)(P),
            lambda: jacrev(jacrev(distance))(P),
            lambda: jacfwd(jacfwd(distance))(P),
            lambda: grad(lambda x: grad(distance)(x).sum())(P),
            lambda: vmap(hessian(distance))(POINTS),
        ],
    )
    def test_hessians(self, call):
        with pytest.raises(DifferentiationError, match="second"):
            call()

    def test_the_gradient_itself_can_be_built_with_a_graph(self):
        x = P.clone().requires_grad_()
        (slope,) = torch.autograd.grad(distance(x), x, create_graph=True)
        assert close(slope.detach(), grad(arc)(P))
        with pytest.raises(DifferentiationError, match="twice=True"):
            slope.square().sum().backward()

    def test_in_parameters_and_mixed(self):
        f = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh()).double()
        x = P.clone().requires_grad_()
        for first, second in ((f[0].weight, f[0].weight), (x, f[0].weight), (f[0].weight, x)):
            (slope,) = torch.autograd.grad(Manifold(f).distance(x, Q), first, create_graph=True)
            with pytest.raises(DifferentiationError, match="second"):
                torch.autograd.grad(slope.sum(), second)

    def test_torch_func_inside_torch_autograd(self):
        x = P.clone().requires_grad_()
        with pytest.raises(DifferentiationError, match="second"):
            grad(distance)(x).sum().backward()

    def test_differences_of_gradients_as_advised(self):
        h = 1e-3 * torch.eye(2, dtype=F64)
        squared = lambda x: SPHERE.distance(x, Q, rtol=1e-8) ** 2 / 2  # noqa: E731
        found = torch.stack([(grad(squared)(P + e) - grad(squared)(P - e)) / 2e-3 for e in h])
        true = torch.autograd.functional.hessian(lambda x: arc(x) ** 2 / 2, P)
        assert torch.allclose(found, true, atol=5e-3)


class TestTwice:
    """Autograd's second derivatives, where ``twice`` asks for them."""

    @staticmethod
    def hessians(of, x, y):
        both = torch.cat([x, y])
        found = torch.autograd.functional.hessian(lambda w: of(*w.chunk(2)), both)
        return torch.autograd.functional.jacobian(lambda w: of(*w.chunk(2)), both), found

    @pytest.mark.parametrize(
        "of", [lambda d: d, lambda d: d**2 / 2, lambda d: (-d).exp()], ids=["d", "d²/2", "exp(−d)"]
    )
    def test_sphere(self, of):
        found = self.hessians(lambda x, y: of(SPHERE.distance(x, y, rtol=1e-8, twice=True)), P, Q)
        true = self.hessians(lambda x, y: of(arc(x, y)), P, Q)
        for one, other in zip(found, true, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)

    def test_each_pair_of_a_batch_has_its_own(self):
        x = POINTS.clone().requires_grad_()
        (slope,) = torch.autograd.grad(
            SPHERE.distance(x, Q, rtol=1e-8, twice=True).sum(), x, create_graph=True
        )
        rows = [torch.autograd.grad(slope[:, k].sum(), x, retain_graph=True)[0] for k in range(2)]
        true = torch.stack([torch.autograd.functional.hessian(arc, p) for p in POINTS])
        torch.testing.assert_close(torch.stack(rows, 1), true, rtol=1e-6, atol=1e-7)

    def test_across_a_period(self):
        # A cylinder is flat: across its seam, d² is that of the plane, one turn away.
        M = Manifold(
            lambda z: torch.stack([z[:, 0].cos(), z[:, 0].sin(), z[:, 1]], -1),
            latent=(2 * math.pi, None),
        )
        x, y = torch.tensor([0.2, 0.1], dtype=F64), torch.tensor([6.1, 0.6], dtype=F64)
        turn = torch.tensor([2 * math.pi, 0.0], dtype=F64)
        found = self.hessians(lambda a, b: M.distance(a, b, rtol=1e-8, twice=True), x, y)
        true = self.hessians(lambda a, b: (a - b + turn).norm(), x, y)
        for one, other in zip(found, true, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)

    def test_a_decoder_has_its_first_derivative_beside_them(self):
        f = torch.nn.Linear(2, 3).double()
        once, twice = (
            torch.autograd.grad(Manifold(f).distance(P, Q, twice=twice), f.weight)[0]
            for twice in (False, True)
        )
        assert torch.equal(once, twice)
        x = P.clone().requires_grad_()
        length = Manifold(f).distance(x, Q, twice=True)
        slopes = torch.autograd.grad(length, (x, f.weight), create_graph=True)
        step = f.weight.detach() @ (P - Q)
        true = torch.autograd.functional.hessian(lambda p: (f.weight.detach() @ (p - Q)).norm(), P)
        assert close(slopes[0].detach(), f.weight.detach().T @ step / step.norm())
        rows = [torch.autograd.grad(c, x, retain_graph=True)[0] for c in slopes[0]]
        torch.testing.assert_close(torch.stack(rows), true, rtol=1e-6, atol=1e-8)
        with pytest.raises(DifferentiationError, match="second"):
            torch.autograd.grad(slopes[1].sum(), f.weight)

    def test_a_third_is_refused(self):
        x = P.clone().requires_grad_()
        (slope,) = torch.autograd.grad(SPHERE.distance(x, Q, twice=True), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        with pytest.raises(DifferentiationError, match="third"):
            bend.sum().backward()

    def test_where_points_coincide_there_is_a_first_one_only(self):
        x = P.clone().requires_grad_()
        (slope,) = torch.autograd.grad(SPHERE.distance(x, P, twice=True), x, create_graph=True)
        assert slope.tolist() == [0, 0]
        with pytest.raises(DifferentiationError, match="second_variation"):
            slope.sum().backward()


class TestTransformedParameters:
    def test_are_refused(self):
        weight = torch.tensor([[1.0, 2.0], [0.5, 1.0], [0.0, 1.0]], dtype=F64)

        def of_weight(w):
            return Manifold(lambda z: z @ w.T).distance(P, Q)

        with pytest.raises(DifferentiationError, match="backward"):
            grad(of_weight)(weight)
        with pytest.raises(DifferentiationError, match="backward"):
            jvp(of_weight, (weight,), (weight,))
        with pytest.raises((DifferentiationError, DecoderError)):
            vmap(of_weight)(weight[None])


class TestOtherCalls:
    V = torch.tensor([0.1, 0.2], dtype=F64)

    @pytest.mark.parametrize("transform", [grad, vmap])
    @pytest.mark.parametrize(
        "call",
        [
            lambda x: SPHERE.geodesic(x, Q).length,
            lambda x: SPHERE.log(x, Q).sum(-1),
            lambda x: solvers.log(solvers.MetricSpace(spaces.half_plane_tensor), x, x + 1).sum(-1),
            lambda x: SPHERE.conjugate_points(x, Q),
            lambda x: SPHERE.graph(torch.stack([x, Q, Q + 1]), k=1),
            lambda x: SPHERE.distance_matrix(torch.stack([x, Q])).sum(),
        ],
    )
    def test_what_has_no_derivative_is_refused(self, call, transform):
        with pytest.raises(DifferentiationError, match=r"torch\.func"):
            transform(call)(POINTS if transform is vmap else P)

    @pytest.mark.parametrize(
        "call",
        [
            lambda x: SPHERE.exp(x, x),
            lambda x: SPHERE.shoot(x, x, segments=2).nodes,
            lambda x: SPHERE.transport(torch.stack([x, Q]), x),
            lambda x: solvers.exp(solvers.MetricSpace(spaces.half_plane_tensor), x, x),
        ],
    )
    def test_what_decides_on_values_is_refused_by_vmap(self, call):
        with pytest.raises(DifferentiationError, match="batch axes"):
            vmap(call)(POINTS)

    def test_exp_and_metric_are_right(self):
        # exp of the sphere from the origin along e_x: tan(|v|), as G(0) = 4 I and the chart is
        # tan(θ/2).
        origin, v = torch.zeros(2, dtype=F64), torch.tensor([0.3, 0.0], dtype=F64)
        true = pytest.approx(1 / math.cos(0.3) ** 2, rel=1e-6)
        assert float(jacrev(lambda w: SPHERE.exp(origin, w))(v)[0, 0]) == true
        assert (
            float(jvp(lambda w: SPHERE.exp(origin, w), (v,), (torch.eye(2, dtype=F64)[0],))[1][0])
            == true
        )
        with pytest.raises(DifferentiationError, match="jacrev"):
            jacfwd(lambda w: SPHERE.exp(origin, w))(v)
        g = lambda x: 4 / (1 + x.square().sum()) ** 2  # noqa: E731
        assert torch.allclose(grad(lambda x: SPHERE.metric(x)[0, 0])(P), grad(g)(P))
        assert torch.allclose(hessian(lambda x: SPHERE.metric(x)[0, 0])(P), hessian(g)(P))
        assert torch.allclose(vmap(SPHERE.metric)(POINTS)[:, 0, 0], vmap(g)(POINTS))

    def test_shots_are_differentiable_in_every_mode(self):
        origin = torch.zeros(2, dtype=F64)
        v = torch.tensor([0.3, 0.0], dtype=F64, requires_grad=True)
        (slope,) = torch.autograd.grad(SPHERE.shoot(origin, v, segments=3).nodes[-1, 0], v)
        assert float(slope[0]) == pytest.approx(1 / math.cos(0.3) ** 2, rel=1e-6)


@pytest.mark.parametrize(
    "call", [SPHERE.metric, lambda x: SPHERE.distance(x, Q), lambda x: SPHERE.exp(x, Q)]
)
@pytest.mark.parametrize("warm", [True, False])
def test_torch_compile_is_refused(call, warm):
    torch.compiler.reset()
    if warm:
        call(P)
    with pytest.raises(DifferentiationError, match="Compile the decoder"):
        torch.compile(call, backend="eager")(P)

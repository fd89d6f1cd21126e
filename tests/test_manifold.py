"""Manifold: closed forms, dense matrices by automatic differentiation, batches, errors, gradients
and invariances."""

import numpy as np
import pytest
import spaces
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spaces import rand
from torch import nn
from torch.autograd.functional import jacobian
from torch.testing import assert_close

from riemae import Manifold
from riemae.ambient import FeatureMap
from riemae.exceptions import (
    AmbientError,
    DTypeError,
    GraphError,
    NonFiniteError,
    NotConvergedError,
    OptionError,
    ShapeError,
    SingularMetricError,
)
from riemae.solvers import Curve

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def draw(seed, *shape, low=-0.8, high=0.8):
    return rand(torch.Generator().manual_seed(seed), *shape, low=low, high=high)


def network(seed, *layers):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(*(layer() for layer in layers)).double().eval()


def polar(z):
    """The unit sphere by longitude u and latitude v."""
    u, v = z.unbind(-1)
    return torch.stack([v.cos() * u.cos(), v.cos() * u.sin(), v.sin()], -1)


def bumpy(x):
    """A positive definite matrix that varies with x in every direction."""
    return x[:, :, None] * x[:, None] + (2 + x.sum(-1).sin())[:, None, None] * torch.eye(
        x.shape[-1]
    ).to(x)


def identity(x):
    return torch.eye(x.shape[-1]).to(x).expand(len(x), -1, -1)


class TestClosedForms:
    z, v = draw(0, 6, 2), draw(1, 6, 2)

    @pytest.mark.parametrize("m", [1, 2, 4])
    def test_sphere_is_conformal(self, m):
        z, radius = draw(2, 5, m), 1.5
        factor = 4 * radius**2 / (1 + z.square().sum(-1)) ** 2
        M = Manifold(lambda z: spaces.sphere(z, radius))
        assert_close(M.metric(z), factor[:, None, None] * torch.eye(m), **EXACT)
        assert_close(M.volume_density(z), factor ** (m / 2), **EXACT)
        assert_close(M.eigenvalues(z), factor[:, None].expand(5, m), **EXACT)

    @pytest.mark.parametrize(
        ("M", "entries"),
        [
            # ds² = ρ² du² + dv² with ρ = 2 + cos v and ρ = cos v: Γᵘ_uv = ρ'/ρ, Γᵛ_uu = −ρ ρ'
            (
                Manifold(spaces.torus),
                lambda u, v: ((2 + v.cos()) ** 2, 1 + 0 * v, -v.sin() / (2 + v.cos())),
            ),
            (Manifold(polar), lambda u, v: (v.cos() ** 2, 1 + 0 * v, -v.tan())),
        ],
        ids=["torus", "polar sphere"],
    )
    def test_surfaces_of_revolution(self, M, entries):
        e, g, ratio = entries(*self.z.unbind(-1))
        gamma = torch.zeros(6, 2, 2, 2).double()  # [k, i, j]
        gamma[:, 0, 0, 1] = gamma[:, 0, 1, 0] = ratio
        gamma[:, 1, 0, 0] = -e * ratio
        assert_close(M.metric(self.z), torch.stack([e, g], -1).diag_embed(), **EXACT)
        assert_close(M.christoffel(self.z), gamma, **EXACT)
        assert_close(M.log_volume(self.z), (e * g).log() / 2, **EXACT)

    def test_half_plane(self):
        # ds² = (dx² + dy²)/y²: Γˣ_xy = Γʸ_yy = −1/y, Γʸ_xx = 1/y
        z = self.z + torch.tensor([0.0, 1.5])
        M, y = spaces.half_plane_as_ambient(), 1 / z[:, 1]
        gamma = torch.zeros(6, 2, 2, 2).double()
        gamma[:, 0, 0, 1] = gamma[:, 0, 1, 0] = gamma[:, 1, 1, 1] = -y
        gamma[:, 1, 0, 0] = y
        assert_close(M.christoffel(z), gamma, **EXACT)
        assert_close(
            M.acceleration(z, self.v),
            -torch.einsum("bkij,bi,bj->bk", gamma, self.v, self.v),
            **EXACT,
        )

    @pytest.mark.parametrize("c", [1.0, -3.0])
    def test_paraboloid(self, c):
        # The graph of h = c|z|²/2 has Γᵏ_ij = h_k h_ij/(1 + |∇h|²).
        z, v = self.z, self.v
        expected = (
            -(c**2)
            * z
            * v.square().sum(-1, keepdim=True)
            / (1 + c**2 * z.square().sum(-1, keepdim=True))
        )
        assert_close(
            Manifold(lambda z: spaces.paraboloid(z, c)).acceleration(z, v), expected, **EXACT
        )


LAYER_NORM = network(
    1, lambda: nn.Linear(2, 6), lambda: nn.LayerNorm(6), nn.SiLU, lambda: nn.Linear(6, 4)
)
TANH = network(2, lambda: nn.Linear(2, 8), nn.Tanh, lambda: nn.Linear(8, 3))
HS = {
    "half plane, ambient": lambda x: (1 / x[:, 1:] ** 2).expand_as(x).diag_embed(),
    "mahalanobis plane": lambda x: (spaces.AFFINE.T @ spaces.AFFINE).expand(len(x), -1, -1),
}
DENSE = {  # name: (manifold, decoder, H as a matrix, points)
    known.name: (
        known.space(),
        known.decoder,
        HS.get(known.name, identity),
        known.points(torch.Generator().manual_seed(0), 4),
    )
    for known in spaces.MANIFOLDS
} | {
    "layer norm": (Manifold(LAYER_NORM), LAYER_NORM, identity, draw(3, 4, 2)),
    "bumpy ambient": (Manifold(TANH, bumpy), TANH, bumpy, draw(3, 4, 2)),
    "images": (Manifold(lambda z: TANH(z).view(-1, 1, 3)), TANH, identity, draw(3, 4, 2)),
}


@pytest.mark.parametrize("name", DENSE)
class TestDenseMatrices:
    """Everything against Jacobians and metrics that torch.autograd.functional makes, one point at a
    time."""

    def case(self, name):
        M, decoder, h, z = DENSE[name]
        return M, decoder, h, z, draw(4, *z.shape), draw(5, *z.shape)

    def dense(self, name, point):  # (m,) -> (m, m)
        _, decoder, h, *_ = self.case(name)
        j = jacobian(lambda y: decoder(y[None])[0], point, create_graph=True)
        return j.mT @ h(decoder(point[None]))[0] @ j

    def test_differential(self, name):
        M, decoder, _, z, v, _ = self.case(name)
        j = torch.stack([jacobian(lambda y: decoder(y[None])[0], p) for p in z])
        w = draw(6, *j.shape[:2])
        assert_close(M.decode(z).flatten(1), decoder(z), **EXACT)
        assert_close(M.jacobian(z), j, **EXACT)
        assert_close(M.pushforward(z, v), torch.einsum("bdi,bi->bd", j, v), **EXACT)
        assert_close(M.pullback(z, w), torch.einsum("bdi,bd->bi", j, w), **EXACT)
        assert_close(M.pullback(z, w.view(M.decode(z).shape)), M.pullback(z, w), rtol=0, atol=0)

    def test_metric(self, name):
        M, _, _, z, u, v = self.case(name)
        g = torch.stack([self.dense(name, p) for p in z]).detach()
        assert_close(M.metric(z), g, **EXACT)
        assert_close(M.metric_product(z, v), torch.einsum("bij,bj->bi", g, v), **EXACT)
        assert_close(M.inner(z, u, v), torch.einsum("bi,bij,bj->b", u, g, v), **EXACT)
        assert_close(M.norm(z, v), torch.einsum("bi,bij,bj->b", v, g, v).sqrt(), **EXACT)
        assert_close(M.eigenvalues(z), torch.as_tensor(np.linalg.eigvalsh(g.numpy())), **EXACT)
        assert_close(M.volume_density(z), torch.as_tensor(np.linalg.det(g.numpy())).sqrt(), **EXACT)
        assert_close(M.log_volume(z), torch.as_tensor(np.linalg.slogdet(g.numpy())[1]) / 2, **EXACT)

    def test_connection(self, name):
        # Γᵏ_ij = ½ Gᵏˡ (∂_i G_lj + ∂_j G_li − ∂_l G_ij), with d[i, j, l] = ∂_l G_ij
        M, _, _, z, v, _ = self.case(name)
        gamma = []
        for p in z:
            d = jacobian(lambda y: self.dense(name, y), p)
            lowered = (d.permute(0, 2, 1) + d - d.permute(2, 0, 1)) / 2
            gamma.append(
                torch.einsum("kl,lij->kij", torch.linalg.inv(self.dense(name, p)), lowered)
            )
        gamma = torch.stack(gamma).detach()
        assert_close(M.christoffel(z), gamma, **EXACT)
        assert_close(M.acceleration(z, v), -torch.einsum("bkij,bi,bj->bk", gamma, v, v), **EXACT)


class TestCurves:
    def test_great_circles(self):
        # Stereographic from the pole: the radius r is at the angle 2 atan r from the origin.
        ends = torch.tensor([[[-0.5, 0.0], [0.5, 0.0]], [[0.0, 0.0], [0.0, 2.0]]]).double()
        exact = torch.tensor([4 * np.arctan(0.5), 2 * np.arctan(2.0)])
        curves = Curve.line(ends[:, 0], ends[:, 1], segments=32)
        assert_close(Manifold(spaces.sphere).length(curves), exact, **EXACT)
        assert_close(Manifold(spaces.sphere).length(curves.nodes), exact, **EXACT)

    @pytest.mark.parametrize(
        ("M", "stop", "length"),
        [
            (
                Manifold(spaces.cylinder),
                (2.0, 3.0),
                np.hypot(1.5 * 2, 3),
            ),  # a helix, straight when unrolled
            (Manifold(polar), (5.0, 0.0), np.float64(5.0)),  # the equator
            (Manifold(spaces.affine), (1.0, -1.0), np.linalg.norm(spaces.AFFINE.numpy() @ (1, -1))),
        ],
        ids=["helix", "equator", "straight"],
    )
    def test_constant_speed(self, M, stop, length):
        curve = Curve.line(torch.zeros(2).double(), torch.tensor(stop).double())
        assert_close(M.length(curve), torch.tensor(length), **EXACT)
        assert_close(M.energy(curve), torch.tensor(length**2), **EXACT)

    def test_polylines_are_their_segments(self):
        M, corners = Manifold(spaces.torus), draw(10, 3, 5, 2)
        parts = Curve.line(corners[:, :-1], corners[:, 1:])
        assert_close(M.length(corners), M.length(parts).sum(-1), **EXACT)
        assert_close(
            M.energy(corners), 4 * M.energy(parts).sum(-1), **EXACT
        )  # each piece takes a quarter of the time
        assert_close(M.length(corners[:, 2:4]), M.length(parts[:, 2]), **EXACT)

    @pytest.mark.parametrize("name", DENSE)
    def test_energy_is_at_least_the_squared_length(self, name):
        M, *_, z = DENSE[name]
        curve = Curve.from_nodes(z[None] * draw(11, 5, 4, 1, low=0.9, high=1.1))
        assert (M.energy(curve) > M.length(curve) ** 2).all()  # their speed is not constant

    def test_what_is_no_curve(self):
        M = Manifold(spaces.sphere, latent_dim=2)
        with pytest.raises(ShapeError, match="n of at least 2"):
            M.length(torch.zeros(4, 1, 2))
        with pytest.raises(ShapeError, match=r"\(\*b, 2\)"):
            M.energy(torch.zeros(4, 3, 3))
        with pytest.raises(DTypeError, match="a Curve or a tensor"):
            M.length([[0.0, 0.0], [1.0, 1.0]])


METHODS = {  # name: (arguments, shape behind the batch axes) on the sphere
    "decode": ("z", (3,)),
    "jacobian": ("z", (3, 2)),
    "pushforward": ("zv", (3,)),
    "pullback": ("zw", (2,)),
    "metric": ("z", (2, 2)),
    "metric_product": ("zv", (2,)),
    "inner": ("zuv", ()),
    "norm": ("zv", ()),
    "eigenvalues": ("z", (2,)),
    "log_volume": ("z", ()),
    "volume_density": ("z", ()),
    "christoffel": ("z", (2, 2, 2)),
    "acceleration": ("zv", (2,)),
    "length": ("c", ()),
    "energy": ("c", ()),
    "distance": ("zy", ()),
}
CURVATURES = {
    "second_fundamental_form": ("zuv", (3,)),
    "curvature_form": ("z", (2, 2)),
    "extrinsic_curvature": ("z", ()),
    "mean_curvature": ("z", (3,)),
    "principal_curvatures": ("zw", (2,)),
    "riemann": ("z", (2, 2, 2, 2)),
    "ricci": ("z", (2, 2)),
    "scalar_curvature": ("z", ()),
    "kretschmann": ("z", ()),
    "sectional_curvature": ("zuv", ()),
    "gaussian_curvature": ("z", ()),
}
POINTWISE = [name for name in METHODS if METHODS[name][0] not in ("c", "zy")]
TAILS = {"z": (2,), "y": (2,), "u": (2,), "v": (2,), "w": (3,), "c": (4, 2)}
ALL = METHODS | CURVATURES
KINDS = {  # both methods: a network with a feature map, a function with a metric that varies
    "features": lambda **o: Manifold(TANH, FeatureMap(torch.sinh), **o),
    "general": lambda **o: Manifold(spaces.sphere, bumpy, **o),
}
SPACES = {kind: make() for kind, make in KINDS.items()}
SINGLE = {kind: M.to(dtype=torch.float32) for kind, M in SPACES.items()}


def arguments(name, *batch):
    return [draw(20 + i, *batch, *TAILS[a]) for i, a in enumerate(ALL[name][0])]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ALL)
class TestBatches:
    def test_axes_and_single_points(self, name, kind):
        method, given = getattr(SPACES[kind], name), arguments(name, 2, 2)
        batch = method(*given)
        assert batch.shape == (2, 2, *ALL[name][1])
        assert_close(method(*(x[0, 1] for x in given)), batch[0, 1], rtol=1e-9, atol=1e-9)

    def test_empty_batches_even_at_first_use(self, name, kind):
        method = getattr(KINDS[kind](), name)
        for batch in ((0,), (2, 0)):
            assert method(*arguments(name, *batch)).shape == (*batch, *ALL[name][1])

    def test_inputs_and_dtype_are_kept(self, name, kind):
        given = [x.float() for x in arguments(name, 3)]
        kept = [x.clone() for x in given]
        assert getattr(SINGLE[kind], name)(*given).dtype == torch.float32
        assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_nothing(kind):
    M = KINDS[kind](chunk_size=2)
    for name in METHODS:
        whole, parts = (getattr(S, name)(*arguments(name, 3)) for S in (SPACES[kind], M))
        assert_close(parts, whole, **EXACT)


@pytest.mark.parametrize("axes", [((), (4,)), ((4,), ()), ((3, 1), (4,))])
@pytest.mark.parametrize("name", [name for name in ALL if ALL[name][0] in ("zv", "zuv")])
def test_points_and_tangents_broadcast(name, axes):
    M, z, *vectors = (
        SPACES["general"],
        draw(26, *axes[0], 2),
        draw(27, *axes[1], 2),
        draw(28, *axes[1], 2),
    )
    given = [z, *vectors[: len(ALL[name][0]) - 1]]
    repeated = [x.clone() for x in torch.broadcast_tensors(*given)]
    assert_close(getattr(M, name)(*given), getattr(M, name)(*repeated), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", POINTWISE)
class TestTransforms:
    def test_meta_device_knows_the_shapes(self, name, kind):
        M = KINDS[kind]().to(device="meta")
        out = getattr(M, name)(*(x.to("meta") for x in arguments(name, 4)))
        assert out.is_meta
        assert out.shape == (4, *METHODS[name][1])

    def test_vmap(self, name, kind):
        given, method = arguments(name, 4), getattr(SPACES[kind], name)
        assert_close(torch.func.vmap(method)(*given), method(*given), **EXACT)

    @pytest.mark.parametrize("jac", [torch.func.jacrev, torch.func.jacfwd])
    def test_jacobians(self, name, kind, jac):
        given, method = arguments(name), getattr(SPACES[kind], name)
        expected = jacobian(lambda z: method(z, *given[1:]), given[0])
        assert_close(jac(method)(*given), expected, **EXACT)
        if jac is torch.func.jacfwd:  # torch.no_grad does not concern forward mode
            with torch.no_grad():
                assert_close(jac(method)(*given), expected, **EXACT)

    def test_gradients_in_points_tangents_and_parameters(self, name, kind):
        names, weights = zip(*TANH.named_parameters(), strict=True)
        parameters = (
            weights if kind == "features" else [torch.tensor(x).double() for x in (0.7, 1.3)]
        )
        given = [*arguments(name, 2), *(p.detach().clone() for p in parameters)]

        def value(*inputs):
            if kind == "features":
                functional = dict(zip(names, inputs[-len(names) :], strict=True))
                M = Manifold(
                    lambda z: torch.func.functional_call(TANH, functional, (z,)),
                    FeatureMap(torch.sinh),
                )
            else:  # radius, and scale of the ambient metric
                M = Manifold(
                    lambda z: spaces.sphere(z, inputs[-1]), lambda x: inputs[-2] * bumpy(x)
                )
            return getattr(M, name)(*inputs[: -len(parameters)])

        assert torch.autograd.gradcheck(value, [x.requires_grad_() for x in given], fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_norm_of_nothing_has_gradient_zero(kind):
    z, v = draw(30, 3, 2).requires_grad_(), torch.zeros(3, 2).double().requires_grad_()
    for gradient in torch.autograd.grad(SPACES[kind].norm(z, v).sum(), (z, v)):
        assert_close(gradient, torch.zeros(3, 2).double(), rtol=0, atol=0)


def unit_covectors(M, r):
    """Derivatives of the distance by Gauss' lemma: the unit tangents at both ends, lowered."""
    ends = []
    for t in (0.0, 1.0):
        z, v = r.curve(t), r.curve.velocity(t)
        ends.append(M.metric_product(z, v) / M.norm(z, v)[..., None])
    return -ends[0], ends[1]


class TestDistance:
    @pytest.mark.parametrize(
        ("known", "truth"),
        [("sphere", spaces.great_circle), ("half plane, ambient", spaces.half_plane)],
        ids=["sphere", "half plane"],
    )
    def test_gradients_at_the_ends(self, known, truth):
        known = spaces.CATALOGUE[spaces.NAMES.index(known)]
        M, (z0, z1, d) = known.space(), known.pairs(torch.Generator().manual_seed(1), 4)
        z0, z1 = z0.requires_grad_(), z1.requires_grad_()
        value = M.distance(z0, z1, rtol=1e-8)
        assert_close(value, d.detach(), rtol=1e-8, atol=0)
        got = torch.autograd.grad(value.sum(), (z0, z1))
        exact = torch.autograd.grad(truth(z0, z1).sum(), (z0, z1))
        lemma = unit_covectors(M, M.geodesic(z0, z1, rtol=1e-8))
        for a, b, c in zip(got, exact, lemma, strict=True):
            # The tangents of a curve whose length is known to 1e-8 are known to its square root.
            assert_close(a, b, rtol=1e-3, atol=1e-4)
            assert_close(c, b, rtol=1e-3, atol=1e-4)

    def test_gradient_in_the_decoder_and_in_the_ambient_metric(self):
        # d = √s r α for the angle α, the radius r and the ambient metric s I.
        z0, z1, angle = spaces.CATALOGUE[0].pairs(torch.Generator().manual_seed(2), 6)
        radius, scale = (torch.tensor(x).double().requires_grad_() for x in (3.0, 4.0))
        d = Manifold(lambda z: spaces.sphere(z, radius)).distance(z0, z1, rtol=1e-8)
        assert_close(torch.autograd.grad(d.sum(), radius)[0], angle.sum(), rtol=1e-7, atol=0)
        d = Manifold(spaces.sphere, lambda x: scale * torch.ones_like(x)).distance(
            z0, z1, rtol=1e-8
        )
        assert_close(torch.autograd.grad(d.sum(), scale)[0], angle.sum() / 4, rtol=1e-7, atol=0)

    @pytest.mark.parametrize("kind", KINDS)
    def test_nothing_but_coinciding_points_has_gradient_zero(self, kind):
        M = (
            Manifold(spaces.sphere)
            if kind == "features"
            else Manifold(spaces.sphere, ambient=lambda x: torch.ones_like(x))
        )
        z = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
        M.distance(z, z.detach()).sum().backward()
        assert torch.equal(z.grad, torch.zeros(3, 2).double())

    @pytest.mark.parametrize("kind", KINDS)
    def test_coinciding_and_bad_pairs_leave_the_others_alone(self, kind):
        M, (z0, z1) = KINDS[kind](), (draw(31, 4, 2), draw(32, 4, 2))
        z1[1], z1[2, 0] = z0[1], torch.nan
        z0, z1 = z0.requires_grad_(), z1.requires_grad_()
        d = M.distance(z0, z1, throw=False)
        assert d[1] == 0
        assert d.isnan().tolist() == [False, False, True, False]
        gradients = torch.stack(torch.autograd.grad(d[[0, 1, 3]].sum(), (z0, z1)))
        alone = torch.stack(torch.autograd.grad(M.distance(z0[[0, 3]], z1[[0, 3]]).sum(), (z0, z1)))
        assert_close(gradients, alone, **EXACT)  # zero in both for the middle pairs
        with pytest.raises(NotConvergedError, match="1 invalid_point") as caught:
            M.distance(z0, z1)
        assert_close(caught.value.result.length, d.detach(), equal_nan=True)

    def test_without_gradients(self):
        M, z = Manifold(TANH), draw(33, 3, 2)
        with torch.no_grad():
            assert not M.distance(z, z[0]).requires_grad
        assert M.distance(z, z[0]).requires_grad  # through the parameters of the network
        assert_close(
            M.distance(z[:, None], z[None]).detach(), M.distance_matrix(z), rtol=1e-6, atol=1e-12
        )


class TestDistanceMatrix:
    a, b = draw(40, 6, 2), draw(41, 3, 2)
    M = Manifold(spaces.sphere)

    def test_equals_the_closed_form(self):
        d, cross = (
            self.M.distance_matrix(self.a, rtol=1e-7),
            self.M.distance_matrix(self.a, self.b, rtol=1e-7),
        )
        assert_close(d, spaces.great_circle(self.a[:, None], self.a[None]), rtol=1e-7, atol=1e-12)
        assert_close(cross, spaces.great_circle(self.a[:, None], self.b[None]), rtol=1e-7, atol=0)
        assert torch.equal(d, d.T)
        assert (d.diagonal() == 0).all()

    def test_chords_and_graphs_bound_it(self):
        # A straight chord in R³ subtends the angle d: it has the length 2 sin(d/2).
        for b in (None, self.b):
            chord, d, paths = (
                self.M.distance_matrix(self.a, b, method=m, k=3)
                for m in ("chord", "geodesic", "graph")
            )
            assert_close(chord, 2 * (d / 2).sin(), rtol=1e-4, atol=0)
            assert (chord <= d).all()
            assert (d <= paths * (1 + 1e-4)).all()
            assert (paths.isfinite()).all()

    def test_equal_points_in_both_sets(self):
        for method in ("geodesic", "chord", "graph"):
            assert (
                self.M.distance_matrix(self.a, self.a.clone(), method=method, k=4).diagonal() == 0
            ).all()

    @pytest.mark.parametrize("method", ["geodesic", "chord", "graph"])
    def test_empty_sets(self, method):
        none = self.a[:0]
        assert self.M.distance_matrix(none, method=method).shape == (0, 0)
        assert self.M.distance_matrix(none, self.b, method=method, k=2).shape == (0, 3)
        assert self.M.distance_matrix(self.a, none, method=method, k=2).shape == (6, 0)

    def test_progress(self):
        calls = []
        self.M.distance_matrix(self.a, progress=lambda *count: calls.append(count))
        assert calls[-1] == (15, 15)

    def test_errors(self):
        with pytest.raises(OptionError, match="among 'geodesic', 'graph', 'chord', got 'euclid'"):
            self.M.distance_matrix(self.a, method="euclid")
        with pytest.raises(AmbientError, match="Use method='geodesic' or 'graph'"):
            spaces.half_plane_as_ambient().distance_matrix(self.a + 2, method="chord")
        with pytest.raises(ShapeError, match=r"b of shape \(n, m\)"):
            self.M.distance_matrix(self.a, self.b[0])
        with pytest.raises(NonFiniteError, match=r"distance_matrix \(b\)"):
            self.M.distance_matrix(self.a, self.b / 0)


class TestGraph:
    z = torch.cat([draw(50, 30, 1, low=2.0, high=8.0), draw(51, 30, 1, low=0.0, high=4.0)], 1)
    M = Manifold(spaces.swiss_roll)

    @pytest.mark.parametrize("neighbors", ["latent", "data"])
    @pytest.mark.parametrize("weight", ["length", "chord"])
    def test_options(self, neighbors, weight):
        graph = self.M.graph(self.z, k=6, weight=weight, neighbors=neighbors).to_networkx()
        where = self.z if neighbors == "latent" else spaces.swiss_roll(self.z)
        nearest = torch.cdist(where, where).argsort(1)[:, 1:7]
        assert {frozenset(e) for e in graph.edges} == {
            frozenset((i, int(j))) for i in range(30) for j in nearest[i]
        }
        starts, stops, weights = zip(*graph.edges(data="weight"), strict=True)
        a, b = self.z[list(starts)], self.z[list(stops)]
        if weight == "length":
            expected = self.M.length(Curve.line(a, b, 32))
        else:
            expected = (spaces.swiss_roll(a) - spaces.swiss_roll(b)).norm(dim=-1)
        assert_close(torch.tensor(weights).to(expected), expected, rtol=1e-5, atol=0)

    def test_errors(self):
        with pytest.raises(OptionError, match="neighbors among 'latent', 'data', got 'ambient'"):
            self.M.graph(self.z, neighbors="ambient")
        with pytest.raises(GraphError, match="Use weight='length'"):
            spaces.half_plane_as_ambient().graph(self.z, weight="chord")
        with pytest.raises(ShapeError, match=r"points of shape \(n, m\)"):
            self.M.graph(self.z[None])


class TestErrors:
    M = Manifold(spaces.sphere, latent_dim=2)

    @pytest.mark.parametrize("name", ALL)
    def test_last_axis(self, name):
        arguments_ = [x[..., :1].expand(*x.shape[:-1], 3) for x in arguments(name, 5)]
        with pytest.raises(ShapeError, match=r"\(\*b, 2\)"):
            getattr(self.M, name)(*arguments_)

    @pytest.mark.parametrize(
        "name", ["inner", "norm", "metric_product", "pushforward", "acceleration"]
    )
    def test_a_missing_coordinate_is_not_broadcast(self, name):
        for bad in range(len(METHODS[name][0])):
            given = [x[..., :1] if i == bad else x for i, x in enumerate(arguments(name, 5))]
            with pytest.raises(ShapeError):
                getattr(self.M, name)(*given)

    def test_hints(self):
        with pytest.raises(
            ShapeError,
            match=r"Manifold.metric: expected z of shape \(\*b, 2\), got \(2, 5\).*try z\.T",
        ):
            self.M.metric(torch.zeros(2, 5))
        with pytest.raises(ShapeError, match=r"got \(4, 5\). Batch axes come first\.$"):
            self.M.metric(torch.zeros(4, 5))
        with pytest.raises(ShapeError, match="tangent vector has the shape of its point"):
            self.M.norm(torch.zeros(4, 2), torch.zeros(3, 2))

    @pytest.mark.parametrize("name", ALL)
    @pytest.mark.parametrize("bad", range(3))
    def test_lists_are_no_tensors(self, name, bad):
        given = arguments(name, 5)
        bad = bad % len(given)
        with pytest.raises(DTypeError, match="tensor"):
            getattr(self.M, name)(*(x.tolist() if i == bad else x for i, x in enumerate(given)))

    @pytest.mark.parametrize(
        "name", ["pushforward", "pullback", "metric_product", "inner", "norm", "acceleration"]
    )
    @pytest.mark.parametrize("kind", KINDS)
    def test_mixed_dtypes(self, name, kind):
        z, *tangents = arguments(name, 5)
        with pytest.raises(DTypeError, match="float32"):
            getattr(KINDS[kind](), name)(z, *(v.float() for v in tangents))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.complex64])
    def test_other_dtypes(self, dtype):
        with pytest.raises(DTypeError, match="float32 or float64"):
            self.M.metric(torch.zeros(3, 2, dtype=dtype))

    @pytest.mark.parametrize("name", ALL)
    def test_points_that_are_not_finite(self, name):
        z, *others = arguments(name, 5)
        z[3] = torch.inf
        with pytest.raises(NotConvergedError if name == "distance" else NonFiniteError):
            getattr(self.M, name)(z, *others)

    @pytest.mark.parametrize("name", [name for name in POINTWISE if name != "norm"])
    @pytest.mark.parametrize("ambient", [None, bumpy])
    def test_decoders_that_are_not_finite(self, name, ambient):
        # The root leaves its domain at the third point, which the probe at first use has not seen.
        M = Manifold(lambda z: torch.cat([z, z[:, :1].sqrt()], 1), ambient)
        given = arguments(name, 4)
        given[0] = torch.tensor([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [3.0, 0.0]]).double()
        with pytest.raises(NonFiniteError, match="1 of 4 points"):
            getattr(M, name)(*given)

    def test_norms_are_nan_where_the_decoder_is(self):
        # The solvers call norm, and report single pairs by their status.
        M = Manifold(lambda z: torch.cat([z, z[:, :1].sqrt()], 1))
        z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        assert M.norm(z[:1], z[:1]).isfinite().all()
        assert M.norm(z, z).isnan().tolist() == [False, True]

    @pytest.mark.parametrize("shape", [(5, 2), (4, 3), (3, 5), (3,), (5, 1, 3)])
    def test_covectors_belong_to_their_points(self, shape):
        with pytest.raises(ShapeError, match=r"Manifold.pullback: expected w of shape \(5, 3\)"):
            self.M.pullback(torch.zeros(5, 2), torch.zeros(shape))

    @pytest.mark.parametrize("seed", range(8))
    def test_singular_metrics(self, seed):
        # Both coordinates move along one curve: det G is 0 but for rounding, of either sign.
        a, b = draw(seed, 2, 1), draw(100 + seed, 1, 4)
        M, z = Manifold(lambda z: ((z @ a) @ b).sin() + (z @ a) @ b), draw(60, 6, 2)
        with pytest.raises(SingularMetricError, match="at 6 of 6 points.*(?i:tangent directions)"):
            M.christoffel(z)
        with pytest.raises(SingularMetricError, match="at 6 of 6 points"):
            M.acceleration(z, z)

    @pytest.mark.parametrize("option", [{"latent_dim": 0}, {"latent_dim": -1}, {"chunk_size": 0}])
    def test_options(self, option):
        with pytest.raises(OptionError, match=f"{next(iter(option))} of at least 1"):
            Manifold(spaces.sphere, **option)

    @pytest.mark.parametrize("decoder", [nn.Tanh, None, "sphere"])
    def test_what_is_no_decoder(self, decoder):
        with pytest.raises(DTypeError, match="Pass an nn.Module instance or a function"):
            Manifold(decoder)


class TestCopies:
    def test_to_leaves_the_original(self):
        M, z = Manifold(TANH, FeatureMap(nn.Linear(3, 4).double()), chunk_size=7), draw(70, 4, 2)
        there = M.to(dtype=torch.float32)
        assert (
            next(there.decoder.parameters()).dtype == there.metric(z.float()).dtype == torch.float32
        )
        assert M.decoder is TANH
        assert_close(there.metric(z.float()).double(), M.metric(z), rtol=1e-5, atol=1e-5)

    def test_bound_methods_move_with_their_module(self):
        M = Manifold(TANH.forward).to(dtype=torch.float32)
        assert M.metric(torch.zeros(1, 2)).dtype == torch.float32
        assert TANH[0].weight.dtype == torch.float64

    def test_repr(self):
        M = Manifold(spaces.sphere, chunk_size=2)
        assert repr(M) == "Manifold(sphere: R^? -> R^?, ambient=Euclidean())"
        M.metric(draw(71, 3, 2))
        assert M.latent_dim == 2
        assert repr(M) == "Manifold(sphere: R^2 -> R^3, ambient=Euclidean())"


properties = settings(max_examples=5, derandomize=True, deadline=None)
points = st.lists(st.integers(-80, 80), min_size=6, max_size=6).map(
    lambda x: torch.tensor(x).double().view(3, 2) / 100
)


class TestInvariances:
    @properties
    @given(points, points, st.integers(0, 99))
    def test_an_orthogonal_lift_changes_nothing(self, z, u, seed):
        q = torch.as_tensor(np.linalg.qr(np.random.default_rng(seed).normal(size=(6, 3)))[0])
        M, lifted = Manifold(spaces.torus), Manifold(lambda z: spaces.torus(z) @ q.T)
        for name, args in {
            "metric": (z,),
            "norm": (z, u),
            "christoffel": (z,),
            "acceleration": (z, u),
        }.items():
            assert_close(getattr(lifted, name)(*args), getattr(M, name)(*args), **EXACT)
        assert_close(lifted.geodesic(z, u).length, M.geodesic(z, u).length, rtol=1e-9, atol=1e-12)

    @properties
    @given(points, points, st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
    def test_other_coordinates_change_no_length(self, y, w, shear, stretch):
        # z = A sinh(y), so that ż = A (cosh(y) ẏ)
        a = torch.tensor([[1 + stretch, shear], [0.0, 1.0]]).double()
        to = lambda y: y.sinh() @ a.T  # noqa: E731
        M, other = Manifold(spaces.torus), Manifold(lambda y: spaces.torus(to(y)))
        assert_close(other.norm(y, w), M.norm(to(y), (y.cosh() * w) @ a.T), **EXACT)
        lengths = [
            S.geodesic(*ends, rtol=1e-6).length
            for S, ends in ((other, (y, w)), (M, (to(y), to(w))))
        ]
        assert_close(*lengths, rtol=2e-6, atol=1e-12)

    @properties
    @given(points, points, st.floats(0.01, 100), st.sampled_from([-1, 1]))
    def test_scaling_the_decoder_scales_lengths(self, z, u, size, sign):
        M, scaled, line = (
            Manifold(spaces.torus),
            Manifold(lambda z: sign * size * spaces.torus(z)),
            torch.stack([z, u], 1),
        )
        assert_close(scaled.norm(z, u), size * M.norm(z, u), **EXACT)
        assert_close(scaled.length(line), size * M.length(line), **EXACT)
        assert_close(
            scaled.geodesic(z, u).length, size * M.geodesic(z, u).length, rtol=1e-8, atol=1e-12
        )

    @properties
    @given(points, points, points)
    def test_distance_is_a_distance(self, a, b, c):
        starts, stops = torch.cat([a, b, b, a]), torch.cat([b, a, c, c])
        ab, ba, bc, ac = Manifold(spaces.sphere).distance(starts, stops, rtol=1e-7).split(3)
        assert_close(ab, ba, rtol=2e-7, atol=1e-12)
        assert (ac <= (ab + bc) * (1 + 3e-7) + 1e-12).all()
        assert torch.equal(ab > 0, (a != b).any(-1))

"""Decoders with conditions: every row equals that of a call with its point and condition alone."""

import inspect
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn

from riemae import Ensemble, Manifold, ambient, scores, solvers
from riemae.exceptions import (
    DecoderError,
    DifferentiationError,
    DTypeError,
    NonFiniteError,
    NotConvergedError,
    OptionError,
    ShapeError,
)

N, M_DIM, C = 4, 2, 3


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def network(inputs=M_DIM + C, outputs=4, seed=0, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs))
    with torch.no_grad():
        layers[2].weight *= 3
    return layers.to(dtype).eval().requires_grad_(False)


class Joined(nn.Module):
    """Points and conditions side by side."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.net = network(dtype=dtype)

    def forward(self, z, c):
        return self.net(torch.cat([z, c], 1))


class Labelled(nn.Module):
    """A condition of a tensor and a class, as a dict."""

    def __init__(self):
        super().__init__()
        self.net, self.table = Joined(), nn.Embedding(4, C).double()
        with torch.no_grad():
            self.table.weight.copy_(draw(4, C, seed=7))

    def forward(self, z, c):
        return self.net(z, c["a"] + self.table(c["b"][:, 0]))


def closed(f, c):
    """The decoder of points alone that each row has."""
    return lambda z: f(z, c.expand(len(z), *c.shape[1:]))


Z, U, V, W = (draw(N, M_DIM, seed=s) for s in (1, 2, 3, 4))
Z1 = Z + 0.5 * U
COND = draw(N, C, seed=5)
X = draw(N, 4, seed=6)
LINE = torch.stack([Z, (Z + Z1) / 2 + 0.1 * V, Z1], 1)


def wave(z):
    return (z[:, 0] + 2 * z[:, 1]).sin()


def swirl(z):
    return torch.stack([z[:, 1].sin(), z[:, 0].square()], -1)


# Each method, given one manifold and the rows to take.
CALLS = {
    "decode": lambda M, i, **c: M.decode(Z[i], **c),
    "jacobian": lambda M, i, **c: M.jacobian(Z[i], **c),
    "pushforward": lambda M, i, **c: M.pushforward(Z[i], V[i], **c),
    "pullback": lambda M, i, **c: M.pullback(Z[i], X[i], **c),
    "taylor": lambda M, i, **c: torch.stack(M.taylor(Z[i], V[i], **c), -1),
    "metric": lambda M, i, **c: M.metric(Z[i], **c),
    "metric_product": lambda M, i, **c: M.metric_product(Z[i], V[i], **c),
    "inner": lambda M, i, **c: M.inner(Z[i], U[i], V[i], **c),
    "norm": lambda M, i, **c: M.norm(Z[i], V[i], **c),
    "eigenvalues": lambda M, i, **c: M.eigenvalues(Z[i], **c),
    "log_volume": lambda M, i, **c: M.log_volume(Z[i], **c),
    "volume_density": lambda M, i, **c: M.volume_density(Z[i], **c),
    "christoffel": lambda M, i, **c: M.christoffel(Z[i], **c),
    "acceleration": lambda M, i, **c: M.acceleration(Z[i], V[i], **c),
    "gradient": lambda M, i, **c: M.gradient(wave, Z[i], **c),
    "laplacian": lambda M, i, **c: M.laplacian(wave, Z[i], **c),
    "divergence": lambda M, i, **c: M.divergence(swirl, Z[i], **c),
    "second_fundamental_form": lambda M, i, **c: M.second_fundamental_form(Z[i], U[i], V[i], **c),
    "curvature_form": lambda M, i, **c: M.curvature_form(Z[i], **c),
    "extrinsic_curvature": lambda M, i, **c: M.extrinsic_curvature(Z[i], **c),
    "mean_curvature": lambda M, i, **c: M.mean_curvature(Z[i], **c),
    "principal_curvatures": lambda M, i, **c: M.principal_curvatures(Z[i], X[i], **c),
    "riemann": lambda M, i, **c: M.riemann(Z[i], **c),
    "ricci": lambda M, i, **c: M.ricci(Z[i], **c),
    "scalar_curvature": lambda M, i, **c: M.scalar_curvature(Z[i], **c),
    "kretschmann": lambda M, i, **c: M.kretschmann(Z[i], **c),
    "sectional_curvature": lambda M, i, **c: M.sectional_curvature(Z[i], U[i], V[i], **c),
    "gaussian_curvature": lambda M, i, **c: M.gaussian_curvature(Z[i], **c),
    "distortion": lambda M, i, **c: M.distortion(Z[i], local=True, **c),
    "length": lambda M, i, **c: M.length(LINE[i], rtol=1e-8, **c),
    "energy": lambda M, i, **c: M.energy(solvers.Curve.through(LINE[i], 4), rtol=1e-8, **c),
    "geodesic": lambda M, i, **c: M.geodesic(Z[i], Z1[i], **c).curve(
        torch.tensor([0.3, 0.6]).double()
    ),
    "distance": lambda M, i, **c: M.distance(Z[i], Z1[i], **c),
    "exp": lambda M, i, **c: M.exp(Z[i], V[i] / 4, **c),
    "shoot": lambda M, i, **c: M.shoot(Z[i], V[i] / 4, segments=4, **c).nodes,
    "log": lambda M, i, **c: M.log(Z[i], Z1[i], **c),
    "jacobi_field": lambda M, i, **c: (
        M.jacobi_field(Z[i], V[i] / 16, slope=U[i], t=0.2, rtol=1e-4, **c).values
    ),
    "second_variation": lambda M, i, **c: M.second_variation(Z[i], V[i] / 16, rtol=1e-6, **c).mixed,
    "conjugate_points": lambda M, i, **c: M.conjugate_points(Z[i], V[i] / 64, rtol=1e-4, **c).index,
    "transport": lambda M, i, **c: M.transport(LINE[i], V[i], **c),
}
# Integrators judge the error of each row by itself, but round their sums of rows alike.
INTEGRATED = {
    "log": 1e-6,
    "exp": 1e-8,
    "shoot": 1e-8,
    "jacobi_field": 1e-4,
    "second_variation": 1e-5,
    "transport": 1e-8,
    "length": 1e-8,
}


# Of these only the last row is done alone.
SLOW = ("log", "jacobi_field", "second_variation", "conjugate_points", "shoot", "exp", "distance")


def against_a_loop(name, M, single, rtol=1e-9, rows=N, **given):
    """The batch, and each row under its own condition, by a manifold of points alone."""
    batch = CALLS[name](M, slice(0, rows), **given)
    alone = [rows - 1] if name in SLOW else range(rows)
    loop = torch.cat([CALLS[name](single(i), slice(i, i + 1)) for i in alone])
    batch = batch[list(alone)]
    torch.testing.assert_close(batch, loop, rtol=max(rtol, INTEGRATED.get(name, 0.0)), atol=1e-9)


@pytest.fixture(scope="module")
def joined():
    decoder = Joined()
    return Manifold(decoder), [Manifold(closed(decoder, COND[i : i + 1])) for i in range(N)]


class TestEveryMethodAgainstALoop:
    @pytest.mark.parametrize("name", CALLS)
    def test_one_condition_for_each(self, name, joined, monkeypatch):
        monkeypatch.setattr("riemae.solvers.flows.conjugate._SAMPLES", 2)
        M, single = joined
        rows = (
            2 if name in ("jacobi_field", "second_variation", "conjugate_points") else N
        )  # these take long
        against_a_loop(name, M, single.__getitem__, rows=rows, condition=COND[:rows])

    @pytest.mark.parametrize(
        "name", ["metric", "acceleration", "riemann", "length", "distance", "exp"]
    )
    def test_one_condition_for_all(self, name, joined):
        M, single = joined
        against_a_loop(name, M, lambda i: single[0], condition=COND[:1])

    def test_integrals_under_one_condition(self, joined):
        M, single = joined
        region = [(-0.2, 0.2)] * M_DIM
        alone = single[0]
        for name, arguments in (("volume", ()), ("integrate", (wave,))):
            found = getattr(M, name)(*arguments, region, condition=COND[:1], rtol=1e-4)
            expected = getattr(alone, name)(*arguments, region, rtol=1e-4)
            torch.testing.assert_close(found.value, expected.value)

    def test_all_methods_that_take_points_are_here(self):
        own = {
            n for n, f in vars(Manifold).items() if not n.startswith("_") and inspect.isfunction(f)
        }
        taking = {
            n for n in own if "condition" in inspect.signature(getattr(Manifold, n)).parameters
        }
        assert own - taking == {"to", "as_space"}
        assert taking == {
            *CALLS,
            "distribution",
            "given",
            "graph",
            "distance_matrix",
            "neighbors",
            "radius_neighbors",
            "integrate",
            "volume",
            "explain",
            "kinks",
            "metric_factor",
        }

    def test_explained_under_conditions(self, joined):
        M, _ = joined
        said = M.explain(Z, condition=COND)
        assert (said.points, said.latent_dim) == (N, Z.shape[-1])
        assert said.modes["jacobian"] == "Taylor mode"

    def test_more_batch_axes(self, joined):
        M, _ = joined
        z, z1, c = (x.view(2, 2, -1) for x in (Z, Z1, COND))
        torch.testing.assert_close(
            M.metric(z, condition=c).view(N, 2, 2), M.metric(Z, condition=COND)
        )
        torch.testing.assert_close(
            M.distance(z, z1, condition=c).view(N), M.distance(Z, Z1, condition=COND)
        )
        torch.testing.assert_close(
            M.log(z, z1, condition=c).view(N, 2), M.log(Z, Z1, condition=COND)
        )
        torch.testing.assert_close(
            M.metric(Z[0], condition=COND[0]), M.metric(Z, condition=COND)[0]
        )
        torch.testing.assert_close(
            M.distance(Z[0], Z1[0], condition=COND[0]), M.distance(Z, Z1, condition=COND)[0]
        )
        # One axis of the conditions is shared: rows of z have a condition each.
        wide = M.metric(z, condition=c[:, :1])
        torch.testing.assert_close(wide, M.metric(z, condition=c[:, :1].expand(2, 2, -1)))

    def test_one_point_against_many_conditions(self, joined):
        M, single = joined
        d = M.distance(Z[:1].expand(N, -1), Z1[0], condition=COND)
        loop = torch.stack([m.distance(Z[0], Z1[0]) for m in single])
        torch.testing.assert_close(d, loop, rtol=1e-9, atol=0)

    def test_no_points(self, joined):
        M, _ = joined
        none = Z[:0]
        assert M.metric(none, condition=COND[:0]).shape == (0, 2, 2)
        assert M.decode(none, condition=COND[:1]).shape == (0, 4)
        assert M.distance(none, none, condition=COND[:0]).shape == (0,)
        assert M.exp(none, none, condition=COND[:0]).shape == (0, 2)
        assert Manifold(Joined()).jacobian(none, condition=COND[:0]).shape == (0, 4, 2)


SOME = ["metric", "acceleration", "riemann", "length", "distance"]


class TestForms:
    @pytest.mark.parametrize("name", ["christoffel", "distance"])
    def test_class_labels(self, name):
        table = nn.Embedding(5, C).double()
        net = Joined()
        labels = torch.tensor([3, 0, 3, 4])
        decoder = lambda z, c: net(z, table(c))  # noqa: E731 (one expression)
        single = lambda i: Manifold(closed(net, table.weight[labels[i]][None].detach()))  # noqa: E731
        against_a_loop(name, Manifold(decoder), single, rows=3, condition=labels[:3])

    @pytest.mark.parametrize("name", ["acceleration", "distance"])
    @pytest.mark.parametrize("kind", ["dict", "tuple", "list"])
    def test_structures(self, name, kind):
        net, size = Joined(), draw(N, 1, seed=9).exp()
        make = {
            "dict": lambda a, b: {"batch": a, "size": b},
            "tuple": lambda a, b: (a, b),
            "list": lambda a, b: [a, [b]],
        }[kind]

        def decoder(z, c):
            a, b = c.values() if kind == "dict" else c
            return (b[0] if kind == "list" else b) * net(z, a)

        single = lambda i: Manifold(lambda z: size[i] * closed(net, COND[i : i + 1])(z))  # noqa: E731
        against_a_loop(name, Manifold(decoder), single, rows=2, condition=make(COND[:2], size[:2]))

    def test_images(self):
        shift = draw(N, 2, 3, seed=3)
        decoder = lambda z, c: (z.exp()[:, :, None] * c).tanh()  # noqa: E731 (one expression)
        M = Manifold(decoder)
        assert M.decode(Z, condition=shift).shape == (N, 2, 3)
        single = lambda i: Manifold(closed(decoder, shift[i : i + 1]))  # noqa: E731
        for name in ("metric", "distance"):
            against_a_loop(name, M, single, rows=2, condition=shift[:2])

    def test_the_structure_reaches_the_decoder(self):
        seen = []

        def decoder(z, c):
            seen.append((type(c), " ".join(sorted(c)), len(c["a"]) == len(z), c["b"].dtype))
            return z * c["a"] + c["b"][:, None]

        Manifold(decoder).metric(Z, condition={"a": COND[:, :1], "b": torch.arange(N)})
        assert set(seen) == {(dict, "a b", True, torch.int64)}

    @pytest.mark.parametrize("name", SOME)
    def test_float32(self, name):
        M, single = Manifold(Joined(torch.float32)), Joined()
        exact = Manifold(single)
        args = [x.float() for x in (Z, V)]
        c = COND.float()
        got, expected = {
            "metric": (M.metric(args[0], condition=c), exact.metric(Z, condition=COND)),
            "acceleration": (
                M.acceleration(*args, condition=c),
                exact.acceleration(Z, V, condition=COND),
            ),
            "riemann": (M.riemann(args[0], condition=c), exact.riemann(Z, condition=COND)),
            "length": (M.length(LINE.float(), condition=c), exact.length(LINE, condition=COND)),
            "distance": (
                M.distance(args[0], Z1.float(), rtol=1e-3, condition=c),
                exact.distance(Z, Z1, condition=COND),
            ),
        }[name]
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("chunk_size", [1, 3])
    @pytest.mark.parametrize("name", ["metric", "acceleration", "distance"])
    def test_chunks(self, name, chunk_size, joined):
        decoder, single = joined[0].decoder, joined[1]
        against_a_loop(
            name, Manifold(decoder, chunk_size=chunk_size), single.__getitem__, condition=COND
        )


AMBIENT = {
    "constant": ambient.Constant(torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0]).double())),
    "function": lambda x: 1 + x.square(),
    "features": ambient.FeatureMap(lambda x: torch.cat([x, x.square()], -1)),
}


class TestWithEverythingElse:
    @pytest.mark.parametrize(
        "name", ["metric", "acceleration", "riemann", "extrinsic_curvature", "length", "distance"]
    )
    @pytest.mark.parametrize("kind", AMBIENT)
    def test_ambient_metrics(self, kind, name, joined):
        decoder, metric = joined[0].decoder, AMBIENT[kind]
        single = lambda i: Manifold(closed(decoder, COND[i : i + 1]), metric)  # noqa: E731 (one expression)
        # Fewer rows, because two derivatives by the generic method are slow.
        against_a_loop(
            name, Manifold(decoder, metric), single, rows=2, condition=COND[:2], rtol=1e-8
        )

    @pytest.mark.parametrize("name", ["metric", "distance"])
    def test_distributions(self, name):
        mean, scale = Joined(), network(seed=1)

        def decoder(z, c):
            spread = nn.functional.softplus(scale(torch.cat([z, c], 1))) + 0.3
            return {
                "x": torch.distributions.Normal(mean(z, c), spread),
                "n": torch.distributions.NegativeBinomial(
                    total_count=2.0 + c[:, :1].exp(), logits=z[:, :1]
                ),
            }

        M = Manifold(decoder)
        single = lambda i: Manifold(closed(decoder, COND[i : i + 1]))  # noqa: E731 (one expression)
        against_a_loop(name, M, single, rows=2, condition=COND[:2], rtol=1e-8)
        found = M.distribution(Z, condition=COND)
        torch.testing.assert_close(found["x"].mean, mean(Z, COND))
        torch.testing.assert_close(found["n"].total_count, 2.0 + COND[:, :1].exp())

    def test_ensembles(self):
        other = network(seed=1)
        members = [Joined(), lambda z, c: 2 * other(torch.cat([z, c], 1))]
        M = Manifold(Ensemble(members))
        for name in ("metric", "distance"):
            single = lambda i: Manifold(Ensemble([closed(f, COND[i : i + 1]) for f in members]))  # noqa: E731
            against_a_loop(name, M, single, rows=2, condition=COND[:2])
        apart = M.distance(Z, Z1, per_member=True, condition=COND)
        torch.testing.assert_close(apart[0], Manifold(members[0]).distance(Z, Z1, condition=COND))
        assert M.scalar_curvature(Z, per_member=True, condition=COND).shape == (2, N)

    def test_periods(self):
        def decoder(z, c):
            radius = 1 + c[:, :1].abs()
            return torch.cat([radius * z[:, :1].cos(), radius * z[:, :1].sin(), z[:, 1:]], 1)

        z0 = torch.tensor([[3.0, 0.0], [-3.0, 0.1], [0.5, 0.0]]).double()
        z1 = torch.tensor([[-3.0, 0.2], [3.0, 0.1], [1.0, 1.0]]).double()
        c = torch.tensor([[0.0], [1.0], [2.0]]).double()
        M = Manifold(decoder, latent=(2 * torch.pi, None))
        turn = torch.minimum((z1 - z0)[:, 0].abs(), 2 * torch.pi - (z1 - z0)[:, 0].abs())
        truth = (
            ((1 + c[:, 0]) * turn).square() + (z1 - z0)[:, 1].square()
        ).sqrt()  # cylinders of radius 1 + c
        torch.testing.assert_close(M.distance(z0, z1, condition=c), truth, rtol=1e-6, atol=0)
        single = [
            Manifold(closed(decoder, c[i : i + 1]), latent=(2 * torch.pi, None)) for i in range(3)
        ]
        log = torch.cat([m.log(z0[i : i + 1], z1[i : i + 1]) for i, m in enumerate(single)])
        torch.testing.assert_close(M.log(z0, z1, condition=c), log, rtol=1e-6, atol=1e-8)

    def test_a_period_that_only_one_condition_has_is_refused(self):
        M = Manifold(
            lambda z, c: torch.cat([z.cos(), z.sin(), c * z], 1), latent=(2 * torch.pi, None)
        )
        with pytest.raises(DecoderError, match="period"):
            M.distance(Z, Z1, condition=torch.ones(N, 1).double())


class TestManyPairs:
    """Pairs of different difficulty: some leave the batch early, some late, some fail."""

    @staticmethod
    def decoder(z, c):
        # Paraboloids, from flat to a steep bowl.
        return torch.cat([z, c * z.square().sum(-1, keepdim=True), (c * z).sin()], -1)

    def test_against_a_loop(self):
        n = 250
        z0, z1 = draw(n, 2, seed=1), draw(n, 2, seed=2)
        c = torch.linspace(0, 2, n).double()[:, None]
        M = Manifold(self.decoder)
        found = M.geodesic(z0, z1, condition=c, throw=False)
        assert len(found.stats["segments"].unique()) > 2
        assert found.curve.nodes.shape[-1] == 2
        assert found.residual.isfinite().all()
        rows = torch.arange(9, n, 60)
        for i in rows.tolist():
            alone = Manifold(closed(self.decoder, c[i : i + 1])).geodesic(z0[i], z1[i], throw=False)
            part = found[i]
            assert part.status == alone.status
            assert part.stats["segments"] == alone.stats["segments"]
            torch.testing.assert_close(part.length, alone.length, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(part.lower_bound, alone.lower_bound, rtol=1e-9, atol=1e-12)
            segments = alone.curve.segments
            torch.testing.assert_close(
                part.curve.knots(segments), alone.curve.nodes, rtol=1e-6, atol=1e-9
            )
            torch.testing.assert_close(part.residual, alone.residual, rtol=1e-3, atol=1e-6)

    def test_float32(self):
        n = 200
        z0, z1 = draw(n, 2, seed=1), draw(n, 2, seed=2)
        c = torch.linspace(0, 2, n).double()[:, None]
        M = Manifold(self.decoder)
        exact = M.distance(z0, z1, condition=c)
        single = M.distance(z0.float(), z1.float(), rtol=1e-3, condition=c.float())
        torch.testing.assert_close(single.double(), exact, rtol=2e-3, atol=0)

    @pytest.mark.parametrize(
        "solver",
        [
            solvers.NewtonCG(),
            solvers.QuasiNewton(),
            solvers.LBFGS(),
            solvers.Adam(),
            solvers.CubicSpline(),
            solvers.GEORCE(),
            solvers.Shooting(max_steps=1),
            solvers.BVP(),
        ],
        ids=lambda s: type(s).__name__,
    )
    def test_every_solver(self, solver, joined):
        M, single = joined
        near = Z + 0.1 * U
        found = M.geodesic(
            Z[:2], near[:2], rtol=1e-2, solver=solver, condition=COND[:2], throw=False
        )
        alone = single[1].geodesic(Z[1], near[1], rtol=1e-2, solver=solver, throw=False)
        torch.testing.assert_close(found.length[1], alone.length, rtol=1e-6, atol=0)

    def test_search_and_graph(self, joined):
        M, single = joined
        points = draw(40, 2, seed=8)
        graph = M.graph(points, k=5, condition=COND[:1])
        for options in ({"n_starts": 3}, {"graph": graph, "n_starts": 3}):
            found = M.geodesic(Z[:2], Z1[:2], condition=COND[:2], **options)
            assert found.alternatives.curve.nodes.shape[-1] == 2
            for i in range(2):
                alone = single[i].geodesic(Z[i], Z1[i], **options)
                torch.testing.assert_close(found.length[i], alone.length, rtol=1e-9, atol=0)
                assert (
                    found.alternatives[:, i].converged.sum() == alone.alternatives.converged.sum()
                )

    def test_start_curves(self, joined):
        M, single = joined
        for init in (LINE, LINE[0], solvers.Curve.through(LINE, 8)):
            found = M.geodesic(Z, Z1, init=init, condition=COND)
            for i in range(N):
                one = init if init is LINE[0] or getattr(init, "ndim", 3) == 2 else init[i]
                alone = single[i].geodesic(Z[i], Z1[i], init=one)
                torch.testing.assert_close(found.length[i], alone.length, rtol=1e-9, atol=0)

    def test_failures_stay_where_they_are(self):
        M = Manifold(lambda z, c: torch.cat([z, (z[:, :1] * c).sqrt()], 1))
        z0, z1 = (
            torch.tensor([[1.0, 0.0]]).double().expand(3, 2),
            torch.tensor([[2.0, 1.0]]).double(),
        )
        c = torch.tensor([[1.0], [-1.0], [2.0]]).double()
        found = M.geodesic(z0, z1, condition=c, throw=False)
        assert found.converged.tolist() == [True, False, True]
        with pytest.raises(NotConvergedError) as caught:
            M.geodesic(z0, z1, condition=c)
        assert caught.value.result.curve.nodes.shape[-1] == 2

    def test_graph_and_matrix_under_one_condition(self, joined, tmp_path):
        M, single = joined
        points = draw(12, 2, seed=8)
        for method in ("geodesic", "graph", "chord"):
            ours = M.distance_matrix(points, method=method, k=4, condition=COND[:1])
            torch.testing.assert_close(
                ours, single[0].distance_matrix(points, method=method, k=4), rtol=1e-9, atol=0
            )
        matrix = partial(M.distance_matrix, points, out=tmp_path / "d.npy", k=4, method="graph")
        matrix(condition=COND[:1])
        with pytest.raises(Exception, match="another|differ|identity|holds"):
            matrix(condition=COND[1:2])

    # What a child process is sent does not depend on how it starts: tests of distance matrices try
    # both ways.
    @pytest.mark.filterwarnings(
        "ignore:This process:DeprecationWarning"
    )  # Python 3.12 warns of fork in a process with threads
    def test_a_matrix_by_a_pool_of_processes_is_that_without(self, tmp_path):
        methods = multiprocessing.get_all_start_methods()
        start = "fork" if "fork" in methods else "spawn"
        points, labels = draw(11, 2, seed=8), torch.tensor([[2]])
        structured = Labelled()
        given = {"a": COND[:1].clone().requires_grad_(), "b": labels}
        context = multiprocessing.get_context(start)
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            for method in ("geodesic", "graph", "chord"):
                for decoder, c in ((Joined(), COND[:1]), (structured, given)):
                    matrix = partial(
                        Manifold(decoder).distance_matrix,
                        points,
                        method=method,
                        k=4,
                        block_size=4,
                        condition=c,
                    )
                    assert torch.equal(matrix(executor=pool), matrix())
            out = tmp_path / "d.npy"
            kept = Manifold(structured).distance_matrix(
                points, block_size=4, condition=given, executor=pool, out=out
            )
            assert torch.equal(
                kept, Manifold(structured).distance_matrix(points, block_size=4, condition=given)
            )
            # The other half of a matrix: from these points to others.
            rectangle = partial(
                Manifold(structured).distance_matrix, points[:5], points[5:], condition=given
            )
            assert torch.equal(rectangle(executor=pool), rectangle())


class TestDerivatives:
    def test_of_distances_in_points_and_conditions(self, joined):
        M, single = joined
        z0, z1, c = (x.clone().requires_grad_() for x in (Z, Z1, COND))
        first, last, slope = torch.autograd.grad(
            M.distance(z0, z1, rtol=1e-8, condition=c).sum(), (z0, z1, c)
        )
        h = 1e-5
        for i in range(N):
            alone = z0.detach()[i].clone().requires_grad_()
            torch.testing.assert_close(
                torch.autograd.grad(single[i].distance(alone, Z1[i], rtol=1e-8), alone)[0],
                first[i],
                rtol=1e-6,
                atol=1e-8,
            )
        for x, g, place in ((Z1, last, 1), (COND, slope, 2)):
            e = torch.zeros_like(x)
            e[:, 0] = h
            args = [Z, Z1, COND]
            ends = []
            for sign in (1, -1):
                args[place] = x + sign * e
                ends.append(M.distance(args[0], args[1], rtol=1e-9, condition=args[2]).detach())
            torch.testing.assert_close(g[:, 0], (ends[0] - ends[1]) / (2 * h), rtol=1e-4, atol=1e-6)

    def test_second_ones_raise(self, joined):
        z = Z.clone().requires_grad_()
        (g,) = torch.autograd.grad(
            joined[0].distance(z, Z1, condition=COND).sum(), z, create_graph=True
        )
        with pytest.raises(DifferentiationError, match="second"):
            torch.autograd.grad(g.sum(), z)

    def test_of_metrics_in_conditions(self, joined):
        c = COND.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda c: joined[0].metric(Z, condition=c), c)
        assert torch.autograd.gradcheck(
            lambda z: joined[0].acceleration(z, V, condition=COND), Z.clone().requires_grad_()
        )

    def test_of_exp(self, joined):
        v = (V / 4).requires_grad_()
        (g,) = torch.autograd.grad(joined[0].exp(Z, v, condition=COND).sum(), v)
        for i in range(N):
            one = v[i].detach().clone().requires_grad_()
            torch.testing.assert_close(
                torch.autograd.grad(joined[1][i].exp(Z[i], one).sum(), one)[0],
                g[i],
                rtol=1e-6,
                atol=1e-8,
            )

    def test_inside_transforms(self, joined):
        M = joined[0]
        g = torch.func.grad(lambda z: M.distance(z, Z1, condition=COND).sum())(Z)
        z = Z.clone().requires_grad_()
        torch.testing.assert_close(
            g, torch.autograd.grad(M.distance(z, Z1, condition=COND).sum(), z)[0]
        )
        many = torch.func.vmap(lambda z: M.distance(z, Z1, condition=COND))(
            torch.stack([Z, Z + 0.1])
        )
        torch.testing.assert_close(many[1], M.distance(Z + 0.1, Z1, condition=COND))
        both = torch.func.vmap(lambda z, c: M.metric(z, condition=c))(Z, COND)
        torch.testing.assert_close(both, M.metric(Z, condition=COND))
        with pytest.raises(DifferentiationError, match="plain conditions"):
            torch.func.grad(lambda c: M.distance(Z, Z1, condition=c).sum())(COND)

    def test_inference_mode(self, joined):
        with torch.inference_mode():
            c = COND + 0
            d = joined[0].distance(Z, Z1, condition=c)
        torch.testing.assert_close(d, joined[0].distance(Z, Z1, condition=COND))
        torch.testing.assert_close(
            joined[0].metric(Z, condition=c), joined[0].metric(Z, condition=COND)
        )


class TestWhatIsLearned:
    def test_another_condition_costs_no_new_probe(self):
        calls = []
        net = Joined()

        def decoder(z, c):
            calls.append(len(z))
            return net(z, c)

        M = Manifold(decoder)
        M.metric(Z, condition=COND)
        first = len(calls)
        M.metric(Z, condition=COND + 1)
        M.metric(Z, condition=COND[:1])
        assert len(calls) <= first + 2

    def test_rows_that_see_others_conditions_are_refused(self):
        with pytest.raises(DecoderError, match="row alone"):
            Manifold(lambda z, c: z * c.mean(0)).metric(Z, condition=COND[:, :1])
        with pytest.raises(DecoderError, match="row alone"):
            Manifold(lambda z, c: z * c[:1]).metric(Z, condition=COND[:, :1])

    def test_a_manifold_travels(self, joined):
        M = joined[0].to(dtype=torch.float32)
        assert M.metric(Z.float(), condition=COND.float()).dtype == torch.float32


class TestTheSpace:
    def test_it_travels_to_another_process(self, joined):
        M = Manifold(network_of_both)
        found = M.geodesic(Z, Z1, condition=COND)
        space = pickle.loads(pickle.dumps(found.space))
        nodes = found.space.restored(found.curve, found.stats).nodes
        torch.testing.assert_close(space.squared_chords(nodes), found.space.squared_chords(nodes))

    def test_it_keeps_the_contract(self, joined):
        space = joined[0].geodesic(Z, Z1, condition=COND).space
        nodes = space.restored(solvers.Curve.line(Z, Z1, 8), {"condition": torch.arange(N)}).nodes
        expansion = space.expand(nodes)
        energy, gradient = space.energy_and_gradient(nodes)
        torch.testing.assert_close(expansion.energy, energy)
        torch.testing.assert_close(expansion.gradient, gradient)
        assert not gradient[..., -1].any()
        v = draw(N, 7, 3)
        products = space.products(nodes)
        torch.testing.assert_close(
            products.hessian(v)[..., :2],
            expansion.hessian.product(v)[..., :2],
            rtol=1e-8,
            atol=1e-8,
        )
        g = space.metric(nodes[:, 0])
        torch.testing.assert_close(g[:, :2, :2], joined[0].metric(Z, condition=COND))
        assert (torch.linalg.eigvalsh(g) > 0).all()
        torch.testing.assert_close(
            space.ambient_features(nodes[:, 0]), joined[0].decode(Z, condition=COND)
        )

    def test_lengths_inside_vmap(self, joined):
        lines = torch.stack([LINE, LINE + 0.1])
        many = torch.func.vmap(lambda x: joined[0].length(x, condition=COND))(lines)
        torch.testing.assert_close(
            many[0], joined[0].length(LINE, condition=COND), rtol=1e-3, atol=0
        )

    def test_scores(self, joined):
        M, single = joined
        ours = scores.condition_number(M, Z, condition=COND)
        torch.testing.assert_close(
            ours, torch.cat([scores.condition_number(m, Z[i, None]) for i, m in enumerate(single)])
        )
        torch.testing.assert_close(scores.vor(M, Z, condition=COND[:1]), scores.vor(single[0], Z))
        assert scores.hierarchy(M, Z, condition=COND) == scores.MapClass.NONE


def network_of_both(z, c):
    """A decoder that can be pickled."""
    return torch.cat([z.sin() * c[:, :1], z.cos() + c[:, 1:], (z * c[:, :2]).tanh()], 1)


class TestErrors:
    @pytest.mark.parametrize(
        ("call", "error", "match"),
        [
            (lambda M: M.metric(Z), DecoderError, r"takes a condition.*condition="),
            (
                lambda M: Manifold(lambda z: z.exp()).metric(Z, condition=COND),
                DecoderError,
                r"Leave condition= out",
            ),
            (
                lambda M: M.metric(Z, condition=COND[:3]),
                ShapeError,
                r"\(4, \*shape\).*got \(3, 3\)",
            ),
            (lambda M: M.metric(Z, condition=COND[0]), ShapeError, r"condition\[None\]"),
            (lambda M: M.metric(Z, condition=torch.tensor(1.0)), ShapeError, r"got \(\)"),
            (lambda M: M.distance(Z, Z1, condition=COND[:2]), ShapeError, r"one for each"),
            (lambda M: M.length(LINE, condition=COND[:2]), ShapeError, r"Manifold.length"),
            (lambda M: M.transport(LINE, V, condition=COND[:2]), ShapeError, r"Manifold.transport"),
            (lambda M: M.metric(Z, condition=1.0), DTypeError, r"tuple, list or dict"),
            (lambda M: M.metric(Z, condition={"a": None}), DTypeError, r"tensors"),
            (lambda M: M.metric(Z, condition=()), DTypeError, r"at least one tensor"),
            (
                lambda M: M.metric(Z, condition=COND[:, :1]),
                DecoderError,
                r"conditions of shape \(\d+, 1\)",
            ),
            (lambda M: M.metric(Z, condition=COND * torch.nan), NonFiniteError, r"NaN"),
            (
                lambda M: M.graph(Z, k=2, condition=COND),
                OptionError,
                r"one condition for all points",
            ),
            (lambda M: M.distance_matrix(Z, condition=COND), OptionError, r"same condition"),
            (lambda M: M.distance(Z, Z1[:3], condition=COND), ShapeError, r"Pair them up"),
        ],
    )
    def test_say_what_to_do(self, call, error, match):
        with pytest.raises(error, match=match):
            call(Manifold(Joined()))

    def test_after_a_first_call_as_well(self, joined):
        joined[0].metric(Z, condition=COND)
        with pytest.raises(DecoderError, match="takes a condition"):
            joined[0].metric(Z)
        with pytest.raises(DecoderError, match="takes a condition"):
            joined[0].distance(Z, Z1)

    def test_too_many_for_float32(self):
        from riemae.differential.conditions import Condition
        from riemae.geometry.conditioned import Labels

        c = Condition.of(
            "here", torch.zeros(300_000, 1), torch.Size([300_000]), torch.device("cpu")
        )
        with pytest.raises(OptionError, match="Split the batch"):
            Labels(c, torch.ones(1, 2))
        assert Labels(c, torch.ones(1, 2).double()).labels == 1


class TestGiven:
    """The manifold at one condition."""

    @pytest.mark.parametrize("name", ["metric", "riemann", "distance", "exp", "eigenvalues"])
    def test_it_is_the_call_under_that_condition(self, name, joined):
        M, _ = joined
        rows = slice(0, N)
        expected = CALLS[name](M, rows, condition=COND[:1])
        torch.testing.assert_close(CALLS[name](M.given(COND[:1]), rows), expected)

    def test_structures_labels_functions_and_methods(self):
        f = Labelled().requires_grad_(False)
        c = {"a": COND[:1], "b": torch.tensor([[2]])}
        expected = Manifold(f).metric(Z, condition=c)
        for decoder in (f, f.forward, lambda z, c: f(z, c)):
            torch.testing.assert_close(Manifold(decoder).given(c).metric(Z), expected)
        table = draw(3, C)

        def labelled(z, c):
            return f.net(z, table[c])

        M = Manifold(labelled)
        under = M.metric(Z, condition=torch.tensor([2]))
        torch.testing.assert_close(M.given(2).metric(Z), under)

    def test_it_moves_with_its_condition_and_leaves_the_decoder_alone(self):
        f = Joined()
        M = Manifold(f, latent_dim=2).given(COND[:1])
        G = M.to(dtype=torch.float32).metric(Z.float())
        torch.testing.assert_close(G, M.metric(Z).float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pickle.loads(pickle.dumps(M)).metric(Z), M.metric(Z))
        assert next(f.parameters()).dtype == torch.float64
        assert list(f.state_dict()) == list(Joined().state_dict())
        assert M.latent_dim == 2
        assert "Joined at one condition" in repr(M)

    def test_ambient_period_and_members_stay(self):
        first, second = Joined(), Joined()
        with torch.no_grad():
            second.net[0].weight *= 2
        c = COND[:1]
        M = Manifold(Ensemble([first, second]), lambda x: torch.diag_embed(1 + x.square()))
        found = M.given(c)
        assert len(found.members) == 2
        torch.testing.assert_close(found.metric(Z), M.metric(Z, condition=c))
        around = Manifold(lambda z, c: first(z.sin(), c), latent=(2 * torch.pi, None))
        assert around.given(c).latent.periods == (2 * torch.pi, None)

    def test_refusals(self):
        M = Manifold(Joined())
        with pytest.raises(ShapeError, match="condition of shape"):
            M.given(COND)  # one for each of four points
        with pytest.raises(DTypeError, match="a condition, got None"):
            M.given(None)
        with pytest.raises(DTypeError, match="a condition as a tensor"):
            M.given("blue")
        with pytest.raises(DecoderError, match="takes a condition, got one that takes"):
            Manifold(network()).given(COND[:1])
        with pytest.raises(DecoderError, match="decoder"):
            M.given(torch.tensor([[1, 2]])).metric(Z)  # of another size than the network takes

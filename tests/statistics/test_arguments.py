"""What functions of statistics take for codes: arrays, tables, codes that are not flat."""

import inspect

import numpy as np
import pandas
import pytest
import torch
from torch import nn

from riemae import Manifold, solvers, statistics
from riemae.exceptions import DTypeError, ShapeError

F64 = torch.float64
LINE = solvers.MetricSpace(lambda z: torch.eye(2).to(z).expand(len(z), 2, 2))
BOWL = Manifold(lambda z: torch.cat([z, z.square().sum(-1, keepdim=True) / 4], -1))
SHAPED = Manifold(lambda c: c.flatten(1), latent_shape=(2, 1))


def draw(n, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)


Z = draw(6)
T = torch.arange(6, dtype=F64)
DISTANCES = torch.cdist(Z, Z)


def fitted(name, z, **options):
    return getattr(statistics, name)(LINE, **options).fit(z)


NORMAL = statistics.RiemannianNormal(LINE, Z[0], 1.0, n_directions=8)
PCA = statistics.tangent_pca(LINE, Z)
LINES = statistics.principal_geodesics(LINE, Z)
REGRESSION = statistics.geodesic_regression(LINE, T, Z)
LAND = fitted("LAND", Z, n_directions=8)
# Calls that return tensors, as functions of their arrays.
TENSORS = {
    "transform": (PCA.transform, (Z,)),
    "inverse_transform": (PCA.inverse_transform, (Z,)),
    "curve": (LINES[0].curve, (T,)),
    "predict": (REGRESSION.predict, (T,)),
    "labels": (lambda z: statistics.GeodesicKMeans(LINE, 2).fit_predict(z), (Z,)),
    "nearest": (fitted("GeodesicKMeans", Z, n_clusters=2).predict, (Z,)),
    "kde": (fitted("GeodesicKDE", Z, bandwidth=1.0, n_directions=8).log_prob, (Z,)),
    "normal": (NORMAL.log_prob, (Z,)),
    "land": (LAND.log_prob, (Z,)),
    "shares": (LAND.predict_proba, (Z,)),
    "component": (LAND.predict, (Z,)),
    "uniform": (lambda a, b: statistics.sample_uniform(BOWL, 5, a, b), (-Z[0].abs(), Z[1].abs())),
    "brownian": (lambda z: statistics.brownian_motion(BOWL, z, 0.1, 2), (Z,)),
    "langevin": (
        lambda z: statistics.langevin(BOWL, z, lambda q: -q.square().sum(-1), 0.1, 2),
        (Z,),
    ),
    "heat": (lambda x: statistics.heat_kernel(BOWL.neighbors(Z, 2), 0.1, 2, x), (T,)),
    "medoids": (lambda d: statistics.GeodesicKMedoids(2).fit_predict(d), (DISTANCES,)),
    "hierarchy": (lambda d: statistics.GeodesicHierarchy(2).fit_predict(d), (DISTANCES,)),
    "mds": (lambda d: statistics.GeodesicMDS(2).fit_transform(d), (DISTANCES,)),
}
# Calls that return more than a tensor, with one of the tensors in it.
RESULTS = {
    "mean": lambda z, t: statistics.frechet_mean(LINE, z, t + 1, init=z[0]).point,
    "median": lambda z, t: statistics.geometric_median(LINE, z, t + 1).point,
    "groups": lambda z, t: statistics.group_means(LINE, z, t > 2, t + 1).points,
    "pca": lambda z, t: statistics.tangent_pca(LINE, z).scores,
    "lines": lambda z, t: statistics.principal_geodesics(LINE, z)[0].scores,
    "regression": lambda z, t: statistics.geodesic_regression(LINE, t, z).velocity,
    "ball": lambda z, t: statistics.geodesic_ball(LINE, z[0], 0.5, n_directions=8).volume,
    "centers": lambda z, t: statistics.GeodesicKMeans(LINE, 2).fit(z).cluster_centers_,
    "normal": lambda z, t: statistics.RiemannianNormal.fit(LINE, z, n_directions=8).covariance,
    "land": lambda z, t: fitted("LAND", z, n_directions=8, max_steps=2).components_[0].mean,
    "kde": lambda z, t: fitted("GeodesicKDE", z, n_directions=8).log_normalizers_,
    "compare": lambda z, t: (
        statistics.compare_distances(
            [LINE, BOWL],
            [z, z],
            t.reshape(3, 2) if isinstance(t, torch.Tensor) else t.reshape(3, 2),
        ).geodesic
    ),
}


@pytest.mark.parametrize("name", sorted(TENSORS))
def test_arrays_in_arrays_out(name):
    call, given = TENSORS[name]
    expected = call(*given)
    found = call(*(x.numpy() for x in given))
    assert isinstance(expected, torch.Tensor)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12, atol=1e-12)
    if all(x.ndim == 2 for x in given):
        table = call(*(pandas.DataFrame(x.numpy()) for x in given))
        np.testing.assert_array_equal(table, found)


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_results_of_arrays_hold_tensors(name):
    call = RESULTS[name]
    times = T.long() if name == "compare" else T
    expected = call(Z, times)
    found = call(Z.numpy(), times.numpy())
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


class TestDtype:
    def test_is_that_of_the_decoder(self):
        with torch.random.fork_rng(devices=[]):
            net = nn.Linear(2, 3).requires_grad_(False)
        mean = statistics.frechet_mean(Manifold(net), Z.numpy(), rtol=1e-2)
        assert mean.point.dtype == torch.float32

    def test_is_that_of_what_was_fitted(self):
        means = statistics.GeodesicKMeans(LINE, 2).fit(Z.float())
        np.testing.assert_array_equal(means.predict(Z.numpy()), means.labels_.numpy())

    def test_is_that_of_a_tensor_beside(self):
        mean = statistics.frechet_mean(LINE, Z.numpy(), init=Z[0].float())
        assert mean.point.dtype == torch.float32


class TestShapedCodes:
    """Of a manifold with a ``latent_shape``: the same as flat ones."""

    z = Z.view(6, 2, 1)

    @pytest.mark.parametrize("as_array", [False, True])
    def test_are_flattened(self, as_array):
        z = self.z.numpy() if as_array else self.z
        mean = statistics.frechet_mean(SHAPED, z).point
        torch.testing.assert_close(mean, Z.mean(0), rtol=1e-5, atol=1e-5)
        means = statistics.GeodesicKMeans(SHAPED, 2).fit(z)
        assert torch.equal(means.labels_, statistics.GeodesicKMeans(SHAPED, 2).fit(Z).labels_)
        pairs = torch.tensor([[0, 1], [2, 3]])
        found = statistics.compare_distances([SHAPED, LINE], [z, Z], pairs)
        torch.testing.assert_close(found.geodesic[0], found.geodesic[1])

    def test_points_come_back_in_their_shape(self):
        pca = statistics.tangent_pca(SHAPED, self.z, mean=self.z[0])
        back = pca.inverse_transform(pca.transform(self.z))
        torch.testing.assert_close(back, self.z, rtol=1e-5, atol=1e-5)
        corner = torch.ones(2, 1, dtype=F64)
        assert statistics.sample_uniform(SHAPED, 3, -corner, corner).shape == (3, 2, 1)
        normal = statistics.RiemannianNormal(SHAPED, self.z[0], 1.0, n_directions=8)
        assert normal.sample(4).shape == (4, 2, 1)
        walk = statistics.brownian_motion(SHAPED, self.z, 0.1, 3, path=True)
        assert walk.shape == (6, 4, 2, 1)

    def test_other_shapes_are_refused(self):
        with pytest.raises(ShapeError, match=r"codes of shape \(\*b, 2, 1\)"):
            statistics.frechet_mean(SHAPED, torch.zeros(4, 3))


class TestRefused:
    @pytest.mark.parametrize("geometry", [3, None, "sphere", Manifold], ids=repr)
    def test_what_is_no_geometry(self, geometry):
        calls = [
            lambda: statistics.frechet_mean(geometry, Z),
            lambda: statistics.brownian_motion(geometry, Z, 0.1),
            lambda: statistics.RiemannianNormal.fit(geometry, Z),
            lambda: statistics.GeodesicKMeans(geometry, 2),
            lambda: statistics.GeodesicKDE(geometry),
            lambda: statistics.LAND(geometry),
            lambda: statistics.compare_distances([geometry, LINE], [Z, Z], T.long().view(3, 2)),
        ]
        for call in calls:
            with pytest.raises(DTypeError, match="a riemae.Manifold or a space"):
                call()
        with pytest.raises(DTypeError, match="a riemae.Manifold or a space"):
            solvers.neighbors(geometry, Z, 2)

    def test_arrays_of_words(self):
        with pytest.raises(DTypeError, match="arrays of real numbers"):
            statistics.frechet_mean(LINE, np.array([["a", "b"]]))


def test_every_function_of_a_geometry_is_tried():
    """By name: a new one must be entered here."""
    text = inspect.getsource(inspect.getmodule(draw))
    for name in statistics.__all__:
        thing = getattr(statistics, name)
        if "geometry" in inspect.signature(thing).parameters and inspect.isfunction(thing):
            assert f"statistics.{name}(" in text, name

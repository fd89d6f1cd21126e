"""Neighbours and statistics on a device: results are where the points are, and as on the CPU."""

import inspect

import pytest
import torch
from on_device import F32, F64, assert_near, assert_placed, network, parts
from stand_in import StandIn

from riemae import Manifold, statistics

SECOND = torch.arange(6) % 2 == 1
SOME = {"n_directions": 8}


def fitted(name, M, z, **options):
    return getattr(statistics, name)(M, **options).fit(z)


def times(z):
    return torch.linspace(0, 1, len(z)).to(z)


def matrix(M, z):
    return M.distance_matrix(z, rtol=1e-2)


def split(M, z):
    found = statistics.energy_test(matrix(M, z), SECOND.to(z.device), permutations=19)
    return torch.tensor([found.statistic, found.p_value]).to(z)


def ball(M, z):
    found = statistics.geodesic_ball(M, z[0], 0.3, **SOME)
    return found.volume, found.error, found.boundary


def normal(M, z):
    found = statistics.RiemannianNormal(M, z[0], 0.3, **SOME)
    values = found.log_prob(z[1:3]), found.sample(3)
    return found.mean, found.covariance, found.log_normalizer, found.log_normalizer_error, values


def fit(kind):
    def run(M, z):
        found = statistics.RiemannianNormal.fit(M, z, kind=kind, **SOME)
        return found.mean, found.covariance

    return run


def land(M, z):
    found = fitted("LAND", M, z, n_components=1, max_steps=2, **SOME)
    return found.log_prob(z[:2]), found.predict(z[:2]), found.predict_proba(z[:2])


def kernels(M, z):
    found = fitted("GeodesicKDE", M, z[:3], bandwidth=0.3, n_directions=4)
    return found.points_, found.log_normalizers_, found.log_prob(z[3:5])


def means(M, z):
    found = fitted("GeodesicKMeans", M, z, n_clusters=2)
    return found.labels_, found.cluster_centers_, found.predict(z)


def lines(M, z):
    found = statistics.principal_geodesics(M, z, rtol=1e-2)
    return found[0].scores, found[0].curve(times(z))


def line(M, z):
    found = statistics.geodesic_regression(M, times(z), z, rtol=1e-2)
    return found.point, found.velocity, found.predict(times(z))


def tangents(M, z):
    found = statistics.tangent_pca(M, z, rtol=1e-2)
    return found.scores, found.transform(z), found.inverse_transform(found.scores[:2])


def mean(M, z):
    found = statistics.frechet_mean(M, z, rtol=1e-2)
    return found.point, found.variance


def by_label(M, z):
    found = statistics.group_means(M, z, [0, 1, 0, 1, 0, 1], rtol=1e-2)
    return found.points, found.variances, found.groups, found.logarithms


def heat(M, z):
    return statistics.heat_kernel(M.neighbors(z, 3, rtol=1e-2), 0.1, 2, times(z))


def nearest(M, z):
    found = M.neighbors(z, 2, rtol=1e-2)
    assert found.to_scipy().nnz == 2 * len(z)
    assert found.connectivities().shape == (len(z), len(z))
    more = found.add(z[:2] + 0.05)
    asked = found.query(z[:2] - 0.05)
    return [(x.distances, x.errors, x.certified) for x in (found, more, asked)]


def within(M, z):
    found = M.radius_neighbors(z, 0.3, rtol=1e-2)
    assert found.to_scipy().shape == (len(z), len(z))
    more = found.add(z[:2] + 0.05)
    return [(x.distances, x.errors, x.certified) for x in (found, more)]


def compared(M, z):
    pairs = torch.tensor([[0, 1], [2, 3]], device=z.device)
    found = statistics.compare_distances([M, M], [z, z + 0.01], pairs)
    return found.geodesic, found.chord, found.euclidean, found.error


def downhill(q):
    return -q.square().sum(-1)


# Public names, and what is called of each.
CALLS = {
    "frechet_mean, Mean": mean,
    "group_means, GroupMeans": by_label,
    "geometric_median": lambda M, z: statistics.geometric_median(M, z, rtol=1e-2).point,
    "tangent_pca, TangentPCA": tangents,
    "principal_geodesics, PrincipalGeodesic": lines,
    "geodesic_regression, GeodesicRegression": line,
    "energy_test, EnergyTest": split,
    "geodesic_ball, GeodesicBall": ball,
    "RiemannianNormal": normal,
    "RiemannianNormal, isotropic": fit("isotropic"),
    "RiemannianNormal, full": fit("full"),
    "LAND": land,
    "GeodesicKDE": kernels,
    "GeodesicKMeans": means,
    "heat_kernel": heat,
    "Manifold.neighbors": nearest,
    "Manifold.radius_neighbors": within,
    "compare_distances, DistanceDistribution": compared,
    "brownian_motion": lambda M, z: statistics.brownian_motion(M, z, 0.1, 3),
    "langevin": lambda M, z: statistics.langevin(M, z, downhill, 0.1, 3),
    "sample_uniform": lambda M, z: statistics.sample_uniform(M, 5, z[0] - 1, z[0] + 1),
}
# From distances alone, on the host: their results are there.
ON_THE_HOST = {
    "GeodesicKMedoids": lambda d: statistics.GeodesicKMedoids(2).fit_predict(d),
    "GeodesicHierarchy": lambda d: statistics.GeodesicHierarchy(2).fit_predict(d),
    "GeodesicMDS": lambda d: statistics.GeodesicMDS(2).fit_transform(d),
}


def points(dtype):
    drawn = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    return (0.4 * drawn).to(dtype)


@pytest.mark.parametrize("name", CALLS)
def test_results_are_where_the_points_are(name, device):
    dtype = F64 if device.type != "cpu" else F32
    found = CALLS[name](Manifold(network(dtype).to(device)), points(dtype).to(device))
    assert_placed(found, device, dtype)
    if device.type == "cpu":
        return
    expected = parts(CALLS[name](Manifold(network(dtype)), points(dtype)))
    for place, x in parts(found).items():
        assert_near(x, expected[place], 5e-3)


@pytest.mark.parametrize("name", ON_THE_HOST)
def test_distances_may_be_on_the_device(name, device):
    d = torch.cdist(points(F64), points(F64))
    found = ON_THE_HOST[name](d.to(device))
    torch.testing.assert_close(found.cpu(), ON_THE_HOST[name](d), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_left_behind(name):
    """On a stand-in for a device, so that every machine finds out."""
    with StandIn() as stand_in:
        M = Manifold(stand_in.there(network(F64)))
        z = stand_in.there(points(F64))
        for place, x in parts(CALLS[name](M, z)).items():
            assert x.device == stand_in.device, place


@pytest.mark.parametrize("name", ON_THE_HOST)
def test_distances_of_the_stand_in(name):
    with StandIn() as stand_in:
        ON_THE_HOST[name](stand_in.there(torch.cdist(points(F64), points(F64))))


def test_no_public_name_is_forgotten():
    named = {part for name in (*CALLS, *ON_THE_HOST) for part in name.split(", ")}
    assert set(statistics.__all__) <= named


class TestStandIn:
    """It fails where a device would."""

    def test_tensors_left_behind(self):
        with StandIn() as stand_in:
            x = stand_in.there(torch.ones(3))
            assert (x + torch.tensor(1.0)).device == stand_in.device
            assert x[torch.tensor([0, 1])].device == stand_in.device
            assert torch.zeros(3, device=x.device).device == stand_in.device
            assert torch.ones(3).to(x).device == stand_in.device
            assert x.cpu().device.type == "cpu"
            for call in (
                lambda: x + torch.ones(3),
                lambda: torch.cat([x, torch.ones(3)]),
                lambda: x.gather(0, torch.tensor([0])),
                lambda: torch.rand(2, generator=torch.Generator(), device=x.device),
            ):
                with pytest.raises(RuntimeError):
                    call()
            with pytest.raises(TypeError):
                x.numpy()

    def test_every_call_is_a_function_of_a_manifold_and_points(self):
        for call in CALLS.values():
            assert list(inspect.signature(call).parameters) == ["M", "z"]

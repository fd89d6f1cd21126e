"""Decoders, points and scales that require gradients: what is not differentiable has no graph, and
has the numbers that it has without."""

import pytest
import torch
from torch import nn

from riemae import Manifold
from riemae import statistics as S

F64 = torch.float64


def decoder(trained):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    return Manifold(net.requires_grad_(trained))


def points(trained):
    z = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    return z.requires_grad_(trained)


def normal(M, z):
    scale = torch.tensor(0.3, dtype=F64, requires_grad=z.requires_grad)
    made = S.RiemannianNormal(M, z[0], scale, n_directions=4)
    return [
        made.mean,
        made.covariance,
        made.log_normalizer,
        made.log_prob(z),
        made.sample(2),
    ]


def kernels(M, z):
    made = S.GeodesicKDE(M, 0.3, n_directions=4).fit(z)
    return [made.log_normalizers_, made.log_prob(z)]


def mixture(M, z):
    made = S.LAND(M, 1, kind="isotropic", n_directions=4, max_steps=2).fit(z)
    return [made.weights_, made.log_prob(z), made.predict_proba(z), made.sample(2)]


def ball(M, z):
    made = S.geodesic_ball(M, z[0], 0.2, n_directions=4)
    return [made.volume, made.error, made.boundary]


def components(M, z):
    made = S.tangent_pca(M, z, rtol=1e-3)
    return [made.mean, made.components, made.scores, made.transform(z, rtol=1e-3)]


def line(M, z):
    made = S.geodesic_regression(M, torch.arange(6.0, dtype=F64), z, rtol=1e-2)
    return [made.point, made.velocity, made.r2, made.predict(torch.arange(2.0, dtype=F64))]


def clusters(M, z):
    made = S.GeodesicKMeans(M, 2, rtol=1e-2).fit(z)
    return [made.cluster_centers_, made.labels_]


def walks(M, z):
    return [S.brownian_motion(M, z, time=0.01, generator=0)]


def groups(M, z):
    made = S.group_means(M, z, [0, 0, 0, 1, 1, 1], rtol=1e-3)
    return [made.points, made.variances, made.distances, made.logarithms]


@pytest.mark.parametrize(
    "call", [normal, kernels, mixture, ball, components, line, clusters, walks, groups]
)
def test_numbers_without_a_graph(call):
    given = call(decoder(True), points(True))
    plain = call(decoder(False), points(False))
    for one, other in zip(given, plain, strict=True):
        assert not one.requires_grad
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)

"""Ambient metrics on a device, made there or moved there, and their distances."""

import pytest
import torch
from on_device import DTYPES, F32, F64, RTOL, Given, assert_near, assert_placed, converged
from spaces import sphere

from riemae import Manifold, ambient
from riemae.exceptions import RiemaeError

FACTOR = torch.tensor([[1.0, 0.3], [0.2, 0.8], [-0.4, 0.5]], dtype=F64)
WEIGHTS = torch.tensor([0.5, 2.0, 3.0], dtype=F64)
DATA = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=F64)


def logits(x):
    return torch.stack([x.sum(-1), x[..., 0] - x[..., 1], x[..., 2].sin()], -1)


# Name: the metric from tensors that a function moves, and H(x) where it is a formula.
METRICS = {
    "Euclidean": (lambda to: ambient.Euclidean(), lambda x: torch.eye(3)),
    "Diagonal": (lambda to: ambient.Diagonal(to(WEIGHTS)), lambda x: WEIGHTS.diag()),
    "Constant": (
        lambda to: ambient.Constant(to(FACTOR @ FACTOR.T + WEIGHTS.diag())),
        lambda x: FACTOR @ FACTOR.T + WEIGHTS.diag(),
    ),
    "LowRank": (
        lambda to: ambient.LowRank(to(FACTOR), to(WEIGHTS)),
        lambda x: FACTOR @ FACTOR.T + WEIGHTS.diag(),
    ),
    "Custom": (
        lambda to: ambient.Custom(diagonal=lambda x: 1 + x.square()),
        lambda x: (1 + x.square()).diag_embed(),
    ),
    "FeatureMap": (
        lambda to: ambient.FeatureMap(lambda x: torch.cat([x, x.sin()], -1)),
        lambda x: (1 + x.cos().square()).diag_embed(),
    ),
    "ClassifierFisher": (lambda to: ambient.ClassifierFisher(logits, ridge=0.1), None),
    "Density": (lambda to: ambient.Density(to(DATA), bandwidth=0.8), None),
    "a function": (
        lambda to: lambda x: 1 + x.square(),
        lambda x: (1 + x.square()).diag_embed(),
    ),
    "a tensor": (lambda to: to(WEIGHTS.diag()), lambda x: WEIGHTS.diag()),
}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("moved", "dtype"), [(False, F32), (True, F64)], ids=["made there", "moved there"]
)
def test_the_metric_that_it_pulls_back(moved, name, dtype, device):
    make, dense = METRICS[name]
    given = Given.drawn(4, 2, 3, device, dtype)
    exact = Manifold(sphere, make(lambda x: x))
    if moved:
        M = exact.to(device, dtype)
    else:
        M = Manifold(sphere, make(lambda x: x.to(device, dtype)))
    found = M.metric(given.z)
    assert_placed(found, device, dtype)
    z = given.z.double().cpu()
    if dense is None:
        expected = exact.metric(z)
    else:
        j = torch.func.vmap(torch.func.jacrev(sphere))(z)
        expected = j.mT @ dense(sphere(z)).double() @ j
    assert_near(found, expected, {F32: 1e-5, F64: 1e-12}[dtype])
    if moved:
        return
    result = M.geodesic(given.z[:2], given.end[:2], rtol=1e-3, throw=False)
    assert converged(result)
    assert_placed((result.length, result.curve.nodes), device, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clouds(dtype, device):
    # A cloud of four points that moves and turns as a whole.
    cloud = DATA[:4, :2]

    def decoder(z):
        c, s = z[:, 0].cos(), z[:, 0].sin()
        turn = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)
        return cloud.to(z) @ turn + z[:, None, 1:]

    z = Given.drawn(3, 2, 3, device, dtype).z
    M = Manifold(decoder, ambient.InfoRiemannian(bandwidth=0.7))
    found = M.metric(z)
    assert_placed(found, device, dtype)
    exact = Manifold(decoder, ambient.InfoRiemannian(bandwidth=0.7)).metric(z.double().cpu())
    assert_near(found, exact, {F32: 1e-4, F64: 1e-11}[dtype])


def test_a_metric_that_stays_behind_is_refused(device):
    if device.type == "cpu":
        pytest.skip("there is one place only")
    z = Given.drawn(4, 2, 3, device, F32).z
    M = Manifold(sphere, ambient.Constant(torch.eye(3)))
    with pytest.raises(RiemaeError, match=str(device)):
        M.metric(z)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chords_of_a_metric_with_a_feature_map(dtype, device):
    given = Given.drawn(3, 2, 3, device, dtype)
    M = Manifold(sphere, ambient.Diagonal(WEIGHTS.to(device, dtype)))
    gap = (sphere(given.z)[:, None] - sphere(given.end)[None]).double().cpu()
    expected = (gap.square() @ WEIGHTS).sqrt()
    matrix = M.distance_matrix(given.z, given.end, method="chord")
    assert_placed(matrix, device, dtype)
    assert_near(matrix, expected, 1e-5)
    assert (M.distance(given.z, given.end, rtol=RTOL[dtype]) > matrix.diagonal() * 0.999).all()

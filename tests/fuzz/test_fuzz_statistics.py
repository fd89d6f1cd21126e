"""Everything in :mod:`riemae.statistics` with data as they come: one point, copies, too few, NaN,
weights of 0, whole numbers, half of the precision, other units, clusters far apart.

A call gives numbers, with a status where it has one, or one of the package's own errors. A short
run in the tests; ``RIEMAE_FUZZ=20 pytest tests/fuzz`` draws twenty times as many calls.
"""

import os
import random

import pytest
import torch
from torch import nn

from riemae import Manifold
from riemae import statistics as S
from riemae.exceptions import NotConvergedError, RiemaeError
from riemae.solvers import MetricSpace, Status

TIMES = int(os.environ.get("RIEMAE_FUZZ", "1"))
F64 = torch.float64


def half_plane(z):
    return torch.eye(2).to(z) / z[:, 1, None, None].square()


def bowl(z):
    return torch.cat([z, z.square().sum(-1, keepdim=True)], -1)


def network(rng, dtype):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.randrange(10**6))
        return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def spaces(rng, dtype):
    return {
        "half plane": MetricSpace(half_plane),
        "bowl": Manifold(bowl, latent_dim=2),
        "network": Manifold(network(rng, dtype)),
        "cylinder": Manifold(
            lambda z: torch.stack([z[..., 0].cos(), z[..., 0].sin(), z[..., 1]], -1),
            latent_dim=2,
            latent=(6.283185307179586, None),
        ),
    }


# Each gives points (n, 2) from a generator.
def _cloud(n, g):
    return torch.randn(n, 2, generator=g, dtype=F64) + torch.tensor([0.0, 3.0], dtype=F64)


SETS = {
    "none": lambda g: _cloud(0, g),
    "one": lambda g: _cloud(1, g),
    "two": lambda g: _cloud(2, g),
    "copies": lambda g: _cloud(1, g).repeat(6, 1),
    "two places": lambda g: _cloud(2, g).repeat(3, 1),
    "cloud": lambda g: _cloud(7, g),
    "clusters": lambda g: torch.cat([_cloud(3, g) / 50, _cloud(4, g) / 50 + 4]),
    "on a line": lambda g: torch.linspace(1, 2, 6, dtype=F64)[:, None].expand(6, 2).clone(),
    "nearly copies": lambda g: torch.ones(5, 2, dtype=F64) + 1e-9 * _cloud(5, g),
    "small": lambda g: 1e-6 * _cloud(6, g),
    "large": lambda g: 1e5 * _cloud(5, g),
    "nan": lambda g: torch.cat([_cloud(4, g), torch.full((1, 2), torch.nan, dtype=F64)]),
    "inf": lambda g: torch.cat([_cloud(4, g), torch.full((1, 2), torch.inf, dtype=F64)]),
    "wide": lambda g: torch.cat([_cloud(4, g), _cloud(4, g)[:, :1]], 1),
    "flat": lambda g: _cloud(4, g)[:, 0],
}
DTYPES = {"float64": F64, "float32": torch.float32, "int64": torch.int64, "bool": torch.bool}


def weighted(rng, z):
    n = len(z)
    kind = rng.choice(["none", "none", "even", "some zero", "all zero", "negative", "one", "few"])
    if kind == "none":
        return kind, None
    weights = torch.ones(n, dtype=F64)
    if kind == "some zero":
        weights[::2] = 0
    if kind == "all zero":
        weights[:] = 0
    if kind == "negative":
        weights[:1] = -1
    if kind == "one":
        weights[1:] = 0
    if kind == "few":
        weights = weights[:-1]
    return kind, weights


def walk(M, z, rng):
    return S.brownian_motion(M, z, time=rng.choice([0.0, 0.01, 1.0]), generator=0)


def fitted_normal(M, z, rng):
    kind = rng.choice(["isotropic", "full"])
    normal = S.RiemannianNormal.fit(M, z, kind=kind, n_directions=4)
    return normal.log_prob(z, throw=False)


def matrices(M, z):
    return M.distance_matrix(z) if isinstance(M, Manifold) else Manifold(M).distance_matrix(z)


def density(M, z, rng):
    width = rng.choice([None, 0.3, 1e-8])
    return S.GeodesicKDE(M, width, n_directions=4).fit(z).log_prob(z)


CALLS = {
    "frechet_mean": lambda M, z, w, rng: S.frechet_mean(
        M, z, w, n_starts=rng.choice([1, 3]), throw=rng.random() < 0.3
    ),
    "geometric_median": lambda M, z, w, rng: S.geometric_median(
        M, z, w, rtol=1e-3, throw=rng.random() < 0.3
    ),
    "group_means": lambda M, z, w, rng: S.group_means(
        M, z, [i % rng.choice([1, 2, 50]) for i in range(len(z))], w, rtol=1e-3, throw=False
    ),
    "tangent_pca": lambda M, z, w, rng: S.tangent_pca(M, z, rng.choice([None, 1, 5]), w),
    "principal_geodesics": lambda M, z, w, rng: S.principal_geodesics(
        M, z, 1, w, rtol=1e-2, max_steps=5, throw=False
    )[0],
    "geodesic_regression": lambda M, z, w, rng: S.geodesic_regression(
        M, rng.choice([1.0, 0.0]) * torch.arange(len(z)).to(F64), z, w, rtol=1e-2, throw=False
    ),
    "GeodesicKMeans": lambda M, z, w, rng: S.GeodesicKMeans(
        M, rng.choice([1, 2, len(z) or 1, len(z) + 1]), rtol=1e-2
    ).fit(z),
    "GeodesicKMedoids": lambda M, z, w, rng: S.GeodesicKMedoids(rng.choice([1, 2, 9])).fit(
        matrices(M, z)
    ),
    "GeodesicHierarchy": lambda M, z, w, rng: S.GeodesicHierarchy(rng.choice([1, 2, 9])).fit(
        matrices(M, z)
    ),
    "GeodesicMDS": lambda M, z, w, rng: S.GeodesicMDS(rng.choice([1, 2, 9])).fit(matrices(M, z)),
    "energy_test": lambda M, z, w, rng: S.energy_test(
        matrices(M, z), torch.arange(len(z)) < rng.choice([0, 1, 3]), permutations=5
    ),
    "RiemannianNormal.fit": lambda M, z, w, rng: fitted_normal(M, z, rng),
    "GeodesicKDE": lambda M, z, w, rng: density(M, z, rng),
    "LAND": lambda M, z, w, rng: S.LAND(M, rng.choice([1, 2]), n_directions=4, max_steps=2).fit(z),
    "geodesic_ball": lambda M, z, w, rng: S.geodesic_ball(
        M, z[0] if len(z) else z, rng.choice([0.1, 1e-9, 0.0, -1.0, float("nan")]), n_directions=4
    ),
    "brownian_motion": lambda M, z, w, rng: walk(M, z, rng),
    "langevin": lambda M, z, w, rng: S.langevin(
        M, z, lambda z: -z.square().sum(-1), time=0.01, steps=3, generator=0
    ),
    "sample_uniform": lambda M, z, w, rng: S.sample_uniform(
        M, rng.choice([0, 5]), z.amin(0) if len(z) else z, z.amax(0) if len(z) else z
    ),
    "heat_kernel": lambda M, z, w, rng: S.heat_kernel(
        (M if isinstance(M, Manifold) else Manifold(M)).neighbors(z, rng.choice([1, 3, 20])),
        rng.choice([0.0, 0.1]),
        2,
        torch.ones(len(z), dtype=F64),
    ),
}
# What costs more than the others.
DEAR = ("RiemannianNormal.fit", "LAND", "GeodesicKDE", "principal_geodesics")


def check(result):
    """Numbers, or a status that says why not."""
    if isinstance(result, torch.Tensor):
        return
    status = getattr(result, "status", None)
    error = getattr(result, "error", None)
    if isinstance(status, int):
        Status(status)
        point = result.point
        if status == Status.CONVERGED:
            assert point.isfinite().all()
            assert result.distances.isfinite().all() or not result.distances.numel()
            if error is not None:
                assert error.isfinite()
                assert error >= 0
    variance = getattr(result, "variance", None)
    if variance is not None:
        assert not variance < 0
    inertia = getattr(result, "inertia_", None)
    if inertia is not None:
        assert inertia >= 0
    repr(result)


@pytest.mark.parametrize("name", CALLS)
def test_any_data_give_numbers_or_typed_errors(name):
    count = (1 if name in DEAR else 3) * TIMES
    for seed in range(count):
        rng = random.Random(f"{name} {seed}")
        kind = rng.choice(list(SETS))
        precision = rng.choice(["float64", "float64", "float64", "float32", *DTYPES])
        generator = torch.Generator().manual_seed(seed)
        z = SETS[kind](generator).to(DTYPES[precision])
        dtype = z.dtype if z.is_floating_point() else F64
        chosen = rng.choice(["half plane", "bowl", "network", "cylinder"])
        M = spaces(rng, dtype)[chosen]
        heavy, weights = weighted(rng, z)
        told = f"{name}({chosen}, {kind} {tuple(z.shape)} {precision}, weights {heavy}), {seed}"
        before = z.clone()
        try:
            check(CALLS[name](M, z, weights, rng))
        except NotConvergedError as error:
            if isinstance(error.result, S.Mean):
                check(error.result)
        except RiemaeError:
            pass
        except Exception as error:
            error.add_note(told)
            raise
        assert torch.equal(before.nan_to_num(), z.nan_to_num()), told

"""Random steep networks: no curve is longer than the geodesic of its valley by more than it says.

A short run in the tests; ``RIEMAE_FUZZ=20 pytest tests/fuzz`` draws twenty times as many networks.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from riemae.solvers import Curve, Newton

ROOT = Path(__file__).parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("a checkout is needed: the wheel holds no benchmarks", allow_module_level=True)
sys.path.append(str(ROOT))  # benchmarks are a folder of the checkout, not a part of the package

from benchmarks.error_cases import network  # noqa: E402
from benchmarks.error_valleys import own_valley  # noqa: E402

BATCHES, NETWORKS, PAIRS = 2, 5, 8
FACTOR = int(os.environ.get("RIEMAE_FUZZ", "1"))


def steep(seed):
    """Networks of one seed: description, manifold, ends, rtol, dtype."""
    rng = np.random.default_rng(10**6 + seed)
    for _ in range(NETWORKS):
        m = int(rng.choice([2, 2, 3, 4, 5, 6, 8]))
        depth, width = int(rng.integers(1, 4)), int(rng.choice([16, 32]))
        activation = (nn.Tanh, nn.SiLU, nn.GELU, nn.Softplus)[rng.integers(4)]
        gain, drawn = float(rng.uniform(1, 3)), int(rng.integers(10**6))
        sizes = (m, *[width] * depth, 20)
        dtype = torch.float32 if rng.random() < 0.3 else torch.float64
        rtol = float(10 ** rng.uniform(-4 if dtype == torch.float32 else -7, -2))
        ends = torch.as_tensor(rng.normal(size=(2, PAIRS, m))).to(dtype)
        text = f"network({sizes}, {gain:.4f}, {drawn}, nn.{activation.__name__}), {dtype}"
        yield text, network(sizes, gain, drawn, activation), *ends, rtol


@pytest.mark.parametrize("seed", range(BATCHES * FACTOR))
def test_steep_networks_are_no_longer_than_the_geodesics_of_their_valleys(seed):
    claims, missed, wrong = 0, [], []
    for text, M, z0, z1, rtol in steep(seed):
        r = M.to(dtype=z0.dtype).geodesic(
            z0, z1, rtol=rtol, solver=Newton(max_steps=80), throw=False, n_starts=1
        )
        d = own_valley(M, Curve(r.curve.nodes.double(), r.curve.slopes.double()))
        rounding = 1e-7 if z0.dtype == torch.float32 else 1e-12
        off = ((r.length - d).abs() - rounding * d).clamp(min=0)
        told = r.converged & d.isfinite()
        claims += int(told.sum())
        for kind, rows in (
            (wrong, told & ~(off <= 2 * rtol * d)),
            (missed, told & ~(off <= r.error)),
        ):
            kind += [
                f"{text}: pair {i}, rtol {rtol:.2e}: off by {off[i] / d[i]:.1e} of the length, "
                f"error {r.error[i] / d[i]:.1e}"
                for i in rows.nonzero().flatten().tolist()
            ]
    assert claims > NETWORKS * PAIRS / 2
    assert not wrong, f"seed {seed}: CONVERGED beyond 2 rtol:\n" + "\n".join(wrong)
    assert len(missed) <= max(2, 0.05 * claims), f"seed {seed}: outside error:\n" + "\n".join(
        missed
    )

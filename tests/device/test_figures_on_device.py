"""Pictures of points and manifolds that live on a device."""

import pytest
import torch
from matplotlib.figure import Figure
from on_device import DTYPES, network

from riemae import Manifold, plotting


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_kind_of_picture(device, dtype, tmp_path):
    M = Manifold(network(dtype, sizes=(2, 8, 8)).to(device))
    z = torch.rand(12, 2, device=device, dtype=dtype)
    low, high = plotting.region(z)
    assert low.device == z.device
    r = M.geodesic(z[:2], z[2:4], throw=False)
    ax = Figure().subplots()
    plotting.latent(M, z, torch.arange(12, device=device) % 3, geodesics=r, ellipses=3, ax=ax)
    plotting.curvature(M, low, high, resolution=4, ax=ax)
    plotting.distance_field(M, z[0], low, high, 6, ax=ax)
    plotting.balls(M, z[:1], 1e-2, 8, ax=ax)
    plotting.matrix(M.distance_matrix(z, method="graph", k=5), ax=ax)
    plotting.metric_spectrum(M, z, ax=ax)
    frames = plotting.decoded(M, r.curve[0], 3)
    assert frames.device == z.device
    plotting.strip(frames, shape=(2, 4), ax=ax)
    plotting.gif(frames, tmp_path / "film.gif", shape=(2, 4))
    assert len(plotting.plane_colours(z)) == 12

"""The same decoder under four metrics of the data space: how far apart are two points?

python examples/your_own_metric.py
"""

import _run
import torch

from riemae import Manifold, ambient
from riemae.testing import check_ambient, check_manifold


class Repelling(ambient.DiagonalMetric):
    """The neighbourhood of a point is expensive: ``H(x) = (1 + 20 exp(−|x − c|²)) I``."""

    centre: torch.Tensor

    def __init__(self, centre: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("centre", centre)

    def diagonal(self, x: torch.Tensor) -> torch.Tensor:
        """The diagonal of H, ``(k, D) -> (k, D)``; the base class does the rest."""
        cost = 1 + 20 * (-(x - self.centre).square().sum(-1, keepdim=True)).exp()
        return cost.expand_as(x)


def paraboloid(z: torch.Tensor) -> torch.Tensor:
    """A paraboloid over the plane."""
    return torch.cat([z, z.square().sum(-1, keepdim=True) / 2], -1)


def main() -> None:
    """Print the distance, and where the geodesic passes halfway."""
    options = _run.options(__doc__)
    rtol = 1e-4 if options.quick else 1e-6
    z0, z1 = torch.tensor([-1.5, 0.1]).double(), torch.tensor([1.5, 0.1]).double()
    metrics = {
        "Euclidean": ambient.Euclidean(),
        "height counts double": ambient.Diagonal(torch.tensor([1.0, 1.0, 4.0]).double()),
        "features tanh(x)": ambient.FeatureMap(torch.tanh),
        "keep off the bottom": Repelling(torch.zeros(3).double()),
    }
    for name, metric in metrics.items():
        manifold = Manifold(paraboloid, ambient=metric)
        points = torch.stack([z0, z1])
        check_ambient(metric, paraboloid(points))
        check_manifold(manifold, points)
        result = manifold.geodesic(z0, z1, rtol=rtol)
        halfway = ", ".join(f"{c:+.3f}" for c in result.curve(0.5))
        distance = f"{result.length:.6f} ± {result.error:.0e}"
        print(f"{name:22} distance {distance}, halfway at z = ({halfway})")


if __name__ == "__main__":
    main()

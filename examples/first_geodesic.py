"""Shortest paths on a sphere in stereographic coordinates, compared with the closed form.

python examples/first_geodesic.py
"""

import _run
import torch

from riemae import Manifold


def sphere(z: torch.Tensor) -> torch.Tensor:
    """Inverse stereographic projection: the plane onto the unit sphere."""
    s = z.square().sum(-1, keepdim=True)
    return torch.cat([2 * z, s - 1], -1) / (1 + s)


def main() -> None:
    """Print the distances that riemae computes, and the true ones."""
    options = _run.options(__doc__)
    pairs = 2 if options.quick else 5
    generator = torch.Generator().manual_seed(0)
    z0, z1 = torch.rand(2, pairs, 2, generator=generator, dtype=torch.float64) * 2 - 1
    result = Manifold(sphere).geodesic(z0, z1, rtol=1e-8)
    truth = torch.arccos((sphere(z0) * sphere(z1)).sum(-1))
    print(f"{'riemae':>14} {'closed form':>14} {'claimed error':>14} {'real error':>14}")
    for length, error, true in zip(result.length, result.error, truth, strict=True):
        print(f"{length:14.10f} {true:14.10f} {error:14.1e} {abs(length - true):14.1e}")


if __name__ == "__main__":
    main()

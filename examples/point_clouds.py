"""From a box to a cone: interpolation of point clouds under two metrics.

As in Lee et al. (2022a), an autoencoder is trained on clouds of boxes, cones and ellipsoids
(tapered superquadrics) of random sizes. Two codes are joined by a straight latent line and by
geodesics of two metrics of the data space. The Euclidean metric measures how far each point moves.
The Info-Riemannian metric measures how much the density changes that the cloud stands for.

The first table shows the speed of three motions of a sphere under these metrics. Turning the sphere
moves every point and does not change the shape. The second table shows the lengths of each curve
under both metrics, and how unevenly the cloud changes along it from frame to frame: by the Chamfer
distance of points, and by the maximum mean discrepancy (MMD) of densities.

    python examples/point_clouds.py          # writes out/point_clouds.png
"""

from __future__ import annotations

from argparse import Namespace

import _run
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

from riemae import Manifold, ambient, solvers

POINTS, FRAMES = 96, 7
# Exponents e1, e2 and taper of a superquadric.
KINDS = {"box": (0.25, 0.25, 0.0), "cone": (0.25, 1.0, 0.9), "ellipsoid": (1.0, 1.0, 0.0)}
# The pairs that are joined.
PAIRS = (("box", "cone"), ("ellipsoid", "box"))


def directions(count: int) -> Tensor:
    """Evenly spread unit vectors (a Fibonacci lattice)."""
    i = torch.arange(count, dtype=torch.float64)
    z = 1 - (2 * i + 1) / count
    angle = i * torch.pi * (3 - 5**0.5)
    return torch.stack([(1 - z * z).sqrt() * angle.cos(), (1 - z * z).sqrt() * angle.sin(), z], -1)


def superquadric(
    half_axes: Tensor, e1: float, e2: float, taper: float
) -> Tensor:  # (N, 3) -> (N, n, 3)
    """Points of ``(|x/a|^(2/e2) + |y/b|^(2/e2))^(e2/e1) + |z/c|^(2/e1) = 1``.

    They are narrowed towards the top by ``taper``.
    """
    d = directions(POINTS).expand(len(half_axes), -1, -1)
    x, y, z = (d / half_axes[:, None]).abs().unbind(-1)
    level = (x ** (2 / e2) + y ** (2 / e2)) ** (e2 / e1) + z ** (2 / e1)
    points = d * level[..., None] ** (-e1 / 2)
    width = 1 - taper * (points[..., 2:] / half_axes[:, None, 2:] + 1) / 2
    return torch.cat([points[..., :2] * width, points[..., 2:]], -1)


def shapes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``count`` clouds of each kind, with random half axes, and the index of the kind."""
    clouds = []
    for e1, e2, taper in KINDS.values():
        half_axes = 0.6 + 0.6 * torch.rand(count, 3, generator=generator, dtype=torch.float64)
        clouds.append(superquadric(half_axes, e1, e2, taper))
    return torch.cat(clouds), torch.arange(len(KINDS)).repeat_interleave(count)


class Clouds(nn.Module):
    """A decoder of clouds, ``(k, 2) -> (k, n, 3)``."""

    def __init__(self) -> None:
        super().__init__()
        hidden = [nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU()]
        self.layers = nn.Sequential(*hidden, nn.Linear(64, 3 * POINTS))

    def forward(self, z: Tensor) -> Tensor:
        """Decode."""
        return self.layers(z).view(-1, POINTS, 3)


def train(clouds: Tensor, steps: int, seed: int) -> tuple[Tensor, Clouds, float]:
    """Codes of the clouds, the decoder, and the mean squared error per coordinate."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = nn.Sequential(nn.Linear(3 * POINTS, 64), nn.SiLU(), nn.Linear(64, 2)).double()
        decoder = Clouds().double()
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = (decoder(encoder(clouds.flatten(1))) - clouds).square().mean()
        loss.backward()
        optimiser.step()
        schedule.step()
    return encoder(clouds.flatten(1)).detach(), decoder.eval(), float(loss.detach())


def chamfer(a: Tensor, b: Tensor) -> Tensor:  # (k, n, 3) x 2 -> (k,)
    """Mean distance of a point to the other cloud, in both directions."""
    d = torch.cdist(a, b)
    return (d.amin(-1).mean(-1) + d.amin(-2).mean(-1)) / 2


def discrepancy(a: Tensor, b: Tensor, width: float) -> Tensor:  # (k, n, 3) x 2 -> (k,)
    """Maximum mean discrepancy: the L² distance of smoothed clouds, up to a factor."""

    def overlap(x: Tensor, y: Tensor) -> Tensor:
        return (-torch.cdist(x, y).square() / (4 * width**2)).exp().mean((-1, -2))

    return (overlap(a, a) + overlap(b, b) - 2 * overlap(a, b)).clamp(min=0).sqrt()


def motions(metrics: dict[str, ambient.AmbientMetric]) -> None:
    """Print squared speeds of motions of a unit sphere, relative to that of scaling it."""
    sphere = directions(POINTS)[None]
    spin = torch.linalg.cross(torch.tensor([0.0, 0.0, 1.0]).to(sphere).expand_as(sphere), sphere)
    squash = sphere * torch.tensor([1.0, 1.0, -2.0]).to(sphere) / 2**0.5
    print(
        f"{'squared speed of':22} {'scaling':>8} {'squashing':>10} {'turning':>8}   "
        "of a sphere, scaling = 1"
    )
    for name, metric in metrics.items():
        bound = metric.bind(None, sphere.shape[1:])
        costs = [
            float(bound.squared_norm(sphere.flatten(1), v.flatten(1)))
            for v in (sphere, squash, spin)
        ]
        scaled = [cost / costs[0] for cost in costs]
        print(f"{name:22} {scaled[0]:8.2f} {scaled[1]:10.2f} {scaled[2]:8.2g}")


def main() -> None:
    """Train, join, print, draw."""
    parser = _run.parser(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    options = _run.started(parser.parse_args())

    count, steps, rtol = (8, 200, 0.1) if options.quick else (60, options.steps, 1e-2)
    clouds, kind = shapes(count, torch.Generator().manual_seed(options.seed))
    codes, decoder, error = train(clouds, steps, options.seed)
    print(f"reconstruction error {error**0.5:.3f} per coordinate")
    info = ambient.InfoRiemannian.from_clouds(clouds)
    metrics = {"Euclidean": ambient.Euclidean(), "Info-Riemannian": info}
    motions(
        metrics
        | {
            "Info-Riemannian, cloud": ambient.InfoRiemannian.from_clouds(
                clouds, 0.5, evaluate="cloud"
            )
        }
    )
    manifolds = {name: Manifold(decoder, ambient=metric) for name, metric in metrics.items()}
    names = list(KINDS)
    # For each kind, the cloud that is reconstructed best.
    with torch.no_grad():
        misfit = (decoder(codes) - clouds).square().mean((-1, -2))
    best = {
        n: codes[int(torch.where(kind == i, misfit, torch.inf).argmin())]
        for i, n in enumerate(names)
    }
    z0, z1 = (torch.stack([best[pair[side]] for pair in PAIRS]) for side in (0, 1))

    curves = {"straight line": solvers.Curve.line(z0, z1, 32)}
    for name, M in manifolds.items():
        curves[name] = M.geodesic(z0, z1, rtol=rtol, throw=not options.quick).curve
    print(f"\n{'':18} {'':16} {'Euclidean':>10} {'Info':>8} {'unevenness by':>15}")
    print(f"{'from':18} {'curve':16} {'length':>10} {'length':>8} {'Chamfer':>9} {'MMD':>5}")
    t = torch.linspace(0, 1, 25, dtype=torch.float64)
    for i, pair in enumerate(PAIRS):
        for name, curve in curves.items():
            with torch.no_grad():
                lengths = [float(M.length(curve[i])) for M in manifolds.values()]
                frames = decoder(curve[i](t))
            steps = [
                chamfer(frames[:-1], frames[1:]),
                discrepancy(frames[:-1], frames[1:], info.bandwidth),
            ]
            uneven = [float(step.std() / step.mean()) for step in steps]
            label = " to ".join(pair) if name == "straight line" else ""
            print(
                f"{label:18} {name:16} {lengths[0]:10.3f} {lengths[1]:8.3f} "
                f"{uneven[0]:9.3f} {uneven[1]:5.3f}"
            )
    draw(decoder, codes, kind, curves, options)


def draw(
    decoder: Clouds,
    codes: Tensor,
    kind: Tensor,
    curves: dict[str, solvers.Curve],
    options: Namespace,
) -> None:
    """The latent space with all curves (left), and the frames of the first pair (right)."""
    colours = {"straight line": "tab:green", "Euclidean": "tab:blue", "Info-Riemannian": "tab:red"}
    figure = plt.figure(figsize=(13, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 2.3])
    panel = left.subplots()
    for i, (name, marker) in enumerate(zip(KINDS, "s^o", strict=True)):
        panel.scatter(
            *codes[kind == i].T,
            s=12,
            marker=marker,
            color=str(0.3 + 0.2 * i),
            linewidths=0,
            label=name,
        )
    for name, curve in curves.items():
        for i in range(len(PAIRS)):
            panel.plot(
                *curve[i].nodes.T, color=colours[name], lw=1.8, label=name if not i else None
            )
    panel.set(xlabel="$z_1$", ylabel="$z_2$", title="latent space")
    panel.legend(fontsize=8)
    t = torch.linspace(0, 1, FRAMES, dtype=torch.float64)
    axes = right.subplots(len(curves), FRAMES, subplot_kw={"projection": "3d"})
    for row, (name, curve) in zip(axes, curves.items(), strict=True):
        with torch.no_grad():
            frames = decoder(curve[0](t))
        for axis, cloud in zip(row, frames, strict=True):
            axis.scatter(*cloud.T, s=5, color=colours[name], linewidths=0)
            axis.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1.1, 1.1), box_aspect=(1, 1, 1))
            axis.view_init(18, 30)
            axis.set_axis_off()
        row[0].set_title(name, fontsize=9, loc="left", color=colours[name])
    right.suptitle(" to ".join(PAIRS[0]))
    _run.save(figure, options, "point_clouds.png", dpi=150)


if __name__ == "__main__":
    main()

"""Sixty noisy points of a cylinder, with minimum curvature (figure 12 of Lee 2023).

A large network follows the noise, and its surface is wrinkled. The extrinsic curvature of the
decoder, ``Tr(G⁻¹C)``, is 2 on a cylinder of radius 1. When it is penalised, the surface comes close
to the true one. It does not depend on the latent coordinates, which may therefore be stretched
(MCN). With the isometric term in addition they are not stretched, and the surface is closer still.

    python examples/fig12_minimum_curvature.py              # one seed
    python examples/fig12_minimum_curvature.py --seeds 4    # writes out/fig12_minimum_curvature.png
"""

from __future__ import annotations

from argparse import Namespace

import _run
import numpy as np
import torch
from matplotlib import pyplot as plt
from scipy.spatial import ConvexHull, Delaunay
from torch import Tensor

from riemae import datasets, scores
from riemae.autoencoders import AE, MCAE

NETWORK = {"hidden": (128, 128, 128), "batch_size": 60}
CURVATURE = {
    **NETWORK,
    "epochs": 1500,
    "lr": 3e-3,
    "schedule": "cosine",
    "clip": 1.0,
    "weight": 1.5e-3,
    "probes": None,
}
MODELS = {
    "AE": AE(**NETWORK, epochs=2500, lr=1e-3),
    "MCAE": MCAE(**CURVATURE),
    "MCAE + IRAE": MCAE(**CURVATURE, terms={"relaxed_distortion": 0.01}),
}


def sample(seed: int) -> datasets.Dataset:
    """The samples of a seed."""
    return datasets.cylinder(generator=seed, dtype=torch.float32)


def measured(model: AE, data: datasets.Dataset) -> dict[str, float]:
    """Errors on clean test points and on the samples; curvature and distortion at the samples."""
    z = model.transform(data.x)
    with torch.no_grad():
        return {
            "clean error": datasets.clean_error(data, _run.reconstruction(model)),
            "training error": float((model.inverse_transform(z) - data.x).square().sum(1).mean()),
            "curvature": float(model.manifold_.extrinsic_curvature(z).mean()),
            "MCN": float(scores.condition_number(model.manifold_, z).mean()),
        }


def main() -> None:
    """Train, print, draw."""
    options = _run.options(__doc__, seeds=1)

    models = _run.models_for(options, MODELS)
    shown: dict[str, AE] = {}
    first = sample(0)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in MODELS}
    print(
        f"{'seed':>4} {'model':12} {'clean error':>12} {'× AE':>6} {'training error':>15} "
        f"{'curvature':>10} {'MCN':>8}"
    )
    for seed in range(options.seeds):
        data = sample(seed)
        for name, fitted in _run.trained(models, data.x, seed):
            rows[name].append(measured(fitted, data))
            print(line(str(seed), name, rows[name][-1], rows["AE"][-1]), flush=True)
            if not seed:
                shown[name] = fitted
    mean = {
        name: {key: sum(s[key] for s in many) / len(many) for key in many[0]}
        for name, many in rows.items()
    }
    for name in MODELS:
        print(line("mean", name, mean[name], mean["AE"]))
    print("The true curvature is 2.")
    draw(shown, first, options)


def line(seed: str, name: str, s: dict[str, float], plain: dict[str, float]) -> str:
    """A row of the table."""
    ratio = s["clean error"] / plain["clean error"]
    return (
        f"{seed:>4} {name:12} {s['clean error']:12.4f} {ratio:6.2f} "
        f"{s['training error']:15.4f} {s['curvature']:10.3g} {s['MCN']:8.3g}"
    )


def inside(codes: Tensor, steps: int = 45) -> tuple[Tensor, np.ndarray]:
    """A grid in the convex hull of codes, with the corners of the hull, and its triangles."""
    hull = codes[ConvexHull(codes.numpy()).vertices]
    low, high = codes.amin(0), codes.amax(0)
    axes = [torch.linspace(float(a), float(b), steps) for a, b in zip(low, high, strict=True)]
    grid = torch.cartesian_prod(*axes)
    kept = Delaunay(hull.numpy()).find_simplex(grid.numpy()) >= 0
    points = torch.cat([hull, grid[torch.as_tensor(kept)]])
    # In units in which the hull is as wide as high, so that no triangle is a needle.
    return points, Delaunay(((points - low) / (high - low)).numpy()).simplices


def draw(shown: dict[str, AE], data: datasets.Dataset, options: Namespace) -> None:
    """The true surface and the learned ones over the hull of the codes, with the samples."""
    figure, axes = plt.subplots(
        1, 4, figsize=(15, 4.3), subplot_kw={"projection": "3d"}, layout="constrained"
    )
    low, high = data.bounds
    corners = torch.stack(
        [low, torch.stack([low[0], high[1]]), high, torch.stack([high[0], low[1]])]
    )
    sheets = {"truth": (data.surface, corners)}
    for name, model in shown.items():
        sheets[name] = (model.inverse_transform, model.transform(data.x))
    for axis, (name, (decode, codes)) in zip(axes, sheets.items(), strict=True):
        points, triangles = inside(codes)
        with torch.no_grad():
            x, y, z = decode(points).T.numpy()
        axis.plot_trisurf(
            x, y, z, triangles=triangles, color="tab:blue", alpha=0.55, linewidth=0.15, shade=True
        )
        axis.scatter(*data.x.T, s=8, color="black", depthshade=False, label="samples")
        axis.set(title=name, xlim=(-1.3, 1.3), ylim=(-0.6, 1.6), zlim=(-1.3, 1.3))
        axis.set(xlabel="$x_1$", ylabel="$x_2$", zlabel="$x_3$")
        axis.view_init(30, -70)
        axis.set_box_aspect(None, zoom=0.85)  # room for the names of the axes
    axes[0].legend(frameon=False, loc="upper left")
    figure.suptitle("Decoded surfaces over the convex hull of the codes")
    _run.save(figure, options, "fig12_minimum_curvature.png", dpi=130)


if __name__ == "__main__":
    main()

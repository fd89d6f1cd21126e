"""A noisy sine, by a plain autoencoder and by neighbourhood reconstruction (figure 11 of Lee 2023,
upper row).

A large network follows the noise: its curve runs zigzag, and is too long. NRAE asks the decoder's
local expansion, linear (L) or quadratic (Q), to reconstruct ten neighbours of every sample as well,
and gets close to the true curve.

    python examples/fig11_denoising_curve.py              # one seed
    python examples/fig11_denoising_curve.py --seeds 4    # writes out/fig11_denoising_curve.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.base import clone
from torch import Tensor

from riemae import datasets
from riemae.autoencoders import AE, NRAE

SETTINGS = {
    "latent_dim": 1,
    "hidden": (512, 512, 512),
    "activation": "elu",
    "epochs": 2001,
    "batch_size": 50,
    "lr": 1e-3,
}
MODELS = {
    "AE": AE(**SETTINGS),
    "NRAE-L": NRAE(**SETTINGS, order=1, neighbors=10, weight=1.0),
    "NRAE-Q": NRAE(**SETTINGS, order=2, neighbors=10, weight=1.0),
}


def curve(model: AE, data: datasets.Dataset, count: int = 1000) -> Tensor:  # -> (count, 2)
    """The decoded curve between the outermost codes."""
    z = model.transform(data.x)
    return model.inverse_transform(torch.linspace(float(z.min()), float(z.max()), count)[:, None])


def main() -> None:
    """Train, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    options = parser.parse_args()
    torch.set_num_threads(1)

    shown: dict[str, AE] = {}
    first = datasets.noisy_sine(generator=0, dtype=torch.float32)
    errors: dict[str, list[float]] = {name: [] for name in MODELS}
    lengths: dict[str, list[float]] = {name: [] for name in MODELS}
    print(f"{'seed':>4} {'model':8} {'clean error':>12} {'× AE':>6} {'length / true length':>21}")
    for seed in range(options.seeds):
        data = datasets.noisy_sine(generator=seed, dtype=torch.float32)
        for name, model in MODELS.items():
            fitted = clone(model).set_params(seed=seed).fit(data.x)
            reconstruct = lambda x, m=fitted: m.inverse_transform(m.transform(x))  # noqa: E731
            errors[name].append(datasets.clean_error(data, reconstruct))
            lengths[name].append(datasets.length_ratio(data, curve(fitted, data)))
            ratio = errors[name][-1] / errors["AE"][-1]
            print(
                f"{seed:4} {name:8} {errors[name][-1]:12.4f} {ratio:6.2f} {lengths[name][-1]:21.3f}",
                flush=True,
            )
            if not seed:
                shown[name] = fitted
    for name in MODELS:
        mean, plain = sum(errors[name]) / options.seeds, sum(errors["AE"]) / options.seeds
        print(
            f"mean {name:8} {mean:12.4f} {mean / plain:6.2f} {sum(lengths[name]) / options.seeds:21.3f}"
        )
    print(draw(shown, first, options.out))


def draw(shown: dict[str, AE], data: datasets.Dataset, out: Path) -> Path:
    """The samples, the true curve and the learned one of each model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    out.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(
        1, 3, figsize=(13, 2.4), sharex=True, sharey=True, layout="constrained"
    )
    for axis, (name, model) in zip(axes, shown.items(), strict=True):
        axis.plot(*data.test.T, color="0.6", lw=4, label="true curve")
        axis.plot(*data.x.T, ".", color="black", ms=5, label="samples")
        axis.plot(*curve(model, data).T, color="tab:red", lw=1.5, label="learned curve")
        axis.set(title=name, aspect="equal")
    axes[0].legend(frameon=False, fontsize=8)
    path = out / "fig11_denoising_curve.png"
    figure.savefig(path, dpi=130)
    return path


if __name__ == "__main__":
    main()

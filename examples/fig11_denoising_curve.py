"""A noisy sine, by a plain autoencoder and by NRAE (figure 11 of Lee 2023, upper row).

NRAE is the neighbourhood reconstructing autoencoder. A large network without it follows the noise,
and its curve is too long. Under NRAE the decoder's local expansion, linear (L) or quadratic (Q), is
also trained to reconstruct ten neighbours of every sample. The result is close to the true curve.

    python examples/fig11_denoising_curve.py              # one seed
    python examples/fig11_denoising_curve.py --seeds 4    # writes out/fig11_denoising_curve.png
"""

from __future__ import annotations

from argparse import Namespace

import _run
import torch
from matplotlib import pyplot as plt

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


def sample(seed: int) -> datasets.Dataset:
    """The samples of a seed."""
    return datasets.noisy_sine(generator=seed, dtype=torch.float32)


def measured(model: AE, data: datasets.Dataset) -> dict[str, float]:
    """Error on clean test points, and the length of the learned curve."""
    return {
        "clean error": datasets.clean_error(data, _run.reconstruction(model)),
        "length / true length": datasets.length_ratio(data, _run.decoded_curve(model, data)),
    }


def main() -> None:
    """Train, print, draw."""
    options = _run.options(__doc__, seeds=1)

    models = _run.models_for(options, MODELS)
    shown: dict[str, AE] = {}
    first = sample(0)
    errors: dict[str, list[float]] = {name: [] for name in MODELS}
    lengths: dict[str, list[float]] = {name: [] for name in MODELS}
    print(f"{'seed':>4} {'model':8} {'clean error':>12} {'× AE':>6} {'length / true length':>21}")
    for seed in range(options.seeds):
        data = sample(seed)
        for name, fitted in _run.trained(models, data.x, seed):
            error, length = measured(fitted, data).values()
            errors[name].append(error)
            lengths[name].append(length)
            ratio = error / errors["AE"][-1]
            row = f"{seed:4} {name:8} {error:12.4f} {ratio:6.2f} {length:21.3f}"
            print(row, flush=True)
            if not seed:
                shown[name] = fitted
    for name in MODELS:
        mean, plain = sum(errors[name]) / options.seeds, sum(errors["AE"]) / options.seeds
        length = sum(lengths[name]) / options.seeds
        print(f"mean {name:8} {mean:12.4f} {mean / plain:6.2f} {length:21.3f}")
    draw(shown, first, options)


def draw(shown: dict[str, AE], data: datasets.Dataset, options: Namespace) -> None:
    """The samples, the true curve and the learned one of each model."""
    figure, axes = plt.subplots(
        1, 3, figsize=(13, 2.4), sharex=True, sharey=True, layout="constrained"
    )
    for axis, (name, model) in zip(axes, shown.items(), strict=True):
        axis.plot(*data.test.T, color="0.6", lw=4, label="true curve")
        axis.plot(*data.x.T, ".", color="black", ms=5, label="samples")
        axis.plot(
            *_run.decoded_curve(model, data).T, color="tab:red", lw=1.5, label="learned curve"
        )
        axis.set(title=name, aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
    axes[0].legend(frameon=False, fontsize=8)
    _run.save(figure, options, "fig11_denoising_curve.png", dpi=130)


if __name__ == "__main__":
    main()

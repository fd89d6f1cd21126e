"""The main pictures, compared with the ones in ``baseline/`` pixel by pixel, text left out.

``python tests/plotting/test_pictures.py`` draws these anew: look at every one before committing it.
"""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images

from riemae import Manifold, plotting

BASELINE = Path(__file__).parent / "baseline"
# Root mean square of the differences of 256 shades: versions of matplotlib round lines differently.
TOLERANCE = 6
LOW, HIGH = torch.tensor([-1.5, -1.2]).double(), torch.tensor([1.5, 1.2]).double()


def hill(z):
    """A bump on a plane, which geodesics go around."""
    height = 1.2 * torch.exp(-3 * z.square().sum(-1, keepdim=True))
    return torch.cat([z, height], -1)


HILL = Manifold(hill)


def points(n=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 2, generator=generator, dtype=torch.float64) * (HIGH - LOW) + LOW


def latent(ax):
    z0 = torch.tensor([[-1.2, -0.3], [-1.0, 0.8]]).double()
    z1 = torch.tensor([[1.2, -0.2], [1.1, 0.9]]).double()
    r = HILL.geodesic(z0, z1)
    labels = (points()[:, 0] > 0).long()
    plotting.latent(HILL, points(), labels, ax=ax, resolution=40, ellipses=15, geodesics=r, s=12)


def matrix(ax):
    order = points(24)
    plotting.matrix(torch.cdist(order, order), (order[:, 0] * 2).round(), ax=ax)


def strip(ax):
    x, y = np.meshgrid(np.linspace(0, 1, 8), np.linspace(0, 1, 8))
    frames = [np.stack([x, y, np.full_like(x, t)]) for t in np.linspace(0, 1, 5)]
    plotting.strip(np.stack([frames, frames[::-1]]), gap=1, rows=["there", "back"], ax=ax)


def errors(ax):
    runs = {"a": ([1, 2, 4], [1e-2, 1e-4, 1e-7]), "b": ([3, 9, 30], [0.1, 1e-2, 3e-3])}
    plotting.error_against_time(runs, targets=[1e-3], ax=ax)


PICTURES = {
    "balls": lambda ax: plotting.balls(HILL, points(4), [0.2, 0.4], ax=ax),
    "curvature": lambda ax: plotting.curvature(HILL, LOW, HIGH, resolution=40, ax=ax),
    "distance_field": lambda ax: plotting.distance_field(HILL, [-1.0, 0.0], LOW, HIGH, 25, ax=ax),
    "distance_spectrum": lambda ax: plotting.distance_spectrum(
        torch.cdist(points(), points(), p=1), 8, ax=ax
    ),
    "errors": errors,
    "history": lambda ax: plotting.history(
        {"loss": np.exp(-np.arange(9.0)), "isometry": 0.3 * np.exp(-np.arange(9.0) / 3)}, ax=ax
    ),
    "latent": latent,
    "matrix": matrix,
    "strip": strip,
}


def drawn(draw, path):
    """The picture without its text, which every version of freetype renders in its own way."""
    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        figure = Figure(figsize=(4, 3), dpi=80)
        canvas = FigureCanvasAgg(figure)
        draw(figure.add_axes((0.1, 0.1, 0.65, 0.8)))
        for axes in figure.axes:
            axes.tick_params(labelbottom=False, labelleft=False, labelright=False)
            axes.set(title="", xlabel="", ylabel="")
            for text in list(axes.texts):
                text.remove()
            if axes.get_legend() is not None:
                axes.get_legend().remove()
        canvas.print_png(path, metadata={"Software": None})


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_the_one_that_was_looked_at(name, tmp_path):
    actual = tmp_path / f"{name}.png"
    drawn(PICTURES[name], actual)
    difference = compare_images(str(BASELINE / actual.name), str(actual), TOLERANCE)
    assert difference is None, difference


def test_another_picture_is_noticed(tmp_path):
    actual = tmp_path / "balls.png"
    drawn(lambda ax: plotting.balls(HILL, points(4), [0.2, 0.44], ax=ax), actual)
    assert compare_images(str(BASELINE / actual.name), str(actual), TOLERANCE) is not None


def test_baselines_are_small_and_all_used():
    files = sorted(BASELINE.glob("*"))
    assert [file.name for file in files] == [f"{name}.png" for name in sorted(PICTURES)]
    assert max(file.stat().st_size for file in files) <= 30_000


if __name__ == "__main__":
    BASELINE.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        drawn(draw, BASELINE / f"{name}.png")

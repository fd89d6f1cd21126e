"""The demonstration: geodesics between handwritten digits in a small autoencoder's latent space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from riemae.exceptions import MissingExtraError, OptionError
from riemae.manifold import Manifold
from riemae.numerics.random import restored
from riemae.solvers import Curve, GeodesicResult, Graph, Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# (what is being done, steps done, steps in all)
Report = Callable[[str, int, int], object]
_WIDTH, _EPOCHS, _BATCH = 128, 500, 128
_CODE_PENALTY = 1e-4  # keeps the codes together: without it the classes drift apart for nothing
_FRAMES = 11


@dataclass(frozen=True)
class Demo:
    """Everything that the demonstration computes.

    Attributes:
        manifold: The trained decoder, in float64.
        codes: Latent codes of all digits, ``(n, 2)``.
        labels: Their classes, ``(n,)``.
        loss: Mean squared reconstruction error per pixel.
        graph: Neighbourhood graph on the codes.
        pairs: Which digits are joined, ``(p, 2)``.
        geodesics: Their geodesics.
        straight: Lengths of the straight latent lines, ``(p,)``.
        graph_lengths: Lengths of the shortest graph paths, ``(p,)``.
        subset: Which digits the distance matrices are about, ``(q,)``.
        by_geodesic: ``(q, q)``.
        by_graph: ``(q, q)``.
    """

    manifold: Manifold
    codes: Tensor
    labels: Tensor
    loss: float
    graph: Graph
    pairs: Tensor
    geodesics: GeodesicResult
    straight: Tensor
    graph_lengths: Tensor
    subset: Tensor
    by_geodesic: Tensor
    by_graph: Tensor


def load_digits() -> tuple[Tensor, Tensor]:
    """The 1,797 digits of 8 × 8 pixels that scikit-learn ships.

    Images ``(n, 64)`` in [0, 1], and classes ``(n,)``.

    Raises:
        MissingExtraError: When scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as reason:
        raise MissingExtraError(
            "riemae demo",
            "scikit-learn, which ships the digits",
            "no such package",
            "pip install 'riemae[demo]'",
        ) from reason
    digits = datasets.load_digits()
    return torch.as_tensor(digits.data / 16, dtype=torch.float32), torch.as_tensor(digits.target)


def train(
    images: Tensor, epochs: int, seed: int, report: Report
) -> tuple[nn.Module, nn.Module, float]:
    """A plain autoencoder with two latent dimensions and smooth activations.

    Returns encoder, decoder, final loss.
    """
    with restored():
        torch.manual_seed(seed)
        encoder = _network(images.shape[1], 2)
        decoder = _network(2, images.shape[1])
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(_BATCH):
            codes = encoder(images[batch])
            loss = (
                decoder(codes) - images[batch]
            ).square().mean() + _CODE_PENALTY * codes.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        report("training the autoencoder", epoch + 1, epochs)
    encoder.requires_grad_(False)
    decoder.requires_grad_(False)
    return encoder, decoder, float((decoder(encoder(images)) - images).square().mean())


def run(
    seed: int = 0,
    epochs: int = _EPOCHS,
    pairs: int = 8,
    subset: int = 24,
    report: Report | None = None,
) -> Demo:
    """Train, wrap, and compute geodesics and distance matrices.

    Args:
        seed: Decides everything random.
        epochs: Of training.
        pairs: Geodesics to show, between digits of different classes.
        subset: Size of the distance matrices.
        report: Called as work proceeds.

    Raises:
        MissingExtraError: When scikit-learn is not installed.
        OptionError: When ``subset`` exceeds the number of digits.
    """
    report = report or (lambda what, done, total: None)
    images, labels = load_digits()
    if subset > len(images):
        raise OptionError(
            "riemae demo",
            f"a subset of at most {len(images)} digits",
            str(subset),
            "Choose a smaller --subset.",
        )
    encoder, decoder, loss = train(images, epochs, seed, report)
    manifold = Manifold(decoder).to(dtype=torch.float64)
    codes = encoder(images).double()
    graph = manifold.graph(codes, k=10)
    chosen = torch.as_tensor(list(_different_classes(labels, pairs, seed)))
    first, second = chosen.T
    # With ten classes folded into a plane there are several geodesics between most pairs: the
    # straight line and the way along the data are tried.
    shortest = partial(manifold.geodesic, graph=graph, n_starts=2, throw=False)
    geodesics = shortest(codes[first], codes[second], progress=partial(report, "geodesics"))
    generator = torch.Generator().manual_seed(seed)
    few = torch.randperm(len(codes), generator=generator)[:subset]
    few = few[labels[few].argsort(stable=True)]
    i, j = torch.triu_indices(subset, subset, 1)
    between = shortest(codes[few[i]], codes[few[j]], progress=partial(report, "distance matrix"))
    by_geodesic = torch.zeros(subset, subset, dtype=codes.dtype)
    by_geodesic[i, j] = by_geodesic[j, i] = between.length
    return Demo(
        manifold=manifold,
        codes=codes,
        labels=labels,
        loss=loss,
        graph=graph,
        pairs=chosen,
        geodesics=geodesics,
        straight=manifold.length(Curve.line(codes[first], codes[second], 64)),
        graph_lengths=graph.distances(first).gather(1, second[:, None])[:, 0],
        subset=few,
        by_geodesic=by_geodesic,
        by_graph=graph.distances(few)[:, few],
    )


def write(demo: Demo, folder: Path) -> list[Path]:
    """Write the figures and the numbers; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [_draw_latent(demo, folder), _draw_strips(demo, folder), _draw_matrices(demo, folder)]
    numbers = folder / "distances.npz"
    np.savez(
        numbers,
        subset=demo.subset.numpy(),
        labels=demo.labels[demo.subset].numpy(),
        geodesic=demo.by_geodesic.numpy(),
        graph=demo.by_graph.numpy(),
    )
    return [*written, numbers]


def rows(demo: Demo) -> Iterator[tuple[str, str, str, str, str, str, str]]:
    """The table: digits, three lengths, error, segments and status of each pair."""
    r = demo.geodesics
    for p, (i, j) in enumerate(demo.pairs.tolist()):
        yield (
            f"{int(demo.labels[i])} → {int(demo.labels[j])}",
            f"{demo.straight[p]:.4f}",
            f"{demo.graph_lengths[p]:.4f}",
            f"{r.length[p]:.4f}",
            f"{r.error[p]:.0e}",
            f"{int(r.stats['segments'][p]) + 1}",
            Status(int(r.status[p])).name.lower(),
        )


def _network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, _WIDTH),
        nn.SiLU(),
        nn.Linear(_WIDTH, _WIDTH),
        nn.SiLU(),
        nn.Linear(_WIDTH, outputs),
    )


def _different_classes(labels: Tensor, pairs: int, seed: int) -> Iterator[tuple[int, int]]:
    generator = torch.Generator().manual_seed(seed)
    found = 0
    while found < pairs:
        i, j = torch.randint(len(labels), (2,), generator=generator).tolist()
        if labels[i] != labels[j]:
            found += 1
            yield i, j


def _draw_latent(demo: Demo, folder: Path) -> Path:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    from riemae import plotting

    figure = Figure(figsize=(9.5, 8), layout="constrained")
    axes = figure.subplots()
    low, high = demo.codes.amin(0), demo.codes.amax(0)
    margin = 0.06 * (high - low)
    image = plotting.magnification(demo.manifold, axes, low - margin, high + margin, alpha=0.75)
    figure.colorbar(
        image, ax=axes, label="log₁₀ magnification factor  √det G", location="left", shrink=0.6
    )
    for digit in range(10):
        z = demo.codes[demo.labels == digit]
        axes.scatter(
            z[:, 0], z[:, 1], s=7, color=colormaps["tab10"](digit), label=str(digit), linewidths=0
        )
    ends = demo.codes[demo.pairs]
    straight = Curve.line(ends[:, 0], ends[:, 1])
    dashed: dict[str, Any] = {"color": "black", "linewidth": 1, "linestyle": "--"}
    plotting.curves(straight, axes, color="white", linewidth=2.6)
    plotting.curves(straight, axes, label="straight", **dashed)
    geodesics = demo.geodesics.curve
    plotting.curves(geodesics, axes, color="white", linewidth=4)
    plotting.curves(geodesics, axes, color="crimson", linewidth=2, label="geodesic")
    axes.scatter(ends[..., 0], ends[..., 1], s=36, facecolor="white", edgecolor="black", zorder=3)
    axes.set_xlabel("z₁")
    axes.set_ylabel("z₂")
    axes.set_title("Geodesics between digits in the latent space of an autoencoder")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, markerscale=2.5)
    return _saved(figure, folder / "latent.png")


def _draw_strips(demo: Demo, folder: Path) -> Path:
    from matplotlib.figure import Figure

    from riemae import plotting

    t = torch.linspace(0, 1, _FRAMES, dtype=demo.codes.dtype)
    ends = demo.codes[demo.pairs]
    straight = Curve.line(ends[:, 0], ends[:, 1])
    shown = {"geodesic": demo.geodesics.curve, "straight": straight}
    count = len(demo.pairs)
    figure = Figure(figsize=(7, 1.35 * count), layout="constrained")
    grid = figure.subplots(count, 1, squeeze=False)
    for p, axes in enumerate(grid[:, 0]):
        rows = []
        for curve in shown.values():
            images = demo.manifold.decode(curve[p](t))
            rows.append(images.view(_FRAMES, 8, 8))
        frames = torch.nn.functional.pad(torch.stack(rows), (1, 1, 1, 1))
        plotting.strip(frames, axes)
        axes.set_yticks([4.5, 14.5], list(shown), fontsize=8)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    figure.suptitle("Decoded images along each curve, at equal times", fontsize=11)
    return _saved(figure, folder / "strips.png")


def _draw_matrices(demo: Demo, folder: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.9), layout="constrained")
    grid = figure.subplots(1, 2)
    both = torch.stack([demo.by_graph, demo.by_geodesic])
    top = float(both[both.isfinite()].max())
    names = [str(int(c)) for c in demo.labels[demo.subset]]
    for axes, matrix, title in zip(
        grid,
        (demo.by_geodesic, demo.by_graph),
        ("geodesic distance", "graph distance"),
        strict=True,
    ):
        image = axes.imshow(matrix.numpy(), vmin=0, vmax=top, cmap="viridis")
        axes.set_title(title)
        axes.set_xticks(range(len(names)), names, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_xlabel("digit")
    grid[0].set_ylabel("digit")
    figure.colorbar(image, ax=grid, label="Riemannian length")
    return _saved(figure, folder / "distances.png")


def _saved(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=140, metadata={"Software": None})
    return path

"""The demonstration: geodesics between handwritten digits in a small autoencoder's latent space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

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
_HIGHLIGHTED = 3  # pairs in the first picture


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
        between: The geodesics of ``by_geodesic``, its upper triangle row by row.
        between_straight: Lengths of the straight latent lines of these pairs.
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
    between: GeodesicResult
    between_straight: Tensor


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
    optimizer = torch.optim.AdamW(
        [*encoder.parameters(), *decoder.parameters()], lr=2e-3, fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for such small layers, a second thread waits more than it helps
    try:
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
    finally:  # also when the user interrupts
        torch.set_num_threads(threads)
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
    ends = codes[few[i]], codes[few[j]]
    between = shortest(*ends, progress=partial(report, "distance matrix"))
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
        between=between,
        between_straight=manifold.length(Curve.line(*ends, 64)),
    )


def write(demo: Demo, folder: Path) -> list[Path]:
    """Write the figures, the numbers and the report; returns the files, the report last."""
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
    return [*written, numbers, _write_report(demo, folder)]


def _write_report(demo: Demo, folder: Path) -> Path:
    """The page for a browser, with the digits behind the codes."""
    from riemae.reporting import report

    images, _ = load_digits()
    path = folder / "report.html"
    report(
        demo.manifold,
        demo.codes,
        demo.labels,
        path=path,
        title="Digits in the latent space of an autoencoder",
        images=images.double().view(-1, 8, 8),
    )
    return path


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


def summary(demo: Demo) -> list[str]:
    """The three numbers that matter, a sentence each."""
    found = [demo.geodesics, demo.between]
    converged = torch.cat([r.converged for r in found])
    length = torch.cat([r.length for r in found])
    straight = torch.cat([demo.straight, demo.between_straight])
    longer = 100 * (straight / length - 1)[converged & (length > 0)]
    lines = [
        f"A small step in the plot changes the image {uneven_steps(demo):.0f} times as much where "
        "the plot is dark as where it is light (95 % and 5 % of the digits)."
    ]
    if len(longer):
        lines.append(
            f"The straight line between two digits is up to {float(longer.max()):.0f} % longer "
            f"than the geodesic ({len(longer)} pairs; median {float(longer.median()):.1f} %)."
        )
    lines.append(
        f"{int(converged.sum())} of {len(converged)} geodesics have the accuracy that was asked "
        f"for, {demo.geodesics.rtol:g} of their length."
    )
    return lines


def uneven_steps(demo: Demo) -> float:
    """By what factor the decoder's stretch differs between digits, without the outer 5 %."""
    stretch = demo.manifold.log_volume(demo.codes) / 2  # per direction, of two
    low, high = stretch.quantile(torch.tensor([0.05, 0.95], dtype=stretch.dtype))
    return float((high - low).exp())


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


def _highlighted(demo: Demo) -> list[int]:
    """The pairs of the first picture, numbers in ``between``.

    The straight lines that are longest compared with their geodesics, each with ends of its own.
    """
    r = demo.between
    longer = torch.where(r.converged, demo.between_straight / r.length, 0.0)
    rows = torch.triu_indices(len(demo.subset), len(demo.subset), 1).T.tolist()
    classes = demo.labels[demo.subset].tolist()
    chosen: list[int] = []
    taken: set[int] = set()
    for pair in longer.argsort(descending=True).tolist():
        i, j = rows[pair]
        if classes[i] != classes[j] and taken.isdisjoint((i, j)):
            chosen.append(pair)
            taken |= {i, j}
    return chosen[:_HIGHLIGHTED]


def _draw_latent(demo: Demo, folder: Path) -> Path:
    """Where the digits are, three geodesics among them, and what is decoded along these."""
    from matplotlib.figure import Figure

    from riemae import plotting

    shown = _highlighted(demo)
    r = demo.between[torch.tensor(shown, dtype=torch.int64)]
    figure = Figure(figsize=(13.5, 6.8), layout="constrained")
    grid = figure.add_gridspec(max(len(shown), 1), 2, width_ratios=[1, 1])
    axes = figure.add_subplot(grid[:, 0])
    plotting.latent(demo.manifold, demo.codes, demo.labels, ax=axes, colorbar=False, geodesics=r)
    axes.set_title("Each dot is a handwritten digit. Where it is dark,\na small step changes much.")
    for row, (letter, pair) in enumerate(zip("ABC", shown, strict=False)):
        panel = figure.add_subplot(grid[row, 1])
        curve = demo.between.curve[pair]
        start, end = curve(0.0), curve(1.0)
        for x, y in torch.stack([start, end]).tolist():
            axes.scatter(x, y, s=110, facecolor="white", edgecolor="black", zorder=6)
            axes.annotate(letter, (x, y), ha="center", va="center_baseline", fontsize=8, zorder=7)
        both = {"geodesic": curve, "straight": Curve.line(start, end)}
        plotting.strips(demo.manifold, both, _FRAMES, ax=panel, shape=(8, 8))
        i, j = torch.triu_indices(len(demo.subset), len(demo.subset), 1)[:, pair]
        first, last = demo.labels[demo.subset[torch.stack([i, j])]].tolist()
        more = 100 * float(demo.between_straight[pair] / demo.between.length[pair] - 1)
        title = f"{letter}: from a {first} to a {last}. The straight line is {more:.0f} % longer."
        panel.set_title(title, loc="left", fontsize=11)
    figure.suptitle(
        "Geodesics between digits in the latent space of an autoencoder, and the images along them",
        fontsize=13,
    )
    return _saved(figure, folder / "latent.png", dpi=100)


def _both(demo: Demo, pair: int) -> dict[str, Curve]:
    """The two ways from one digit to another."""
    first, last = demo.codes[demo.pairs[pair]]
    return {"geodesic": demo.geodesics.curve[pair], "straight": Curve.line(first, last)}


def _draw_strips(demo: Demo, folder: Path) -> Path:
    from matplotlib.figure import Figure

    from riemae import plotting

    count = len(demo.pairs)
    figure = Figure(figsize=(7, 1.35 * count), layout="constrained")
    grid = figure.subplots(count, 1, squeeze=False)
    for p, axes in enumerate(grid[:, 0]):
        plotting.strips(demo.manifold, _both(demo, p), _FRAMES, ax=axes, shape=(8, 8))
        axes.tick_params(labelsize=8)
    figure.suptitle("Decoded images along each curve, at equal times", fontsize=11)
    return _saved(figure, folder / "strips.png")


def _draw_matrices(demo: Demo, folder: Path) -> Path:
    from matplotlib.figure import Figure

    from riemae import plotting

    codes = demo.codes[demo.subset]
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    shown = {
        "straight through the latent space": torch.cdist(codes, codes),
        "geodesic distance": demo.by_geodesic,
    }
    for axes, (title, matrix) in zip(panels, shown.items(), strict=True):
        unit = "distance in " + ("images" if matrix is demo.by_geodesic else "the latent space")
        plotting.matrix(matrix, demo.labels[demo.subset], ax=axes, label=unit)
        axes.set(title=title, xlabel="digit")
    panels[0].set_ylabel("digit")
    return _saved(figure, folder / "distances.png")


def _saved(figure: Figure, path: Path, dpi: int = 140) -> Path:
    figure.savefig(path, dpi=dpi, metadata={"Software": None})
    return path

"""Counts: which genes decide how far apart two cells are?

Cells vary in two ways. Sixty weakly expressed genes depend on the cell's development, and six
strongly expressed ones on its size. A negative-binomial autoencoder with two latent dimensions
learns both from generated counts. In the Euclidean metric on expected counts, the strong genes have
nearly all the weight. Fisher-Rao weighs every gene by the information in its counts. It agrees with
the information distance of the process that generated the data, which is known here.

    python examples/counts.py            # writes out/counts.png
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

import _run
import torch
from matplotlib import pyplot as plt
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.distributions import Independent, NegativeBinomial

from riemae import Manifold
from riemae.plotting import magnification

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WEAK, STRONG = 60, 6  # genes
CELLS, PAIRS = 800, 60

Decoder = Callable[[Tensor], Independent]
METRICS: dict[str, Callable[[Decoder], Manifold]] = {
    "Euclidean on expected counts": lambda decoder: Manifold(lambda z: decoder(z).mean),
    "Fisher-Rao": Manifold,
}


class Process:
    """The process that generates the counts.

    It maps development and size, both in [−1, 1], to the distribution of the counts of all genes.
    """

    def __init__(self, generator: torch.Generator) -> None:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.base = torch.cat([0.5 * normal(WEAK) + 0.5, 0.3 * normal(STRONG) + 5.5])
        self.slopes = torch.cat(
            [torch.stack([normal(WEAK), 0 * normal(WEAK)]), torch.zeros(2, STRONG)], 1
        )
        self.slopes[1, WEAK:] = 0.6 + 0.2 * normal(STRONG)
        self.bend = torch.cat([0.3 * normal(WEAK), torch.zeros(STRONG)])

    def __call__(self, factors: Tensor) -> Independent:  # (k, 2) -> (k,) distributions of (genes,)
        """From factors ``(k, 2)`` to the distributions of the counts."""
        log_mean = self.base + factors @ self.slopes + factors[:, :1] ** 2 * self.bend
        return counts_with(log_mean, torch.full_like(log_mean, 8.0))


def counts_with(log_mean: Tensor, dispersion: Tensor) -> Independent:
    """Negative binomials with these means, in torch's parameters.

    Torch's distribution is the number of successes before ``total_count`` failures.
    """
    return Independent(NegativeBinomial(dispersion, logits=log_mean - dispersion.log()), 1)


class CountDecoder(nn.Module):
    """A decoder from latent points to distributions of counts.

    The dispersion of a gene is the same for all cells.
    """

    def __init__(self, genes: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, genes))
        self.log_dispersion = nn.Parameter(torch.full((genes,), 1.0))

    def forward(self, z: Tensor) -> Independent:
        """From ``(k, 2)`` to ``(k,)`` distributions of ``(genes,)``."""
        return self.genes(z, slice(None))

    def genes(self, z: Tensor, which: slice) -> Independent:
        """The distribution of some genes alone."""
        log_mean = self.network(z)[:, which]
        return counts_with(log_mean, self.log_dispersion[which].exp().expand_as(log_mean))


def fit(counts: Tensor, steps: int) -> tuple[CountDecoder, Tensor]:
    """A decoder and latent codes by maximum likelihood; the encoder is not kept."""
    logs = counts.log1p()
    inputs = (logs - logs.mean(0)) / logs.std(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(counts.shape[1], 32), nn.Tanh(), nn.Linear(32, 2))
        decoder = CountDecoder(counts.shape[1])
    decoder.network[-1].bias.data = counts.mean(0).log()
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        z = encoder(inputs)
        loss = -decoder(z).log_prob(counts).mean() + 0.5 * z.square().sum(-1).mean()
        loss.backward()
        optimiser.step()
    return decoder.double().eval(), encoder(inputs).detach().double()


def strong_share(name: str, decoder: CountDecoder, z: Tensor) -> float:
    """Share of the strong genes in the trace of the metric, which is a sum over genes."""
    traces = []
    for genes in (slice(None), slice(WEAK, None)):
        manifold = METRICS[name](lambda z, genes=genes: decoder.genes(z, genes))
        traces.append(manifold.metric(z).detach().diagonal(dim1=1, dim2=2).sum(-1).mean())
    return float(traces[1] / traces[0])


def draw(
    axes: Axes,
    manifold: Manifold,
    z: Tensor,
    factor: Tensor,
    pairs: tuple[Tensor, Tensor],
    title: str,
) -> None:
    """Cells, coloured by development, and geodesics on the magnification factor."""
    low, high = z.quantile(0.005, dim=0) - 0.2, z.quantile(0.995, dim=0) + 0.2
    magnification(manifold, low, high, 80, ax=axes, colorbar=False, alpha=0.5)
    points = axes.scatter(*z.T, c=factor, s=5, cmap="viridis", linewidths=0)
    curves = manifold.geodesic(*pairs, rtol=1e-3).curve(torch.linspace(0, 1, 60).double())
    for curve in curves:
        axes.plot(*curve.T, color="crimson", lw=1.2)
    axes.plot(*pairs[0][:1].T, "o", color="crimson", ms=6, mec="white")
    axes.set(
        title=title, xticks=[], yticks=[], xlabel="latent dimension 1", ylabel="latent dimension 2"
    )
    axes.figure.colorbar(points, ax=axes, label="development (true)", shrink=0.8)


def main() -> None:
    """Fit, compare, draw."""
    options = _run.options(__doc__)

    generator = torch.Generator().manual_seed(0)
    process = Process(generator)
    cells, pairs, steps = (200, 10, 60) if options.quick else (CELLS, PAIRS, 500)
    factors = 2 * torch.rand(cells, 2, generator=generator) - 1
    with torch.random.fork_rng():
        torch.manual_seed(1)
        counts = process(factors).sample()
    decoder, z = fit(counts, steps)

    manifolds = {name: metric(decoder) for name, metric in METRICS.items()}
    i, j = torch.randint(cells, (2, pairs), generator=generator)
    truth = Manifold(process).distance(factors[i], factors[j], rtol=1e-3).detach()

    distances, shares = {}, {}
    for name, manifold in manifolds.items():
        distances[name] = manifold.geodesic(z[i], z[j], rtol=1e-3, throw=False).length
        shares[name] = strong_share(name, decoder, z)
    print(
        f"{pairs} pairs of cells; rank correlation of learned distances with the true "
        "information distance"
    )
    print(f"{'metric':30} {'correlation':>12} {'share of the strong genes':>27}")
    for name in manifolds:
        print(f"{name:30} {spearmanr(distances[name], truth).statistic:12.2f} {shares[name]:27.0%}")
    print(
        f"\nShare of {STRONG} strong among {WEAK + STRONG} genes in the metric, "
        "averaged over cells."
    )
    picture(options, manifolds, z, factors, distances, truth)


def picture(
    options: Namespace,
    manifolds: dict[str, Manifold],
    z: Tensor,
    factors: Tensor,
    distances: dict[str, Tensor],
    truth: Tensor,
) -> None:
    """Both metrics, and their distances plotted over the true ones."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
    # Geodesics start at the least developed small cell and end at cells in all directions.
    centre = int((factors + 0.8).norm(dim=-1).argmin())
    corners = ([1, -1], [1, -0.4], [1, 0.3], [1, 1], [0.3, 1], [-0.4, 1], [-1, 1])
    targets = [0.85 * torch.tensor(corner) for corner in corners]
    around = [int((factors - target).norm(dim=-1).argmin()) for target in targets]
    pairs = (z[centre].expand(len(around), 2), z[around])
    for panel, (name, manifold) in zip(axes, manifolds.items(), strict=False):
        draw(panel, manifold, z, factors[:, 0], pairs, name)
    for (name, d), marker in zip(distances.items(), "so", strict=True):
        axes[2].plot(truth, d / d.mean() * truth.mean(), marker, ms=4, label=name, alpha=0.7)
    top = float(truth.max()) * 1.05
    axes[2].plot([0, top], [0, top], color="grey", lw=0.8)
    axes[2].set(
        xlabel="true information distance",
        ylabel="learned distance, scaled to the same mean",
        title="Distances",
    )
    axes[2].set_ylim(0, 1.25 * axes[2].get_ylim()[1])
    axes[2].legend(frameon=False, loc="upper left")
    figure.suptitle(
        "Cells in latent space; background: log volume density (dark is large); "
        "red: geodesics from one cell"
    )
    _run.save(figure, options, "counts.png", dpi=130)


if __name__ == "__main__":
    main()

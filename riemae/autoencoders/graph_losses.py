"""Losses that compare codes with distances along a graph of the data, or with a given embedding.

A decoder cannot undo a fold of the encoder: where two distant parts of the data share their codes,
no loss on the decoder has a gradient that separates them. These losses see the fold.

===================  ==========================================================  ===================
loss                 what it is                                                  0 exactly for
===================  ==========================================================  ===================
distance_matching    ``Var log(|z_i − z_l| / d_il)``                             codes at distances
                                                                                 in proportion to d
separation           ``E relu(log θ − log(|z_i − z_l| / (c d_il)))²`` over       far samples that
                     pairs with ``d_il > δ max d``                               keep apart
embedding_pull       ``E|z_i − e_i|² / E|e_i − ē|²``                             the given codes
===================  ==========================================================  ===================

All are pure numbers. ``d_il`` is the length of the shortest path in a graph of nearest neighbours
from sample i to landmark l. Of more than 1,000 samples, as many are drawn as landmarks; a step
compares its samples with 64 of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from riemae.autoencoders import embedding
from riemae.autoencoders.edges import length_matrix
from riemae.autoencoders.neighborhood import Neighborhood
from riemae.exceptions import OptionError, ShapeError
from riemae.numerics.checks import expect_choice, expect_range

Encoder = Callable[[Tensor], Tensor]
_LANDMARKS = 1000
_PER_STEP = 64  # landmarks that a batch is compared with


class GraphDistances:
    """Shortest paths from landmarks to all samples, and their ratios to distances of codes.

    Args:
        neighbors: Of each sample in the graph.
        landmarks: The largest number of landmarks.
        per_step: How many of them a step looks at.
    """

    name = "graph distances"

    def __init__(
        self, neighbors: int = 10, landmarks: int = _LANDMARKS, per_step: int = _PER_STEP
    ) -> None:
        for key, value in (("landmarks", landmarks), ("per_step", per_step)):
            expect_range(self.name, key, value, 1, integer=True)
        expect_range(self.name, "neighbors", neighbors, 1, integer=True)
        self.neighbors = neighbors
        self.landmarks = landmarks
        self.per_step = per_step
        self.lengths: Tensor | None = None
        self.data: Tensor | None = None

    def fitted(self, data: Tensor) -> Any:
        """The same with the graph of these data.

        Components of the graph are joined by their nearest samples.

        Args:
            data: ``(n, *shape)``.
        """
        n = len(data)
        k = min(self.neighbors, n - 1)
        graph = Neighborhood.nearest(data.cpu(), k, "union")
        matrix = length_matrix(graph.start, graph.neighbors, graph.lengths)
        symmetric = matrix.maximum(matrix.T).tocsr()
        flat = data.detach().flatten(1).double().cpu().numpy()
        joined = embedding.joined(self.name, symmetric, flat)
        chosen = np.arange(n)
        if n > self.landmarks:
            # Evenly spread in the order of the data, and so the same for the same data.
            chosen = np.linspace(0, n - 1, self.landmarks).round().astype(int)
        from scipy.sparse.csgraph import dijkstra

        lengths = dijkstra(joined, directed=False, indices=chosen)
        made = copy.copy(self)
        made.lengths = torch.as_tensor(lengths).to(data)
        made.data = data[torch.as_tensor(chosen, device=data.device)]
        return made

    def log_ratios(
        self, z: Tensor, index: Tensor, encoder: Encoder, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:  # -> (pairs,), (pairs,)
        """Logarithms of ``|z_i − z_l|`` and of ``d_il``, of pairs that are not the same point.

        Args:
            z: Codes ``(k, m)``.
            index: Numbers of their samples.
            encoder: For the codes of the landmarks.
            generator: Chooses the landmarks.

        Raises:
            OptionError: Before ``fitted``.
        """
        if self.lengths is None or self.data is None:
            raise OptionError(self.name, "a graph of the data", "none", "Call fitted(x) first.")
        count = len(self.data)
        device = z.device if generator is None else generator.device
        order = torch.randperm(count, generator=generator, device=device)
        drawn = order[: self.per_step].to(z.device)
        others = encoder(self.data[drawn])
        true = self.lengths[drawn][:, index].T  # (k, l)
        square = (z[:, None] - others[None]).square().sum(-1)
        apart = true > 0
        square = square[apart]
        tiny = torch.finfo(z.dtype).eps * square.mean().detach() + torch.finfo(z.dtype).tiny
        return (square + tiny).log() / 2, true[apart].log()


class DistanceMatching(GraphDistances):
    """Variance of ``log(|z_i − z_l| / d_il)`` over pairs, as in SPAE (Singh & Nag 2021).

    Any common scale of the codes gives the same value. Cost: the codes of 64 landmarks, and 64
    distances per sample. The latent distances are Euclidean, so a hole in the data, around which
    the paths lead, is bent outwards.
    """

    name = "distance_matching"

    def __call__(
        self,
        z: Tensor,
        index: Tensor,
        encoder: Encoder,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The value at codes."""
        latent, true = self.log_ratios(z, index, encoder, generator)
        ratio = latent - true
        return (ratio - ratio.mean()).square().mean()


class Separation(GraphDistances):
    """Far samples keep apart: the injectivity term of BLAE (Zhan et al. 2026).

    Pairs farther than ``δ max d`` along the graph should have codes at ``θ c d`` or more, with one
    scale c of the codes, the quotient of the root mean squares. It is a bound from below, and does
    not ask for equal distances. Cost: as :class:`DistanceMatching`.

    Args:
        share: θ, of their distance that two far samples keep.
        far: δ, the share of the largest distance from which a pair is far.
        options: As in :class:`GraphDistances`.
    """

    name = "separation"

    def __init__(self, share: float = 0.3, far: float = 0.05, **options: int) -> None:
        super().__init__(**options)
        expect_range(self.name, "share", share, 0, 1, above=True)
        expect_range(self.name, "far", far, 0, 1)
        self.share = share
        self.far = far

    def __call__(
        self,
        z: Tensor,
        index: Tensor,
        encoder: Encoder,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The value at codes."""
        latent, true = self.log_ratios(z, index, encoder, generator)
        assert self.lengths is not None
        # Root mean squares from logarithms.
        pairs = torch.tensor(float(len(latent))).to(latent)
        scale = ((2 * latent).logsumexp(0) - (2 * true).logsumexp(0)) / 2
        is_far = true.exp() > self.far * self.lengths.max()
        short = (float(np.log(self.share)) - (latent - true - scale)).relu().square()
        return torch.where(is_far, short, 0).sum() / pairs


class EmbeddingPull:
    """``E|z_i − e_i|² / E|e_i − ē|²``: codes stay near a given embedding (GRAE, Duque et al. 2020).

    Cost: none to speak of.

    Args:
        embedding: ``(n, m)``, or ``"isomap"`` or ``"laplacian"`` for the embedding of that name of
            the graph of nearest neighbours.
        neighbors: Of each sample in that graph.
    """

    name = "embedding_pull"

    def __init__(
        self, embedding: Any | Literal["isomap", "laplacian"] = "isomap", neighbors: int = 10
    ) -> None:
        if isinstance(embedding, str):
            expect_choice(self.name, "embedding", embedding, ("isomap", "laplacian"))
        expect_range(self.name, "neighbors", neighbors, 1, integer=True)
        self.embedding = embedding
        self.neighbors = neighbors
        self._graph: Neighborhood | None = None
        self._like: Tensor | None = None
        self._codes: Tensor | None = None

    def fitted(self, data: Tensor) -> EmbeddingPull:
        """The same for these data.

        Args:
            data: ``(n, *shape)``.

        Raises:
            ShapeError: When there is not one code per sample.
        """
        made = EmbeddingPull(self.embedding, self.neighbors)
        made._like = data
        if isinstance(self.embedding, str):
            k = min(self.neighbors, len(data) - 1)
            made._graph = Neighborhood.nearest(data.cpu(), k)
            return made
        codes = torch.as_tensor(self.embedding).to(data)
        if codes.ndim != 2 or len(codes) != len(data):
            got = str(tuple(codes.shape))
            hint = "Give one row per sample."
            raise ShapeError(self.name, f"an embedding ({len(data)}, m)", got, hint)
        made._codes = codes
        return made

    def __call__(self, z: Tensor, index: Tensor) -> Tensor:  # (k, m), (k,) -> ()
        """The value at codes.

        Raises:
            OptionError: Before ``fitted``.
            ShapeError: When the embedding has another dimension than the codes.
        """
        codes = self._target(z.shape[-1])
        if codes.shape[1] != z.shape[1]:
            got = str(tuple(codes.shape))
            hint = "Give as many columns as latent_dim."
            raise ShapeError(self.name, f"an embedding (n, {z.shape[1]})", got, hint)
        spread = (codes - codes.mean(0)).square().sum(1).mean()
        return (z - codes[index]).square().sum(1).mean() / spread

    def _target(self, m: int) -> Tensor:
        """The embedding, which is computed when the number of codes is known.

        Raises:
            OptionError: Before ``fitted``.
        """
        if self._codes is None:
            if self._graph is None or self._like is None:
                raise OptionError(self.name, "data", "none", "Call fitted(x) first.")
            found = self._graph.embedding(m, self.embedding, dtype=self._like.dtype)
            self._codes = found.to(self._like.device)
        return self._codes

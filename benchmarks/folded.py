"""Decoders that fold ten classes of digits into a plane: other seeds, depths, activations, losses.

The fineness of the lattice on which the default call looks for shorter geodesics was chosen on the
first four of these, and not on the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from riemae.cli import demo
from riemae.numerics.random import restored

BATCH = 128


@dataclass(frozen=True)
class Folded:
    """A trained decoder and the codes of all digits.

    Attributes:
        name: What it is.
        decoder: Two numbers to 64 pixels.
        codes: ``(n, 2)``, float32.
    """

    name: str
    decoder: nn.Module
    codes: Tensor


def demonstration(seed: int) -> Folded:
    """The demonstration's autoencoder: two hidden layers of 128, SiLU."""
    images, _ = demo.load_digits()
    encoder, decoder, _ = demo.train(images, 500, seed, lambda *_: None)
    return Folded(f"demonstration, seed {seed}", decoder, encoder(images))


def deep(seed: int) -> Folded:
    """Four hidden layers of 64, tanh."""
    encoder, decoder = _networks(seed, [64] * 4, nn.Tanh, codes=2)
    images, _ = demo.load_digits()

    def loss(x: Tensor) -> Tensor:
        z = encoder(x)
        return (decoder(z) - x).square().mean() + 1e-4 * z.square().mean()

    _train([encoder, decoder], loss, images, 250, seed)
    return Folded(f"deep, tanh, seed {seed}", decoder, encoder(images))


def variational(seed: int) -> Folded:
    """A variational autoencoder, GELU; codes are the posterior's means."""
    encoder, decoder = _networks(seed, [128, 128], nn.GELU, codes=4)
    first = decoder[0]
    decoder[0] = nn.Linear(2, first.out_features)
    images, _ = demo.load_digits()
    noise = torch.Generator().manual_seed(seed)

    def loss(x: Tensor) -> Tensor:
        mean, log = encoder(x).split(2, -1)
        z = mean + (log / 2).exp() * torch.randn(mean.shape, generator=noise)
        divergence = (mean.square() + log.exp() - 1 - log).sum(-1).mean() / 2
        return (decoder(z) - x).square().sum(-1).mean() / 0.05 + divergence

    _train([encoder, decoder], loss, images, 300, seed)
    return Folded(f"variational, GELU, seed {seed}", decoder, encoder(images)[:, :2])


def of_an_embedding(seed: int) -> Folded:
    """A decoder, softplus, fitted to a t-SNE embedding scaled to unit variance."""
    from sklearn.manifold import TSNE

    images, _ = demo.load_digits()
    found = TSNE(init="pca", random_state=seed, max_iter=500).fit_transform(images.numpy())
    codes = torch.as_tensor(found)
    codes = (codes - codes.mean(0)) / codes.std()
    _, decoder = _networks(seed, [128, 128], nn.Softplus, codes=2)

    def loss(x: Tensor) -> Tensor:
        return (decoder(x[:, :2]) - x[:, 2:]).square().mean()

    _train([decoder], loss, torch.cat([codes, images], 1), 300, seed)
    return Folded(f"t-SNE, softplus, seed {seed}", decoder, codes)


def every() -> list[Callable[[], Folded]]:
    """All sets."""
    return [
        lambda: demonstration(0),
        lambda: demonstration(1),
        lambda: deep(2),
        lambda: variational(3),
        lambda: of_an_embedding(4),
    ]


def _networks(
    seed: int, widths: list[int], activation: Callable[[], nn.Module], codes: int
) -> tuple[nn.Sequential, nn.Sequential]:
    """An encoder and the mirror image of it as decoder."""
    with restored():
        torch.manual_seed(seed)
        return (
            _network([64, *widths, codes], activation),
            _network([codes, *widths[::-1], 64], activation),
        )


def _network(widths: list[int], activation: Callable[[], nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


def _train(
    modules: list[nn.Sequential],
    loss: Callable[[Tensor], Tensor],
    data: Tensor,
    epochs: int,
    seed: int,
) -> None:
    """AdamW along a cosine."""
    parameters = [p for module in modules for p in module.parameters()]
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(data), generator=generator).split(BATCH):
            value = loss(data[batch])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        schedule.step()
    for p in parameters:
        p.requires_grad_(False)

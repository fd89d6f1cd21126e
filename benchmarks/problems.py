"""The decoders for all contenders, trained once on scikit-learn's digits and written as plain
arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from riemae.cli.demo import load_digits

FOLDER = Path(__file__).parent / "decoders"
PAIRS = 1000
LAYERS = nn.Linear, nn.ConvTranspose2d


@dataclass(frozen=True)
class Problem:
    """An autoencoder with SiLU, trained on images of ``side × side`` pixels: with two hidden layers
    of one width, or by transposed convolutions.

    Attributes:
        name: Of the file, and in the tables.
        m: Latent dimension.
        width: Of the hidden layers, or channels of the first image of transposed convolutions.
        side: Images are enlarged to this many pixels per side.
        epochs: Of training.
        convolutional: Whether the decoder enlarges an image of 4 × 4 pixels three times.
        accuracy: Relative accuracy of the curves that others are compared with.
    """

    name: str
    m: int
    width: int
    side: int
    epochs: int
    convolutional: bool = False
    accuracy: float = 1e-9

    @property
    def path(self) -> Path:
        """Where the decoder and the pairs are kept."""
        return FOLDER / f"{self.name}.npz"

    def __str__(self) -> str:
        if self.convolutional:
            return f"{self.m} → 1 × {self.side} × {self.side}, transposed convolutions, SiLU"
        return f"MLP {self.m} → {self.width} → {self.width} → {self.side**2}, SiLU"


PROBLEMS = {
    p.name: p
    for p in (
        Problem("digits-8", m=8, width=256, side=8, epochs=200),
        Problem("digits-32", m=32, width=512, side=28, epochs=40),
        Problem("digits-2", m=2, width=128, side=8, epochs=400),
        # Newton's method would take minutes to 1e-9 here.
        Problem("convolutions", 64, 64, 32, 10, convolutional=True, accuracy=1e-7),
    )
}


def network(sizes: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with SiLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def prepare(problem: Problem) -> Path:
    """Train the decoder and draw the pairs, unless the file exists already.

    Every run on every machine gives the same numbers. Pairs are codes of random images. The file
    holds ``w0, b0, w1, …`` as float64, ``z0, z1`` of shape ``(p, m)``, and the ``codes`` of all
    images. Weights with four axes are those of transposed convolutions.
    """
    if problem.path.exists() and "codes" in np.load(problem.path).files:
        return problem.path
    images, _ = load_digits()
    if problem.side != 8:
        square = images.view(-1, 1, 8, 8)
        size = (problem.side, problem.side)
        images = (
            nn.functional.interpolate(square, size, mode="bicubic", antialias=True)
            .clamp(0, 1)
            .flatten(1)
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder, encoder = _convolutional(problem) if problem.convolutional else _mlp(problem)
        _train(encoder, decoder, images, problem)
    with torch.no_grad():
        codes = encoder(images).double()
    chosen = torch.randint(len(codes), (2, PAIRS), generator=torch.Generator().manual_seed(1))
    arrays = {"z0": codes[chosen[0]], "z1": codes[chosen[1]], "codes": codes}
    for i, layer in enumerate(layer for layer in decoder if isinstance(layer, LAYERS)):
        arrays[f"w{i}"], arrays[f"b{i}"] = (
            layer.weight.detach().double(),
            layer.bias.detach().double(),
        )
    FOLDER.mkdir(exist_ok=True)
    np.savez(problem.path, **{name: array.numpy() for name, array in arrays.items()})
    return problem.path


def layers_of(file: Mapping[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and biases of all layers in what :func:`prepare` has written."""
    count = sum(name[0] == "w" for name in file)
    return [(file[f"w{i}"], file[f"b{i}"]) for i in range(count)]


def _mlp(problem: Problem) -> tuple[nn.Sequential, nn.Sequential]:
    hidden = problem.width, problem.width
    encoder = network((problem.side**2, *hidden, problem.m))
    return network((problem.m, *hidden, problem.side**2)), encoder


def _convolutional(problem: Problem) -> tuple[nn.Sequential, nn.Sequential]:
    channels = (problem.width, problem.width // 2, problem.width // 4, 1)
    first = nn.Linear(problem.m, channels[0] * 16)
    layers: list[nn.Module] = [first, nn.SiLU(), nn.Unflatten(1, (channels[0], 4, 4))]
    for a, b in pairwise(channels):
        layers += [nn.ConvTranspose2d(a, b, 4, 2, 1), nn.SiLU()]
    decoder = nn.Sequential(*layers[:-1], nn.Flatten())
    encoder = nn.Sequential(nn.Linear(problem.side**2, 256), nn.SiLU(), nn.Linear(256, problem.m))
    return decoder, encoder


def _train(encoder: nn.Module, decoder: nn.Module, images: Tensor, problem: Problem) -> None:
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-3)
    generator = torch.Generator().manual_seed(0)
    # A small penalty on the codes of an MLP keeps the classes from drifting apart.
    penalty = 0.0 if problem.convolutional else 1e-4
    for _ in range(problem.epochs):
        for batch in torch.randperm(len(images), generator=generator).split(128):
            codes = encoder(images[batch])
            fit = (decoder(codes) - images[batch]).square().mean()
            loss = fit + penalty * codes.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

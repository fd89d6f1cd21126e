"""Networks that the estimators build by default, and a check of networks that they are given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from riemae import storage
from riemae.autoencoders.latents import Flat
from riemae.differential.chain import Scaled, Step, fits, step_of
from riemae.exceptions import DTypeError, OptionError, ShapeError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
}


@storage.register("riemae.Whiten")
class Whiten(nn.Module):
    """``(x − center)/scale``, flattened or not, so that networks get data of a usual size.

    All entries have the same scale, so that shapes and angles of the data space do not change.

    Args:
        shape: Of one sample. Center and scale are 0 and 1 until they are set.
        flatten: Whether to return ``(k, D)``.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, shape: Sequence[int], flatten: bool = True) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(*shape))
        self.register_buffer("scale", torch.ones(()))
        self.flatten = flatten

    def arguments(self) -> dict[str, Any]:
        """What builds a module of the same structure."""
        return {"shape": list(self.center.shape), "flatten": self.flatten}

    def forward(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k, D) or (k, *shape)
        """Normalised data."""
        x = (x - self.center) / self.scale
        return x.flatten(1) if self.flatten else x


@storage.register("riemae.Colour")
class Colour(nn.Module):
    """``center + scale · y``, in the shape of the data: the inverse of :class:`Whiten`.

    Args:
        shape: Of one sample. Center and scale are 0 and 1 until they are set.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(*shape))
        self.register_buffer("scale", torch.ones(()))

    def arguments(self) -> dict[str, Any]:
        """What builds a module of the same structure."""
        return {"shape": list(self.center.shape)}

    def forward(self, y: Tensor) -> Tensor:  # (k, D) -> (k, *shape)
        """Data in their own units."""
        return self.center + self.scale * y.reshape(-1, *self.center.shape)


@step_of(Colour)
def _scaled(layer: Any, z: Tensor, width: int) -> Step | None:
    center = layer.center
    scale = layer.scale
    usual = fits(center, z) and fits(scale, z) and center.numel() == width and not scale.ndim
    return Scaled(center.flatten(), scale) if usual else None


@storage.register("riemae.PointCloudEncoder")
class PointCloudEncoder(nn.Module):
    """Code of a set of points, which does not depend on their order.

    One network acts on every point. A second network acts on the mean and the maximum of its
    outputs over the points.

    Args:
        dim: Dimension of the points.
        outputs: Length of the code.
        hidden: Widths of both networks.
        activation: Name of the activation.
    """

    def __init__(self, dim: int, outputs: int, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        self._arguments = {
            "dim": dim,
            "outputs": outputs,
            "hidden": list(hidden),
            "activation": activation,
        }
        width = hidden[-1] if hidden else dim
        self.points = mlp(dim, hidden[:-1], width, activation)
        self.summary = mlp(2 * width, hidden, outputs, activation)

    def arguments(self) -> dict[str, Any]:
        """What builds a module of the same structure."""
        return dict(self._arguments)

    def forward(self, x: Tensor) -> Tensor:  # (k, points, dim) -> (k, outputs)
        """Codes."""
        y = self.points(x)
        return self.summary(torch.cat([y.mean(1), y.amax(1)], -1))


def mlp(inputs: int, hidden: Sequence[int], outputs: int, activation: str) -> nn.Sequential:
    """Linear layers with an activation between them.

    Raises:
        OptionError: For an unknown activation, or a width below 1.
    """
    if activation not in ACTIVATIONS:
        expected = f"one of {', '.join(ACTIVATIONS)}"
        hint = "Try activation='silu': a surface needs a smooth one to have curvature."
        raise OptionError("activation", expected, repr(activation), hint)
    widths = [inputs, *hidden, outputs]
    if any(not isinstance(w, int) or w < 1 for w in hidden):
        hint = "Try hidden=(128, 128)."
        raise OptionError("hidden", "widths of at least 1", str(tuple(hidden)), hint)
    layers: list[nn.Module] = []
    for a, b in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(a, b), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def build_encoder(
    center: Tensor,
    scale: Tensor,
    outputs: int,
    hidden: Sequence[int],
    activation: str,
    sets: bool = False,
) -> nn.Module:
    """Data ``(k, *shape)`` to codes ``(k, outputs)``; ``sets`` for point clouds."""
    if sets:
        network: nn.Module = PointCloudEncoder(center.shape[-1], outputs, hidden, activation)
    else:
        network = mlp(math.prod(center.shape), hidden, outputs, activation)
    whiten = Whiten(center.shape, flatten=not sets)
    whiten.center, whiten.scale = center.detach().clone(), scale.detach().clone()
    return nn.Sequential(whiten, network)


def build_decoder(
    center: Tensor,
    scale: Tensor,
    inputs: int,
    hidden: Sequence[int],
    activation: str,
    first: nn.Module | None = None,
) -> nn.Module:
    """Codes to parameters ``(k, *shape)`` around ``center``; ``first`` makes the inputs of them."""
    colour = Colour(center.shape)
    colour.center, colour.scale = center.detach().clone(), scale.detach().clone()
    network = mlp(inputs, hidden, math.prod(center.shape), activation)
    return nn.Sequential(*([] if first is None else [first]), network, colour)


def fit_codes(
    encoder: nn.Module,
    x: Tensor,
    codes: Tensor,
    steps: int = 1000,
    lr: float = 1e-2,
    enough: float = 1e-3,
) -> float:
    """Train an encoder to given codes by least squares, in place, on all data at once.

    Returns the fraction of the codes' variance left unexplained.

    Args:
        encoder: ``(n, *shape) -> (n, m)``.
        x: Data.
        codes: ``(n, m)``.
        steps: The largest number of steps of Adam, over which the learning rate falls to 0.
        lr: Learning rate at the start.
        enough: Unexplained fraction at which training ends.
    """
    variance = (codes - codes.mean(0)).square().mean()
    parameters = [p.requires_grad_() for p in encoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    left = float("inf")
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (encoder(x) - codes).square().mean() / variance
        left = loss.item()
        if left <= enough:
            break
        loss.backward()
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    return left


@torch.no_grad()
def latent_dim_of(
    encoder: nn.Module,
    decoder: nn.Module,
    data: Tensor,
    variational: bool,
    expected: int | None,
    shape: torch.Size,
    space: Flat,
    condition: Tensor | None = None,
) -> int:
    """The number of codes that encoder and decoder agree on, from a pass of two samples.

    Args:
        encoder: ``(k, *shape) -> (k, m)``; ``(k, 2m)`` for a variational autoencoder.
        decoder: ``(k, m) -> (k, *shape)``, the parameters of the likelihood.
        data: Samples ``(n, *shape)``.
        variational: Whether the encoder returns means and log variances.
        expected: The number asked for, or None.
        shape: Of the parameters of one sample.
        space: The latent space, which says what the encoder's numbers mean.
        condition: What the decoder gets besides the codes, of these samples, or None.

    Raises:
        DTypeError: When a network has another dtype than the data.
        ShapeError: When a network does not fit the data, or the other network.
    """
    where = "autoencoder"
    training = [(part, part.training) for part in (encoder, decoder)]
    try:
        for part, _ in training:
            part.eval()
        code = _attempted("encoder", encoder, data[:2])
        got = f"output {tuple(code.shape)}"
        if code.ndim != 2 or len(code) != len(data[:2]):
            hint = "It returns one row of codes per sample: add nn.Flatten() at its end."
            raise ShapeError(where, "an encoder (k, *shape) -> (k, m)", got, hint)
        m = space.dimension(code.shape[1], variational)
        if m is None:
            hint = "A variational encoder returns means, followed by as many log variances."
            outputs = "(k, 2m)"
            if space.name is not None:
                outputs = f"(k, o) for latent={space.name!r}"
                hint = "See riemae.autoencoders.latents for what it returns."
            raise ShapeError(where, f"an encoder (k, *shape) -> {outputs}", got, hint)
        if expected not in (None, m):
            hint = "Set latent_dim to what the encoder returns."
            raise ShapeError(
                where, f"an encoder to latent_dim={expected} numbers", f"one to {m}", hint
            )
        more = () if condition is None else (condition[:2],)
        x = _attempted("decoder", decoder, space.mean(code, variational), *more)
    finally:
        for part, mode in training:
            part.train(mode)
    if x.shape != (len(data[:2]), *shape):
        got = f"output {tuple(x.shape)} for data {tuple(data[:2].shape)}"
        expectation = "a decoder that returns the shape of the data"
        if shape != data.shape[1:]:
            expectation = f"a decoder that returns parameters (k, {', '.join(map(str, shape))})"
        raise ShapeError(where, expectation, got, "Reshape its last layer.")
    return m


def _attempted(name: str, network: nn.Module, x: Tensor, *more: Tensor) -> Tensor:
    own = next((p for p in network.parameters() if p.is_floating_point()), x)
    if own.dtype != x.dtype:
        expected, hint = f"an {name} of the data's dtype {x.dtype}", f"Try {name}.to({x.dtype})."
        raise DTypeError("autoencoder", expected, str(own.dtype), hint)
    try:
        return network(x, *more)
    except RuntimeError as reason:
        shapes = " and ".join(str(tuple(part.shape)) for part in (x, *more))
        expected = f"a {name} for inputs of shape {shapes}"
        hint = "Does its first layer have as many inputs?"
        raise ShapeError("autoencoder", expected, str(reason).splitlines()[0], hint) from reason

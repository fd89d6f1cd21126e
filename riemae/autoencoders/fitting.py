"""What ``fit`` needs: networks and loss, batches, and the settings of the run on lightning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from riemae.autoencoders.batches import Batches, Fixed, Neighbors, derived_seed
from riemae.autoencoders.covariates import ConditionalDecoder
from riemae.autoencoders.inputs import samples
from riemae.autoencoders.latents import latent_of
from riemae.autoencoders.likelihoods import Chamfer, Likelihood, as_likelihood
from riemae.autoencoders.networks import build_decoder, build_encoder
from riemae.autoencoders.objective import Objective
from riemae.autoencoders.settings import Settings, device_of, fingerprint, widths_of
from riemae.autoencoders.training import Run
from riemae.exceptions import DataError, OptionError
from riemae.numerics.checks import expect_weights
from riemae.numerics.random import restored
from riemae.numerics.reach import copied

_LOOKED_AT = 2000  # samples for a report
_NEIGHBORS = 10  # in the graph for terms that ask for a neighbour


def new_objective(
    settings: Settings, data: Tensor, condition: Tensor | None = None
) -> Objective:  # (n, *shape), (n, c)
    """Untrained networks with their loss, in the units of the data.

    Args:
        settings: Of the autoencoder.
        data: What the networks are trained on, or a sample of it.
        condition: What the decoder gets besides the codes, or None.

    Raises:
        DataError: For fewer than 2 samples.
        OptionError: When the latent space has more dimensions than the data.
    """
    where = type(settings).__name__
    size = math.prod(data.shape[1:])
    if len(data) < 2:
        hint = "One sample has no shape to learn."
        raise DataError(where, "at least 2 samples", f"n_samples = {len(data)}", hint)
    if settings.latent_dim > size:
        raise OptionError(
            where,
            "latent_dim of at most the number of features",
            f"latent_dim = {settings.latent_dim} with n_features = {size}",
            f"A decoder cannot unfold more numbers than the data have: try latent_dim={size}.",
        )
    likelihood = as_likelihood(settings.likelihood).fitted(data)
    width = 0 if condition is None else condition.shape[1]
    encoder, decoder = _networks(settings, likelihood, data, width)
    terms = {**settings.own_terms(), **(settings.terms or {})}
    objective = Objective(
        encoder,
        decoder,
        data,
        likelihood,
        settings.ambient,
        terms,
        settings.variation(),
        settings.latent_dim,
        settings.latent,
        condition,
    )
    return objective.to(data.device)


def _networks(
    settings: Settings, likelihood: Likelihood, data: Tensor, conditions: int
) -> tuple[nn.Module, nn.Module]:
    """Copies of the caller's networks, or new ones, whose weights depend on the seed."""
    variational = settings.variation().beta is not None
    m = settings.latent_dim
    space = latent_of(settings.latent)
    outputs = space.outputs(m, variational)
    center = data.mean(0)
    spread = data.flatten(1).var(0, correction=0).mean().sqrt()
    sets = isinstance(likelihood, Chamfer)
    if sets:
        center = likelihood.null(data)
    with restored():
        torch.manual_seed(derived_seed(settings.seed, 3))
        encoder = copied(settings.encoder)
        decoder = copied(settings.decoder)
        if encoder is None:
            widths = widths_of(settings)
            encoder = build_encoder(center, spread, outputs, widths, settings.activation, sets=sets)
            encoder = encoder.to(data)
        if decoder is None:
            scale = spread if likelihood.linear else torch.ones_like(spread)
            null = likelihood.null(data)
            widths = widths_of(settings)[::-1]
            first = space.features()
            if conditions:
                decoder = ConditionalDecoder(
                    null.shape, space.width(m), conditions, widths, settings.activation, space.name
                )
                decoder.colour.center = null.detach().clone()
                decoder.colour.scale = scale.detach().clone()
            else:
                decoder = build_decoder(
                    null, scale, space.width(m), widths, settings.activation, first
                )
            decoder = decoder.to(data)
    return encoder, decoder


def split(
    settings: Settings,
    objective: Objective,
    data: Tensor,
    weights: Tensor | None,
    condition: Tensor | None = None,
) -> tuple[Batches, Fixed | None]:
    """Batches to train on, and batches of the samples that are kept out of training, if any.

    Args:
        settings: Of the autoencoder.
        objective: Says what its terms need of a batch.
        data: All samples.
        weights: Of the samples ``(n,)``, or None.
        condition: What the decoder gets besides the codes ``(n, c)``, or None.
    """
    more = (weights, condition)
    seed = derived_seed(settings.seed, 4)
    rows = torch.arange(len(data), device=data.device)
    held = round(settings.validation_fraction * len(data))
    if not held:
        return _batches(settings, objective, data, rows, more, settings.batch_size), None
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data), generator=generator).to(data.device)
    kept = order[:held]
    rest = order[held:]
    # The samples kept out have a graph of their own, of the same kind.
    validation = Fixed(list(_batches(settings, objective, data, kept, more, held)))
    return _batches(settings, objective, data, rest, more, settings.batch_size), validation


def _batches(
    settings: Settings,
    objective: Objective,
    data: Tensor,
    rows: Tensor,
    columns: tuple[Tensor | None, Tensor | None],
    size: int,
) -> Batches:
    """Batches of some rows of the data, with what the objective asks for."""
    x = data if len(rows) == len(data) else data[rows]
    index = rows if objective.asks_for("index") else None
    weights, condition = (None if column is None else column[rows] for column in columns)
    graph = graph_of(settings, objective, x)
    return Batches(x, size, derived_seed(settings.seed, 4), graph, index, weights, condition)


def graph_of(settings: Settings, objective: Objective, x: Tensor) -> Neighbors | None:
    """The graph from which neighbours are drawn: the variant's own, or one for terms that ask."""
    own = settings.neighbors_of(x)
    if own is not None or not objective.asks_for("neighbor"):
        return own
    from riemae.autoencoders.neighborhood import Neighborhood

    return Neighborhood.nearest(x.cpu(), min(_NEIGHBORS, len(x) - 1))


def validation_of(settings: Settings, objective: Objective, X: Any) -> Any:
    """Batches of data for validation that the caller gives.

    Args:
        settings: Of the autoencoder, whose data have the shape of these.
        objective: Gives dtype and device, and says what its terms need.
        X: The data; a DataLoader is used as it is.

    Raises:
        OptionError: When a part of the training data is kept for validation as well, or the decoder
            has conditions, which data alone do not tell.
    """
    if objective.conditions and not isinstance(X, DataLoader):
        expected = "validation_fraction, or a DataLoader of {'x': …, 'condition': …}"
        hint = "Data alone do not tell their conditions."
        raise OptionError(type(settings).__name__, expected, "validation=", hint)
    if settings.validation_fraction:
        raise OptionError(
            type(settings).__name__,
            "validation data, or a share of the training data",
            f"validation= and validation_fraction = {settings.validation_fraction}",
            "Leave one of them out.",
        )
    if isinstance(X, DataLoader):
        return X
    x = samples(settings, X, reset=False).to(objective.null)
    graph = graph_of(settings, objective, x)
    seed = derived_seed(settings.seed, 4)
    return Fixed(list(Batches(x, max(len(x), 1), seed, graph)))


def sample_weights(where: str, weights: Any, data: Tensor) -> Tensor | None:  # (n,) -> (n,)
    """Weights of the samples, divided by their mean.

    Args:
        where: The call that asks, for the error.
        weights: One number of at least 0 for each sample, or None.
        data: The samples.

    Raises:
        DTypeError: For anything but numbers.
        ShapeError: When there are more or fewer weights than samples.
        OptionError: When they are negative, not finite, or all 0.
    """
    if weights is None:
        return None
    return len(data) * expect_weights(where, weights, len(data)).to(data)


def run_of(
    settings: Settings,
    parameters: Mapping[str, Any],
    epochs: int,
    data: Iterable[Tensor],
    fresh: bool,
) -> Run:
    """The settings of a run on lightning.

    Args:
        settings: Of the autoencoder.
        parameters: All constructor arguments by name.
        epochs: Passes over the data.
        data: What the networks are trained and judged on, as far as it does not come from loaders.
        fresh: Whether training starts from new weights; only then there are checkpoints.
    """
    device = device_of(settings)
    # The networks have the dtype of the data, which lightning leaves unchanged under "32-true".
    full = (None, "32-true", "64-true")
    precision = "32-true" if settings.precision in full else settings.precision
    identity = ""
    if settings.directory is not None:
        identity = fingerprint(settings, parameters.items(), data)
    return Run(
        epochs=epochs,
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=1 if device.index is None else [device.index],
        precision=precision,
        patience=settings.early_stopping,
        progress=settings.progress,
        logger=settings.logger,
        directory=settings.directory,
        checkpoints=fresh,
        checkpoint_every=settings.checkpoint_every,
        restore_best=settings.restore_best,
        fingerprint=identity,
        trainer=settings.trainer or {},
    )


def sample_of(
    data: Tensor, seed: int, condition: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """At most 2,000 rows for a report, as copies, because the caller may change the data."""
    rows = torch.arange(len(data))
    if len(data) > _LOOKED_AT:
        generator = torch.Generator().manual_seed(derived_seed(seed, 6))
        rows = torch.randperm(len(data), generator=generator)[:_LOOKED_AT]
    rows = rows.to(data.device)
    return data[rows], None if condition is None else condition[rows]

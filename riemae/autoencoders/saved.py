"""Fitted estimators saved as tensors and plain values, and read back."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from riemae import storage
from riemae.autoencoders.card import card
from riemae.autoencoders.covariates import Covariates
from riemae.autoencoders.history import History
from riemae.autoencoders.latents import latent_of
from riemae.autoencoders.likelihoods import Likelihood, as_likelihood
from riemae.autoencoders.metadata import DESCRIBED, LEAST_NUMBERS, PARTS, SAMPLES, check_metadata
from riemae.autoencoders.objective import Objective
from riemae.autoencoders.plain import (
    UNKNOWN,
    WRITES,
    plain,
    plain_ambient,
    plain_likelihood,
    plain_terms,
    read_ambient,
    read_likelihood,
    read_settings,
)
from riemae.autoencoders.report import Report
from riemae.exceptions import CheckpointError, RiemaeError
from riemae.numerics.reach import copied

LAYOUT = 1  # version of the metadata; riemae.storage has another one for the files
_TIMES = 4096  # numbers that a layer of a decoder may return, relative to those in the file


def save(model: Any, directory: str | os.PathLike[str]) -> Path:
    """Write a fitted estimator; see :meth:`riemae.autoencoders.AE.save`."""
    objective = model.objective_
    settings = model.get_params(deep=False)
    tensors = {f"objective.{name}": value for name, value in objective.state_dict().items()}
    own: dict[str, Any] = {}
    for part in PARTS:
        if settings[part] is not None:
            own[part] = storage.describe(settings[part]) or UNKNOWN
            # A new fit starts from these weights.
            state = settings[part].state_dict()
            tensors |= {f"{part}.{name}": value for name, value in state.items()}
    metadata = {
        "kind": "autoencoder",
        "layout": LAYOUT,
        "class": type(model).__name__,
        **_described_settings(settings),
        "own": own,
        "networks": {part: storage.describe(getattr(objective, part)) or UNKNOWN for part in PARTS},
        "ambient": "fisher" if objective.fisher else plain_ambient(objective.ambient),
        "likelihood": plain_likelihood(objective.likelihood),
        "latent_dim": objective.latent_dim,
        "dtype": str(objective.null.dtype).removeprefix("torch."),
        **_described_data(model),
    }
    page = card(model, metadata, model._report)
    return storage.save(directory, tensors, metadata, page)


def _described_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: plain(value) for name, value in settings.items() if name not in DESCRIBED}
    values |= {name: UNKNOWN for name in WRITES if settings[name] is not None}
    likelihood = settings["likelihood"]
    return {
        "settings": {name: value for name, value in values.items() if value is not UNKNOWN},
        "dropped": sorted(name for name, value in values.items() if value is UNKNOWN),
        "likelihood_setting": likelihood if isinstance(likelihood, str) else None,
        "terms": plain_terms(settings["terms"]),
    }


def _described_data(model: Any) -> dict[str, Any]:
    """Shape and names of the data, and the results of the training."""
    # A report needs the data, which are not saved. It is therefore made now, where possible.
    sample = model._sample
    enough = sample is not None and len(sample) >= 4
    found = model.report_ if model._report is not None or enough else None
    names = list(model.feature_names_in_) if hasattr(model, "feature_names_in_") else None
    return {
        "data_shape": list(model.data_shape_),
        "n_features": int(model.n_features_in_),
        "feature_names": names,
        "history": {name: [float(v) for v in values] for name, values in model.history_.items()},
        "restart_losses": getattr(model, "restart_losses_", None),
        "conditions": None if model.conditions_ is None else model.conditions_.described(),
        "report": None if found is None else dataclasses.asdict(found),
    }


def read(
    directory: str | os.PathLike[str],
    device: torch.device | str,
    given: Mapping[str, Any],
    kinds: Mapping[str, type],
) -> Any:
    """The estimator that :func:`save` left: see :func:`riemae.load`.

    Args:
        directory: Where it was saved.
        device: On which it is put.
        given: Arguments that a checkpoint cannot hold.
        kinds: The classes that are allowed, by name.

    Raises:
        CheckpointError: As in :func:`riemae.load`.
    """
    device = storage.present("riemae.load", device)
    tensors, metadata = storage.load(directory, device)
    if metadata.get("kind") != "autoencoder":
        hint = "Tensors of other checkpoints are read by riemae.storage.load."
        raise CheckpointError(
            "riemae.load", "a checkpoint of an autoencoder", repr(metadata.get("kind")), hint
        )
    return restored(tensors, metadata, device, given, kinds)


def restored(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    device: torch.device,
    given: Mapping[str, Any],
    kinds: Mapping[str, type],
) -> Any:
    """The estimator in a checkpoint, an instance of one of ``kinds``.

    Args:
        tensors: Of the checkpoint, by name.
        metadata: Of the checkpoint.
        device: On which the estimator is put.
        given: Arguments that a checkpoint cannot hold.
        kinds: The classes that are allowed, by name.

    Raises:
        CheckpointError: When the content is not such an estimator, is incomplete, or contradicts
            itself.
    """
    where = "riemae.load"
    if metadata.get("layout") != LAYOUT:
        hint = "It was written by another version of riemae: update this one."
        raise CheckpointError(
            where, f"an autoencoder in layout {LAYOUT}", repr(metadata.get("layout")), hint
        )
    unknown = sorted(set(given) - set(DESCRIBED))
    if unknown:
        hint = "All other settings come from the checkpoint; set_params changes them."
        raise CheckpointError(
            where, f"arguments among {', '.join(DESCRIBED)}", ", ".join(unknown), hint
        )
    check_metadata(metadata, tensors)
    kind = _class(metadata["class"], kinds)
    _check_given(metadata, given)
    try:
        model = kind(**read_settings(metadata, given))
        model.device = str(device)
        model.conditions_ = Covariates.read(metadata.get("conditions"))
        model.objective_ = _objective(model, tensors, metadata, given, device)
        model.objective_.compile_steps(model.compile)
        _set_own(model, tensors, metadata, given)
        model.data_shape_ = tuple(metadata["data_shape"])
        model.n_features_in_ = metadata["n_features"]
        if metadata["feature_names"] is not None:
            model.feature_names_in_ = np.array(metadata["feature_names"], dtype=object)
        history = metadata["history"].items()
        model.history_ = History((name, list(values)) for name, values in history)
        model.n_epochs_ = len(model.history_.get("loss", []))
        if metadata["restart_losses"] is not None:
            model.restart_losses_ = metadata["restart_losses"]
        model._sample = None
        model._sample_condition = None
        model._report = _report(metadata["report"])
    except CheckpointError:
        raise
    except (
        RiemaeError,
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
        AttributeError,
        ArithmeticError,
    ) as reason:
        hint = "The file is damaged or incomplete: save the model again."
        if given:
            hint = "Do the arguments given to load belong to this model?"
        expected = f"a complete {metadata['class']} that fits together"
        got = f"{type(reason).__name__}: {str(reason).splitlines()[0] if str(reason) else ''}"
        raise CheckpointError(where, expected, got, hint) from reason
    return model


def _class(name: str, kinds: Mapping[str, type]) -> Any:
    if name in kinds:
        return kinds[name]
    known = ", ".join(kinds)
    if len(kinds) == 1:
        hint = f"Load it by riemae.load, or by {name}.load."
        raise CheckpointError("riemae.load", f"a checkpoint of {known}", f"one of {name}", hint)
    hint = f"A class of your own is loaded by its own method: {name}.load(directory)."
    raise CheckpointError("riemae.load", f"one of {known}", repr(name), hint)


def _check_given(metadata: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse to load when arguments without a description are not given, and name all of them.

    Raises:
        CheckpointError: When some are missing.
    """
    missing = [part for part in PARTS if metadata["networks"][part] == UNKNOWN]
    missing += [name for name in ("ambient", "likelihood", "terms") if metadata[name] == UNKNOWN]
    missing = [name for name in missing if given.get(name) is None]
    if missing:
        raise CheckpointError(
            "riemae.load",
            f"the arguments {', '.join(f'{name}=' for name in missing)}",
            "none",
            "The file cannot describe them: pass the arguments of the training. Networks need only "
            "the same structure; their class can be registered by riemae.storage.register instead.",
        )


def _objective(
    model: Any,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    given: Mapping[str, Any],
    device: torch.device,
) -> Objective:
    """An objective built with stand-ins for the data, and then filled with the saved tensors."""
    dtype = getattr(torch, metadata["dtype"])
    state = _within(tensors, "objective")
    if given.get("decoder") is None:
        _check_decoder(metadata, sum(x.numel() for x in tensors.values()))
    networks = {part: _network(part, metadata, given, state).to(device, dtype) for part in PARTS}
    metric = given.get("ambient")
    if metric is None:
        metric = read_ambient(metadata, tensors)
    likelihood = read_likelihood(metadata) or as_likelihood(given["likelihood"])
    foreign = metadata["ambient"] == UNKNOWN
    if foreign:
        state = {name: value for name, value in state.items() if not name.startswith("ambient.")}
    for part in PARTS:
        networks[part].load_state_dict(_within(state, part), assign=part not in given)
    like = torch.zeros(SAMPLES, metadata["latent_dim"], dtype=dtype, device=device)
    objective = Objective(
        networks["encoder"],
        networks["decoder"],
        _stand_ins(networks["decoder"], likelihood, metadata, dtype, device, model),
        likelihood,
        metric,
        {**model.own_terms(), **(model.terms or {})},
        model.variation(),
        metadata["latent_dim"],
        model.latent,
        _condition(model, like),
        prepare=False,
    )
    if foreign and objective.ambient is not None:
        own = objective.ambient.state_dict()
        state |= {f"ambient.{name}": value for name, value in own.items()}
    objective.load_state_dict(state, assign=not given)
    objective.to(device).eval().requires_grad_(False)
    return objective


def _stand_ins(
    decoder: nn.Module,
    likelihood: Likelihood,
    metadata: Mapping[str, Any],
    dtype: torch.dtype,
    device: torch.device,
    model: Any,
) -> Tensor:
    """Data that the likelihood and the metric allow: decoded codes.

    An objective needs data that vary. If the decoder is constant, the means of random parameters
    are returned.

    Raises:
        CheckpointError: When the decoder returns data of another shape.
    """
    generator = torch.Generator().manual_seed(0)
    like = torch.zeros(SAMPLES, metadata["latent_dim"], dtype=dtype, device=device)
    z = latent_of(model.latent).sample(like, generator)
    given = _condition(model, like)
    with torch.no_grad():
        output = decoder.eval()(z) if given is None else decoder.eval()(z, given)
        decoded = likelihood.mean(output)
        if list(decoded.shape[1:]) != metadata["data_shape"]:
            got = f"one of data of shape {tuple(decoded.shape[1:])}"
            expected = f"a decoder of data of shape {tuple(metadata['data_shape'])}"
            hint = "Pass decoder=, a module of the structure that was saved."
            raise CheckpointError("riemae.load", expected, got, hint)
        varied = bool((decoded - decoded[0]).abs().max() > 1e-3 * decoded.abs().max())
        if varied:
            return decoded
        anything = torch.randn(output.shape, generator=generator, dtype=dtype).to(device)
        return likelihood.mean(anything)


def _condition(model: Any, like: Tensor) -> Tensor | None:
    """Conditions that stand in for those of the data; None for a decoder of codes alone."""
    if model.conditions_ is None:
        return None
    width = model.conditions_.width
    return torch.eye(width).to(like)[torch.arange(len(like)) % width]


def _network(
    part: str, metadata: Mapping[str, Any], given: Mapping[str, Any], state: Mapping[str, Tensor]
) -> nn.Module:
    if given.get(part) is not None:
        return copied(given[part])
    return storage.build(metadata["networks"][part], _within(state, part))


def _within(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors of one part, by their names in that part."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _check_decoder(metadata: Mapping[str, Any], numbers: int) -> None:
    """Run the decoder on the meta device, without values, to see the sizes of its layers.

    The sizes come from the file. A small file must not make a decoder that needs much memory.

    Raises:
        CheckpointError: When a layer returns far more numbers than the file holds.
    """
    decoder = storage.outline(metadata["networks"]["decoder"])
    if decoder is None:
        return
    allowed = max(LEAST_NUMBERS, _TIMES * numbers)

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.numel() > allowed:
            expected = f"layers that make at most {allowed} numbers of {SAMPLES} codes"
            hint = "If you trust the file, pass decoder=, a module of the same structure."
            got = f"{output.numel()} from {type(module).__name__}"
            raise CheckpointError("riemae.load", expected, got, hint)

    handles = [layer.register_forward_hook(look) for layer in decoder.modules()]
    try:
        inputs = [torch.empty(SAMPLES, metadata["latent_dim"], device="meta")]
        conditions = Covariates.read(metadata.get("conditions"))
        if conditions is not None:
            inputs.append(torch.empty(SAMPLES, conditions.width, device="meta"))
        decoder.eval()(*inputs)
    except NotImplementedError:  # the result of a layer depends on values
        return
    finally:
        for handle in handles:
            handle.remove()


def _set_own(
    model: Any, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    """Set the constructor arguments that are objects, so that a clone trains as the original."""
    if metadata["ambient"] is not None:
        model.ambient = "fisher" if model.objective_.fisher else model.objective_.ambient
    for part, described in metadata["own"].items():
        own = _within(tensors, part)
        replaced = given.get(part) is not None
        network = copied(given[part]) if replaced else storage.build(described, own)
        network.to(model.objective_.null.device, model.objective_.null.dtype)
        network.load_state_dict(own, assign=part not in given)
        setattr(model, part, network)


def _report(found: Mapping[str, Any] | None) -> Report | None:
    if found is None:
        return None
    tuples = {name: tuple(found[name]) for name in ("spread", "sentences")}
    return Report(**{**found, **tuples})

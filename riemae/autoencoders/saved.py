"""Estimators as tensors and plain values, and back."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from riemae import ambient as ambients
from riemae import storage
from riemae.ambient import AmbientMetric
from riemae.autoencoders.likelihoods import LIKELIHOODS, Likelihood, as_likelihood
from riemae.autoencoders.objective import Objective, Term
from riemae.autoencoders.report import Report
from riemae.exceptions import CheckpointError, RiemaeError
from riemae.numerics.reach import copied

LAYOUT = 1  # of the metadata; riemae.storage has a version of its own for the files
_PARTS = ("encoder", "decoder")
# What decides where a fit writes: a file from elsewhere has no say in that.
_WRITES = ("directory", "logger", "trainer")
# Arguments with a description of their own, that must be given at load where they have none.
_DESCRIBED = (*_PARTS, "ambient", "likelihood", "terms")
_UNKNOWN = "not described"
_SAMPLES = 16  # stand-ins for the data
# Numbers that a decoder may make of the stand-ins between its layers: so many, or so many times
# those in the file.
_LEAST_NUMBERS, _TIMES = 2**26, 4096


def save(model: Any, directory: str | os.PathLike[str]) -> Path:
    """Write a fitted estimator; see :meth:`riemae.autoencoders.AE.save`."""
    objective = model.objective_
    settings = model.get_params(deep=False)
    plain = {name: _plain(value) for name, value in settings.items() if name not in _DESCRIBED}
    plain |= {name: _UNKNOWN for name in _WRITES if settings[name] is not None}
    tensors = {f"objective.{name}": value for name, value in objective.state_dict().items()}
    own: dict[str, Any] = {}
    for part in _PARTS:
        if settings[part] is not None:
            own[part] = storage.describe(settings[part]) or _UNKNOWN
            # What a new fit starts from.
            tensors |= {
                f"{part}.{name}": value for name, value in settings[part].state_dict().items()
            }
    # A report needs the data, which stay here.
    sample = model._sample
    found = (
        model.report_
        if model._report is not None or (sample is not None and len(sample) >= 4)
        else None
    )
    metadata = {
        "kind": "autoencoder",
        "layout": LAYOUT,
        "class": type(model).__name__,
        "settings": {name: value for name, value in plain.items() if value is not _UNKNOWN},
        "dropped": sorted(name for name, value in plain.items() if value is _UNKNOWN),
        "own": own,
        "networks": {
            part: storage.describe(getattr(objective, part)) or _UNKNOWN for part in _PARTS
        },
        "ambient": "fisher" if objective.fisher else _ambient(objective.ambient),
        "likelihood": _likelihood(objective.likelihood),
        "likelihood_setting": settings["likelihood"]
        if isinstance(settings["likelihood"], str)
        else None,
        "terms": _terms(settings["terms"]),
        "latent_dim": objective.latent_dim,
        "dtype": str(objective.null.dtype).removeprefix("torch."),
        "data_shape": list(model.data_shape_),
        "n_features": int(model.n_features_in_),
        "feature_names": list(model.feature_names_in_)
        if hasattr(model, "feature_names_in_")
        else None,
        "history": {name: [float(v) for v in values] for name, values in model.history_.items()},
        "restart_losses": getattr(model, "restart_losses_", None),
        "report": None if found is None else dataclasses.asdict(found),
    }
    return storage.save(directory, tensors, metadata)


def read(
    directory: str | os.PathLike[str],
    device: torch.device | str,
    given: Mapping[str, Any],
    kinds: Mapping[str, type],
) -> Any:
    """The estimator that :func:`save` left: see :func:`riemae.load`.

    Args:
        directory: Where.
        device: Where it goes.
        given: What a checkpoint cannot hold.
        kinds: Classes that it may be of, by name.

    Raises:
        CheckpointError: As :func:`riemae.load`.
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
    """The estimator of a checkpoint, of one of ``kinds``.

    Raises:
        CheckpointError: When its content is no such estimator, or something is missing or does not
            fit.
    """
    where = "riemae.load"
    if metadata.get("layout") != LAYOUT:
        hint = "It was written by another version of riemae: update this one."
        raise CheckpointError(
            where, f"an autoencoder in layout {LAYOUT}", repr(metadata.get("layout")), hint
        )
    unknown = sorted(set(given) - set(_DESCRIBED))
    if unknown:
        hint = "All other settings come from the checkpoint; set_params changes them."
        raise CheckpointError(
            where, f"arguments among {', '.join(_DESCRIBED)}", ", ".join(unknown), hint
        )
    _check_metadata(metadata, tensors)
    kind = _class(metadata["class"], kinds)
    _check_given(metadata, given)
    try:
        model = kind(**_settings(metadata, given))
        model.device = str(device)
        model.objective_ = _objective(model, tensors, metadata, given, device)
        _set_own(model, tensors, metadata, given)
        model.data_shape_ = tuple(metadata["data_shape"])
        model.n_features_in_ = metadata["n_features"]
        if metadata["feature_names"] is not None:
            model.feature_names_in_ = np.array(metadata["feature_names"], dtype=object)
        model.history_ = {name: list(values) for name, values in metadata["history"].items()}
        model.n_epochs_ = len(model.history_.get("loss", []))
        if metadata["restart_losses"] is not None:
            model.restart_losses_ = metadata["restart_losses"]
        model._sample, model._report = None, _report(metadata["report"])
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
        hint = "Do the arguments given to load belong to this model?" if given else ""
        got = f"{type(reason).__name__}: {str(reason).splitlines()[0] if str(reason) else ''}"
        raise CheckpointError(
            where, f"a complete {metadata['class']} that fits together", got, hint
        ) from reason
    return model


# Writing.


def _plain(value: Any) -> Any:
    """A setting as JSON holds it, or ``_UNKNOWN``: how a run was watched or started does not belong
    to the model.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (list, tuple)):
        inner = [_plain(v) for v in value]
        return _UNKNOWN if any(v is _UNKNOWN for v in inner) else inner
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        entries = {k: _plain(v) for k, v in value.items()}
        return _UNKNOWN if any(v is _UNKNOWN for v in entries.values()) else entries
    return _UNKNOWN


def _ambient(metric: AmbientMetric | None) -> Any:
    """Name and arguments of a metric; its tensors travel with the objective's."""
    if metric is None:
        return None
    name = type(metric).__name__
    if type(metric) in (ambients.Euclidean, ambients.Diagonal, ambients.Constant):
        return {"name": name}
    if type(metric) is ambients.InfoRiemannian:
        keys = ("bandwidth", "evaluate", "draws", "neighbors", "seed")
        return {"name": name, "arguments": {key: getattr(metric, key) for key in keys}}
    return _UNKNOWN


def _likelihood(likelihood: Likelihood) -> Any:
    known = {cls.__name__: cls for cls in LIKELIHOODS.values()}
    if known.get(type(likelihood).__name__) is not type(likelihood):
        return _UNKNOWN
    return {"name": type(likelihood).__name__, "arguments": dataclasses.asdict(likelihood)}


def _terms(terms: Mapping[str, float | Term] | None) -> Any:
    if terms is None:
        return None
    described: dict[str, Any] = {}
    for name, term in terms.items():
        if not isinstance(term, Term):
            described[name] = float(term)
            continue
        options = _plain(term.options)
        if term.loss is not None or options is _UNKNOWN:
            return _UNKNOWN
        described[name] = {"weight": float(term.weight), "options": options, "power": term.power}
    return described


# Reading.


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
    """Ask for everything at once that has no description.

    Raises:
        CheckpointError: When something is missing.
    """
    missing = [part for part in _PARTS if metadata["networks"][part] == _UNKNOWN]
    missing += [name for name in ("ambient", "likelihood", "terms") if metadata[name] == _UNKNOWN]
    missing = [name for name in missing if given.get(name) is None]
    if missing:
        raise CheckpointError(
            "riemae.load",
            f"the arguments {', '.join(f'{name}=' for name in missing)}",
            "none",
            "They are not made of plain values: pass ambient= (and the like) as in training; of networks the "
            "structure is enough, or register their class with riemae.storage.register before saving.",
        )


def _check_metadata(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Look at everything before anything is made of it.

    Raises:
        CheckpointError: For the first entry that cannot be.
    """
    for name, (known, expected) in _ENTRIES.items():
        if name not in metadata or not known(metadata[name]):
            got = repr(metadata[name])[:100] if name in metadata else "nothing"
            raise CheckpointError("riemae.load", f"metadata with {name} as {expected}", got, "")
    names, size = metadata["feature_names"], metadata["n_features"]
    if names is not None and len(names) != size:
        raise CheckpointError("riemae.load", f"{size} names of features", str(len(names)), "")
    most = max(_LEAST_NUMBERS // _SAMPLES, sum(x.numel() for x in tensors.values()))
    if metadata["latent_dim"] > most:
        raise CheckpointError(
            "riemae.load", f"at most {most} latent dimensions", str(metadata["latent_dim"]), ""
        )
    for name, value in tensors.items():
        network = name.removeprefix("objective.").split(".")[0] in _PARTS
        if network and value.is_floating_point() and not bool(value.isfinite().all()):
            hint = "The model was damaged before it was saved: train it anew."
            raise CheckpointError(
                "riemae.load", "finite weights", f"NaN or infinity in {name}", hint
            )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _are(known: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(known, value))


def _or_none(known: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or known(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_described(value: Any) -> bool:
    return value is None or isinstance(value, (str, dict))


def _are_terms(value: Any) -> bool:
    if not isinstance(value, dict):
        return value is None or value == _UNKNOWN
    return all(
        _is_number(t) or (isinstance(t, dict) and set(t) <= {"weight", "options", "power"})
        for t in value.values()
    )


def _are_networks(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == set(_PARTS)


def _are_own(value: Any) -> bool:
    return isinstance(value, dict) and set(value) <= set(_PARTS)


def _are_settings(value: Any) -> bool:
    return isinstance(value, dict) and not set(value) & set(_DESCRIBED)


def _is_history(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_are(_is_number), value.values()))


_ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "class": (_is_text, "the name of a class"),
    "settings": (_are_settings, "plain values by name"),
    "own": (_are_own, "descriptions of networks"),
    "networks": (_are_networks, "descriptions of encoder and decoder"),
    "ambient": (_is_described, "a description, or nothing"),
    "likelihood": (_is_described, "a description"),
    "likelihood_setting": (_or_none(_is_text), "a name, or nothing"),
    "terms": (_are_terms, "weights, options and powers by name, or nothing"),
    "latent_dim": (_is_count, "a number of dimensions"),
    "dtype": (("float32", "float64").__contains__, "float32 or float64"),
    "data_shape": (_are(_is_count), "a list of lengths"),
    "n_features": (_is_count, "a number of features"),
    "feature_names": (_or_none(_are(_is_text)), "a list of names, or nothing"),
    "history": (_is_history, "lists of numbers by name"),
    "restart_losses": (_or_none(_are(_is_number)), "a list of numbers, or nothing"),
    "report": (_or_none(_is_mapping), "values by name, or nothing"),
}


def _settings(metadata: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    settings = {name: value for name, value in metadata["settings"].items() if name not in _WRITES}
    if isinstance(settings.get("hidden"), list):
        settings["hidden"] = tuple(settings["hidden"])
    settings["terms"] = given.get("terms", _read_terms(metadata["terms"]))
    settings["likelihood"] = given.get(
        "likelihood", metadata["likelihood_setting"] or _read_likelihood(metadata)
    )
    return settings


def _read_terms(described: Any) -> dict[str, float | Term] | None:
    if not isinstance(described, Mapping):
        return None
    return {
        name: Term(**term) if isinstance(term, Mapping) else term
        for name, term in described.items()
    }


def _read_likelihood(metadata: Mapping[str, Any]) -> Likelihood | None:
    described = metadata["likelihood"]
    if described == _UNKNOWN:
        return None
    known = {cls.__name__: cls for cls in LIKELIHOODS.values()}
    return known[described["name"]](**described["arguments"])


def _read_ambient(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    described = metadata["ambient"]
    if described is None or described == "fisher":
        return described
    name, arguments = described["name"], described.get("arguments", {})
    if name == "Diagonal":
        return ambients.Diagonal(torch.ones_like(tensors["objective.ambient.weights"]))
    if name == "Constant":
        like = tensors["objective.ambient.cholesky"]
        if like.ndim != 2 or len(like) != like.shape[1]:
            raise CheckpointError(
                "riemae.load", "a square matrix of the ambient metric", str(tuple(like.shape)), ""
            )
        return ambients.Constant(torch.eye(len(like), dtype=like.dtype, device=like.device))
    return {"Euclidean": ambients.Euclidean, "InfoRiemannian": ambients.InfoRiemannian}[name](
        **arguments
    )


def _objective(
    model: Any,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    given: Mapping[str, Any],
    device: torch.device,
) -> Objective:
    """Built anew around stand-ins for the data, and filled with the saved tensors."""
    dtype = getattr(torch, metadata["dtype"])
    state = {
        name.removeprefix("objective."): x
        for name, x in tensors.items()
        if name.startswith("objective.")
    }
    if given.get("decoder") is None:
        _check_decoder(metadata, sum(x.numel() for x in tensors.values()))
    networks = {part: _network(part, metadata, given, state).to(device, dtype) for part in _PARTS}
    metric = (
        given["ambient"] if given.get("ambient") is not None else _read_ambient(metadata, tensors)
    )
    likelihood = _read_likelihood(metadata) or as_likelihood(given["likelihood"])
    foreign = metadata["ambient"] == _UNKNOWN
    if foreign:
        state = {name: value for name, value in state.items() if not name.startswith("ambient.")}
    for part in _PARTS:
        networks[part].load_state_dict(_within(state, part), assign=part not in given)
    objective = Objective(
        networks["encoder"],
        networks["decoder"],
        _stand_ins(networks["decoder"], likelihood, metadata, dtype, device),
        likelihood,
        metric,
        {**model.own_terms(), **(model.terms or {})},
        model.variation(),
        metadata["latent_dim"],
    )
    if foreign and objective.ambient is not None:
        state |= {
            f"ambient.{name}": value for name, value in objective.ambient.state_dict().items()
        }
    objective.load_state_dict(state, assign=not given)
    objective.to(device).eval().requires_grad_(False)
    return objective


def _stand_ins(
    decoder: nn.Module,
    likelihood: Likelihood,
    metadata: Mapping[str, Any],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Data that the likelihood and the metric allow: decoded codes, or, of a decoder that is
    constant, any.

    Raises:
        CheckpointError: When the decoder makes data of another shape.
    """
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(_SAMPLES, metadata["latent_dim"], generator=generator, dtype=dtype).to(device)
    with torch.no_grad():
        output = decoder.eval()(z)
        decoded = likelihood.mean(output)
        if list(decoded.shape[1:]) != metadata["data_shape"]:
            got = f"one of data of shape {tuple(decoded.shape[1:])}"
            expected = f"a decoder of data of shape {tuple(metadata['data_shape'])}"
            raise CheckpointError("riemae.load", expected, got, "")
        varied = bool((decoded - decoded[0]).abs().max() > 1e-3 * decoded.abs().max())
        if varied:
            return decoded
        return likelihood.mean(
            torch.randn(output.shape, generator=generator, dtype=dtype).to(device)
        )


def _network(
    part: str, metadata: Mapping[str, Any], given: Mapping[str, Any], state: Mapping[str, Tensor]
) -> nn.Module:
    if given.get(part) is not None:
        return copied(given[part])
    return storage.build(metadata["networks"][part], _within(state, part))


def _within(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors of one part, under their names in it."""
    return {
        name.removeprefix(f"{part}."): x
        for name, x in tensors.items()
        if name.startswith(f"{part}.")
    }


def _check_decoder(metadata: Mapping[str, Any], numbers: int) -> None:
    """Run the decoder without values, on the meta device: its sizes must not come from the file
    alone.

    Raises:
        CheckpointError: When it does not take the codes, or makes far more of them than the file
            holds.
    """
    decoder = storage.outline(metadata["networks"]["decoder"])
    if decoder is None:
        return
    allowed = max(_LEAST_NUMBERS, _TIMES * numbers)

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.numel() > allowed:
            expected = f"layers that make at most {allowed} numbers of {_SAMPLES} codes"
            hint = "If you trust the file, pass decoder=, a module of the same structure."
            raise CheckpointError(
                "riemae.load", expected, f"{output.numel()} from {type(module).__name__}", hint
            )

    handles = [layer.register_forward_hook(look) for layer in decoder.modules()]
    try:
        decoder.eval()(torch.empty(_SAMPLES, metadata["latent_dim"], device="meta"))
    except NotImplementedError:  # a layer that has to look at values
        return
    finally:
        for handle in handles:
            handle.remove()


def _set_own(
    model: Any, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    """Constructor arguments that are objects, so that a clone trains as the original would."""
    if metadata["ambient"] is not None:
        model.ambient = "fisher" if model.objective_.fisher else model.objective_.ambient
    for part, described in metadata["own"].items():
        own = _within(tensors, part)
        network = (
            copied(given[part]) if given.get(part) is not None else storage.build(described, own)
        )
        network.to(model.objective_.null.device, model.objective_.null.dtype)
        network.load_state_dict(own, assign=part not in given)
        setattr(model, part, network)


def _report(found: Mapping[str, Any] | None) -> Report | None:
    if found is None:
        return None
    return Report(
        **{**found, "spread": tuple(found["spread"]), "sentences": tuple(found["sentences"])}
    )

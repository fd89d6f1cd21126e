"""Settings, metrics, likelihoods and terms as plain values that JSON can hold, and back."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from riemae import ambient as ambients
from riemae.ambient import AmbientMetric
from riemae.autoencoders.likelihoods import LIKELIHOODS, LearnedDispersion, Likelihood
from riemae.autoencoders.terms import Term
from riemae.exceptions import CheckpointError

UNKNOWN = "not described"
# They decide where a fit writes, so they are never read from a file.
WRITES = ("directory", "logger", "trainer")


def plain(value: Any) -> Any:
    """A setting as JSON holds it, or ``UNKNOWN``.

    Loggers and callbacks have no description: they belong to a run and not to the model.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (list, tuple)):
        inner = [plain(v) for v in value]
        unknown = any(v is UNKNOWN for v in inner)
        return UNKNOWN if unknown else inner
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        entries = {k: plain(v) for k, v in value.items()}
        unknown = any(v is UNKNOWN for v in entries.values())
        return UNKNOWN if unknown else entries
    return UNKNOWN


def plain_ambient(metric: AmbientMetric | None) -> Any:
    """Name and arguments of a metric; its tensors are saved with those of the objective."""
    if metric is None:
        return None
    kind = type(metric)
    if kind in (ambients.Euclidean, ambients.Diagonal, ambients.Constant):
        return {"name": kind.__name__}
    if kind is ambients.InfoRiemannian:
        keys = ("bandwidth", "evaluate", "draws", "neighbors", "seed")
        arguments = {key: getattr(metric, key) for key in keys}
        return {"name": kind.__name__, "arguments": arguments}
    return UNKNOWN


def plain_likelihood(likelihood: Likelihood) -> Any:
    """Name and arguments of a likelihood."""
    if isinstance(likelihood, LearnedDispersion):
        # What was learned is saved with the tensors of the objective.
        likelihood = likelihood.settings
    kind = type(likelihood)
    name = kind.__name__
    # A class of the user's own may have the name of one of ours.
    if _known_likelihoods().get(name) is not kind:
        return UNKNOWN
    settings: Any = likelihood  # a dataclass, as all the known ones are
    return {"name": name, "arguments": dataclasses.asdict(settings)}


def _known_likelihoods() -> dict[str, Any]:
    return {kind.__name__: kind for kind in LIKELIHOODS.values()}


def plain_terms(terms: Mapping[str, float | Term] | None) -> Any:
    """Weights, options and powers of terms by name."""
    if terms is None:
        return None
    described: dict[str, Any] = {}
    for name, term in terms.items():
        if not isinstance(term, Term):
            described[name] = float(term)
            continue
        options = plain(term.options)
        if term.loss is not None or options is UNKNOWN:
            return UNKNOWN
        described[name] = {"weight": float(term.weight), "options": options, "power": term.power}
    return described


def read_settings(metadata: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments: those in a checkpoint, and what is given in addition."""
    saved = metadata["settings"]
    settings = {name: value for name, value in saved.items() if name not in WRITES}
    hidden = settings.get("hidden")
    if isinstance(hidden, list):
        settings["hidden"] = tuple(hidden)
    terms = _read_terms(metadata["terms"])
    settings["terms"] = given.get("terms", terms)
    likelihood = metadata["likelihood_setting"] or read_likelihood(metadata)
    settings["likelihood"] = given.get("likelihood", likelihood)
    return settings


def _read_terms(described: Any) -> dict[str, float | Term] | None:
    if not isinstance(described, Mapping):
        return None
    terms: dict[str, float | Term] = {}
    for name, term in described.items():
        terms[name] = Term(**term) if isinstance(term, Mapping) else term
    return terms


def read_likelihood(metadata: Mapping[str, Any]) -> Likelihood | None:
    """The likelihood of a checkpoint; None where it has no description."""
    described = metadata["likelihood"]
    if described == UNKNOWN:
        return None
    kind = _known_likelihoods()[described["name"]]
    return kind(**described["arguments"])


def read_ambient(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """The ambient metric of a checkpoint, whose own tensors are filled in later.

    Raises:
        CheckpointError: When the matrix of a constant metric is not square.
    """
    described = metadata["ambient"]
    if described is None or described == "fisher":
        return described
    name = described["name"]
    arguments = described.get("arguments", {})
    if name == "Diagonal":
        weights = tensors["objective.ambient.weights"]
        return ambients.Diagonal(torch.ones_like(weights))
    if name == "Constant":
        like = tensors["objective.ambient.cholesky"]
        if like.ndim != 2 or len(like) != like.shape[1]:
            expected = "a square matrix of the ambient metric"
            hint = "Save the model again."
            raise CheckpointError("riemae.load", expected, str(tuple(like.shape)), hint)
        identity = torch.eye(len(like), dtype=like.dtype, device=like.device)
        return ambients.Constant(identity)
    others = {"Euclidean": ambients.Euclidean, "InfoRiemannian": ambients.InfoRiemannian}
    return others[name](**arguments)

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
from riemae.autoencoders.likelihoods import LIKELIHOODS, Likelihood
from riemae.autoencoders.terms import Term
from riemae.exceptions import CheckpointError

UNKNOWN = "not described"
# What decides where a fit writes: a file from elsewhere has no say in that.
WRITES = ("directory", "logger", "trainer")


def plain(value: Any) -> Any:
    """A setting as JSON holds it, or ``UNKNOWN``.

    Loggers and callbacks are unknown: how a run was watched does not belong to the model.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (list, tuple)):
        inner = [plain(v) for v in value]
        return UNKNOWN if any(v is UNKNOWN for v in inner) else inner
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        entries = {k: plain(v) for k, v in value.items()}
        return UNKNOWN if any(v is UNKNOWN for v in entries.values()) else entries
    return UNKNOWN


def plain_ambient(metric: AmbientMetric | None) -> Any:
    """Name and arguments of a metric; its tensors travel with the objective's."""
    if metric is None:
        return None
    name = type(metric).__name__
    if type(metric) in (ambients.Euclidean, ambients.Diagonal, ambients.Constant):
        return {"name": name}
    if type(metric) is ambients.InfoRiemannian:
        keys = ("bandwidth", "evaluate", "draws", "neighbors", "seed")
        return {"name": name, "arguments": {key: getattr(metric, key) for key in keys}}
    return UNKNOWN


def plain_likelihood(likelihood: Likelihood) -> Any:
    """Name and arguments of a likelihood."""
    known = {cls.__name__: cls for cls in LIKELIHOODS.values()}
    if known.get(type(likelihood).__name__) is not type(likelihood):
        return UNKNOWN
    return {"name": type(likelihood).__name__, "arguments": dataclasses.asdict(likelihood)}


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
    settings = {name: value for name, value in metadata["settings"].items() if name not in WRITES}
    if isinstance(settings.get("hidden"), list):
        settings["hidden"] = tuple(settings["hidden"])
    settings["terms"] = given.get("terms", _read_terms(metadata["terms"]))
    likelihood = metadata["likelihood_setting"] or read_likelihood(metadata)
    settings["likelihood"] = given.get("likelihood", likelihood)
    return settings


def _read_terms(described: Any) -> dict[str, float | Term] | None:
    if not isinstance(described, Mapping):
        return None
    return {
        name: Term(**term) if isinstance(term, Mapping) else term
        for name, term in described.items()
    }


def read_likelihood(metadata: Mapping[str, Any]) -> Likelihood | None:
    """The likelihood of a checkpoint; None where it has no description."""
    described = metadata["likelihood"]
    if described == UNKNOWN:
        return None
    known = {cls.__name__: cls for cls in LIKELIHOODS.values()}
    return known[described["name"]](**described["arguments"])


def read_ambient(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """The ambient metric of a checkpoint, whose own tensors are filled in later.

    Raises:
        CheckpointError: When its tensors have a shape that none of this kind has.
    """
    described = metadata["ambient"]
    if described is None or described == "fisher":
        return described
    name, arguments = described["name"], described.get("arguments", {})
    if name == "Diagonal":
        return ambients.Diagonal(torch.ones_like(tensors["objective.ambient.weights"]))
    if name == "Constant":
        like = tensors["objective.ambient.cholesky"]
        if like.ndim != 2 or len(like) != like.shape[1]:
            expected, hint = "a square matrix of the ambient metric", "Save the model again."
            raise CheckpointError("riemae.load", expected, str(tuple(like.shape)), hint)
        return ambients.Constant(torch.eye(len(like), dtype=like.dtype, device=like.device))
    others = {"Euclidean": ambients.Euclidean, "InfoRiemannian": ambients.InfoRiemannian}
    return others[name](**arguments)

"""Checks of a checkpoint's metadata, made before any object is built from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from riemae.autoencoders.plain import UNKNOWN
from riemae.exceptions import CheckpointError

PARTS = ("encoder", "decoder")
_LATER = ("conditions",)  # entries that older checkpoints lack
# Arguments that have an entry of their own. The caller of load gives those that have none.
DESCRIBED = (*PARTS, "ambient", "likelihood", "terms")
SAMPLES = 16  # codes that stand in for the data when a model is loaded
# Numbers that a layer of a decoder may always return for these codes. A large file may have more.
LEAST_NUMBERS = 2**26
_WHERE = "riemae.load"
_DAMAGED = "The file is damaged, or was not written by riemae: save the model again."


def check_metadata(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse metadata from which no model can be built, and weights that are not finite.

    Args:
        metadata: Of the checkpoint.
        tensors: Of the checkpoint, by name.

    Raises:
        CheckpointError: For the first entry that is not allowed.
    """
    for name in _ENTRIES:
        _check_entry(metadata, name)
    names = metadata["feature_names"]
    size = metadata["n_features"]
    if names is not None and len(names) != size:
        raise CheckpointError(_WHERE, f"{size} names of features", str(len(names)), _DAMAGED)
    in_file = sum(x.numel() for x in tensors.values())
    most = max(LEAST_NUMBERS // SAMPLES, in_file)
    latent_dim = metadata["latent_dim"]
    if latent_dim > most:
        expected = f"at most {most} latent dimensions"
        raise CheckpointError(_WHERE, expected, str(latent_dim), _DAMAGED)
    for name, value in tensors.items():
        _check_weights(name, value)


def _check_entry(metadata: Mapping[str, Any], name: str) -> None:
    is_allowed, expected = _ENTRIES[name]
    if name in _LATER and name not in metadata:
        return
    if name in metadata and is_allowed(metadata[name]):
        return
    got = repr(metadata[name])[:100] if name in metadata else "nothing"
    raise CheckpointError(_WHERE, f"metadata with {name} as {expected}", got, _DAMAGED)


def _check_weights(name: str, value: Tensor) -> None:
    part = name.removeprefix("objective.").split(".")[0]
    if part not in PARTS or not value.is_floating_point():
        return
    if not bool(value.isfinite().all()):
        got = f"NaN or infinity in {name}"
        hint = "The model was damaged before it was saved: train it anew."
        raise CheckpointError(_WHERE, "finite weights", got, hint)


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
        return value is None or value == UNKNOWN
    return all(map(_is_term, value.values()))


def _is_term(value: Any) -> bool:
    described = isinstance(value, dict) and set(value) <= {"weight", "options", "power"}
    return _is_number(value) or described


def _are_networks(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == set(PARTS)


def _are_own(value: Any) -> bool:
    return isinstance(value, dict) and set(value) <= set(PARTS)


def _are_settings(value: Any) -> bool:
    return isinstance(value, dict) and not set(value) & set(DESCRIBED)


def _is_history(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_are(_is_number), value.values()))


def _are_conditions(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"width", "categories"}:
        return value is None
    known = value["categories"]
    if known is None:
        return _is_count(value["width"])
    plain = isinstance(known, list) and all(type(v) in (str, int, bool) for v in known)
    return plain and value["width"] == len(known) >= 1


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
    "conditions": (_are_conditions, "a width and categories, or nothing"),
    "report": (_or_none(_is_mapping), "values by name, or nothing"),
}

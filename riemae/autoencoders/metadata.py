"""The metadata of a checkpoint: every entry is looked at before anything is made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from riemae.autoencoders.plain import UNKNOWN
from riemae.exceptions import CheckpointError

PARTS = ("encoder", "decoder")
# Arguments with a description of their own, that must be given at load where they have none.
DESCRIBED = (*PARTS, "ambient", "likelihood", "terms")
SAMPLES = 16  # stand-ins for the data
# Numbers that a decoder may make of the stand-ins between its layers: so many, or so many times
# those in the file.
LEAST_NUMBERS = 2**26
_DAMAGED = "The file is damaged, or was not written by riemae: save the model again."


def check_metadata(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Look at everything before anything is made of it.

    Raises:
        CheckpointError: For the first entry that cannot be.
    """
    where = "riemae.load"
    for name, (known, expected) in _ENTRIES.items():
        if name not in metadata or not known(metadata[name]):
            got = repr(metadata[name])[:100] if name in metadata else "nothing"
            raise CheckpointError(where, f"metadata with {name} as {expected}", got, _DAMAGED)
    names, size = metadata["feature_names"], metadata["n_features"]
    if names is not None and len(names) != size:
        raise CheckpointError(where, f"{size} names of features", str(len(names)), _DAMAGED)
    most = max(LEAST_NUMBERS // SAMPLES, sum(x.numel() for x in tensors.values()))
    latent_dim = metadata["latent_dim"]
    if latent_dim > most:
        raise CheckpointError(where, f"at most {most} latent dimensions", str(latent_dim), _DAMAGED)
    for name, value in tensors.items():
        network = name.removeprefix("objective.").split(".")[0] in PARTS
        if network and value.is_floating_point() and not bool(value.isfinite().all()):
            got = f"NaN or infinity in {name}"
            hint = "The model was damaged before it was saved: train it anew."
            raise CheckpointError(where, "finite weights", got, hint)


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

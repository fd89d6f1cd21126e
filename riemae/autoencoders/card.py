"""The page about a saved model, for people: what it is, how good, how to load and to cite it."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from riemae.autoencoders.plain import UNKNOWN
from riemae.autoencoders.report import Report
from riemae.citations import cite
from riemae.version import __version__

_NAMES = 12  # of features that are listed


def card(model: Any, metadata: Mapping[str, Any], report: Report | None) -> str:
    """The page in Markdown.

    Args:
        model: A fitted estimator.
        metadata: What is saved about it.
        report: On the training data, if there is one.
    """
    name = metadata["class"]
    shape = "×".join(map(str, metadata["data_shape"]))
    m = metadata["latent_dim"]
    parts = [
        f"# {name}",
        f"An autoencoder of data of {shape} numbers in {m} latent "
        f"dimension{'s' if m > 1 else ''}, written by riemae {__version__}.",
        "## The model",
        _table(_about(model, metadata)),
        "## On the training data",
        _scores(report),
        "## How to load it",
        _loading(metadata),
        "## How to cite it",
        f"```bibtex\n{cite(model).strip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _about(model: Any, metadata: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    objective = model.objective_
    shape = "×".join(map(str, metadata["data_shape"]))
    yield "data", f"{shape} numbers per sample, {metadata['dtype']}"
    names = metadata["feature_names"]
    if names:
        listed = ", ".join(_code(str(one)) for one in names[:_NAMES])
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        yield "features", f"{listed}{more}"
    yield "latent dimensions", str(metadata["latent_dim"])
    yield "likelihood", _code(_plainly(metadata["likelihood"], objective.likelihood))
    yield "ambient metric", _code(str(objective.manifold.ambient))
    for part in ("encoder", "decoder"):
        network = getattr(objective, part)
        count = sum(p.numel() for p in network.parameters())
        yield part, f"{_code(type(network).__name__)}, {count:,} parameters"
    terms = {key: term.weight for key, term in objective.terms.items()}
    listed = ", ".join(f"{_code(key)} × {weight:g}" for key, weight in terms.items())
    yield "terms of the loss", f"reconstruction, {listed}" if listed else "reconstruction alone"
    losses = metadata["history"].get("loss", [])
    last = f"; loss of the last one {losses[-1]:.6g}" if losses else ""
    yield "epochs", f"{len(losses)}{last}"
    versions = (
        f"riemae {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    )
    yield "versions", versions


def _plainly(described: Any, likelihood: Any) -> str:
    """A likelihood by name, or as it describes itself."""
    if isinstance(described, str) and described != UNKNOWN:
        return described
    return repr(likelihood)


def _scores(report: Report | None) -> str:
    if report is None:
        return "Nothing is known: there were too few samples, or the data are not at hand any more."
    rows = [(label, f"{_number(value)} ({note})") for label, value, note in report.rows()]
    found = [_table([("samples", str(report.samples)), *rows])]
    found += [f"- {sentence}" for sentence in report.sentences]
    if not report.sentences:
        found.append("Nothing is wrong, as far as these numbers tell.")
    return "\n\n".join(found[:1]) + "\n\n" + "\n".join(found[1:])


def _loading(metadata: Mapping[str, Any]) -> str:
    foreign = [part for part, described in metadata["networks"].items() if described == UNKNOWN]
    foreign += [name for name in ("ambient", "likelihood", "terms") if metadata[name] == UNKNOWN]
    given = "".join(f", {name}={name}" for name in foreign)
    code = "\n".join(
        [
            "```python",
            "import riemae",
            "",
            f'model = riemae.load("this folder"{given})',
            "z = model.transform(x)  # codes",
            "M = model.manifold_  # distances, geodesics, curvature",
            "```",
        ]
    )
    if not foreign:
        return code
    objects = ", ".join(map(_code, foreign))
    return f"{code}\n\n{objects}: objects like those of the training, which the files cannot hold."


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = ["| | |", "| --- | --- |"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """A text that stays in its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    """A text as code, whatever it holds: no markup of the user's own gets through."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.4g}"

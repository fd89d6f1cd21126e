"""``riemae check``: what is right and wrong with a decoder, in sentences."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich_click as click
import torch
from torch import Tensor, nn

from riemae.cli.commands.train import CODES
from riemae.cli.conditions import condition_option
from riemae.cli.failures import Command, one_line
from riemae.cli.models import Model, open_model
from riemae.cli.options import Reading, Run, data_argument, model_argument, reading, running
from riemae.cli.output import counted, expect_place_for, write_json
from riemae.cli.points import as_option, drawn, points
from riemae.exceptions import ContractError, OptionError, RiemaeError, SmoothnessWarning
from riemae.solvers import HINTS, Status
from riemae.testing import check_manifold

_CHECKED = 16  # points on which the laws are tested
_LOOKED_AT = 200  # points on which everything else is
_PAIRS = 4
_DRAWN = 64  # points when no data are given
_DEAD = 1e-6  # ratio of eigenvalues below which a direction has practically no length
_SLOW = 10.0  # decodings for value and Jacobian, for each latent dimension


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        about: What it is about, in a word or two.
        verdict: ``"good"``, ``"note"`` or ``"wrong"``.
        text: A sentence, with what to do.
    """

    about: str
    verdict: str
    text: str


@click.command(
    cls=Command,
    examples=("riemae check flowers", "riemae check flowers iris --json"),
)
@model_argument
@data_argument(required=False)
@click.option(
    "--latent-dim", type=click.IntRange(1), metavar="N", help="Of a decoder that does not tell."
)
@click.option(
    "--spread",
    type=float,
    metavar="X",
    default=1.0,
    show_default=True,
    help="Standard deviation of the codes that are drawn when there are no DATA.",
)
@condition_option
@as_option
@reading
@running(out_help="A JSON file for what was found.")
def check(
    model: str,
    data: str | None,
    latent_dim: int | None,
    condition: Any,
    spread: float,
    codes_given: bool | None,
    reading: Reading,
    run: Run,
) -> None:
    """Say what is right and what is wrong with the decoder of MODEL.

    At the codes of DATA (data or codes), at the codes of the training, or at random ones: whether
    the decoder is a map that geometry can be done with, obeys the laws of geometry, is smooth, has
    dead directions, how fast its derivatives are, and whether geodesics converge. Exit code 0 when
    nothing is wrong.
    """  # noqa: DOC501 (this text is what --help prints)
    if run.out is not None:
        expect_place_for(run.out)
    opened = open_model(model, run, latent_dim, condition)
    z, where = _points(opened, data, latent_dim, spread, codes_given, reading, run)
    findings = examined(opened, z, run.seed)
    wrong = [f for f in findings if f.verdict == "wrong"]
    numbers = {
        "model": model,
        "points": len(z),
        "drawn_from": where,
        "findings": findings,
        "good": not wrong,
    }
    run.say(f"{model} at {len(z)} points ({where}):")
    for finding in findings:
        run.say(f"  {_MARKS[finding.verdict]} {finding.about}: {finding.text}")
    run.say(_conclusion(findings))
    files = []
    if run.out is not None:
        files = [str(write_json(run.out, numbers))]
    run.finish({**numbers, "files": files}, converged=not wrong)


_MARKS = {"good": "✓", "note": "·", "wrong": "✗"}


@torch.no_grad()
def examined(model: Model, z: Tensor, seed: int) -> list[Finding]:
    """All that is found at points ``(n, m)``.

    Args:
        model: With the decoder.
        z: The points.
        seed: Of test vectors and of the choice of pairs.
    """
    M = model.manifold
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SmoothnessWarning)  # it has a finding of its own
            M.metric(z)
            shape = " × ".join(map(str, M.decode(z[:1]).shape[1:]))
    except RiemaeError as reason:
        return [Finding("map", "wrong", one_line(str(reason)))]
    text = f"the decoder maps codes of {counted(z.shape[1], 'number')} to data of {shape}"
    found = [Finding("map", "good", f"{text}, row by row, and always alike.")]
    for look in (_laws, _smoothness, _directions, _speed, _geodesics):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SmoothnessWarning)
                found += look(model, z, seed)
        except RiemaeError as reason:
            found.append(Finding(_ABOUT[look], "wrong", one_line(str(reason))))
    return found + _training(model)


def _laws(model: Model, z: Tensor, seed: int) -> list[Finding]:
    try:
        worst = check_manifold(model.manifold, z[:_CHECKED], generator=seed)
    except ContractError as reason:
        return [Finding("laws", "wrong", one_line(str(reason)))]
    law = max(worst, key=lambda name: worst[name])
    text = (
        f"all {len(worst)} laws of geometry hold; the largest deviation is {worst[law]:.0e} "
        f"({law})."
    )
    return [Finding("laws", "good", text)]


def _smoothness(model: Model, z: Tensor, seed: int) -> list[Finding]:
    kinks = model.manifold.kinks(z)
    if kinks is None:
        return [Finding("smoothness", "good", "the decoder is smooth.")]
    text = (
        f"the decoder has {kinks}: it is piecewise linear, so that curvature means nothing and "
        "lengths are found to 1e-2 at best. Take SiLU, GELU, softplus or tanh."
    )
    return [Finding("smoothness", "note", text)]


def _directions(model: Model, z: Tensor, seed: int) -> list[Finding]:
    values = model.manifold.eigenvalues(z)
    largest = values.amax(-1)
    smallest = values.amin(-1)
    ratio = smallest / largest
    dead = int((values.median(0).values <= _DEAD * largest.median()).sum())
    m = z.shape[1]
    if dead == m:
        text = "no direction moves the data: all distances are 0. Is the decoder trained?"
        return [Finding("directions", "wrong", text)]
    if dead:
        text = (
            f"{dead} of {m} directions hardly {'moves' if dead == 1 else 'move'} the data: "
            f"distances along {'it' if dead == 1 else 'them'} are 0. Lower latent_dim, or the "
            "weight of a prior that shuts such directions off."
        )
        return [Finding("directions", "note", text)]
    if m == 1:
        return []  # there is no other one to compare it with
    stretch = float((1 / ratio).sqrt().median())
    text = (
        f"one direction is stretched {stretch:.3g} times as much as another (median; "
        f"at worst {float((1 / ratio).sqrt().max()):.3g})."
    )
    return [Finding("directions", "good", text)]


def _speed(model: Model, z: Tensor, seed: int) -> list[Finding]:
    found = model.manifold.explain(z)
    slow = found.sweep > _SLOW * (z.shape[1] + 1)
    text = (
        f"value and Jacobian cost {found.sweep:.3g} decodings, second derivatives "
        f"{found.expansion:.3g}."
    )
    if found.generic:
        text += f" Without a rule of their own, and slower: {', '.join(found.generic)}."
    if slow:
        text += " That is much: M.explain(z) in Python says how each derivative is taken."
    return [Finding("speed", "note" if slow or found.generic else "good", text)]


def _geodesics(model: Model, z: Tensor, seed: int) -> list[Finding]:
    pairs = min(_PAIRS, len(z) // 2)
    if not pairs:
        return []
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
    first = z[order[:pairs].to(z.device)]
    last = z[order[pairs : 2 * pairs].to(z.device)]
    result = model.manifold.geodesic(first, last, throw=False)
    good = int(result.converged.sum())
    if good == pairs:
        text = f"all {pairs} that were tried converged, to a relative accuracy of {result.rtol:g}."
        return [Finding("geodesics", "good", text)]
    hints = {HINTS[Status(code)] for code in result.status[~result.converged].tolist()}
    text = (
        f"of {pairs} that were tried {pairs - good} did not converge: {'; '.join(sorted(hints))}."
    )
    return [Finding("geodesics", "wrong", text)]


_ABOUT: dict[Callable[..., list[Finding]], str] = {
    _laws: "laws",
    _smoothness: "smoothness",
    _directions: "directions",
    _speed: "speed",
    _geodesics: "geodesics",
}


def _training(model: Model) -> list[Finding]:
    """What the report on the training data says."""
    if model.estimator is None:
        return []
    try:
        sentences = model.estimator.report_.sentences
    except OptionError:  # there were too few samples
        return []
    if not sentences:
        text = "the report on the training data finds nothing to complain about."
        return [Finding("training", "good", text)]
    return [Finding("training", "note", sentence) for sentence in sentences]


def _conclusion(findings: list[Finding]) -> str:
    wrong = [f.about for f in findings if f.verdict == "wrong"]
    notes = sum(f.verdict == "note" for f in findings)
    if wrong:
        return f"Wrong: {', '.join(wrong)}. Numbers of this decoder are not to be trusted yet."
    if notes:
        return f"Nothing is wrong; {notes} thing{'s' if notes > 1 else ''} to know about."
    return "Nothing is wrong."


def _points(
    model: Model,
    data: str | None,
    latent_dim: int | None,
    spread: float,
    codes_given: bool | None,
    reading: Reading,
    run: Run,
) -> tuple[Tensor, str]:
    """Where the decoder is looked at, and what these points are.

    Raises:
        OptionError: When nothing tells how many numbers a code has.
    """
    of_training = Path(model.name) / CODES
    kind = ""
    if data is None and model.estimator is not None and of_training.is_file():
        data = str(of_training)
        codes_given = True
        reading = Reading()
        kind = "codes of the training"
    if data is not None:
        found = points(model, data, reading, run, codes_given)
        rows = drawn(len(found), 1, min(_LOOKED_AT, len(found)), run.seed)
        if not kind:
            kind = f"{'codes of' if found.encoded else 'codes in'} {found.table.name}"
        return found.codes[rows.to(found.codes.device)], kind
    m = model.latent_dim or latent_dim or _inputs(model.manifold.decoder)
    if m is None:
        hint = "Try --latent-dim 2."
        raise OptionError("riemae check", "the number of latent dimensions", "none", hint)
    if not spread > 0:
        raise OptionError("--spread", "a positive number", str(spread), "Try --spread 1.")
    generator = torch.Generator().manual_seed(run.seed)
    z = spread * torch.randn(_DRAWN, m, generator=generator, dtype=torch.float64)
    return z.to(run.device, run.dtype), "drawn from a normal distribution"


def _inputs(decoder: object) -> int | None:
    """How many numbers a chain of layers takes, if it begins with a linear one."""
    while isinstance(decoder, nn.Sequential) and len(decoder):
        decoder = decoder[0]
    return decoder.in_features if isinstance(decoder, nn.Linear) else None

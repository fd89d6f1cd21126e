"""``riemae geodesic``: shortest paths between points, with lengths, errors and status."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rich_click as click
import torch
from torch import Tensor

from riemae.cli import pairs as pairs_of
from riemae.cli.conditions import condition_option
from riemae.cli.failures import Command
from riemae.cli.models import Model, open_model
from riemae.cli.options import Reading, Run, data_argument, model_argument, reading, running
from riemae.cli.output import (
    expect_format,
    expect_place_for,
    number,
    say_table,
    write_arrays,
    write_columns,
)
from riemae.cli.pairs import Pairs
from riemae.cli.points import Points, as_option, code_names, points
from riemae.exceptions import OptionError
from riemae.solvers import HINTS, Curve, GeodesicResult, Status

FORMATS = (".npz", ".csv", ".tsv", ".parquet")
_SHOWN = 40  # rows of the table on the terminal


@click.command(
    cls=Command,
    examples=(
        "riemae geodesic flowers iris --pairs 0:50,0:100",
        "riemae geodesic flowers iris --between setosa virginica --out curves.csv",
        'riemae geodesic flowers --codes "0.1,0.2:1,1" --json',
        "riemae geodesic flowers iris --random 5 --graph --rtol 1e-3",
    ),
)
@model_argument
@data_argument(required=False)
@click.option("--pairs", help="Rows to join, counted from 0, as 0:5,3:7.")
@click.option(
    "--between",
    type=(str, str),
    multiple=True,
    metavar="A B",
    help="Names of rows, or labels (the row in the middle of each), to join; may be repeated.",
)
@click.option("--codes", help='Codes to join, as "0.1,0.2:1,1".')
@click.option(
    "--random", "count", type=click.IntRange(1), metavar="N", help="Join so many random pairs."
)
@click.option(
    "--rtol", type=float, metavar="X", help="Relative accuracy; 1e-4 in float64, 1e-3 in float32."
)
@click.option("--graph", is_flag=True, help="Search from paths through DATA as well.")
@click.option(
    "-k", type=click.IntRange(1), metavar="N", default=10, show_default=True, help="Of the graph."
)
@click.option("--n-starts", type=click.IntRange(1), metavar="N", help="Start curves for each pair.")
@click.option(
    "--samples",
    type=click.IntRange(2),
    metavar="N",
    default=33,
    show_default=True,
    help="Points of a curve.",
)
@click.option(
    "--latent-dim", type=click.IntRange(1), metavar="N", help="Of a decoder that does not tell."
)
@condition_option
@as_option
@reading
@running(out_help=f"A file for the curves: {', '.join(FORMATS)}.")
def geodesic(
    model: str,
    data: str | None,
    pairs: str | None,
    between: tuple[tuple[str, str], ...],
    codes: str | None,
    count: int | None,
    rtol: float | None,
    graph: bool,
    k: int,
    n_starts: int | None,
    samples: int,
    latent_dim: int | None,
    condition: Any,
    codes_given: bool | None,
    reading: Reading,
    run: Run,
) -> None:
    """Find shortest paths between points of MODEL's latent space.

    The points are rows of DATA (data, or codes as riemae embed writes them), or codes that are
    given. Exit code 0 when every path has the accuracy that was asked for.
    """  # noqa: DOC501 (this text is what --help prints)
    if run.out is not None:
        expect_format(run.out, FORMATS)
        expect_place_for(run.out)
    needs_rows = bool(pairs or between or count or graph)
    if not (pairs or between or count or codes):
        hint = "Try --pairs 0:5, or --random 10."
        expected = "--pairs, --between, --codes or --random"
        raise OptionError("riemae geodesic", expected, "none of them", hint)
    if needs_rows and data is None:
        hint = f"Try: riemae geodesic {model} DATA …, or --codes."
        raise OptionError("riemae geodesic", "DATA, which the rows are of", "none", hint)
    opened = open_model(model, run, latent_dim, condition)
    found = None if data is None else points(opened, data, reading, run, codes_given)
    ends = _ends(opened, found, run, pairs, between, codes, count)
    with run.bars() as bars:
        routes = None
        if graph and found is not None:
            routes = opened.manifold.graph(found.codes, k=k, progress=bars.of("graph"))
        result = opened.manifold.geodesic(
            ends.start,
            ends.end,
            rtol=rtol,
            n_starts=n_starts,
            graph=routes,
            generator=run.seed,
            throw=False,
            progress=bars.of("geodesics"),
        )
    line = Curve.line(ends.start, ends.end, 64)
    straight = opened.manifold.length(line, rtol=1e-3, throw=False).detach()
    files = []
    if run.out is not None:
        files.append(str(_written(run.out, opened, ends, result, straight, samples)))
    if not run.as_json:
        _show(run, ends, result, straight, files)
    described = {} if found is None else found.described()
    numbers = {**described, **_numbers(ends, result, straight), "files": files}
    run.finish(numbers, converged=bool(result.converged.all()))


def _ends(
    model: Model,
    found: Points | None,
    run: Run,
    pairs: str | None,
    between: tuple[tuple[str, str], ...],
    codes: str | None,
    count: int | None,
) -> Pairs:
    parts = []
    if found is not None:
        if pairs is not None:
            parts.append(pairs_of.by_rows(pairs, found))
        if between:
            parts.append(pairs_of.between(between, found))
        if count is not None:
            parts.append(pairs_of.at_random(count, found, run.seed))
    if codes is not None:
        like = torch.empty(0, dtype=run.dtype, device=run.device)
        parts.append(pairs_of.by_codes(codes, model.latent_dim, like))
    return Pairs.cat(parts)


def status_names(status: Tensor) -> list[str]:
    """What became of each pair, in small letters."""
    return [Status(code).name.lower() for code in status.tolist()]


def remedies(status: Tensor) -> list[str]:
    """What to do about every kind of failure among some pairs."""
    codes = sorted(set(status.tolist()) - {int(Status.CONVERGED)})
    return [f"{Status(code).name.lower()}: {HINTS[Status(code)]}." for code in codes]


def _numbers(ends: Pairs, result: GeodesicResult, straight: Tensor) -> dict[str, Any]:
    return {
        "pairs": ends.names,
        "length": result.length,
        "error": result.error,
        "straight": straight,
        "status": status_names(result.status),
        "converged": result.converged,
        "index": result.index,
        "rtol": result.rtol,
    }


def _show(
    run: Run, ends: Pairs, result: GeodesicResult, straight: Tensor, files: list[str]
) -> None:
    rows = [
        (
            a,
            b,
            number(result.length[i]),
            number(result.error[i], ".0e"),
            number(straight[i]),
            status,
        )
        for i, ((a, b), status) in enumerate(
            zip(ends.names, status_names(result.status), strict=True)
        )
    ]
    head = ("from", "to", "length", "error", "straight line", "status")
    say_table("Geodesics", head, rows[:_SHOWN])
    if len(rows) > _SHOWN:
        run.say(f"… and {len(rows) - _SHOWN} more.")
    run.say(f"{result.summary()} at rtol={result.rtol:g}.")
    run.say(*remedies(result.status))
    run.say(*(f"Written: {file}" for file in files))


def _written(
    path: Path,
    model: Model,
    ends: Pairs,
    result: GeodesicResult,
    straight: Tensor,
    samples: int,
) -> Path:
    t = torch.linspace(0, 1, samples).to(ends.start)
    curves = result.curve(t)  # (p, samples, m)
    starts = [a for a, _ in ends.names]
    stops = [b for _, b in ends.names]
    if path.suffix == ".npz":
        return write_arrays(
            path,
            {
                "t": t,
                "codes": curves,
                "decoded": decoded(model, curves),
                "start": starts,
                "end": stops,
                "length": result.length,
                "error": result.error,
                "straight": straight,
                "status": status_names(result.status),
            },
        )
    p, _, m = curves.shape
    columns: dict[str, Any] = {
        "pair": np.repeat(np.arange(p), samples),
        "from": np.repeat(starts, samples),
        "to": np.repeat(stops, samples),
        "t": t.repeat(p),
    }
    columns |= dict(zip(code_names(m), curves.reshape(-1, m).mT, strict=True))
    return write_columns(path, columns)


def decoded(model: Model, codes: Tensor) -> np.ndarray:  # (*b, m) -> (*b, *shape)
    """What codes decode to, in the units of the data."""
    flat = codes.reshape(-1, codes.shape[-1])
    with torch.no_grad():
        if model.estimator is not None:
            found = model.estimator.inverse_transform(flat)
        else:
            found = model.manifold.decode(flat)
    values = found.cpu().numpy()
    if model.preparation is not None:
        values = model.preparation.undo(values)
    shaped: np.ndarray = values.reshape(*codes.shape[:-1], *values.shape[1:])
    return shaped

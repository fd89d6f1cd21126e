"""``riemae distances``: all distances between the rows of data."""

from __future__ import annotations

from typing import Any, Literal, cast

import rich_click as click
import torch
from torch import Tensor

from riemae.cli.commands.geodesic import remedies, status_names
from riemae.cli.conditions import condition_option
from riemae.cli.failures import Command
from riemae.cli.models import open_model
from riemae.cli.options import Name, Reading, Run, data_argument, model_argument, reading, running
from riemae.cli.output import (
    expect_format,
    expect_place_for,
    make_folder,
    number,
    write_arrays,
    write_matrix,
)
from riemae.cli.points import as_option, drawn, points

FORMATS = (".npz", ".csv", ".tsv", ".npy")
METHODS = ("geodesic", "graph", "chord")


@click.command(
    cls=Command,
    examples=(
        "riemae distances flowers iris --sample 10 --out distances.csv",
        "riemae distances flowers iris --sample 10 --out distances.npy",
        "riemae distances flowers iris --method graph --out distances.npz",
    ),
)
@model_argument
@data_argument()
@click.option(
    "--method",
    type=Name("method", METHODS),
    default="geodesic",
    show_default=True,
    metavar="NAME",
    help="geodesic: solved; graph: along neighbours; chord: straight through the data space.",
)
@click.option("--rtol", type=float, metavar="X", help="Relative accuracy.")
@click.option(
    "-k", type=click.IntRange(1), metavar="N", default=10, show_default=True, help="Of the graph."
)
@click.option("--sample", type=click.IntRange(2), metavar="N", help="Take so many rows, at random.")
@click.option(
    "--latent-dim", type=click.IntRange(1), metavar="N", help="Of a decoder that does not tell."
)
@condition_option
@as_option
@reading
@running(out="distances.npz", out_help=f"A file: {', '.join(FORMATS)}. Only npy can be resumed.")
def distances(
    model: str,
    data: str,
    method: str,
    rtol: float | None,
    k: int,
    sample: int | None,
    latent_dim: int | None,
    condition: Any,
    codes_given: bool | None,
    reading: Reading,
    run: Run,
) -> None:
    """Compute the distances between all rows of DATA.

    With --out D.npy every finished block is on the disk at once, and the same command goes on where
    an earlier one has stopped. Exit code 0 when every distance has the accuracy asked for.
    """  # noqa: DOC501 (this text is what --help prints)
    expect_format(run.target, FORMATS)
    expect_place_for(run.target)
    opened = open_model(model, run, latent_dim, condition)
    given = points(opened, data, reading, run, codes_given)
    rows = drawn(len(given), 2, sample, run.seed)
    names = [given.table.rows[i] for i in rows.tolist()]
    labels = given.table.labels
    chosen = None if labels is None else [labels[i] for i in rows.tolist()]
    resumable = run.target.suffix == ".npy"
    if resumable:
        make_folder(run.target.parent, run.target)
    with run.bars() as bars:
        found = opened.manifold.distance_matrix(
            given.codes[rows.to(given.codes.device)],
            method=cast("Literal['geodesic', 'graph', 'chord']", method),
            rtol=rtol,
            k=k,
            throw=False,
            progress=bars.of("distances"),
            out=run.target if resumable else None,
            return_result=True,
        )
    matrix = found.distances
    status = status_names(found.status)
    if run.target.suffix == ".npz":
        arrays = {
            "distances": matrix,
            "rows": names,
            "labels": chosen,
            "failed": found.failed,
            "status": status,
        }
        write_arrays(run.target, arrays)
    elif not resumable:
        write_matrix(run.target, matrix, names, names)
    summary = _summary(matrix)
    run.say(
        f"{len(rows)} × {len(rows)} distances ({method}) in {run.target}: median "
        f"{number(summary['median'])}, largest {number(summary['largest'])}.",
    )
    if len(found.failed):
        run.say(f"Not converged: {found.summary()}.", *remedies(found.status))
    numbers = {
        **given.described(),
        "method": method,
        "rows_taken": rows,
        **summary,
        "failed": [[names[i], names[j]] for i, j in found.failed.tolist()],
        "status": status,
        "files": [str(run.target)],
    }
    run.finish(numbers, converged=not len(found.failed))


def _summary(matrix: Tensor) -> dict[str, Any]:
    n, q = matrix.shape
    i, j = torch.triu_indices(n, q, 1)
    off = matrix[i, j]
    known = off[off.isfinite()]
    nothing = float("nan")
    return {
        "smallest": float(known.min()) if len(known) else nothing,
        "median": float(known.median()) if len(known) else nothing,
        "largest": float(known.max()) if len(known) else nothing,
        "unreachable": int((~off.isfinite()).sum()),
    }

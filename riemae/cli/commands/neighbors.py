"""``riemae neighbors``: the nearest rows of each row, by geodesic distance."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import rich_click as click

from riemae.cli.cells import ENDING, expect_cells, write_neighbors
from riemae.cli.commands.geodesic import remedies, status_names
from riemae.cli.conditions import condition_option
from riemae.cli.failures import Command
from riemae.cli.models import open_model
from riemae.cli.options import Name, Reading, Run, data_argument, model_argument, reading, running
from riemae.cli.output import expect_format, expect_place_for, number, write_columns, write_file
from riemae.cli.points import Points, as_option, points
from riemae.solvers import Neighbors

FORMATS = (".npz", ".csv", ".tsv", ".parquet", ENDING)
KINDS = ("distances", "connectivities")


@click.command(
    cls=Command,
    examples=(
        "riemae neighbors flowers iris -k 5 --rtol 1e-2 --out neighbors.npz",
        "riemae neighbors flowers flowers/codes.csv -k 3 --rtol 1e-2 --out edges.csv",
    ),
)
@model_argument
@data_argument()
@click.option(
    "-k",
    type=click.IntRange(1),
    metavar="N",
    default=15,
    show_default=True,
    help="Neighbours of each row.",
)
@click.option("--rtol", type=float, metavar="X", help="Relative accuracy of the distances.")
@click.option(
    "--candidates", type=click.IntRange(1), metavar="N", help="Geodesics solved for a row at most."
)
@click.option(
    "--kind",
    type=Name("kind of matrix", KINDS),
    default="distances",
    show_default=True,
    metavar="NAME",
    help="Of an npz file: distances, or connectivities as UMAP weighs them.",
)
@click.option(
    "--latent-dim", type=click.IntRange(1), metavar="N", help="Of a decoder that does not tell."
)
@condition_option
@as_option
@reading
@running(
    out="neighbors.npz",
    out_help="npz for a sparse matrix (scipy.sparse.load_npz); csv, tsv, parquet for edges; h5ad "
    "for cells with neighbours as scanpy keeps them.",
)
def neighbors(
    model: str,
    data: str,
    k: int,
    rtol: float | None,
    candidates: int | None,
    kind: str,
    latent_dim: int | None,
    condition: Any,
    codes_given: bool | None,
    reading: Reading,
    run: Run,
) -> None:
    """Find the k nearest rows of every row of DATA, by geodesic distance.

    A row is certified when no other row can be nearer; one with a tie at its last place cannot be.
    Exit code 0 when every geodesic has converged and, with --candidates, every row is certified.
    """  # noqa: DOC501 (this text is what --help prints)
    expect_format(run.target, FORMATS)
    expect_cells(data, run.target)
    expect_place_for(run.target)
    opened = open_model(model, run, latent_dim, condition)
    given = points(opened, data, reading, run, codes_given)
    with run.bars() as bars:
        progress = bars.of("neighbours")
        if run.target.suffix == ENDING:
            found = write_neighbors(
                run.target, data, given, opened.manifold, k, rtol, candidates, progress
            )
        else:
            found = opened.manifold.neighbors(
                given.codes, k, rtol=rtol, candidates=candidates, throw=False, progress=progress
            )
            _write(run.target, found, given, kind)
    certified = int(found.certified.sum())
    known = found.distances[found.distances.isfinite()]
    mean = float(known.mean()) if len(known) else float("nan")
    run.say(
        f"{k} neighbours of {len(given)} rows in {run.target}: {certified} rows certified, "
        f"{found.solved} geodesics solved, mean distance {number(mean)}.",
    )
    if len(found.failed):
        run.say(f"Not converged: {len(found.failed)} geodesics.", *remedies(found.status))
    numbers = {
        **given.described(),
        "k": k,
        "certified": certified,
        "solved": found.solved,
        "failed": found.failed,
        "status": status_names(found.status),
        "rtol": found.rtol,
        "files": [str(run.target)],
    }
    complete = candidates is None or certified == len(given)
    run.finish(numbers, converged=complete and not len(found.failed))


def _write(path: Path, found: Neighbors, given: Points, kind: str) -> Path:
    if path.suffix == ".npz":
        from scipy import sparse

        matrix: Any = found.to_scipy() if kind == "distances" else found.connectivities()
        buffer = io.BytesIO()
        sparse.save_npz(buffer, matrix)
        return write_file(path, buffer.getvalue())
    row, place = (found.indices >= 0).nonzero(as_tuple=True)
    other = found.indices[row, place].tolist()
    names = given.table.rows
    return write_columns(
        path,
        {
            "from": [names[i] for i in row.tolist()],
            "to": [names[j] for j in other],
            "distance": found.distances[row, place],
            "error": found.errors[row, place],
            "certified": found.certified[row],
        },
    )

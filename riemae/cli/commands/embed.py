"""``riemae embed``: the latent codes of data."""

from __future__ import annotations

import rich_click as click

from riemae.cli.cells import ENDING, expect_cells, write_codes
from riemae.cli.failures import Command
from riemae.cli.models import open_model
from riemae.cli.options import Reading, Run, data_argument, model_argument, reading, running
from riemae.cli.output import (
    counted,
    expect_format,
    expect_place_for,
    write_arrays,
    write_columns,
)
from riemae.cli.points import code_columns, points
from riemae.exceptions import OptionError

FORMATS = (".csv", ".tsv", ".parquet", ".npy", ".npz", ENDING)


@click.command(
    cls=Command,
    examples=(
        "riemae embed flowers iris --out flowers.csv",
        "riemae embed flowers iris --out flowers.npy --json",
    ),
)
@model_argument
@data_argument(codes=False)
@reading
@running(out="codes.csv", out_help=f"A file: {', '.join(FORMATS)}.")
def embed(model: str, data: str, reading: Reading, run: Run) -> None:
    """Write the latent codes of DATA under MODEL.

    DATA are prepared as those of the training were. Columns are found by their names; others are
    left alone. A table holds the names of the rows, z1, z2, …, and the labels.
    """  # noqa: DOC501 (this text is what --help prints)
    expect_format(run.target, FORMATS)
    expect_cells(data, run.target)
    expect_place_for(run.target)
    opened = open_model(model, run)
    if opened.estimator is None:
        hint = "Take a folder that riemae train has written."
        raise OptionError(model, "a model with an encoder", "a decoder alone", hint)
    found = points(opened, data, reading, run, codes_given=False)
    if run.target.suffix == ENDING:
        write_codes(run.target, data, found)
    elif run.target.suffix == ".npy":
        write_arrays(run.target, {"codes": found.codes})
    elif run.target.suffix == ".npz":
        arrays = {"codes": found.codes, "rows": found.table.rows, "labels": found.table.labels}
        write_arrays(run.target, arrays)
    else:
        write_columns(run.target, code_columns(found.codes, found.table))
    n, m = found.codes.shape
    run.say(f"{counted(n, 'code')} of {counted(m, 'number')} in {run.target}.")
    run.finish({**found.described(), "latent_dim": m, "files": [str(run.target)]})

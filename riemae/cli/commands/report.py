"""``riemae report``: one offline HTML file about a latent space, or about given coordinates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rich_click as click
import torch
from torch import Tensor

from riemae.cli.cells import ENDING
from riemae.cli.conditions import condition_option
from riemae.cli.delimited import as_numbers
from riemae.cli.failures import ARGUMENTS, Command
from riemae.cli.models import Model, open_model
from riemae.cli.options import Reading, Run, Words, reading, running, suggestion
from riemae.cli.output import as_tensor, counted, expect_format, expect_place_for, make_folder
from riemae.cli.points import Points, as_option, points
from riemae.cli.sources import find, open_cells, read
from riemae.cli.tables import Table
from riemae.exceptions import DataError, OptionError
from riemae.manifold import Manifold
from riemae.reporting import fit_decoder
from riemae.reporting import report as write_report

if TYPE_CHECKING:
    from riemae.cli.progress import Bars

FORMATS = (".html", ".htm")
_WHERE = "riemae report"
_NUMBERED = ("", "row", "index", "id")  # columns of coordinates that are none


@click.command(
    cls=Command,
    examples=(
        "riemae report flowers iris --out flowers.html --pair-count 10",
        "riemae report --embedding flowers.csv iris --out judged.html --pair-count 10",
    ),
)
@click.argument(
    "model_and_data",
    nargs=-1,
    type=click.Path(),
    metavar="[MODEL] DATA",
    panel=ARGUMENTS,
    help="A model and data or codes, as of riemae geodesic; with --embedding data alone.",
)
@click.option(
    "--embedding",
    metavar="FILE",
    help="Coordinates of DATA (UMAP, t-SNE, PCA …) to be judged in place of a model; of h5ad also "
    "their name in obsm, such as X_umap.",
)
@click.option(
    "--coordinates", type=Words(), default=(), metavar="A,B", help="The columns of --embedding."
)
@click.option("--title", metavar="TEXT", help="Of the page.")
@click.option("--image-shape", metavar="HxW", help="Show rows as images, such as 8x8 or 3x32x32.")
@click.option(
    "--pair-count",
    type=click.IntRange(1),
    metavar="N",
    default=200,
    show_default=True,
    help="Geodesics from which distances are judged.",
)
@click.option(
    "--landmarks",
    type=click.IntRange(2, 64),
    metavar="N",
    default=10,
    show_default=True,
    help="Rows among which geodesics are shown, for more than two latent dimensions.",
)
@click.option("--rtol", type=float, metavar="X", help="Relative accuracy of all geodesics.")
@click.option("--latent-dim", type=click.IntRange(1), metavar="N", help="Of a decoder alone.")
@condition_option
@as_option
@reading
@running(out="report.html", out_help="The HTML file.")
def report(
    model_and_data: tuple[str, ...],
    embedding: str | None,
    coordinates: tuple[str, ...],
    title: str | None,
    image_shape: str | None,
    pair_count: int,
    landmarks: int,
    rtol: float | None,
    latent_dim: int | None,
    condition: Any,
    codes_given: bool | None,
    reading: Reading,
    run: Run,
) -> None:
    """Write one offline HTML file about the latent space of MODEL at DATA.

    It shows the codes, the metric, geodesics that one drags, and numbers with what they mean. With
    --embedding there is no MODEL: a smooth decoder is fitted to the coordinates, and the file says
    what that plot of DATA distorts. Exit code 0 when all sampled geodesics converged.
    """  # noqa: DOC501 (this text is what --help prints)
    expect_format(run.target, FORMATS)
    model, data = _named(model_and_data, embedding)
    shape = None if image_shape is None else _shape(image_shape)
    expect_place_for(run.target)
    options: dict[str, Any] = {
        "pairs": pair_count,
        "landmarks": landmarks,
        "rtol": rtol,
        "seed": run.seed,
    }
    if embedding is not None and condition is not None:
        hint = "Leave --condition out; a decoder is fitted to the coordinates."
        raise OptionError(_WHERE, "no --condition with --embedding", "one", hint)
    with run.bars() as bars:
        if embedding is not None:
            M, z, table = _judged(embedding, coordinates, data, reading, run, bars)
            named = f"{table.name} in the coordinates of {Path(embedding).name}"
            shown: dict[str, Any] = {"images": shape or table.picture, "features": table.columns}
        else:
            assert model is not None
            opened = open_model(model, run, latent_dim, condition)
            found = points(opened, data, reading, run, codes_given)
            M, z, table = opened.manifold, found.codes, found.table
            shown = _of_model(opened, found, shape)
            named = f"{table.name} in the latent space of {Path(model).name}"
            if opened.standardized:
                named += ", columns standardised"
        make_folder(run.target.parent, run.target)
        made = write_report(
            M,
            z,
            _labels(table),
            path=run.target,
            title=title or named,
            progress=bars.of("report"),
            **shown,
            **options,
        )
    run.say(made.verdict)
    for finding in made.findings:
        run.say(f"  {finding.title}: {finding.text}")
    run.say(f"Written: {run.target}; open it in a browser.")
    numbers = {
        **table.described(),
        "verdict": made.verdict,
        "level": made.level,
        "numbers": made.numbers,
        "converged": made.converged,
        "files": [str(run.target)],
    }
    run.finish(numbers, converged=made.converged)


def _named(given: tuple[str, ...], embedding: str | None) -> tuple[str | None, str]:
    """The model, if any, and the data.

    Raises:
        OptionError: When there are too few or too many arguments.
    """
    if embedding is not None:
        if len(given) != 1:
            hint = "Try: riemae report --embedding coords.csv DATA"
            expected = "DATA alone with --embedding"
            raise OptionError(_WHERE, expected, counted(len(given), "argument"), hint)
        return None, given[0]
    if len(given) != 2:
        hint = "Try: riemae report MODEL DATA, or riemae report --embedding coords.csv DATA"
        raise OptionError(_WHERE, "MODEL and DATA", counted(len(given), "argument"), hint)
    return given


def _shape(text: str) -> tuple[int, ...]:
    """A shape such as ``8x8``.

    Raises:
        OptionError: When it is none.
    """
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) not in (2, 3) or not all(part.isdigit() and int(part) for part in parts):
        hint = "Try --image-shape 28x28."
        raise OptionError("--image-shape", "height and width as HxW", repr(text), hint)
    return tuple(map(int, parts))


def _of_model(model: Model, found: Points, shape: tuple[int, ...] | None) -> dict[str, Any]:
    """What the page shows besides the codes."""
    shown: dict[str, Any] = {"images": shape}
    if model.estimator is None:
        return shown
    shown["history"] = model.estimator.history_
    shown["features"] = model.columns
    if not found.encoded:
        return shown
    x = model.prepared(found.table)
    if not model.estimator.objective_.likelihood.linear:
        shown["explained"] = model.estimator.score(x)
        return shown
    x = x.to(found.codes)
    shown["data"] = x
    picture = shape or found.table.picture
    if picture is not None and not model.standardized and math.prod(picture) == x[0].numel():
        shown["images"] = x.reshape(len(x), *picture)
    return shown


def _judged(
    embedding: str,
    coordinates: tuple[str, ...],
    data: str,
    reading: Reading,
    run: Run,
    bars: Bars,
) -> tuple[Manifold, Tensor, Table]:
    """A decoder fitted to coordinates, the coordinates, and the data.

    Raises:
        DataError: When there are not as many coordinates as rows.
    """
    plane = _plane(embedding, coordinates, data, reading, run)
    table = read(data, reading, run.seed)
    if table.kept is not None and len(plane) == len(table.kept):
        plane = plane[table.kept]  # the coordinates of rows with missing cells go with them
    if len(plane) != len(table):
        hint = "Give one row of coordinates for each row of the data, in the same order."
        got = f"{len(plane)} in {embedding}"
        raise DataError(_WHERE, f"{len(table)} rows of coordinates", got, hint)
    z = as_tensor(plane, torch.float64, run.device).flatten(1)
    bars("decoder", 0, 1)
    M = fit_decoder(z, as_tensor(table.values, torch.float64, run.device))
    bars("decoder", 1, 1)
    return M, z, table


def _plane(
    embedding: str, coordinates: tuple[str, ...], data: str, reading: Reading, run: Run
) -> np.ndarray:  # -> (n, m)
    """Coordinates in a file, or in ``obsm`` of cells.

    Raises:
        OptionError: When the cells have none of that name.
    """
    path = Path(data)
    if path.suffix.lower() == ENDING and path.exists() and not Path(embedding).exists():
        adata = open_cells(path)
        if embedding not in adata.obsm:
            hint = suggestion(embedding, adata.obsm)
            expected = f"a file, or coordinates in obsm of {path.name}"
            raise OptionError("--embedding", expected, repr(embedding), hint)
        return np.asarray(adata.obsm[embedding])
    source = find(embedding, Reading(decimal=reading.decimal), run.seed)
    names = source.names
    if names is None:
        return source.table(Reading()).values
    words = [column.name for column in source.columns or () if column.bad is not None]
    numbered = [name for name in names if name.lower() in _NUMBERED]
    away = () if coordinates else (*words, *numbered)
    return source.table(Reading(columns=coordinates, exclude=away)).values


def _labels(table: Table) -> list[str] | list[float] | None:
    """Labels as the page takes them: fractional numbers, which get a scale, or words."""
    if table.labels is None:
        return None
    numbers, bad = as_numbers(table.labels)
    fractional = bad is None and np.isfinite(numbers).all() and bool((numbers % 1).any())
    return numbers.tolist() if fractional else table.labels

"""The command line: ``riemae demo``."""

from __future__ import annotations

import json
import math
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click
from torch import Tensor

from riemae.exceptions import RiemaeError

if TYPE_CHECKING:
    from rich.console import Console

    from riemae.cli.demo import Demo


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="riemae")
def main() -> None:
    """The geometry of the space that a neural network parametrises."""


@main.command()
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default="out/demo", show_default=True
)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides everything random.")
@click.option(
    "--epochs", type=click.IntRange(1), default=500, show_default=True, help="Of training."
)
@click.option(
    "--pairs", type=click.IntRange(1), default=8, show_default=True, help="Geodesics to show."
)
@click.option(
    "--subset",
    type=click.IntRange(2),
    default=24,
    show_default=True,
    help="Size of the distance matrices.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the numbers as JSON on stdout, and nothing else."
)
@click.option("--quiet", is_flag=True, help="No progress bars.")
def demo(
    out: Path, seed: int, epochs: int, pairs: int, subset: int, as_json: bool, quiet: bool
) -> None:
    """Geodesics between real handwritten digits, from training to figures, in a minute.

    Exit code 0 when every geodesic shown has converged.
    """  # noqa: DOC501 (this text is what --help prints)
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
    )

    from riemae.cli import demo as demonstration

    console = Console(stderr=as_json)
    columns = (
        TextColumn("{task.description:<26}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    try:
        bars = Progress(*columns, console=Console(stderr=True))
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=total)

        with nullcontext() if quiet else bars:
            out.mkdir(parents=True, exist_ok=True)  # before the work, not after it
            result = demonstration.run(seed, epochs, pairs, subset, report)
            files = demonstration.write(result, out)
    except (RiemaeError, OSError) as problem:
        raise click.ClickException(str(problem)) from problem
    r = result.geodesics
    if as_json:
        click.echo(
            json.dumps(
                {
                    "reconstruction_error": result.loss,
                    "pairs": result.pairs.tolist(),
                    "straight": _numbers(result.straight),
                    "graph": _numbers(result.graph_lengths),
                    "geodesic": _numbers(r.length),
                    "error": _numbers(r.error),
                    "converged": r.converged.tolist(),
                    "files": [str(f) for f in files],
                }
            )
        )
    else:
        _show(console, result, files)
    sys.exit(0 if bool(r.converged.all()) else 1)


def _numbers(values: Tensor) -> list[float | None]:
    """For JSON, which has no NaN and no infinity: null."""
    return [x if math.isfinite(x) else None for x in values.tolist()]


def _show(console: Console, result: Demo, files: list[Path]) -> None:
    from rich.table import Table

    from riemae.cli import demo as demonstration

    r = result.geodesics
    table = Table(title="Riemannian length between digits, in three ways")
    for name in ("digits", "straight", "graph", "geodesic", "error", "nodes", "status"):
        table.add_column(
            name, justify="left" if name in ("digits", "status") else "right", no_wrap=True
        )
    for row in demonstration.rows(result):
        table.add_row(*row)
    console.print(table)
    console.print(
        f"Autoencoder: mean squared error {result.loss:.4f} per pixel. "
        f"Geodesics: {r.summary()}; {int(r.is_local_minimum.sum())} locally minimising."
    )
    console.print("Written: " + ", ".join(str(f) for f in files), highlight=False)
    for sentence in demonstration.summary(result):
        console.print(f"• {sentence}")
    console.print(f"Open {files[-1]} in a browser, and drag two points.", highlight=False)

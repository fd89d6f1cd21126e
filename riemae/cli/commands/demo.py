"""``riemae demo``: geodesics between handwritten digits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from riemae.cli.failures import Command, end
from riemae.cli.options import talking
from riemae.cli.output import say_json, stdout
from riemae.cli.progress import Bars

if TYPE_CHECKING:
    from riemae.cli.demo import Demo


@click.command(cls=Command, examples=("riemae demo", "riemae demo --out pictures --json"))
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default="out/demo", show_default=True
)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides everything random.")
@click.option(
    "--epochs",
    type=click.IntRange(1),
    metavar="N",
    default=500,
    show_default=True,
    help="Of training.",
)
@click.option(
    "--pairs",
    type=click.IntRange(1),
    metavar="N",
    default=8,
    show_default=True,
    help="Geodesics to show.",
)
@click.option(
    "--subset",
    type=click.IntRange(2),
    metavar="N",
    default=24,
    show_default=True,
    help="Size of the distance matrices.",
)
@talking
def demo(
    out: Path,
    seed: int,
    epochs: int,
    pairs: int,
    subset: int,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Geodesics between real handwritten digits, from training to figures, in a minute.

    Exit code 0 when every geodesic shown has converged.
    """  # noqa: DOC501 (this text is what --help prints)
    from riemae.cli import demo as demonstration

    with Bars(quiet) as bars:
        out.mkdir(parents=True, exist_ok=True)  # before the work, not after it
        result = demonstration.run(seed, epochs, pairs, subset, bars)
        files = demonstration.write(result, out)
    r = result.geodesics
    if as_json:
        say_json(
            {
                "reconstruction_error": result.loss,
                "pairs": result.pairs,
                "straight": result.straight,
                "graph": result.graph_lengths,
                "geodesic": r.length,
                "error": r.error,
                "converged": r.converged,
                "files": files,
            }
        )
    else:
        _show(result, files)
    end(bool(r.converged.all()))


def _show(result: Demo, files: list[Path]) -> None:
    from rich.console import Console
    from rich.table import Table

    from riemae.cli import demo as demonstration

    console = Console(file=stdout())
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

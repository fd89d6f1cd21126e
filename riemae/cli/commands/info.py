"""``riemae info``: versions, devices and extras."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from riemae.cli.failures import Command
from riemae.cli.options import talking
from riemae.cli.output import expect_place_for, say, say_json, write_json
from riemae.environment import show_versions


@click.command(cls=Command, examples=("riemae info", "riemae info --json"))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="A JSON file.")
@talking
def info(out: Path | None, as_json: bool, **_: Any) -> None:
    """Show versions, devices, and which optional packages are there.

    Paste it into reports of problems.
    """  # noqa: DOC501 (this text is what --help prints)
    versions = show_versions()
    if out is not None:
        expect_place_for(out)
        write_json(out, versions.to_dict())
    if as_json:
        say_json(versions.to_dict())
    else:
        say(str(versions))

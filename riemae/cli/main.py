"""The command line ``riemae``: all commands under one name."""

from __future__ import annotations

import rich_click as click

from riemae.cli.commands.check import check
from riemae.cli.commands.demo import demo
from riemae.cli.commands.distances import distances
from riemae.cli.commands.embed import embed
from riemae.cli.commands.geodesic import geodesic
from riemae.cli.commands.info import info
from riemae.cli.commands.neighbors import neighbors
from riemae.cli.commands.report import report
from riemae.cli.commands.train import train
from riemae.cli.failures import Group


@click.group("riemae", cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="riemae")
def main() -> None:
    """The geometry of the space that a neural network parametrises.

    From your data, or your decoder, to distances, shortest paths and pictures. Every command has
    --help with examples. Exit code 0: everything has converged; 1: something has not; 2: an error,
    in one sentence.
    """


for _command in (train, embed, geodesic, distances, neighbors, report, check, info, demo):
    main.add_command(_command)
main.closing = (
    "Completion in the shell",
    (
        'bash:  eval "$(_RIEMAE_COMPLETE=bash_source riemae)"',
        'zsh:   eval "$(_RIEMAE_COMPLETE=zsh_source riemae)"',
        "fish:  _RIEMAE_COMPLETE=fish_source riemae | source",
    ),
)

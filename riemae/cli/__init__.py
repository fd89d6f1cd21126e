"""The command line."""

from riemae.cli.main import main

__all__ = ["main"]

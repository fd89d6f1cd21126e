"""The version of riemae that is installed."""

from importlib.metadata import version

__version__ = version("riemae")

"""Geodesics on any space that has the small :class:`Space` protocol; knows no network and no decoder."""

from riemae.solvers.curve import Curve, energy, length
from riemae.solvers.energy import Expansion
from riemae.solvers.graph import Graph, graph
from riemae.solvers.ivp import exp, log, shoot, transport
from riemae.solvers.matrix import DistanceMatrix, distance_matrix
from riemae.solvers.newton import Newton
from riemae.solvers.path import geodesic
from riemae.solvers.result import HINTS, GeodesicResult, Status
from riemae.solvers.space import MetricSpace, Space

__all__ = [
    "HINTS",
    "Curve",
    "DistanceMatrix",
    "Expansion",
    "GeodesicResult",
    "Graph",
    "MetricSpace",
    "Newton",
    "Space",
    "Status",
    "distance_matrix",
    "energy",
    "exp",
    "geodesic",
    "graph",
    "length",
    "log",
    "shoot",
    "transport",
]

"""Geodesics on any space that has the small :class:`Space` protocol; knows no network and no decoder."""

from riemae.solvers.adam import Adam
from riemae.solvers.bvp import BVP
from riemae.solvers.certificate import turning
from riemae.solvers.conjugate import ConjugatePoints, conjugate_points
from riemae.solvers.curve import Curve
from riemae.solvers.energy import Expansion
from riemae.solvers.georce import GEORCE
from riemae.solvers.graph import Graph, graph
from riemae.solvers.ivp import exp, log, shoot, transport
from riemae.solvers.jacobi import JacobiField, jacobi
from riemae.solvers.lbfgs import LBFGS
from riemae.solvers.matrix import DistanceMatrix, distance_matrix
from riemae.solvers.newton import Newton
from riemae.solvers.newton_cg import NewtonCG
from riemae.solvers.path import geodesic
from riemae.solvers.products import Products
from riemae.solvers.quadrature import energy, length
from riemae.solvers.result import HINTS, GeodesicResult, Status
from riemae.solvers.shooting import Shooting
from riemae.solvers.solver import Solver, State
from riemae.solvers.space import MetricSpace, Space
from riemae.solvers.spline import CubicSpline

__all__ = [
    "BVP",
    "GEORCE",
    "HINTS",
    "LBFGS",
    "Adam",
    "CubicSpline",
    "ConjugatePoints",
    "Curve",
    "DistanceMatrix",
    "Expansion",
    "GeodesicResult",
    "Graph",
    "JacobiField",
    "MetricSpace",
    "Newton",
    "NewtonCG",
    "Products",
    "Shooting",
    "Solver",
    "Space",
    "State",
    "Status",
    "conjugate_points",
    "distance_matrix",
    "energy",
    "exp",
    "geodesic",
    "graph",
    "jacobi",
    "length",
    "log",
    "shoot",
    "transport",
    "turning",
]

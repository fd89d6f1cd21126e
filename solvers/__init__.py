"""Geodesics on any space that has the small :class:`Space` protocol.

Knows no network and no decoder.
"""

from riemae.solvers.certificate import geodesic_residual
from riemae.solvers.curve import Curve
from riemae.solvers.energy import Expansion
from riemae.solvers.fields import DistanceField, distance_field
from riemae.solvers.flows.conjugate import ConjugatePoints, conjugate_points
from riemae.solvers.flows.exponential import exp, shoot
from riemae.solvers.flows.jacobi import JacobiField, jacobi
from riemae.solvers.flows.logarithm import log
from riemae.solvers.flows.parallel import transport
from riemae.solvers.flows.second_variation import SecondVariation, second_variation
from riemae.solvers.flows.volume import ExponentialVolume, exponential_volume
from riemae.solvers.graph import Graph, graph
from riemae.solvers.matrix import DistanceMatrix, distance_matrix
from riemae.solvers.methods.adam import Adam
from riemae.solvers.methods.bvp import BVP
from riemae.solvers.methods.gauss_newton import GaussNewton
from riemae.solvers.methods.georce import GEORCE
from riemae.solvers.methods.lbfgs import LBFGS
from riemae.solvers.methods.newton import Newton
from riemae.solvers.methods.newton_cg import NewtonCG
from riemae.solvers.methods.quasi_newton import QuasiNewton
from riemae.solvers.methods.shooting import Shooting
from riemae.solvers.methods.spectral import Spectral
from riemae.solvers.methods.spline import CubicSpline
from riemae.solvers.neighborhoods import Neighbors, RadiusNeighbors
from riemae.solvers.neighbors import neighbors, radius_neighbors
from riemae.solvers.path import geodesic
from riemae.solvers.products import Products
from riemae.solvers.quadrature import energy, length
from riemae.solvers.result import HINTS, GeodesicResult, Status
from riemae.solvers.solver import Solver, State
from riemae.solvers.space import MetricSpace, Space

__all__ = [
    "BVP",
    "GEORCE",
    "GaussNewton",
    "HINTS",
    "LBFGS",
    "Adam",
    "ConjugatePoints",
    "CubicSpline",
    "Curve",
    "DistanceField",
    "DistanceMatrix",
    "Expansion",
    "ExponentialVolume",
    "GeodesicResult",
    "Graph",
    "JacobiField",
    "MetricSpace",
    "Neighbors",
    "Newton",
    "NewtonCG",
    "Products",
    "QuasiNewton",
    "RadiusNeighbors",
    "SecondVariation",
    "Shooting",
    "Solver",
    "Space",
    "Spectral",
    "State",
    "Status",
    "conjugate_points",
    "distance_field",
    "distance_matrix",
    "energy",
    "exp",
    "exponential_volume",
    "geodesic",
    "geodesic_residual",
    "graph",
    "jacobi",
    "length",
    "log",
    "neighbors",
    "radius_neighbors",
    "second_variation",
    "shoot",
    "transport",
]

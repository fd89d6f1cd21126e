"""The contracts of manifolds, ambient metrics, spaces and path solvers, as checks for your own."""

from riemae.testing.ambient import check_ambient
from riemae.testing.manifold import check_manifold
from riemae.testing.solver import check_solver
from riemae.testing.space import check_space

__all__ = ["check_ambient", "check_manifold", "check_solver", "check_space"]

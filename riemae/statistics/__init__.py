"""Statistics of points on a manifold: means, components, clusters, diffusions.

Every function takes a :class:`riemae.Manifold`, or any space that solvers work on, and points in
its coordinates. They use what these offer to everybody: geodesics, logarithms, lengths.
"""

from riemae.statistics.clustering import GeodesicKMeans, GeodesicKMedoids
from riemae.statistics.comparison import DistanceDistribution, compare_distances
from riemae.statistics.components import TangentPCA, tangent_pca
from riemae.statistics.diffusion import brownian_motion, langevin
from riemae.statistics.means import Mean, frechet_mean, geometric_median
from riemae.statistics.regression import (
    GeodesicRegression,
    PrincipalGeodesic,
    geodesic_regression,
    principal_geodesics,
)
from riemae.statistics.sampling import sample_uniform

__all__ = [
    "DistanceDistribution",
    "GeodesicKMeans",
    "GeodesicKMedoids",
    "GeodesicRegression",
    "Mean",
    "PrincipalGeodesic",
    "TangentPCA",
    "brownian_motion",
    "compare_distances",
    "frechet_mean",
    "geodesic_regression",
    "geometric_median",
    "langevin",
    "principal_geodesics",
    "sample_uniform",
    "tangent_pca",
]

"""Statistics of points on a manifold: means, components, clusters, diffusions, densities.

Every function takes a :class:`riemae.Manifold`, or any space that solvers work on, and points in
its coordinates. They use what these offer to everybody: geodesics, logarithms, lengths. Arrays of
numpy and tables of pandas may stand for tensors, as in a manifold's methods; codes may have a
manifold's ``latent_shape``.
"""

from riemae.statistics.clustering import GeodesicHierarchy, GeodesicKMeans, GeodesicKMedoids
from riemae.statistics.comparison import DistanceDistribution, compare_distances
from riemae.statistics.components import TangentPCA, tangent_pca
from riemae.statistics.density import GeodesicBall, GeodesicKDE, geodesic_ball
from riemae.statistics.diffusion import brownian_motion, langevin
from riemae.statistics.grouped import GroupMeans, group_means
from riemae.statistics.matrices import EnergyTest, GeodesicMDS, energy_test, heat_kernel
from riemae.statistics.means import Mean, frechet_mean
from riemae.statistics.medians import geometric_median
from riemae.statistics.mixture import LAND
from riemae.statistics.normal import RiemannianNormal
from riemae.statistics.regression import (
    GeodesicRegression,
    PrincipalGeodesic,
    geodesic_regression,
    principal_geodesics,
)
from riemae.statistics.sampling import sample_uniform

__all__ = [
    "LAND",
    "DistanceDistribution",
    "EnergyTest",
    "GeodesicBall",
    "GeodesicHierarchy",
    "GeodesicKDE",
    "GeodesicKMeans",
    "GeodesicKMedoids",
    "GeodesicMDS",
    "GeodesicRegression",
    "GroupMeans",
    "Mean",
    "PrincipalGeodesic",
    "RiemannianNormal",
    "TangentPCA",
    "brownian_motion",
    "compare_distances",
    "energy_test",
    "frechet_mean",
    "geodesic_ball",
    "geodesic_regression",
    "geometric_median",
    "group_means",
    "heat_kernel",
    "langevin",
    "principal_geodesics",
    "sample_uniform",
    "tangent_pca",
]

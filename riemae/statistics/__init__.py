"""Statistics of points on a manifold: means, components, clusters, diffusions.

Every function takes a :class:`riemae.Manifold`, or any space that solvers work on, and points in
its coordinates. They use what these offer to everybody: geodesics, logarithms, lengths.
"""

from riemae.statistics.clustering import GeodesicKMeans, GeodesicKMedoids
from riemae.statistics.components import TangentPCA, tangent_pca
from riemae.statistics.diffusion import brownian_motion, langevin
from riemae.statistics.means import Mean, frechet_mean, geometric_median

__all__ = [
    "GeodesicKMeans",
    "GeodesicKMedoids",
    "Mean",
    "TangentPCA",
    "brownian_motion",
    "frechet_mean",
    "geometric_median",
    "langevin",
    "tangent_pca",
]

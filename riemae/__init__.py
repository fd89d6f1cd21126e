"""riemae: the geometry of the space that a neural network parametrises."""

from riemae import ambient, curvature, datasets, differential, distortion, exceptions, io, solvers
from riemae.ensembles import Ensemble
from riemae.manifold import Manifold
from riemae.persistence import load

__version__ = "0.1.0"

__all__ = [
    "Ensemble",
    "Manifold",
    "__version__",
    "ambient",
    "curvature",
    "datasets",
    "differential",
    "distortion",
    "exceptions",
    "io",
    "load",
    "solvers",
]

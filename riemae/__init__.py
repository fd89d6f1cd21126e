"""riemae: the geometry of the space that a neural network parametrises."""

from riemae import ambient, datasets, differential, exceptions, scores, solvers, storage
from riemae.citations import cite
from riemae.ensembles import Ensemble
from riemae.environment import show_versions
from riemae.geometry.training_mode import frozen_statistics
from riemae.loading import load
from riemae.manifold import Manifold
from riemae.reporting import fit_decoder, report
from riemae.version import __version__

__all__ = [
    "Ensemble",
    "Manifold",
    "__version__",
    "ambient",
    "cite",
    "datasets",
    "differential",
    "exceptions",
    "fit_decoder",
    "frozen_statistics",
    "load",
    "report",
    "scores",
    "show_versions",
    "solvers",
    "storage",
]

"""Ambient metrics H(x): how distances are measured in the data space."""

from riemae.ambient.base import AmbientMetric
from riemae.ambient.custom import Custom, as_ambient
from riemae.ambient.expected import Averaged, Expected
from riemae.ambient.fisher import FisherRao
from riemae.ambient.flat import Constant, Diagonal, Euclidean, FeatureMap

__all__ = [
    "AmbientMetric",
    "Averaged",
    "Constant",
    "Custom",
    "Diagonal",
    "Euclidean",
    "Expected",
    "FeatureMap",
    "FisherRao",
    "as_ambient",
]

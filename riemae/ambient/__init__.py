"""Ambient metrics H(x): how distances are measured in the data space."""

from riemae.ambient.base import AmbientMetric, ShapedMetric
from riemae.ambient.clouds import InfoRiemannian
from riemae.ambient.custom import Custom, as_ambient
from riemae.ambient.density import Density
from riemae.ambient.flat import ClassifierFisher, Constant, Diagonal, Euclidean, FeatureMap, LowRank
from riemae.ambient.geoopt import Geoopt

__all__ = [
    "AmbientMetric",
    "ClassifierFisher",
    "Constant",
    "Custom",
    "Density",
    "Diagonal",
    "Euclidean",
    "FeatureMap",
    "Geoopt",
    "InfoRiemannian",
    "LowRank",
    "ShapedMetric",
    "as_ambient",
]

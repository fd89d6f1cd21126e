"""Ambient metrics H(x): how distances are measured in the data space."""

from riemae.ambient.base import AmbientMetric, ShapedMetric
from riemae.ambient.clouds import InfoRiemannian
from riemae.ambient.custom import Custom, as_ambient
from riemae.ambient.flat import Constant, Diagonal, Euclidean, FeatureMap
from riemae.ambient.geoopt import Geoopt

__all__ = [
    "AmbientMetric",
    "Constant",
    "Custom",
    "Diagonal",
    "Euclidean",
    "FeatureMap",
    "Geoopt",
    "InfoRiemannian",
    "ShapedMetric",
    "as_ambient",
]

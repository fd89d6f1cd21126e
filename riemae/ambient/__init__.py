"""Ambient metrics H(x): how distances are measured in the data space."""

from riemae.ambient.base import (
    AmbientMetric,
    DiagonalMetric,
    FactorMetric,
    FeatureMetric,
    InnerMetric,
    MatrixMetric,
    ProductMetric,
)
from riemae.ambient.clouds import InfoRiemannian
from riemae.ambient.custom import Custom, as_ambient
from riemae.ambient.density import Density
from riemae.ambient.features import (
    ClassifierFisher,
    Constant,
    Diagonal,
    Euclidean,
    FeatureMap,
    LowRank,
)
from riemae.ambient.fisher import FisherRao
from riemae.ambient.geoopt import Geoopt
from riemae.ambient.shaped import ShapedMetric
from riemae.ambient.uncertain import Averaged, Expected
from riemae.distributions.registry import register_family, unregister_family

__all__ = [
    "AmbientMetric",
    "Averaged",
    "ClassifierFisher",
    "Constant",
    "Custom",
    "Density",
    "Diagonal",
    "DiagonalMetric",
    "Euclidean",
    "Expected",
    "FactorMetric",
    "FeatureMap",
    "FeatureMetric",
    "FisherRao",
    "Geoopt",
    "InfoRiemannian",
    "InnerMetric",
    "LowRank",
    "MatrixMetric",
    "ProductMetric",
    "ShapedMetric",
    "as_ambient",
    "register_family",
    "unregister_family",
]

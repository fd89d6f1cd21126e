"""Autoencoders whose latent space has a good geometry.

Losses for any training loop, estimators, and a lightning module. Names are imported when they are
used: the losses need torch alone, the estimators scikit-learn, training lightning.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "AE": "estimators",
    "ContractiveAE": "variants",
    "DenoisingAE": "variants",
    "GeometricModule": "module",
    "IRAE": "variants",
    "IRVAE": "variants",
    "MCAE": "variants",
    "NRAE": "variants",
    "Neighborhood": "neighborhood",
    "Objective": "objective",
    "Term": "terms",
    "VAE": "variants",
    "Variation": "terms",
    "encoder_losses": "",
    "graph_losses": "",
    "likelihoods": "",
    "losses": "",
    "networks": "",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOME[name]
    return (
        getattr(import_module(f"{__name__}.{home}"), name)
        if home
        else import_module(f"{__name__}.{name}")
    )


def __dir__() -> list[str]:
    return __all__

"""What the examples share: arguments, training over seeds, and figures in a folder."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from riemae.autoencoders import AE
    from riemae.datasets import Dataset

matplotlib.use("Agg")  # figures are written to files, so no screen is needed
QUICK = {"epochs": 2, "hidden": (16, 16)}  # settings of models under --quick


def parser(description: str, seeds: int | None = None) -> argparse.ArgumentParser:
    """Arguments of an example, to which it may add its own.

    Args:
        description: The docstring of the example.
        seeds: Default of ``--seeds``; None for an example without it.
    """
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--out", type=Path, default=Path("out"), help="folder of the figure")
    found.add_argument(
        "--quick", action="store_true", help="a test that takes seconds; its numbers mean nothing"
    )
    if seeds is not None:
        found.add_argument("--seeds", type=int, default=seeds, help="how many seeds")
    return found


def options(description: str, seeds: int | None = None) -> argparse.Namespace:
    """The arguments of the command line; see :func:`parser`."""
    return started(parser(description, seeds).parse_args())


def started(given: argparse.Namespace) -> argparse.Namespace:
    """The same arguments, after setting one thread, because small tensors do not need more."""
    torch.set_num_threads(1)
    if given.quick and "seeds" in given:
        given.seeds = 1
    return given


def models_for(given: argparse.Namespace, models: Mapping[str, AE]) -> dict[str, AE]:
    """Copies of models; with ``--quick``, small ones of two epochs."""
    from sklearn.base import clone

    settings = QUICK if given.quick else {}
    return {name: clone(model).set_params(**settings) for name, model in models.items()}


def trained(models: Mapping[str, AE], x: Tensor, seed: int) -> Iterator[tuple[str, AE]]:
    """Every model by name, trained on ``x`` from this seed."""
    from sklearn.base import clone

    for name, model in models.items():
        yield name, clone(model).set_params(seed=seed).fit(x)


def reconstruction(model: AE) -> Callable[[Tensor], Tensor]:
    """The function from data to a model's reconstruction of them."""

    def reconstruct(x: Tensor) -> Tensor:
        return model.inverse_transform(model.transform(x))

    return reconstruct


def decoded_curve(model: AE, data: Dataset, count: int = 1000) -> Tensor:  # -> (count, D)
    """The decoded curve of a model with one latent dimension, between its outermost codes."""
    z = model.transform(data.x)
    codes = torch.linspace(float(z.min()), float(z.max()), count)[:, None]
    return model.inverse_transform(codes)


def kendall(model: AE, data: Dataset) -> float:
    """Kendall's τ between codes and true positions on a curve, without its sign.

    1 is the right order; a single exchange of neighbours costs ``4/(n (n − 1))``.
    """
    from scipy.stats import kendalltau

    found = kendalltau(model.transform(data.x)[:, 0].numpy(), data.z.reshape(-1).numpy())
    return abs(float(found.statistic))


def save(figure: Figure, given: argparse.Namespace, name: str, dpi: int = 130) -> None:
    """Write a figure to the folder of the command line, and print where."""
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / name
    figure.savefig(path, dpi=dpi, metadata={"Software": None})
    print(f"Figure: {path}")

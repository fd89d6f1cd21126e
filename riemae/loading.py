"""Reading back a trained model of any kind, without importing what it does not need."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from riemae.autoencoders.estimators import AE


def load(directory: str | os.PathLike[str], device: torch.device | str = "cpu", **given: Any) -> AE:
    """A trained autoencoder, as its ``save(directory)`` left it: its codes have the same bits.

    Reading runs no code that the checkpoint names, and takes no more memory than its tensors are
    large before they are known to fit. Where a fit writes is not read from it: ``directory``,
    ``logger`` and ``trainer`` are as by default; ``set_params`` changes them. What has no
    description in plain values (networks of your own that are not registered with
    :func:`riemae.storage.register`, most ambient metrics, losses and likelihoods of your own) has
    to be given again; the error says what.

    Args:
        directory: Where ``save`` wrote.
        device: Where the model goes.
        given: Constructor arguments that the checkpoint cannot hold: ``encoder=``, ``decoder=``,
            ``ambient=``, ``likelihood=``, ``terms=``. Networks get the trained weights, in a copy.

    Raises:
        CheckpointError: When a file is missing, changed, of an unknown version or of something
            else; when something is missing that has to be given, or what is given does not fit;
            when there is no such device.

    Example:
        >>> import tempfile, numpy as np, riemae
        >>> from riemae.autoencoders import AE
        >>> x = np.random.default_rng(0).normal(size=(40, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = AE(hidden=(8,), epochs=2).fit(x)
        ...     again = riemae.load(model.save(folder))
        >>> bool((again.transform(x) == model.transform(x)).all())
        True
    """
    from riemae.autoencoders import saved, variants

    return saved.read(directory, device, given, variants.KINDS)

"""Models of pythae: their decoders. pythae itself is not imported."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from riemae.interop.frozen import frozen
from riemae.manifold import Manifold

__all__ = ["manifold"]


def manifold(model: Any, **options: Any) -> Manifold:
    """The manifold that the decoder of a pythae model parametrises.

    Args:
        model: A trained model of pythae, such as ``pythae.models.VAE``. Its decoder is copied, in
            evaluation mode.
        options: Others of :class:`~riemae.Manifold`, such as ``ambient``.

    Returns:
        The manifold; its codes are those of ``model.embed(x)``.

    Raises:
        DTypeError: When the model has no decoder.
    """
    decoder = getattr(model, "decoder", None)
    copy = frozen("interop.pythae.manifold", decoder, "a model of pythae, with a decoder")
    options.setdefault("latent_dim", getattr(model, "latent_dim", None))
    return Manifold(_Reconstruction(copy), **options)


class _Reconstruction(nn.Module):
    """What a decoder calls its reconstruction."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> Tensor:  # (k, m) -> (k, *shape)
        found = self.decoder(z)
        data: Tensor = found if isinstance(found, Tensor) else found["reconstruction"]
        return data

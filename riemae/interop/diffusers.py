"""Autoencoders of diffusers, such as the one of latent diffusion. diffusers is not imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from riemae.interop.frozen import frozen
from riemae.manifold import Manifold

__all__ = ["manifold"]


def manifold(vae: Any, size: int | Sequence[int] | None = None, **options: Any) -> Manifold:
    """The manifold of images that an ``AutoencoderKL`` decodes.

    Codes are those that diffusion works on: the encoder's, times the scaling factor of the model's
    configuration (and less its shift). They have the shape ``(c, h, w)``; methods take and return
    it.

    Args:
        vae: The autoencoder; it is copied, in evaluation mode.
        size: Height and width of a code; by default what the configuration's ``sample_size`` comes
            to.
        options: Others of :class:`~riemae.Manifold`, such as ``ambient`` and ``chunk_size``.

    Returns:
        The manifold, whose codes are ``scaling_factor * vae.encode(x).latent_dist.mode()``.

    Raises:
        DTypeError: When the model has no ``decode`` or no configuration.
    """
    expected = "an AutoencoderKL of diffusers"
    copy = frozen("interop.diffusers.manifold", vae, expected, "decode", "config")
    config: Any = copy.config
    if size is None:
        # Every block but the last of the encoder halves the image.
        halvings = len(config.down_block_types) - 1
        sample = config.sample_size
        sides = sample if isinstance(sample, (tuple, list)) else (sample, sample)
        size = [side // 2**halvings for side in sides]
    elif isinstance(size, int):
        size = [size, size]
    shape = (config.latent_channels, *size)
    return Manifold(_Images(copy), latent_shape=shape, **options)


class _Images(nn.Module):
    """Scaled codes to images."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae
        config: Any = vae.config
        self.scale = float(config.scaling_factor)
        self.shift = float(getattr(config, "shift_factor", None) or 0.0)

    def forward(self, z: Tensor) -> Tensor:  # (k, c, h, w) -> (k, channels, height, width)
        decode: Any = self.vae.decode
        image: Tensor = decode(z / self.scale + self.shift, return_dict=False)[0]
        return image

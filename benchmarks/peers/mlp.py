"""The decoder as a torch module, and end points as torch tensors, for the contenders that are
written in torch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peers.worker import Layers


def decoder(layers: Layers, threads: int) -> nn.Sequential:
    """The network in float64, frozen; sets the number of threads.

    Weights with four axes are those of transposed convolutions, which double the sides of an image
    that begins with 4 × 4 pixels. The output is flat.
    """
    torch.set_num_threads(threads)
    modules: list[nn.Module] = []
    for weight, bias in layers:
        layer: nn.Linear | nn.ConvTranspose2d
        if weight.ndim == 4:
            layer = nn.ConvTranspose2d(*weight.shape[:2], 4, 2, 1, dtype=torch.float64)
            if isinstance(modules[-2], nn.Linear):
                modules.append(nn.Unflatten(1, (len(weight), 4, 4)))
        else:
            layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
        modules += [layer, nn.SiLU()]
    last = [nn.Flatten()] if layers[-1][0].ndim == 4 else []
    return nn.Sequential(*modules[:-1], *last).requires_grad_(False).eval()


def formula(layers: Layers) -> Callable[[Tensor], Tensor]:
    """The same map, written so that it can be differentiated forward twice, which torch's own SiLU
    cannot.
    """
    parts = [(torch.from_numpy(weight), torch.from_numpy(bias)) for weight, bias in layers]

    def f(z: Tensor) -> Tensor:
        for weight, bias in parts[:-1]:
            h = z @ weight.T + bias
            z = h * torch.sigmoid(h)
        return z @ parts[-1][0].T + parts[-1][1]

    return f


def tensors(z0: np.ndarray, z1: np.ndarray) -> tuple[Tensor, Tensor]:
    """Copies of the end points as float64 tensors."""
    return torch.tensor(z0), torch.tensor(z1)

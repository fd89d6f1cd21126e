"""Fingerprints of tensors and files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

PIECE = 2**24  # bytes hashed, or written, at once


def digest(x: Tensor) -> str:
    """A fingerprint of a tensor: its values, shape and dtype."""
    array = x.detach().cpu().contiguous()
    head = f"{array.dtype} {tuple(array.shape)} ".encode()
    content = b""
    if array.numel():  # torch has no other view of nothing
        content = array.reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(head + content).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read piece by piece."""
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(PIECE):
            total.update(piece)
    return total.hexdigest()

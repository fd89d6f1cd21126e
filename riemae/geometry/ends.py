"""The images of curves' ends, which do not move while the curves do."""

from __future__ import annotations

import torch
from torch import Tensor

from riemae.solvers.state import at_hand

# What may be kept for one batch of pairs, in bytes.
_MOST_BYTES = 2**26


class Ends:
    """Images of the end points of pairs, to be had for some of the pairs in any order.

    Pairs are recognised by their numbers, bit by bit.

    Args:
        points: ``(p, 2, m)``, on a processor.
        images: ``(p, 2, D)``, of these points.
    """

    def __init__(self, points: Tensor, images: Tensor) -> None:
        self._place = {key: i for i, key in enumerate(_keys(points))}
        self._points = points
        self._images = images

    @classmethod
    def can_be_kept(cls, images: Tensor) -> bool:
        """Whether they are not too many."""
        return images.numel() * images.element_size() <= _MOST_BYTES

    @classmethod
    def can_be_told(cls, points: Tensor) -> bool:
        """Whether looking pairs up is cheap: a device would be waited for at every look."""
        return type(points) is Tensor and at_hand(points)

    def images(self, points: Tensor) -> Tensor | None:  # (q, 2, m) -> (q, 2, D)
        """Those of some pairs; None where one of them is not known."""
        if points.shape == self._points.shape and torch.equal(points, self._points):
            return self._images
        places = [self._place.get(key) for key in _keys(points)]
        if None in places:
            return None
        return self._images[places]


def _keys(points: Tensor) -> list[bytes]:  # (p, 2, m)
    rows = points.detach().contiguous().numpy()
    return [row.tobytes() for row in rows]

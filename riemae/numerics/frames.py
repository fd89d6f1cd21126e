"""Tables of pandas, of results whose columns are numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from riemae.exceptions import MissingExtraError

if TYPE_CHECKING:
    import pandas


def frame(
    where: str, columns: Mapping[str, np.ndarray], index: Mapping[str, np.ndarray | Sequence[int]]
) -> pandas.DataFrame:
    """A table of columns of one length, and the columns of its index by name.

    Raises:
        MissingExtraError: When pandas is not installed.
    """
    try:
        import pandas
    except ImportError as reason:
        hint = "pip install 'riemae[pandas]'."
        raise MissingExtraError(where, "pandas", str(reason), hint) from reason
    arrays = list(index.values())
    names = list(index)
    if len(arrays) == 1:
        place = pandas.Index(arrays[0], name=names[0])
    else:
        place = pandas.MultiIndex.from_arrays(arrays, names=names)
    return pandas.DataFrame(dict(columns), index=place)

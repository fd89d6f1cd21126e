"""Which run a file on disk belongs to: its description, compared with that of a call."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from riemae.exceptions import FileError
from riemae.numerics.tolerances import tolerance
from riemae.storage.digests import file_digest

# How many differences of two descriptions an error names.
_NAMED = 5


def as_json(content: Mapping[str, Any]) -> bytes:
    """A description as it is written to disk, the same bytes for the same content."""
    return json.dumps(content, indent=1, sort_keys=True).encode()


def refuse(
    where: str, path: Path, expected: str, got: str, reason: Exception | None = None
) -> NoReturn:
    """Refuse a file that does not hold what it should, on behalf of a call.

    Raises:
        FileError: Always.
    """
    remedy = "Give another out=, or delete it to compute it anew."
    raise FileError(where, f"{path} to hold {expected}", got, remedy) from reason


def agreed(
    where: str, path: Path, what: str, description: Mapping[str, Any], probe: list[float]
) -> dict[str, Any]:
    """The description at ``path``.

    Args:
        where: The call, for errors.
        path: A file in JSON.
        what: What it describes, in words.
        description: That of the call.
        probe: Numbers that the same space reproduces up to rounding.

    Raises:
        FileError: When it cannot be read, or is of another run.
    """
    expected = f"{what} of these points, settings and space"
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as reason:
        refuse(where, path, expected, str(reason), reason)
    if not isinstance(found, dict):
        refuse(where, path, expected, type(found).__name__)
    expect_same(where, path, expected, found, description, probe)
    return found


def expect_same(
    where: str,
    path: Path,
    expected: str,
    found: Mapping[str, Any],
    description: Mapping[str, Any],
    probe: list[float],
) -> None:
    """Compare a description that was found with that of the call.

    Args:
        where: The call, for errors.
        path: Where it was found.
        expected: What was looked for, in words.
        found: What was found.
        description: That of the call.
        probe: Numbers that the same space reproduces up to rounding.

    Raises:
        FileError: When it is of another run.
    """
    differences = list(_differences(description, found))
    dtype = getattr(torch, description["dtype"])
    share = tolerance(dtype).probe
    if not _same_probe(probe, found.get("probe"), share):
        differences.append(
            "probe: the metric has other values at these points "
            "(another decoder or ambient metric?)"
        )
    if differences:
        if len(differences) > _NAMED:
            differences = [*differences[: _NAMED - 1], differences[-1]]
        refuse(where, path, expected, "another one: " + "; ".join(differences))


def check_array(where: str, path: Path, about: Mapping[str, Any]) -> None:
    """Look whether a result is whole and unchanged.

    Args:
        where: The call, for errors.
        path: The result, in numpy's format.
        about: Its description, with shape, dtype and digest.

    Raises:
        FileError: When it is not.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as reason:
        refuse(where, path, "a whole .npy file", str(reason), reason)
    wanted = (tuple(about["shape"]), about["dtype"])
    got = (array.shape, array.dtype.name)
    if got != wanted:
        refuse(where, path, f"an array of shape and dtype {wanted}", str(got))
    known = about.get("sha256")
    actual = file_digest(path)
    if known != actual:
        refuse(where, path, f"unchanged contents (sha256 {known})", actual)


def check_failures(
    where: str, path: Path, failed: object, shape: tuple[int, int], statuses: frozenset[int]
) -> None:
    """Look whether the pairs that failed are rows, columns and statuses of a matrix.

    Args:
        where: The call, for errors.
        path: The file that names them.
        failed: What it says.
        shape: Of the matrix.
        statuses: Codes that a pair that failed may have.

    Raises:
        FileError: When they are not.
    """
    n, q = shape
    entries: list[Any] = failed if isinstance(failed, list) else [None]
    for entry in entries:
        if not _is_failure(entry, n, q, statuses):
            expected = f"failed pairs as [row, column, status] of a {n} x {q} matrix"
            refuse(where, path, expected, repr(entry)[:80])


def _is_failure(entry: object, n: int, q: int, statuses: frozenset[int]) -> bool:
    if not isinstance(entry, list) or len(entry) != 3:
        return False
    if not all(type(number) is int for number in entry):
        return False
    row, column, status = entry
    return 0 <= row < n and 0 <= column < q and status in statuses


def _same_probe(expected: list[float], found: object, share: float) -> bool:
    if not isinstance(found, list) or len(found) != len(expected):
        return False
    pairs = zip(expected, found, strict=True)
    return all(isinstance(y, float) and _close(x, y, share) for x, y in pairs)


def _close(x: float, y: float, share: float) -> bool:
    if math.isnan(x) and math.isnan(y):
        return True
    return math.isclose(x, y, rel_tol=share)


def _differences(
    expected: Mapping[str, Any], found: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    # What a finished result adds to the description of its run stands at the top only.
    keys = {**expected, **found} if prefix else expected
    for key in keys:
        value = expected.get(key)
        other = found.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            yield from _differences(value, other, f"{prefix}{key}.")
        elif value != other:
            yield f"{prefix}{key}: expected {value}, got {other}"

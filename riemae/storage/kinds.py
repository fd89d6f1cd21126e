"""What a checkpoint holds, by the name that it has for itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from riemae.exceptions import CheckpointError


def expect_kind(
    where: str, directory: str | os.PathLike[str], metadata: Mapping[str, Any], kind: str
) -> None:
    """Metadata of a checkpoint of one kind.

    Raises:
        CheckpointError: For any other.
    """
    found = metadata.get("kind")
    if found != kind:
        got = "something without a kind" if found is None else repr(found)
        hint = "Is the path right? A trained model is read by riemae.load."
        raise CheckpointError(where, f"a {kind} at {os.fspath(directory)}", got, hint)

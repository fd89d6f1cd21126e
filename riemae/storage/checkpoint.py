"""Checkpoints on disk: tensors in safetensors, the rest in JSON, no pickles.

After a crash there is the old checkpoint or the new one, never half of one. It is a directory with
two files, and a third one for people::

    checkpoint.json                        format, version, metadata; about the tensor file: its
                                           name, size and SHA-256
    tensors-<16 hex digits>.safetensors    named by its content
    README.md                              a page about it, if there is one; never read

:func:`save` writes the tensors under their new name first and replaces ``checkpoint.json`` last, in
one step of the file system; only then the tensors of the previous checkpoint go. So a directory
that was saved to before always holds a complete checkpoint. :func:`load` reads each file once,
follows no link, and refuses whatever does not match.

Networks are described by name and plain values (:func:`describe`, :func:`build`): reading a
checkpoint imports nothing and runs no code that the checkpoint names.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riemae import version
from riemae.exceptions import CheckpointError, DTypeError
from riemae.storage.atomic import write_atomically

VERSION = 1
_FORMAT = "riemae checkpoint"
_COPY = "The file is damaged; take another copy of the checkpoint."
_PERMISSION = "Check the permissions of the file and of its folder."
_JSON = "checkpoint.json"
_TENSORS = re.compile(r"tensors-[0-9a-f]{16}\.safetensors")
_CARD = "README.md"
# Its first line, by which a page of riemae is known from one that somebody else has written.
_OURS = "<!-- Written by riemae about the checkpoint in this folder; the next save replaces it. -->"
_PART = re.compile(
    r"(checkpoint\.json|README\.md|tensors-[0-9a-f]{16}\.safetensors)\.[0-9a-f]{8}\.part"
)


def save(
    directory: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    page: str | None = None,
) -> Path:
    """Write a checkpoint, in place of the one that may be there.

    Killed at any moment, it leaves the previous checkpoint or the new one. One process may write to
    a directory at a time; several may read.

    Args:
        directory: Made when missing. Other files in it are left alone.
        tensors: Dense tensors by name, on any device; those that share memory are stored
            separately.
        metadata: Anything that JSON holds: strings, numbers (NaN and infinity too), booleans, None,
            lists, and dictionaries with strings as keys. Tuples come back as lists.
        page: A text about the checkpoint in Markdown, which becomes its ``README.md``. A file of
            that name that was not written by riemae is left alone.

    Returns:
        The directory.

    Raises:
        DTypeError: When a tensor is sparse, quantised or not a tensor, a name is not a string, or
            the metadata hold something else.
        CheckpointError: When the directory is a file, or is not a path.
    """
    folder = _folder("storage.save", directory)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(
            "storage.save", "a directory", f"the file {folder}", "Choose another name."
        )
    check_plain(metadata, "metadata")
    content = _serialised(tensors)
    digest = hashlib.sha256(content).hexdigest()
    name = f"tensors-{digest[:16]}.safetensors"
    body: dict[str, Any] = {
        "format": _FORMAT,
        "version": VERSION,
        "riemae": version.__version__,
        "tensors": {"file": name, "bytes": len(content), "sha256": digest},
        "metadata": dict(metadata),
    }
    body["checksum"] = _checksum(body)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / name, content)
    write_atomically(folder / _JSON, json.dumps(body, indent=1).encode())
    _write_page(folder / _CARD, page)
    _sweep(folder, keep=name)
    return folder


def _write_page(path: Path, page: str | None) -> None:
    """Put the page in place of the one about the previous checkpoint, if that is riemae's own."""
    if path.is_symlink() or (path.exists() and not _is_ours(path)):
        return
    if page is not None:
        write_atomically(path, f"{_OURS}\n\n{page}".encode())
    else:
        path.unlink(missing_ok=True)  # it would be about another checkpoint


def _is_ours(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_OURS.encode())) == _OURS.encode()
    except OSError:  # a folder, or a file that nobody may read
        return False


def load(
    directory: str | os.PathLike[str], device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint.

    Args:
        directory: Where :func:`save` wrote; it may be a link to it, its files may not be links.
        device: Where the tensors go.

    Returns:
        Tensors and metadata.

    Raises:
        CheckpointError: When a file is missing, truncated, changed, of another kind (a pickle among
            them) or of a version that this riemae does not know. It names the file. Also when the
            directory is not a path, or there is no such device.
    """
    folder = _folder("storage.load", directory)
    device = present("storage.load", device)
    if not folder.is_dir():
        got = _kind(_read(folder)) if folder.exists() else "nothing"
        hint = (
            "Checkpoints are directories; pickles are never read."
            if folder.exists()
            else "Is the path right?"
        )
        raise CheckpointError(
            "storage.load", f"the directory of a checkpoint at {folder}", got, hint
        )
    body = _parsed(folder / _JSON)
    if not (folder / body["tensors"]["file"]).exists():  # a save may have come between
        body = _parsed(folder / _JSON)
    entry = body["tensors"]
    path = folder / entry["file"]
    content = _read(path)
    if len(content) != entry["bytes"] or hashlib.sha256(content).hexdigest() != entry["sha256"]:
        found = hashlib.sha256(content).hexdigest()
        raise CheckpointError(
            "storage.load",
            f"{path} with {entry['bytes']} bytes and SHA-256 {entry['sha256'][:16]}…",
            f"{_kind(content)} with {len(content)} bytes and {found[:16]}…",
            "The file was cut short or changed since it was written; take a copy that was not.",
        )
    import safetensors.torch

    try:
        tensors = safetensors.torch.load(content)
    except Exception as reason:  # whatever a parser of foreign bytes may raise
        raise CheckpointError(
            "storage.load", f"{path} in the safetensors format", f"{reason}", _COPY
        ) from reason
    return {key: tensor.to(device) for key, tensor in tensors.items()}, body["metadata"]


def present(where: str, device: torch.device | str) -> torch.device:
    """A device that tensors can go to.

    Raises:
        CheckpointError: When there is none of that name, as with ``"cuda"`` on a machine without a
            GPU.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as reason:
        lines = str(reason).splitlines()
        problem = lines[0] if lines else type(reason).__name__
        got = f"{device!r}: {problem}"
        raise CheckpointError(
            where, "a device of this machine", got, "Try device='cpu'."
        ) from reason
    return found


def _folder(where: str, directory: Any) -> Path:
    """The path of a checkpoint.

    Raises:
        CheckpointError: When it is not a path.
    """
    if not isinstance(directory, (str, os.PathLike)) or not isinstance(os.fspath(directory), str):
        raise CheckpointError(
            where, "the path of a directory", repr(directory), "Try 'model' or a pathlib.Path."
        )
    return Path(directory)


# Reading and checking.


def _serialised(tensors: Mapping[str, Tensor]) -> bytes:
    import safetensors.torch

    where = "storage.save"
    for key, tensor in tensors.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            got = f"{type(tensor).__name__} under {key!r}"
            hint = "Plain values go into metadata=."
            raise DTypeError(where, "tensors by name", got, hint)
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            raise DTypeError(
                where,
                "dense tensors with values",
                f"{tensor.layout} on {tensor.device} under {key!r}",
                "Try tensor.to_dense() or tensor.dequantize(), and move it off the meta device.",
            )
    try:
        # Each in memory of its own: the format has no views.
        return safetensors.torch.save(
            {key: t.detach().cpu().contiguous().clone() for key, t in tensors.items()}
        )
    except (KeyError, ValueError, RuntimeError) as reason:
        kinds = ", ".join(sorted({str(t.dtype) for t in tensors.values()}))
        raise DTypeError(where, "dtypes that safetensors knows", kinds, f"{reason}") from reason


def check_plain(value: Any, place: str) -> None:
    """Refuse what JSON cannot return as it was (tuples excepted).

    Raises:
        DTypeError: Naming the place.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if type(key) is not str:
                raise DTypeError(
                    "storage.save", f"strings as keys of {place}", repr(key), "JSON has no others."
                )
            check_plain(inner, f"{place}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            check_plain(inner, f"{place}[{i}]")
    elif value is not None and type(value) not in (str, int, bool) and not isinstance(value, float):
        hint = "Tensors go into tensors=; convert the rest with float(), str() or tolist()."
        raise DTypeError("storage.save", f"a plain value at {place}", type(value).__name__, hint)


def _checksum(body: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in body.items() if key != "checksum"}
    return hashlib.sha256(
        json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def _read(path: Path) -> bytes:
    """Content of a regular file that is not a link.

    Raises:
        CheckpointError: When there is none.
    """
    # A pipe would block, and a link may have been put there to have something else read.
    flags = (
        os.O_RDONLY
        | getattr(os, "O_NOFOLLOW", 0)
        | getattr(os, "O_NONBLOCK", 0)
        | getattr(os, "O_BINARY", 0)
    )
    try:
        if path.is_symlink():
            raise CheckpointError(
                "storage.load", f"a file at {path}", "a symbolic link", "Links are not followed."
            )
        handle = os.open(path, flags)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise CheckpointError(
                    "storage.load",
                    f"a file at {path}",
                    "something else",
                    "Is it a pipe or a device?",
                )
            return file.read()
    except FileNotFoundError as reason:
        hint = "Was a checkpoint ever saved here completely?"
        raise CheckpointError("storage.load", f"a file at {path}", "nothing", hint) from reason
    except OSError as reason:
        raise CheckpointError(
            "storage.load", f"a file at {path} that can be read", f"{reason}", _PERMISSION
        ) from reason


def _parsed(path: Path) -> dict[str, Any]:
    """The JSON of a checkpoint, checked from the outside in.

    Raises:
        CheckpointError: When it is not such JSON, of another version, or changed.
    """
    content = _read(path)
    try:
        body = json.loads(content.decode())
    except (ValueError, RecursionError) as reason:
        hint = "The file was cut short or changed, or it belongs to something else."
        raise CheckpointError(
            "storage.load", f"{path} in JSON", f"{_kind(content)}: {reason}", hint
        ) from reason
    if not isinstance(body, dict) or body.get("format") != _FORMAT:
        got = type(body).__name__
        if isinstance(body, dict):
            got = repr(body.get("format"))
        raise CheckpointError(
            "storage.load",
            f"{path} with the format {_FORMAT!r}",
            got,
            "It belongs to something else.",
        )
    if type(body.get("version")) is not int or body["version"] != VERSION:
        hint = "It was written by another version of riemae: update this one."
        raise CheckpointError(
            "storage.load", f"{path} of version {VERSION}", f"{body.get('version')!r}", hint
        )
    try:
        sound = body.get("checksum") == _checksum(body)
    except RecursionError:
        sound = False
    if not sound:
        hint = "The file was changed since it was written; take a copy that was not."
        raise CheckpointError(
            "storage.load", f"{path} with the checksum of its content", "another", hint
        )
    entry = body.get("tensors")
    if (
        not isinstance(entry, dict)
        or {key: type(value) for key, value in entry.items()}
        != {"file": str, "bytes": int, "sha256": str}
        or not _TENSORS.fullmatch(entry["file"])
        or not isinstance(body.get("metadata"), dict)
    ):
        hint = "Only a file tensors-….safetensors in the same directory is read."
        raise CheckpointError(
            "storage.load",
            f"{path} with metadata and the name of its tensor file",
            repr(entry),
            hint,
        )
    return body


def _kind(content: bytes) -> str:
    """What bytes look like, for an error."""
    if content[:4] == b"PK\x03\x04" or (
        content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05"
    ):
        return "a pickle"
    return "a file" if content else "an empty file"


def _sweep(folder: Path, keep: str) -> None:
    """Remove the tensors of the previous checkpoint, and parts of saves that were killed."""
    for entry in list(folder.iterdir()):
        if entry.name != keep and (_TENSORS.fullmatch(entry.name) or _PART.fullmatch(entry.name)):
            with contextlib.suppress(FileNotFoundError):
                entry.unlink()

"""Checkpoints on disk: tensors in safetensors, the rest in JSON, no pickles; after a crash old or new, never half.

A checkpoint is a directory with two files::

    checkpoint.json                        format, version, metadata; name, size and SHA-256 of the tensor file
    tensors-<16 hex digits>.safetensors    named by its content

:func:`save` writes the tensors under their new name first and replaces ``checkpoint.json`` last, in one step of the
file system; only then the tensors of the previous checkpoint go. So a directory that was saved to before always holds
a complete checkpoint. :func:`load` reads each file once, follows no link, and refuses whatever does not match.

Networks are described by name and plain values (:func:`describe`, :func:`build`): reading a checkpoint imports nothing
and runs no code that the checkpoint names.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from riemae.exceptions import CheckpointError, DTypeError, OptionError
from riemae.randomness import restored

__all__ = ["VERSION", "build", "describe", "load", "register", "save"]

VERSION = 1
_FORMAT = "riemae checkpoint"
_JSON = "checkpoint.json"
_TENSORS = re.compile(r"tensors-[0-9a-f]{16}\.safetensors")
_PART = re.compile(r"(checkpoint\.json|tensors-[0-9a-f]{16}\.safetensors)\.[0-9a-f]{8}\.part")


def save(directory: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
    """Write a checkpoint, in place of the one that may be there.

    Killed at any moment, it leaves the previous checkpoint or the new one. One process may write to a directory at a
    time; several may read.

    Args:
        directory: Made when missing. Other files in it are left alone.
        tensors: Dense tensors by name, on any device; those that share memory are stored separately.
        metadata: Anything that JSON holds: strings, numbers (NaN and infinity too), booleans, None, lists, and
            dictionaries with strings as keys. Tuples come back as lists.

    Returns:
        The directory.

    Raises:
        DTypeError: When a tensor is sparse, quantised or none, a name no string, or the metadata hold something else.
        CheckpointError: When the directory is a file, or is not a path.
    """
    folder = _folder("io.save", directory)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError("io.save", "a directory", f"the file {folder}", "Choose another name.")
    _check_plain(metadata, "metadata")
    content = _serialised(tensors)
    digest = hashlib.sha256(content).hexdigest()
    name = f"tensors-{digest[:16]}.safetensors"
    from riemae import __version__

    body: dict[str, Any] = {
        "format": _FORMAT,
        "version": VERSION,
        "riemae": __version__,
        "tensors": {"file": name, "bytes": len(content), "sha256": digest},
        "metadata": dict(metadata),
    }
    body["checksum"] = _checksum(body)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / name, content)
    write_atomically(folder / _JSON, json.dumps(body, indent=1).encode())
    _sweep(folder, keep=name)
    return folder


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
        CheckpointError: When a file is missing, truncated, changed, of another kind (a pickle among them) or of a
            version that this riemae does not know. It names the file. Also when the directory is not a path, or there
            is no such device.
    """
    folder = _folder("io.load", directory)
    device = present("io.load", device)
    if not folder.is_dir():
        got = _kind(_read(folder)) if folder.exists() else "nothing"
        hint = "Checkpoints are directories; pickles are never read." if folder.exists() else "Is the path right?"
        raise CheckpointError("io.load", f"the directory of a checkpoint at {folder}", got, hint)
    body = _parsed(folder / _JSON)
    if not (folder / body["tensors"]["file"]).exists():  # a save may have come between
        body = _parsed(folder / _JSON)
    entry = body["tensors"]
    path = folder / entry["file"]
    content = _read(path)
    if len(content) != entry["bytes"] or hashlib.sha256(content).hexdigest() != entry["sha256"]:
        found = hashlib.sha256(content).hexdigest()
        raise CheckpointError(
            "io.load",
            f"{path} with {entry['bytes']} bytes and SHA-256 {entry['sha256'][:16]}…",
            f"{_kind(content)} with {len(content)} bytes and {found[:16]}…",
            "The file was cut short or changed since it was written; take a copy that was not.",
        )
    import safetensors.torch

    try:
        tensors = safetensors.torch.load(content)
    except Exception as reason:  # whatever a parser of foreign bytes may raise
        raise CheckpointError("io.load", f"{path} in the safetensors format", f"{reason}", "") from reason
    return {key: tensor.to(device) for key, tensor in tensors.items()}, body["metadata"]


def present(where: str, device: torch.device | str) -> torch.device:
    """A device that tensors can go to.

    Raises:
        CheckpointError: When there is none of that name, as with ``"cuda"`` on a machine without a GPU.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as reason:
        got = f"{device!r}: {str(reason).splitlines()[0] if str(reason) else type(reason).__name__}"
        raise CheckpointError(where, "a device of this machine", got, "Try device='cpu'.") from reason
    return found


def _folder(where: str, directory: Any) -> Path:
    """The path of a checkpoint.

    Raises:
        CheckpointError: When it is not a path.
    """
    if not isinstance(directory, (str, os.PathLike)) or not isinstance(os.fspath(directory), str):
        raise CheckpointError(where, "the path of a directory", repr(directory), "Try 'model' or a pathlib.Path.")
    return Path(directory)


def write_atomically(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` in one step: readers, and whoever comes after a crash, see the old or the new file.

    A link at ``path`` is replaced, not followed. After return the content is on disk, as far as the system tells.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
        raise
    _sync_folder(path.parent)


# Networks by name and plain values.

Class = TypeVar("Class", bound=type[nn.Module])

# Layers of torch and the attributes that are their arguments. A subclass or a parametrised layer is another type.
_CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features"),
    nn.Conv1d: _CONVOLUTION,
    nn.Conv2d: _CONVOLUTION,
    nn.Conv3d: _CONVOLUTION,
    nn.ConvTranspose1d: (*_CONVOLUTION, "output_padding"),
    nn.ConvTranspose2d: (*_CONVOLUTION, "output_padding"),
    nn.ConvTranspose3d: (*_CONVOLUTION, "output_padding"),
    nn.BatchNorm1d: ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    nn.BatchNorm2d: ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine"),
    nn.Dropout: ("p",),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    nn.Upsample: ("size", "scale_factor", "mode", "align_corners"),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.Unflatten: ("dim", "unflattened_size"),
    nn.ELU: ("alpha",),
    nn.GELU: ("approximate",),
    nn.Identity: (),
    nn.LeakyReLU: ("negative_slope",),
    nn.ReLU: (),
    nn.Sigmoid: (),
    nn.SiLU: (),
    nn.Softplus: ("beta", "threshold"),
    nn.Tanh: (),
}
_WITH_BIAS = (nn.Linear, nn.modules.conv._ConvNd, nn.LayerNorm)
_BY_NAME: dict[str, type[nn.Module]] = {f"torch.{layer.__name__}": layer for layer in _LAYERS}
_SEQUENTIAL = "torch.Sequential"


def register(name: str) -> Callable[[Class], Class]:
    """Class decorator: modules of this class can be described, and built again from their description.

    The class has a method ``arguments()`` that returns plain values with ``type(module)(**module.arguments())`` of the
    same structure; the parameters' values travel as tensors.

    Args:
        name: In checkpoints; choose one that will not change, such as ``"mypackage.Decoder"``.

    Raises:
        OptionError: When the name stands for another class.
        DTypeError: When the class has no method ``arguments``.

    Example:
        >>> import torch
        >>> from riemae import io
        >>> @io.register("example.Double")
        ... class Double(torch.nn.Linear):
        ...     def __init__(self, size):
        ...         super().__init__(size, 2 * size)
        ...     def arguments(self):
        ...         return {"size": self.in_features}
        >>> io.build(io.describe(Double(3))).out_features
        6
    """

    def enter(cls: Class) -> Class:
        known = _BY_NAME.get(name)
        if name == _SEQUENTIAL or (known is not None and known.__qualname__ != cls.__qualname__):
            raise OptionError("io.register", "a name that is free", f"{name!r}, which is {known or 'Sequential'}", "")
        if not callable(getattr(cls, "arguments", None)):
            raise DTypeError("io.register", "a class with a method arguments()", cls.__name__, "")
        _BY_NAME[name] = cls
        return cls

    return enter


def describe(module: nn.Module) -> dict[str, Any] | None:
    """A module as name and plain values, for :func:`build`; None for one that cannot be described.

    Describable are registered classes, common layers of torch, and ``nn.Sequential`` of describable modules. A module
    of your own that is not registered must be passed again when its checkpoint is loaded.
    """
    if type(module) is nn.Sequential:
        parts = {key: describe(child) for key, child in module.named_children()}
        return None if None in parts.values() else {"name": _SEQUENTIAL, "modules": parts}
    name = next((key for key, cls in _BY_NAME.items() if cls is type(module)), None)
    if name is None:
        return None
    if type(module) in _LAYERS:
        arguments = {key: getattr(module, key) for key in _LAYERS[type(module)]}
        if isinstance(module, _WITH_BIAS):
            arguments["bias"] = module.bias is not None
    else:
        arguments = module.arguments()  # type: ignore[operator]
    arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
    _check_plain(arguments, f"arguments of {type(module).__name__}")
    return {"name": name, "arguments": arguments}


def build(description: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
    """The module of a description, its parameters freshly drawn; torch's own random numbers are left as they were.

    Give it its values with ``module.load_state_dict(tensors, assign=True)``, which keeps their dtype.

    Args:
        description: From :func:`describe`.
        tensors: The values that it will be given. A description that does not fit them is refused before it takes any
            memory.

    Raises:
        CheckpointError: When the description names nothing that is known, or with other arguments than it takes, or
            describes a module of other tensors.
    """
    try:
        if tensors is not None:
            _check_tensors(description, tensors)
        with restored():
            return _built(description)
    except RecursionError as reason:
        raise CheckpointError("io.build", "a description of a module", "one without an end", "") from reason


def outline(description: Mapping[str, Any]) -> nn.Module | None:
    """The module of a description without values, on the meta device; None where its class cannot be built there.

    Raises:
        CheckpointError: As :func:`build`.
    """
    with restored(), torch.device("meta"):
        try:
            return _built(description)
        except CheckpointError:
            if not _is_ours(description):
                return None  # it may have to look at values
            raise


def _is_ours(description: Any) -> bool:
    """Whether all classes of a description are layers of torch, or riemae's own."""
    if not isinstance(description, Mapping):
        return True
    parts = description.get("modules")
    if isinstance(parts, Mapping):
        return all(map(_is_ours, parts.values()))
    cls = _BY_NAME.get(description["name"]) if isinstance(description.get("name"), str) else None
    return cls is None or cls in _LAYERS or cls.__module__.split(".")[0] == "riemae"


def _check_tensors(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Compare the tensors of a description with those that are there.

    Raises:
        CheckpointError: When names or shapes differ.
    """
    module = outline(description)
    if module is None:
        return
    wanted = {name: tuple(x.shape) for name, x in module.state_dict().items() if isinstance(x, Tensor)}
    found = {name: tuple(x.shape) for name, x in tensors.items()}
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            shapes = [f"of shape {shapes[name]}" if name in shapes else "missing" for shapes in (wanted, found)]
            got = f"{name!r} {shapes[1]} where the description has it {shapes[0]}"
            raise CheckpointError("io.build", "a description that fits the tensors", got, "")


def _built(description: Mapping[str, Any]) -> nn.Module:
    where = "io.build"
    name = description.get("name") if isinstance(description, Mapping) else None
    if name == _SEQUENTIAL and isinstance(description.get("modules"), Mapping):
        module = nn.Sequential()
        for key, part in description["modules"].items():
            module.add_module(key, _built(part))
        return module
    cls = _BY_NAME.get(name) if isinstance(name, str) else None
    arguments = description.get("arguments") if isinstance(description, Mapping) else None
    if cls is None or not isinstance(arguments, Mapping):
        hint = "Import the module that registers it, or pass encoder= and decoder=."
        raise CheckpointError(where, "the name and arguments of a known module", repr(description)[:200], hint)
    try:
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()})
    except (TypeError, ValueError, RuntimeError, ArithmeticError, AssertionError) as reason:
        raise CheckpointError(where, f"arguments that {name} takes", f"{reason}", "") from reason


# Reading and checking.


def _serialised(tensors: Mapping[str, Tensor]) -> bytes:
    import safetensors.torch

    where = "io.save"
    for key, tensor in tensors.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise DTypeError(where, "tensors by name", f"{type(tensor).__name__} under {key!r}", "")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            raise DTypeError(
                where, "dense tensors with values", f"{tensor.layout} on {tensor.device} under {key!r}", ""
            )
    try:
        # Each in memory of its own: the format knows no views.
        return safetensors.torch.save({key: t.detach().cpu().contiguous().clone() for key, t in tensors.items()})
    except (KeyError, ValueError, RuntimeError) as reason:
        kinds = ", ".join(sorted({str(t.dtype) for t in tensors.values()}))
        raise DTypeError(where, "dtypes that safetensors knows", kinds, f"{reason}") from reason


def _check_plain(value: Any, place: str) -> None:
    """Refuse what JSON cannot return as it was (tuples excepted).

    Raises:
        DTypeError: Naming the place.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if type(key) is not str:
                raise DTypeError("io", f"strings as keys of {place}", repr(key), "JSON has no others.")
            _check_plain(inner, f"{place}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            _check_plain(inner, f"{place}[{i}]")
    elif value is not None and type(value) not in (str, int, bool) and not isinstance(value, float):
        hint = "Tensors go into tensors=; convert the rest with float(), str() or tolist()."
        raise DTypeError("io", f"a plain value at {place}", type(value).__name__, hint)


def _checksum(body: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in body.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read(path: Path) -> bytes:
    """Content of a regular file that is no link.

    Raises:
        CheckpointError: When there is none.
    """
    # A pipe would block, and a link may have been put there to have something else read.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if path.is_symlink():
            raise CheckpointError("io.load", f"a file at {path}", "a symbolic link", "Links are not followed.")
        handle = os.open(path, flags)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise CheckpointError("io.load", f"a file at {path}", "something else", "Is it a pipe or a device?")
            return file.read()
    except FileNotFoundError as reason:
        hint = "Was a checkpoint ever saved here completely?"
        raise CheckpointError("io.load", f"a file at {path}", "nothing", hint) from reason
    except OSError as reason:
        raise CheckpointError("io.load", f"a file at {path} that can be read", f"{reason}", "") from reason


def _parsed(path: Path) -> dict[str, Any]:
    """The JSON of a checkpoint, checked from the outside in.

    Raises:
        CheckpointError: When it is no such JSON, of another version, or changed.
    """
    content = _read(path)
    try:
        body = json.loads(content.decode())
    except (ValueError, RecursionError) as reason:
        hint = "The file was cut short or changed, or it belongs to something else."
        raise CheckpointError("io.load", f"{path} in JSON", f"{_kind(content)}: {reason}", hint) from reason
    if not isinstance(body, dict) or body.get("format") != _FORMAT:
        got = repr(body.get("format")) if isinstance(body, dict) else type(body).__name__
        raise CheckpointError("io.load", f"{path} with the format {_FORMAT!r}", got, "It belongs to something else.")
    if type(body.get("version")) is not int or body["version"] != VERSION:
        hint = "It was written by another version of riemae: update this one."
        raise CheckpointError("io.load", f"{path} of version {VERSION}", f"{body.get('version')!r}", hint)
    try:
        sound = body.get("checksum") == _checksum(body)
    except RecursionError:
        sound = False
    if not sound:
        hint = "The file was changed since it was written; take a copy that was not."
        raise CheckpointError("io.load", f"{path} with the checksum of its content", "another", hint)
    entry = body.get("tensors")
    if (
        not isinstance(entry, dict)
        or {key: type(value) for key, value in entry.items()} != {"file": str, "bytes": int, "sha256": str}
        or not _TENSORS.fullmatch(entry["file"])
        or not isinstance(body.get("metadata"), dict)
    ):
        hint = "Only a file tensors-….safetensors in the same directory is read."
        raise CheckpointError("io.load", f"{path} with metadata and the name of its tensor file", repr(entry), hint)
    return body


def _kind(content: bytes) -> str:
    """What bytes look like, for an error."""
    if content[:4] == b"PK\x03\x04" or (content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05"):
        return "a pickle"
    return "a file" if content else "an empty file"


def _sweep(folder: Path, keep: str) -> None:
    """Remove what earlier saves left: the tensors of the previous checkpoint, and parts of killed saves."""
    for entry in list(folder.iterdir()):
        if entry.name != keep and (_TENSORS.fullmatch(entry.name) or _PART.fullmatch(entry.name)):
            with contextlib.suppress(FileNotFoundError):
                entry.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system lets directories be opened."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

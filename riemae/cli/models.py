"""Models as commands take them.

==========================  ========================================================================
a folder                    that ``riemae train`` or ``model.save`` has written
``decoder.pt2``             a program of ``torch.export``, with a batch axis of any length
``package.module:name``     an ``nn.Module``, a ``Manifold`` or a decoder function (of points, or
                            of points and conditions), or a function without arguments that returns
                            one; found from the current folder
``path/file.py:name``       the same in a file
==========================  ========================================================================

A pickle is never read, because reading one runs whatever its author wanted.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import io
import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from riemae.cli.conditions import placed
from riemae.cli.failures import one_line
from riemae.cli.options import Run, suggestion
from riemae.cli.output import as_tensor
from riemae.cli.preparation import Preparation
from riemae.cli.sources import PICKLES
from riemae.cli.tables import Table
from riemae.exceptions import DecoderError, FileError, OptionError, RiemaeError
from riemae.loading import load
from riemae.manifold import Manifold

_KINDS = "a riemae folder, a torch.export program (.pt2), or package.module:factory"
_SAFE = (
    "Write a function that builds the network, gives it weights by "
    "load_state_dict(torch.load(file, weights_only=True)) and returns it in eval mode, "
    "and name it: my_module:function."
)
_BATCH = (
    "Export it with a batch of any length: torch.export.export(decoder, (z,), "
    "dynamic_shapes=({0: torch.export.Dim.AUTO},)), with several rows in z."
)
_CHECKPOINT = "checkpoint.json"
_LISTED = 4  # names in a hint
_EXPORT = "Write it with torch.export.save."


@dataclass(frozen=True, eq=False)
class Model:
    """A decoder with what belongs to it.

    Attributes:
        name: As the user has typed it.
        manifold: On the device and in the dtype of the run.
        estimator: The autoencoder, or None for a decoder alone.
        preparation: Of the data, or None.
    """

    name: str
    manifold: Manifold
    estimator: Any = None
    preparation: Preparation | None = None

    @property
    def latent_dim(self) -> int | None:
        """m, or None where only points can tell."""
        if self.estimator is not None:
            found: int = self.estimator.latent_dim
            return found
        return self.manifold.latent_dim

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of the columns of the data, or None."""
        return None if self.preparation is None else self.preparation.columns

    @property
    def standardized(self) -> bool:
        """Whether the data have other units than those in which they are stored."""
        return self.preparation is not None and self.preparation.center is not None

    @property
    def data_shape(self) -> tuple[int, ...] | None:
        """The shape of one row of data, or None for a decoder alone."""
        return None if self.estimator is None else tuple(self.estimator.data_shape_)

    def prepared(self, table: Table) -> Tensor:
        """Rows as the autoencoder takes them, in its dtype.

        Args:
            table: Data in their own units.
        """
        values = table.values
        if self.preparation is not None:
            values = self.preparation.apply(values)
        return as_tensor(values, self.estimator.objective_.null.dtype, torch.device("cpu"))

    def encode(self, table: Table, run: Run) -> Tensor:  # -> (n, m)
        """Codes of data.

        Args:
            table: Data in their own units.
            run: Says where the codes go.

        Raises:
            OptionError: For a decoder without an encoder.
        """
        if self.estimator is None:
            hint = "Give codes in place of data, or a folder that riemae train has written."
            raise OptionError(self.name, "a model with an encoder", "a decoder alone", hint)
        codes: Tensor = self.estimator.transform(self.prepared(table))
        return codes.to(run.device, run.dtype)


def open_model(text: str, run: Run, latent_dim: int | None = None, condition: Any = None) -> Model:
    """The model that a user has named.

    Args:
        text: As typed.
        run: Says where it goes and in which dtype.
        latent_dim: m of a decoder that does not tell.
        condition: For one point, of a decoder that takes conditions.

    Raises:
        DecoderError: When there is a condition, and the decoder takes none.
        FileError: When there is no such model, or it must not be read.
        OptionError: When a name in Python is not found, or is something else.
    """
    model = _opened(text, run, latent_dim)
    if condition is None:
        return model
    return replace(model, manifold=model.manifold.given(placed(condition, run.device, run.dtype)))


def _opened(text: str, run: Run, latent_dim: int | None) -> Model:
    path = Path(text)
    if path.is_dir():
        return _trained(text, path, run)
    suffix = path.suffix.lower()
    if path.exists() and suffix == ".pt2":
        decoder, shape = _program(path)
        return Model(text, _manifold(decoder, run, latent_dim, shape))
    named = _names_in(path)
    if ":" not in text and named and not path.is_file():
        expected = f"the name of a decoder in {text}, as in {text}:factory"
        raise OptionError(text, expected, "none", named)
    if path.exists() or (suffix in PICKLES and ":" not in text):
        kind = "a pickle, which could run any program when it is read"
        got = kind if suffix in PICKLES else f"a file {suffix or 'without an ending'}"
        got = got if path.exists() else "nothing there"
        raise FileError(text, _KINDS, got, named or _SAFE)
    if ":" in text:
        return Model(text, _manifold(_named(text), run, latent_dim))
    around = path.parent
    entries = around.iterdir() if around.is_dir() else ()
    here = [entry.name for entry in entries if (entry / _CHECKPOINT).is_file()]
    hint = suggestion(path.name, here) if here else "riemae train makes one."
    raise FileError(text, _KINDS, "nothing there", hint)


def _trained(text: str, folder: Path, run: Run) -> Model:
    if not (folder / _CHECKPOINT).exists():
        hint = "riemae train --out writes one; a folder of images is data."
        raise FileError(text, "a folder with a trained model", "one without checkpoint.json", hint)
    estimator = load(folder, run.device)
    manifold = estimator.manifold_.to(run.device, run.dtype)
    return Model(text, manifold, estimator, Preparation.load(folder))


def _manifold(
    decoder: Any, run: Run, latent_dim: int | None, shape: tuple[int, ...] | None = None
) -> Manifold:
    if not isinstance(decoder, Manifold):
        several = shape is not None and len(shape) > 1
        if shape is not None and not several:
            latent_dim = shape[0]
        decoder = Manifold(
            decoder,
            latent_dim=None if several else latent_dim,
            latent_shape=shape if several else None,
        )
    return decoder.to(run.device, run.dtype)


# Programs of torch.export.


def _program(path: Path) -> tuple[nn.Module, tuple[int, ...] | None]:
    """The decoder of a file, and the shape of one code.

    Raises:
        FileError: When it is no program, or holds objects.
        DecoderError: When it takes something else than any number of codes.
    """
    _expect_no_pickles(path)
    try:
        program = torch.export.load(path)
    except Exception as reason:  # whatever a parser of foreign bytes may raise
        got = one_line(f"{type(reason).__name__}: {reason}")[:200]
        raise FileError(path.name, "a program of torch.export", got, _EXPORT) from reason
    names = program.graph_signature.user_inputs
    values = [node.meta.get("val") for node in program.graph.nodes if node.name in names]
    if len(values) != 1 or not isinstance(values[0], Tensor):
        hint = "Export a module that takes codes (k, m) alone."
        raise DecoderError(path.name, "a decoder of one tensor", f"{len(names)} inputs", hint)
    batch, *code = values[0].shape
    if isinstance(batch, int):
        got = f"one that was exported for {batch} rows"
        raise DecoderError(path.name, "a decoder of any number of rows", got, _BATCH)
    shape = tuple(code) if all(isinstance(n, int) for n in code) else None
    return program.module(), shape


def _expect_no_pickles(path: Path) -> None:
    """Refuse a program that holds objects, which torch.export.load would unpickle.

    Raises:
        FileError: When it holds some, or is not a program at all.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                _expect_tensors(path, name, archive)
    except (zipfile.BadZipFile, EOFError) as reason:
        raise FileError(path.name, "a program of torch.export", str(reason), _EXPORT) from reason


def _expect_tensors(path: Path, name: str, archive: zipfile.ZipFile) -> None:
    base = name.rsplit("/", 1)[-1]
    expected = "a program of operations and tensors alone"
    if base.startswith(("custom_obj", "opaque_obj")) or "aotinductor" in name:
        raise FileError(path.name, expected, f"one with an object in it ({base})", _SAFE)
    suspects = []
    if name.endswith(".pt"):
        suspects.append(name)
    elif base.endswith("_config.json"):
        config = json.loads(archive.read(name)).get("config", {})
        folder = name.rsplit("/", 1)[0]
        pickled = [entry["path_name"] for entry in config.values() if entry.get("use_pickle")]
        suspects += [f"{folder}/{entry}" for entry in pickled]
    for suspect in suspects:
        content = archive.read(suspect)
        try:
            if content:
                torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        except Exception as reason:
            got = f"one with an object in it ({suspect.rsplit('/', 1)[-1]})"
            raise FileError(path.name, expected, got, _SAFE) from reason


# Names in Python.


def _named(text: str) -> Any:
    """What ``module:name`` stands for: a decoder or a manifold.

    Raises:
        OptionError: When there is no such name, or it is neither.
    """
    home, _, name = text.rpartition(":")
    if not home or not name:
        got = f"nothing {'after' if home else 'before'} the colon"
        hint = _names_in(Path(home)) or "Try my_module:function."
        raise OptionError(text, "module:factory", got, hint)
    with _from_here(), _of_the_user(text):
        module = _module(text, home)
        found: Any = module
        for part in name.split("."):
            if not hasattr(found, part):
                hint = suggestion(part, [n for n in vars(found) if not n.startswith("_")])
                raise OptionError(text, f"{part!r} in {home}", "no such name", hint)
            found = getattr(found, part)
        if not isinstance(found, (nn.Module, Manifold)) and callable(found):
            found = found() if _takes(found, 0) else found
    if isinstance(found, (nn.Module, Manifold)) or _is_decoder(found):
        return found
    expected = "a factory that returns an nn.Module or a Manifold"
    got = type(found).__name__
    hint = "Write a function without arguments that returns the decoder in eval mode."
    raise OptionError(text, expected, got, hint)


def _names_in(path: Path) -> str:
    """A hint at the functions, classes and variables of a Python file, which is not run.

    Args:
        path: Of the file, with or without its ending.

    Returns:
        The hint; empty when there is no such file.
    """
    if not path.name:
        return ""
    file = path if path.suffix == ".py" else path.with_name(f"{path.name}.py")
    if not file.is_file():
        return ""
    try:
        body = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError):
        return f"Try {path}:function."
    found: list[str] = []
    for entry in body:
        if isinstance(entry, (ast.FunctionDef, ast.ClassDef)):
            found.append(entry.name)
        elif isinstance(entry, ast.Assign):
            found += [target.id for target in entry.targets if isinstance(target, ast.Name)]
    public = [name for name in found if not name.startswith("_")]
    listed = ", ".join(f"{path}:{name}" for name in public[:_LISTED])
    return f"Try {listed or f'{path}:function'}."


def _module(text: str, home: str) -> Any:
    path = Path(home)
    if path.suffix == ".py":
        if not path.is_file():
            raise FileError(text, f"the file {home}", "nothing there", "Is the path right?")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        return module
    try:
        return importlib.import_module(home)
    except ModuleNotFoundError as reason:
        if reason.name is None or home.split(".")[0] != reason.name.split(".")[0]:
            raise
        hint = suggestion(home, [p.stem for p in Path.cwd().glob("*.py")])
        expected = f"a module {home!r} in this folder or installed"
        raise OptionError(text, expected, "none", hint) from reason


def _is_decoder(found: Any) -> bool:
    """Whether something can be called with points, or with points and conditions."""
    return callable(found) and (_takes(found, 1) or _takes(found, 2))


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with so many arguments."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except (TypeError, ValueError):
        return False
    return True


@contextmanager
def _from_here() -> Iterator[None]:
    """Let modules of the current folder be imported, as ``python -m`` does."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


@contextmanager
def _of_the_user(text: str) -> Iterator[None]:
    """Say that an error comes from the user's own code.

    Raises:
        DecoderError: For any error but those of riemae.
        RiemaeError: For those, as they are.
    """
    try:
        yield
    except RiemaeError:
        raise
    except (Exception, SystemExit) as reason:  # a script may end the process when it is imported
        got = f"{type(reason).__name__}: {str(reason).rstrip('.')}"
        hint = "Run it again with --debug, which shows where."
        raise DecoderError(text, "code that builds a decoder", got, hint) from reason

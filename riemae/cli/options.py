"""The options that commands share, and what becomes of them."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import rich_click as click
import torch

from riemae import storage
from riemae.cli.failures import ARGUMENTS, READING, RUNNING, end
from riemae.cli.output import say, say_json
from riemae.cli.progress import Bars

Function = TypeVar("Function", bound=Callable[..., Any])
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Run:
    """How a command runs, whatever it does.

    Attributes:
        seed: Decides everything random.
        device: Where is computed.
        dtype: In which numbers.
        out: Where the result goes, or None.
        as_json: Whether stdout gets one line of JSON and nothing else.
        quiet: Whether no bars are shown.
    """

    seed: int
    device: torch.device
    dtype: torch.dtype
    out: Path | None
    as_json: bool
    quiet: bool

    @property
    def target(self) -> Path:
        """Where the result goes, of a command that always writes."""
        assert self.out is not None  # such commands have a default
        return self.out

    def bars(self) -> Bars:
        """Progress bars, as a context."""
        return Bars(self.quiet)

    def say(self, *lines: str) -> None:
        """Lines for people; nothing with ``--json``."""
        if not self.as_json:
            for line in lines:
                say(line)

    def finish(self, numbers: Mapping[str, Any], converged: bool = True) -> NoReturn:
        """End the command: the numbers with ``--json``, and the exit code.

        Args:
            numbers: What was found, by name.
            converged: Whether the exit code is 0; otherwise 1.
        """
        if self.as_json:
            say_json(numbers)
        end(converged)


@dataclass(frozen=True)
class Reading:
    """How data are read.

    Attributes:
        labels: The column that holds labels, or a file of them.
        index: The column that holds the names of rows.
        columns: The columns to take, or empty for all.
        exclude: The columns to leave out.
        drop_missing: Whether rows with missing cells are left out.
        key: The array of an npz file.
        layer: The layer of an h5ad file.
        decimal: A point or a comma, as fractions have in a text table.
        usual: How the data of the training were read: what the user does not say is taken from
            there, as far as the data have it.
    """

    labels: str | None = None
    index: str | None = None
    columns: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    drop_missing: bool = False
    key: str | None = None
    layer: str | None = None
    decimal: str | None = None
    usual: Reading | None = None

    def choice(self, name: str, known: Iterable[str]) -> str | None:
        """What was chosen for one of these attributes: by the user, or as in the training.

        Args:
            name: Of the attribute.
            known: What the data have.
        """
        given: str | None = getattr(self, name)
        if given is not None or self.usual is None:
            return given
        before: str | None = getattr(self.usual, name)
        return before if before in set(known) else None

    @property
    def named(self) -> set[str]:
        """Columns that may hold labels or the names of rows."""
        found = {self.labels, self.index}
        if self.usual is not None:
            found |= {self.usual.labels, self.usual.index}
        return {name for name in found if name is not None}


class Name(click.ParamType):
    """One of several names; of another one, the nearest is suggested.

    Args:
        what: What the names are of.
        names: The names.
        others: What else may be given, in words.
    """

    name = "name"

    def __init__(self, what: str, names: Iterable[str], others: str = "") -> None:
        self.what = what
        self.names = tuple(names)
        self.others = others

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """The name, in lower case.

        Args:
            value: As typed.
            param: The option.
            ctx: The context.
        """
        text = str(value).lower().replace("_", "-")
        found = {name.replace("_", "-"): name for name in self.names}.get(text)
        if found is None:
            self.fail(f"no {self.what} {str(value)!r}. {suggestion(str(value), self.names)}")
        return found

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[Any]:
        """The names that begin so.

        Args:
            ctx: The context.
            param: The option.
            incomplete: What is typed so far.
        """
        from click.shell_completion import CompletionItem

        return [CompletionItem(name) for name in self.names if name.startswith(incomplete)]


class Widths(click.ParamType):
    """Widths of layers, such as ``128,128``."""

    name = "widths"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """The widths as numbers.

        Args:
            value: As typed.
            param: The option.
            ctx: The context.
        """
        if isinstance(value, tuple):
            return value
        try:
            widths = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            widths = ()
        if not widths or min(widths) < 1:
            self.fail(f"{value!r} is not a list of widths. Try 128,128.")
        return widths


class Words(click.ParamType):
    """Names divided by commas, such as ``height,width``."""

    name = "names"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        """The names.

        Args:
            value: As typed.
            param: The option.
            ctx: The context.
        """
        if isinstance(value, tuple):
            return value
        return tuple(part.strip() for part in str(value).split(",") if part.strip())


def suggestion(given: str, known: Iterable[str], most: int = 12) -> str:
    """A sentence with the nearest of the known names, or a list of them."""
    names = list(known)
    lowered = {name.lower(): name for name in reversed(names)}
    near = difflib.get_close_matches(given.lower(), lowered, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {lowered[near[0]]!r}?"
    listed = ", ".join(map(repr, names[:most]))
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return f"There are {listed}{rest}." if names else "There are none."


def running(
    out: str | None = None,
    dtype: str = "float64",
    out_help: str = "Where the result is written.",
    folder: bool = False,
) -> Callable[[Function], Function]:
    """Decorator: the options of every command, handed on as ``run=``.

    Args:
        out: Where the result goes by default; None for nowhere.
        dtype: Numbers in which is computed by default.
        out_help: What ``--out`` is.
        folder: Whether it is a folder.
    """
    path = click.Path(path_type=Path, file_okay=not folder, dir_okay=folder)
    options = (
        click.option(
            "--out", type=path, default=out, show_default=True, panel=RUNNING, help=out_help
        ),
        click.option(
            "--seed",
            type=int,
            default=0,
            show_default=True,
            metavar="N",
            panel=RUNNING,
            help="Decides everything random.",
        ),
        click.option(
            "--device",
            metavar="NAME",
            panel=RUNNING,
            default="auto",
            show_default=True,
            help="Where to compute: cpu, cuda, cuda:1, or auto for an accelerator if there is one.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(list(DTYPES)),
            panel=RUNNING,
            default=dtype,
            show_default=True,
            help="Numbers in which to compute.",
        ),
    )

    def add(function: Function) -> Function:
        @functools.wraps(function)
        def command(**given: Any) -> Any:
            run = Run(
                seed=given.pop("seed"),
                device=_device(given.pop("device")),
                dtype=DTYPES[given.pop("dtype")],
                out=given.pop("out"),
                as_json=given.pop("as_json"),
                quiet=given.pop("quiet"),
            )
            given.pop("debug")
            return function(run=run, **given)

        return _with(options, talking(command))

    return add


def talking(function: Function) -> Function:
    """Decorator: the options on what a command says."""
    options = (
        click.option(
            "--json",
            "as_json",
            is_flag=True,
            panel=RUNNING,
            help="Print the numbers as JSON on stdout, and nothing else.",
        ),
        click.option("--quiet", is_flag=True, panel=RUNNING, help="No progress bars."),
        click.option(
            "--debug", is_flag=True, panel=RUNNING, help="Show the traceback of an error."
        ),
    )
    return _with(options, function)


def model_argument(function: Function) -> Function:
    """Decorator: the argument MODEL."""
    return click.argument(
        "model",
        panel=ARGUMENTS,
        type=click.Path(),
        help="A folder of riemae train, a torch.export program (.pt2), or module:factory.",
    )(function)


def data_argument(required: bool = True, codes: bool = True) -> Callable[[Function], Function]:
    """Decorator: the argument DATA.

    Args:
        required: Whether it has to be there.
        codes: Whether codes are taken as well.
    """
    kinds = "csv, tsv, parquet, npy, npz, h5ad, a folder of images, or a data set by its name"
    more = "; or codes, as riemae embed writes them" if codes else ""
    return click.argument(
        "data", required=required, type=click.Path(), panel=ARGUMENTS, help=f"{kinds}{more}."
    )


def reading(function: Function) -> Function:
    """Decorator: the options on how data are read, handed on as ``reading=``."""
    flag = functools.partial(click.option, panel=READING)
    options = (
        flag(
            "--labels",
            metavar="COLUMN",
            help="The column of labels; of npz and h5ad their name; or a file with one a line.",
        ),
        flag("--index", metavar="COLUMN", help="The column with the names of the rows."),
        flag(
            "--columns",
            type=Words(),
            default=(),
            metavar="A,B",
            help="Take these columns only.",
        ),
        flag("--exclude", type=Words(), default=(), metavar="A,B", help="Leave these columns out."),
        flag("--drop-missing", is_flag=True, help="Leave rows with missing cells out."),
        flag(
            "--decimal",
            type=click.Choice([".", ","]),
            help="What numbers in a text table have before their fractions; by default a point.",
        ),
        flag("--key", metavar="NAME", help="The array of an npz file."),
        flag("--layer", metavar="NAME", help="The layer of an h5ad file; by default X."),
    )

    @functools.wraps(function)
    def command(**given: Any) -> Any:
        names = [name for name in Reading.__dataclass_fields__ if name != "usual"]
        return function(reading=Reading(**{name: given.pop(name) for name in names}), **given)

    return _with(options, command)


def _with(options: Iterable[Callable[..., Any]], command: Callable[..., Any]) -> Any:
    for option in reversed(tuple(options)):
        command = option(command)
    return command


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return storage.present("--device", name)

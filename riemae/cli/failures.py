"""Commands that end as a user expects.

Exit codes:

====  ==============================================================================================
0     everything that was asked for has converged
1     the command has run, and something has not converged, or a check has found something wrong
2     the command could not do its work: one sentence on stderr says why, and what to try
130   interrupted by Ctrl-C
====  ==============================================================================================

An error is one line. ``--debug`` shows the traceback in its place. Warnings are one line each.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

import click
from click.exceptions import Abort, ClickException, Exit
from rich_click import RichCommand, RichGroup
from rich_click.rich_panel import RichOptionPanel

from riemae import exceptions
from riemae.cli.output import stdout_for_results
from riemae.exceptions import RiemaeError

INTERRUPTED = 130
# What help pages are divided into, in this order.
ARGUMENTS = "Arguments"
READING = "Reading data"
RUNNING = "Running"
_PANELS = (ARGUMENTS, "Options", READING, RUNNING)
_SAID = "riemae.cli.warnings"  # the entry of a click context
_DEBUG = "Run it again with --debug, which shows where."


class Refusal(ClickException):
    """The one sentence for which a command ends with exit code 2."""

    exit_code = 2


class Command(RichCommand):
    """A command that turns errors into sentences.

    Args:
        arguments: As of a click command.
        examples: Command lines shown at the end of the help page.
        options: As of a click command.
    """

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **options: Any) -> None:
        panels: list[Any] = [RichOptionPanel(name) for name in _PANELS]
        super().__init__(*arguments, panels=panels, **options)
        self.examples = tuple(examples)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Args:
            ctx: Holds its arguments.

        Raises:
            Refusal: For every error, unless the user debugs.
            ClickException: For what click itself refuses.
            Exit: When the command ends with an exit code of its own.
            Abort: When the user interrupts.
            BrokenPipeError: When nobody reads stdout any more.
        """
        with _one_line_each(ctx.meta.setdefault(_SAID, [])), stdout_for_results(ctx.meta):
            try:
                return super().invoke(ctx)
            except (ClickException, Exit, Abort, BrokenPipeError):
                raise
            except Exception as problem:
                if ctx.params.get("debug"):
                    raise
                raise Refusal(sentence(problem)) from problem

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples below the options.

        Args:
            ctx: Of the command.
            formatter: Takes what is written.
        """
        if self.examples:
            formatter.write(examples_panel(self.examples))


class Group(RichGroup):
    """All commands; errors in arguments are one line as well."""

    command_class = Command
    closing: tuple[str, tuple[str, ...]] = ("", ())

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run a command line, and end the process with its exit code.

        Args:
            arguments: As of a click group.
            options: As of a click group; with ``standalone_mode=False`` the process goes on.
        """
        alone = options.pop("standalone_mode", True)
        run: Any = super().main
        if not alone:
            return run(*arguments, **options, standalone_mode=False)
        try:
            code = run(*arguments, **options, standalone_mode=False)
        except click.UsageError as problem:
            _complain(f"{one_line(problem.format_message())}{_help_of(problem.ctx)}")
            sys.exit(problem.exit_code)
        except ClickException as problem:
            _complain(one_line(problem.format_message()))
            sys.exit(problem.exit_code)
        except Abort:
            _complain("Interrupted.")
            sys.exit(INTERRUPTED)
        sys.exit(code if isinstance(code, int) else 0)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write how to begin, and how to get completion in a shell.

        Args:
            ctx: Of the group.
            formatter: Takes what is written.
        """
        title, lines = self.closing
        if lines:
            formatter.write(examples_panel(lines, title))


def examples_panel(lines: Sequence[str], title: str = "Examples") -> Any:
    """Command lines in a frame, as they are typed."""
    from rich.panel import Panel
    from rich.text import Text

    return Panel(Text("\n".join(lines)), title=title, title_align="left", border_style="dim")


def end(converged: bool) -> NoReturn:
    """End the command.

    Args:
        converged: Whether all has, which is exit code 0; otherwise it is 1.

    Raises:
        Exit: Always; click ends the process.
    """
    raise Exit(0 if converged else 1)


def warned_of(category: type[Warning]) -> bool:
    """Whether the command that runs has shown a warning of this kind."""
    context = click.get_current_context()
    return any(issubclass(kind, category) for kind in context.meta.get(_SAID, []))


def sentence(problem: Exception) -> str:
    """What an error says, in one line that ends with what to try."""
    if isinstance(problem, RiemaeError):
        return one_line(str(problem))
    if isinstance(problem, OSError):
        place = f"{problem.filename}: " if problem.filename else ""
        reason = problem.strerror or str(problem) or type(problem).__name__
        return one_line(f"{place}{reason}. Check that the place exists, has room, and is yours.")
    text = str(problem) or "without a message"
    return one_line(f"{type(problem).__name__}: {text.rstrip('.')}. {_DEBUG}")


def one_line(text: str) -> str:
    """The text without line breaks."""
    return " ".join(text.split())


def _complain(text: str) -> None:
    click.echo(f"Error: {text}", err=True)


def _help_of(context: click.Context | None) -> str:
    return "" if context is None else f" Try '{context.command_path} --help'."


# Whose warnings are for users; those of other packages are for programmers.
_OURS = tuple(
    kind
    for kind in map(vars(exceptions).get, exceptions.__all__)
    if isinstance(kind, type) and issubclass(kind, Warning)
)


@contextmanager
def _one_line_each(said: list[type[Warning]]) -> Iterator[None]:
    """Show every warning once, as one line on stderr."""
    texts: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        said.append(category)
        text = one_line(str(message))
        if text not in texts:
            texts.add(text)
            click.echo(f"Warning: {text}", err=True)

    with warnings.catch_warnings():
        for kind in _OURS:
            warnings.simplefilter("always", kind)
        if "PYTHONWARNINGS" not in os.environ:
            warnings.simplefilter("ignore", FutureWarning)
        warnings.showwarning = show
        yield

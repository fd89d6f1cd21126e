"""Commands as a user runs them, without the seconds that a new interpreter takes to start."""

import csv
import json

from click.testing import CliRunner

from riemae.cli import main

COLUMNS = ("sepal_length", "sepal_width", "petal_length", "petal_width")
TINY = ("--hidden", "8", "--epochs", "3", "--lr", "0.02", "--batch-size", "50")


def call(*arguments):
    """Run ``riemae`` with separate stdout and stderr.

    Click 8.1 needs an argument for this, and later versions always do it.
    """
    try:
        runner = CliRunner(mix_stderr=False)
    except TypeError:
        runner = CliRunner()
    return runner.invoke(main, [str(a) for a in arguments])


def strictly(text):
    """JSON according to its standard, without NaN and Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def done(*arguments):
    """A command that succeeds."""
    r = call(*arguments)
    assert r.exit_code == 0, (r.stderr, r.exception)
    return r


def numbers(*arguments, code=0):
    """What a command says with ``--json``, and nothing else."""
    r = call(*arguments, "--json", "--quiet")
    assert r.exit_code == code, (r.stderr, r.exception)
    assert len(r.stdout.splitlines()) == 1
    return strictly(r.stdout)


def refusal(*arguments):
    """The one sentence with which a command ends, without a traceback and with exit code 2."""
    r = call(*arguments)
    assert isinstance(r.exception, SystemExit), repr(r.exception)
    assert r.exit_code == 2, (r.exit_code, r.stderr)
    assert r.stdout == ""
    (line,) = r.stderr.splitlines()
    assert line.startswith("Error: ")
    assert "Traceback" not in line
    return line


def write_table(path, columns, delimiter=","):
    """A text table of columns by name."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path

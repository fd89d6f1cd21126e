"""The installed package is light to import, typed, documented, layered and silent.

It is examined where it was imported from.
"""

import ast
import copy
import importlib
import importlib.metadata
import inspect
import json
import pickle
import pkgutil
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

import riemae
from riemae import exceptions

ROOT = Path(riemae.__file__).parent
# riemae/solvers is a link in the checkout, and a recursive search need not follow it.
SOLVERS = sorted((ROOT / "solvers").rglob("*.py"))
SOURCES = sorted({*ROOT.rglob("*.py"), *SOLVERS})
NAMES = [
    ".".join(("riemae", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in SOURCES
]
HEAVY = (
    "lightning",
    "pytorch_lightning",
    "matplotlib",
    "networkx",
    "sklearn",
    "geoopt",
    "click",
    "rich",
    "rich_click",
    "PIL",
    "pyarrow",
    "anndata",
    "pandas",
)
HEAVY += ("dask", "distributed", "cloudpickle", "pynndescent", "numba", "safetensors")
HEAVY += (
    "torch._dynamo",
    "scipy.interpolate",
    "scipy.spatial",
)  # importing each of them takes a third of a second or more


# One interpreter for all that has to be seen in a new one, because it takes seconds to start.
OUTSIDE = f"""
import importlib, json, sys, traceback, riemae
early = set(sys.modules)
found = dict(at_import=sorted(early))
riemae.load
found["when_load_is_named"] = sorted(sys.modules)
import riemae.cli
found["with_the_command_line"] = sorted(sys.modules)
import torch
M = riemae.Manifold(lambda z: torch.cat([z, z ** 2], -1))
found.update(metric=M.metric(torch.ones(1, 1)).item(), file=riemae.__file__, not_first=dict())
for name in [n for n in {NAMES!r} if n not in early]:
    for late in [n for n in sys.modules if n not in early and n.split(".")[0] == "riemae"]:
        package, _, module = late.rpartition(".")
        if package in early: delattr(sys.modules[package], module)
        del sys.modules[late]
    try:
        importlib.import_module(name)
    except Exception:
        found["not_first"][name] = traceback.format_exc()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """What a new interpreter finds outside the checkout, which has a folder named ``solvers``."""
    folder = tmp_path_factory.mktemp("outside")
    command = [sys.executable, "-c", OUTSIDE]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    (line,) = run.stdout.splitlines()  # riemae itself says nothing
    return json.loads(line)


@cache
def imported(tree):
    """Every module that a file imports, also inside functions."""
    return tuple(_imported(tree))


def _imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


@cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def public(module):
    names = getattr(module, "__all__", None)
    return [n for n in names or vars(module) if names or not n.startswith("_")]


def public_callables():
    """Public functions, classes and methods that riemae itself defines, by their full name."""
    for name in NAMES:
        module = importlib.import_module(name)
        for key in public(module):
            thing = getattr(module, key)
            if (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__module__ == name:
                yield f"{name}.{key}", thing
                if inspect.isclass(thing):
                    for method, value in vars(thing).items():
                        if not method.startswith("_") and (
                            callable(value) or isinstance(value, (property, classmethod))
                        ):
                            yield f"{name}.{key}.{method}", value


CALLABLES = dict(public_callables())
ERRORS = [
    e for e in (getattr(exceptions, n) for n in exceptions.__all__) if not issubclass(e, Warning)
]
RESULT = "everything that was computed"


class TestImport:
    def test_is_light_and_silent(self, outside):
        loaded = set(outside["at_import"])
        assert not loaded & {*HEAVY, "riemae.autoencoders"}
        assert "solvers" not in loaded
        assert "riemae.solvers" in loaded

    def test_load_is_light_until_it_is_used(self, outside):
        loaded = set(outside["when_load_is_named"])
        assert not loaded & {"sklearn", "lightning", "safetensors"}

    def test_every_module_can_be_the_first(self, outside):
        # A cycle between two modules fails only for one order of importing them. Every module that
        # the package does not import itself is therefore imported first once. The package always
        # precedes it, with all that the package imports.
        assert outside["not_first"] == {}

    def test_nothing_is_imported_by_the_name_of_its_folder(self):
        assert "solvers" not in sys.modules
        assert riemae.solvers.__name__ == "riemae.solvers"

    def test_the_command_line_starts_without_the_demonstration(self, outside):
        loaded = set(outside["with_the_command_line"])
        assert "riemae.cli" in loaded
        assert not loaded & {"matplotlib", "sklearn"}

    def test_works_away_from_the_checkout(self, outside):
        assert outside["metric"] == 5.0  # J = (1, 2)
        assert Path(outside["file"]) == Path(riemae.__file__)


class TestMetadata:
    def test_version(self):
        assert riemae.__version__ == importlib.metadata.version("riemae")

    def test_typed(self):
        assert (ROOT / "py.typed").is_file()

    def test_command(self):
        (entry,) = importlib.metadata.entry_points(group="console_scripts", name="riemae")
        assert entry.value == "riemae.cli:main"
        assert callable(entry.load())

    def test_every_import_is_a_declared_requirement(self):
        requirements = importlib.metadata.requires("riemae")
        declared = {re.match(r"[A-Za-z0-9_-]+", text).group().lower() for text in requirements}
        roots = {name.split(".")[0] for path in SOURCES for name in imported(parsed(path))}
        foreign = roots - {"riemae"} - set(sys.stdlib_module_names)
        modules = {"scikit-learn": "sklearn", "rich-click": "rich_click", "pillow": "PIL"}
        assert foreign <= {modules.get(name, name) for name in declared}
        assert "torch" in foreign

    @pytest.mark.parametrize(
        ("requirement", "extra", "module", "files"),
        [
            (
                "scikit-learn",
                "demo",
                "sklearn",
                {
                    "builtin.py",
                    "demo.py",
                    "diagnostics.py",
                    "estimators.py",
                    "inputs.py",
                    "nearest.py",
                    "sklearn.py",
                    "variants.py",
                },
            ),
            ("pynndescent", "neighbors", "pynndescent", {"nearest.py"}),
            ("cloudpickle", "dask", "cloudpickle", {"executors.py"}),
            ("dask", "dask", "dask", set()),
            ("anndata", "cells", "anndata", {"sources.py"}),
            ("pyarrow", "tables", "pyarrow", {"output.py", "sources.py"}),
        ],
    )
    def test_what_only_some_need_is_an_extra(self, requirement, extra, module, files):
        optional = [text for text in importlib.metadata.requires("riemae") if "extra ==" in text]
        assert any(
            text.startswith(requirement) and f"{extra!r}" in text.replace('"', "'")
            for text in optional
        )
        users = {
            path.name
            for path in SOURCES
            if module in {n.split(".")[0] for n in imported(parsed(path))}
        }
        assert users == files


class TestNames:
    def test_all_modules_are_found(self):
        found = {m.name for m in pkgutil.walk_packages([str(ROOT)], "riemae.")}
        assert found <= set(NAMES)
        assert {
            "riemae",
            "riemae.manifold",
            "riemae.ambient.features",
            "riemae.solvers.curve",
        } <= set(NAMES)

    def test_every_name_in_all_exists(self):
        for module in map(importlib.import_module, NAMES):
            names = getattr(module, "__all__", [])
            assert [f"{module.__name__}.{n}" for n in names if not hasattr(module, n)] == []
            assert len(names) == len(set(names)), module.__name__

    @pytest.mark.parametrize(
        "name", ["riemae", "riemae.ambient", "riemae.solvers", "riemae.exceptions"]
    )
    def test_tables_of_contents(self, name):
        module = importlib.import_module(name)
        assert module.__all__
        scope = {}
        exec(f"from {name} import *", scope)
        assert set(module.__all__) <= set(scope)

    def test_no_exception_is_forgotten(self):
        for name, thing in vars(exceptions).items():
            if inspect.isclass(thing) and issubclass(thing, (exceptions.RiemaeError, Warning)):
                assert name in exceptions.__all__


class TestDocuments:
    # One test for all functions, whose message names those that fail: a test of pytest takes longer
    # than the check of a function.

    def test_everything_public_has_a_docstring(self):
        def has_docstring(thing):
            own = getattr(thing, "__func__", thing).__doc__
            # A dataclass without a docstring gets its signature for one.
            return own and not (inspect.isclass(thing) and own.startswith(f"{thing.__name__}("))

        assert [name for name, thing in CALLABLES.items() if not has_docstring(thing)] == []

    def test_every_module_has_a_docstring(self):
        assert [str(path) for path in SOURCES if not ast.get_docstring(parsed(path))] == []

    def test_the_walk_has_seen_the_package(self):
        assert {"riemae.manifold.Manifold.metric", "riemae.solvers.curve.Curve.from_nodes"} <= set(
            CALLABLES
        )
        assert len(CALLABLES) > 100

    def test_parameters_are_annotated(self):
        def bare(thing):
            function = (
                thing.fget if isinstance(thing, property) else getattr(thing, "__func__", thing)
            )
            if not inspect.isfunction(function):
                return []
            signature = inspect.signature(function)
            parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
            found = [p.name for p in parameters if p.annotation is p.empty]
            return found + ["return"] * (signature.return_annotation is signature.empty)

        found = {name: bare(thing) for name, thing in CALLABLES.items()}
        assert {name: parameters for name, parameters in found.items() if parameters} == {}


class TestSources:
    def test_nothing_prints_evaluates_or_seeds(self):
        for path in SOURCES:
            calls = [node.func for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
            named = [f for f in calls if isinstance(f, ast.Name)]
            assert [
                f.lineno for f in named if f.id in ("print", "breakpoint", "exec", "eval")
            ] == [], path
            # A generator of its own, or the global one if it is restored.
            if "restored(" not in path.read_text(encoding="utf-8"):
                attributes = [f for f in calls if isinstance(f, ast.Attribute)]
                assert not [f for f in attributes if f.attr == "manual_seed" and _is_torch(f)], path

    def test_no_folder_of_odds_and_ends(self):
        assert not {"utils", "helpers", "common", "misc"} & {path.stem for path in SOURCES}


def _is_torch(attribute):
    return isinstance(attribute.value, ast.Name) and attribute.value.id == "torch"


def made(error, hint="Try something else."):
    arguments = ("Manifold.metric", "z of shape (*b, 2)", "(2, 5)", hint)
    return error(*arguments, RESULT) if error is exceptions.NotConvergedError else error(*arguments)


class TestExceptions:
    def test_errors_and_warnings_have_one_root(self):
        for name in exceptions.__all__:
            thing = getattr(exceptions, name)
            assert issubclass(thing, (exceptions.RiemaeError, Warning))
            assert thing.__doc__
        assert not issubclass(exceptions.RiemaeError, Warning)

    @pytest.mark.parametrize("error", ERRORS)
    def test_says_where_expected_got_and_try(self, error):
        assert (
            str(made(error))
            == "Manifold.metric: expected z of shape (*b, 2), got (2, 5). Try something else."
        )
        assert str(made(error, "")) == "Manifold.metric: expected z of shape (*b, 2), got (2, 5)."
        e = made(error)
        assert (e.where, e.expected, e.got, e.hint) == (
            "Manifold.metric",
            "z of shape (*b, 2)",
            "(2, 5)",
            "Try something else.",
        )

    @pytest.mark.parametrize("error", ERRORS)
    @pytest.mark.parametrize(
        "copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy]
    )
    def test_survives_a_process_boundary(self, error, copied):
        again = copied(made(error))
        assert type(again) is error
        assert str(again) == str(made(error))
        assert again.where == "Manifold.metric"
        assert getattr(again, "result", None) == getattr(made(error), "result", None)

    def test_survives_the_way_of_dask(self):
        pytest.importorskip("tblib")
        code = (
            "import pickle\n"
            "from tblib import pickling_support\n"
            "from riemae import exceptions\n"
            "pickling_support.install()\n"
            "for name in exceptions.__all__:\n"
            "    error = getattr(exceptions, name)\n"
            "    if issubclass(error, Warning):\n"
            "        continue\n"
            "    more = [None] if name == 'NotConvergedError' else []\n"
            "    e = error('here', 'this', 'that', 'Try.', *more)\n"
            "    again = pickle.loads(pickle.dumps(e))\n"
            "    assert type(again) is error and str(again) == str(e), name\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    @pytest.mark.parametrize(
        ("error", "builtin"),
        [
            (exceptions.ShapeError, ValueError),
            (exceptions.DTypeError, TypeError),
            (exceptions.OptionError, ValueError),
            (exceptions.NonFiniteError, ValueError),
            (exceptions.SingularMetricError, ArithmeticError),
            (exceptions.NotConvergedError, RuntimeError),
            (exceptions.MissingExtraError, ImportError),
        ],
    )
    def test_the_builtin_that_one_would_catch(self, error, builtin):
        assert issubclass(error, builtin)
        with pytest.raises(builtin, match=r"Manifold\.metric: expected"):
            raise made(error)

    def test_warnings_can_be_silenced_on_their_own(self):
        for warning in (exceptions.FallbackWarning, exceptions.DisconnectedGraphWarning):
            assert issubclass(warning, UserWarning)
            assert not issubclass(warning, exceptions.RiemaeError)

    def test_real_errors_cross_too(self):
        with pytest.raises(exceptions.ShapeError) as caught:
            riemae.Manifold(lambda z: z, latent_dim=2).metric(torch.zeros(3))
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

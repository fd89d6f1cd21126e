#!/bin/sh
# Build the wheel, install it into an empty environment, and run tests against it outside the checkout.
# Usage: tests/wheel.sh PYTHON BUILDER WORKERS   (BUILDER: a Python that has the package `build`)
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
builder=$(cd "$root" && command -v "$2")
case $builder in /*) ;; *) builder=$root/$builder ;; esac

"$builder" -m build --wheel --outdir "$work/dist" "$root" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$1" -m venv "$work/venv"
install() { "$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile "$@"; }
install --upgrade pip
install -c "$root/constraints.txt" torch
wheel=$(ls "$work"/dist/*.whl)
install -c "$root/constraints.txt" "$wheel[test]"
"$work/venv/bin/python" -m compileall -qq -j 0 -x '/tests?/' "$work/venv/lib" || true
cp -r "$root/tests" "$root/docs" "$root/pyproject.toml" "$root/README.md" "$work"
cd "$work"
venv/bin/python -c 'import riemae, pathlib; p = pathlib.Path(riemae.__file__); assert "site-packages" in p.parts, p'
# What can be wrong with a wheel is a file or a dependency that is missing: every module is imported, and those tests run
# that read files of the package, use its extras, or go through all of its parts.
venv/bin/python - <<'END'
import importlib, pkgutil, riemae
for module in pkgutil.walk_packages(riemae.__path__, "riemae."):
    if module.name != "riemae.__main__":
        importlib.import_module(module.name)
END
venv/bin/python -m pytest -q -n "$3" -p no:cacheprovider \
    tests/test_packaging.py tests/test_layers.py tests/plotting tests/autoencoders/test_persistence.py \
    tests/cli tests/datasets tests/interop tests/reporting tests/storage \
    tests/solvers/test_distance_matrix.py::TestExecutors::test_a_dask_cluster_changes_no_bit

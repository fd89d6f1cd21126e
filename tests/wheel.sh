#!/bin/sh
# Build the wheel, install it into an empty environment, and run the tests against it outside the checkout.
# Usage: tests/wheel.sh PYTHON BUILDER WORKERS   (BUILDER: a Python that has the package `build`)
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
builder=$(cd "$root" && command -v "$2")
case $builder in /*) ;; *) builder=$root/$builder ;; esac

"$builder" -m build --wheel --outdir "$work/dist" "$root" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$1" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check -c "$root/constraints.txt" torch
wheel=$(ls "$work"/dist/*.whl)
"$work/venv/bin/pip" install --quiet --disable-pip-version-check -c "$root/constraints.txt" "$wheel[test]"
cp -r "$root/tests" "$root/docs" "$root/pyproject.toml" "$root/README.md" "$work"
cd "$work"
venv/bin/python -c 'import riemae, pathlib; p = pathlib.Path(riemae.__file__); assert "site-packages" in p.parts, p'
# Random maps and the catalogue say nothing of a package that the other tests do not.
venv/bin/python -m pytest -q -n "$3" -p no:cacheprovider --ignore tests/fuzz --ignore tests/test_error_bars.py \
    --ignore tests/test_spaces.py

#!/bin/sh
# Install the wheel with one extra alone into an empty environment, and use what the extra is for.
# Usage: tests/extras.sh PYTHON BUILDER EXTRA   (BUILDER: a Python that has the package `build`;
# EXTRA: a name, "none" for none of them, or "next" for the one whose turn it is by the number of commits)
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
extra=$3
if [ "$extra" = next ]; then
    extra=$("$1" "$root/tests/extras.py" --turn "$(git -C "$root" rev-list --count HEAD)")
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
builder=$(cd "$root" && command -v "$2")
case $builder in /*) ;; *) builder=$root/$builder ;; esac

"$builder" -m build --wheel --outdir "$work/dist" "$root" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$1" -m venv "$work/venv"
wheel=$(ls "$work"/dist/*.whl)
[ "$extra" = none ] || wheel="${wheel}[$extra]"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile -c "$root/constraints.txt" "$wheel"
cp "$root/tests/extras.py" "$work"
cd "$work"
venv/bin/python extras.py "$extra"

#!/bin/sh
# Tests and tables of a device, with the torch that a Python has; nothing of it is installed anew or changed.
# Usage: benchmarks/device.sh PYTHON DEVICE [--quick]
set -eu
cd "$(dirname "$0")/.."
python=$1
device=$2
sizes=${3:-}
if ! "$python" -c 'import torch' 2>/dev/null; then
    make .venv/.ready PYTHON="$python"
    python=.venv/bin/python
fi
if ! reason=$("$python" -c 'import sys, torch; torch.zeros(1, device=sys.argv[1])' "$device" 2>&1); then
    echo "torch cannot use the device '$device' here: $(echo "$reason" | tail -n 1)" >&2
    echo "Give another one (make device DEVICE=...), or a Python whose torch can (PYTHON=...)." >&2
    exit 2
fi
PYTHONPATH=$PWD:$PWD/.venv-device${PYTHONPATH:+:$PYTHONPATH}
PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH PYTHONDONTWRITEBYTECODE

# What is missing beside torch goes into a folder of its own, without dependencies: torch would be among them. Packages
# that these need are missing in the next round.
for round in 1 2 3 4 5; do
    missing=$("$python" benchmarks/missing.py pyproject.toml)
    [ -n "$missing" ] || break
    echo "missing: $missing"
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target .venv-device --upgrade $missing || break
done

failed=0
"$python" -m pytest -q -p no:cacheprovider --device="$device" tests/device || failed=$?
"$python" -m benchmarks.zoo --quick --seconds 60 --dtype float32 --device "$device" || failed=$?
"$python" -m benchmarks.device --device "$device" $sizes || failed=$?
exit $failed

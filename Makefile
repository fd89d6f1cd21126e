# `make demo` and `make test` do everything on a fresh machine, virtual environment included.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A recent pip finds the same packages several times as fast, and Python compiles them on all cores
# (but for templates among them, which are not code).
INSTALL := pip install --quiet --disable-pip-version-check --no-compile
COMPILE := python -m compileall -qq -j 0 -x '/tests?/'
READY := $(VENV)/.ready
# Processes that run the tests; each keeps to one thread.
WORKERS ?= 2

.PHONY: demo test thorough coverage fuzz lint types doctest docs wheel extras check bench device clean

demo: $(READY)
	$(BIN)/riemae demo

test: $(READY)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

# The same with a list of lines that no test runs; half as long again.
coverage: $(READY)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --cov --cov-report=term-missing:skip-covered

# All cases of the large tables, of which `make test` takes every second or third.
thorough: $(READY)
	RIEMAE_THOROUGH=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

# Fifty times as many random maps as `make test` tries.
fuzz: $(READY)
	RIEMAE_FUZZ=50 $(BIN)/python -m pytest -q -n $(WORKERS) tests/fuzz

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

doctest: $(READY)
	$(BIN)/python -m pytest --doctest-modules riemae solvers --import-mode=importlib -q

# The site, in out/docs; a warning is an error, and so is a page that needs a network.
docs: $(READY)
	$(BIN)/python -m sphinx --quiet --fresh-env --write-all --fail-on-warning --keep-going docs out/docs
	$(BIN)/python docs/extensions/check_site.py out/docs

# The wheel, in a clean environment, tested away from the checkout.
wheel: $(READY)
	sh tests/wheel.sh $(PYTHON) $(BIN)/python $(WORKERS)

# One extra alone in a clean environment: `make extras EXTRA=cells`; "next" is the one whose turn it is.
EXTRA ?= next
extras: $(READY)
	sh tests/extras.sh $(PYTHON) $(BIN)/python $(EXTRA)

check: test lint types doctest docs wheel

# Benchmarks beside peers, in environments of their own; tables and a picture go to benchmarks/results/.
# `make bench BENCH=--quick` tests the machinery in a few minutes.
bench: $(READY)
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/$(INSTALL) --upgrade pip
	.venv-bench/bin/$(INSTALL) -c constraints.txt torch
	.venv-bench/bin/$(INSTALL) -c constraints.txt -r benchmarks/requirements.txt -e ".[demo]"
	.venv-bench/bin/$(INSTALL) --no-deps -r benchmarks/requirements-alone.txt
	.venv-bench/bin/$(COMPILE) .venv-bench/lib || true
	$(PYTHON) -m venv .venv-bench-jax
	.venv-bench-jax/bin/$(INSTALL) --upgrade pip
	.venv-bench-jax/bin/$(INSTALL) -r benchmarks/requirements-jax.txt
	.venv-bench-jax/bin/$(COMPILE) .venv-bench-jax/lib || true
	.venv-bench/bin/python -m benchmarks.geodesics $(BENCH)
	.venv-bench/bin/python -m benchmarks.zoo $(BENCH)
	.venv-bench/bin/python -m benchmarks.statistics $(BENCH)
	$(BIN)/python -m benchmarks.neighbors $(BENCH)
	$(if $(BENCH),,.venv-bench/bin/python benchmarks/curvature.py)
	$(if $(BENCH),,.venv-bench/bin/python benchmarks/hard_set.py)
	$(if $(BENCH),,.venv-bench/bin/python benchmarks/training.py)

# On an accelerator, in a few minutes, with the torch that PYTHON has: tests, the zoo, and the table of promises, which goes to
# benchmarks/results/device.md. `make device DEVICE=cpu DEVICE_SIZES=--quick` tests the machinery.
DEVICE ?= cuda
DEVICE_SIZES ?=
device:
	sh benchmarks/device.sh $(PYTHON) $(DEVICE) $(DEVICE_SIZES)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(INSTALL) --upgrade pip
	$(BIN)/$(INSTALL) -c constraints.txt torch
	$(BIN)/$(INSTALL) -c constraints.txt -e ".[dev]"
	$(BIN)/$(COMPILE) $(VENV)/lib || true
	touch $(READY)

clean:
	rm -rf $(VENV) .venv-bench .venv-bench-jax .venv-device benchmarks/decoders build dist out *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis

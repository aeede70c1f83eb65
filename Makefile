PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The tests pretend to have 8 devices, and never look for an accelerator.
TESTING := JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8

.PHONY: train test lint soak clean
.DELETE_ON_ERROR:

train: $(VENV)/.installed
	$(BIN)/mmjax train configs/avdigits_mimo.py --workdir runs/avdigits_mimo

test: lint
	$(TESTING) $(BIN)/python -m pytest -n 2 -q -m "not soak"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Everything, compiled as users' programs are: `make test` compiles with few optimizations, to be quick.
soak: $(VENV)/.dev
	$(TESTING) JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest -n 2 -q

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info

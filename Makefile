PYTHON ?= python3
VENV := .venv

$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable ".[dev]"
	touch $@

.PHONY: test
test: $(VENV)/.dev
	JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 $(VENV)/bin/python -m pytest -n 2 -m "not soak" -q

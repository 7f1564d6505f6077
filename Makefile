# Every target sets up its own virtual environment in .venv, from nothing, and only once.
#
#   make demo     train a plain and a role-aware model, attack both, write the report
#   make test     the tests
#   make lint     ruff and mypy
#   make docs     build the documentation site into site/; warnings are errors
#   make bench    the benchmarks: the fused kernel and its peers on a GPU, else attention on the CPU
#   make kernel-check   compile the fused kernel for GPUs that are not at hand, under both ends of Triton's versions
#   make clean    remove what the targets made
#
# PYTHON     the interpreter that makes the environment
# TRITONS    the versions of Triton that kernel-check compiles with; WRITE=--write makes its record anew
# TORCH_CPU  what is installed first where no NVIDIA GPU is found. pip chooses the build from its configured sources;
#            for the small one of the PyTorch project, configure its CPU index (PIP_EXTRA_INDEX_URL).

PYTHON    ?= python3
TORCH_CPU ?= torch==2.13.0
TRITONS   ?= 3.6.0 3.9.0
WORKERS   ?= 2

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs bench kernel-check clean

help:
	@sed -n 's/^#   make/make/p' $(MAKEFILE_LIST)

$(STAMP): setup.py pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	if ! command -v nvidia-smi >/dev/null 2>&1; then $(BIN)/python -m pip install --quiet "$(TORCH_CPU)"; fi
	$(BIN)/python -m pip install --quiet --editable ".[dev,demo]"
	touch $@

demo: $(STAMP)
	$(BIN)/rolesafe demo

# One thread per worker: torch's threads would fight over the cores. Rewriting the assertions of all tests takes 12 s in
# each worker, so only what failed runs again with them, for its message.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q --assert=plain || \
	{ OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --last-failed --last-failed-no-failures none; exit 1; }

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=.:kernels $(BIN)/mkdocs build --strict

bench: $(STAMP)
	if command -v nvidia-smi >/dev/null 2>&1; then $(BIN)/python -m benchmarks.throughput; \
	else $(BIN)/python benchmarks/attention_cpu.py; fi

$(VENV)/triton-%: | $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps --target $@ triton==$*

# Each version in a process of its own, ahead of the one that is installed.
kernel-check: $(STAMP) $(addprefix $(VENV)/triton-,$(TRITONS))
	cd kernels && for version in $(TRITONS); do \
	  PYTHONPATH=$(CURDIR)/$(VENV)/triton-$$version $(CURDIR)/$(BIN)/python -m tools.offline --record compiled.json $(WRITE) || exit 1; \
	done

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find rolesafe kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +

# make demo | test | test-gpu | lint | format | bench | docs.
# The first one makes .venv and installs everything in it. With PYTHON=/path/to/python that interpreter is used as it
# is (it must have torch and what the target imports); nothing is installed in it.

JOBS ?= 2
# What goes into .venv; for test-gpu that is nvcc and CUTLASS's headers, too. CI adds zoo, examples and docs; tests that
# need those say so and are skipped without them.
comma := ,
EXTRAS ?= test$(comma)$(if $(filter test-gpu,$(MAKECMDGOALS)),cuda,lint)
PYTEST_ARGS ?=
GPU_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=

# One stamp for each set of extras: a target that asks for more installs more.
STAMP := .venv/installed-$(subst $(comma),-,$(EXTRAS))

ifdef PYTHON
PY := $(PYTHON)
READY := adopt
export PYTHONPATH := $(CURDIR):$(PYTHONPATH)
else
PY := .venv/bin/python
READY := $(STAMP)
endif

.PHONY: help demo test test-gpu lint format bench docs adopt clean
help:
	@echo "make demo      train a small GPT dense and 2:4-sparse, print a table, draw both loss curves"
	@echo "make test      run the test suite; JOBS=8 in eight processes"
	@echo "make test-gpu  build the CUDA kernels that are missing, then run everything on this machine's GPUs"
	@echo "make lint      ruff and mypy over everything"
	@echo "make bench     run the benchmarks that this machine can run"
	@echo "make docs      build the documentation into site/ (make docs EXTRAS=test,lint,docs installs what it needs)"

demo: $(READY)
	@$(PY) -m s24compile demo $(DEMO_ARGS)

# One thread a worker: two pytest workers with two OpenMP threads each are slower on two cores.
test: $(READY)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

# Every test, those marked gpu too: tests/gpu_suite.py. GPU_ARGS="--budget-s 570" stops in time, whatever is left.
test-gpu: $(READY)
	@$(PY) -m tests.gpu_suite $(GPU_ARGS)

lint: $(READY)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: $(READY)
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

bench: $(READY)
	@$(PY) -m s24compile bench $(BENCH_ARGS)

docs: $(READY)
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "site/index.html"

$(STAMP): pyproject.toml constraints.txt
	@command -v c++ g++ clang++ >/dev/null || { echo "no C++ compiler found: TorchInductor needs one on CPU (install g++)"; exit 1; }
	@base=; for p in python3 python3.13 python3.12 python3.11; do \
	  if $$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then base=$$p; break; fi; done; \
	if [ -z "$$base" ]; then echo "no Python 3.11 or newer with venv found on PATH"; exit 1; fi; \
	$$base -m venv .venv
	@echo "installing $(EXTRAS) into .venv (once)"
	@.venv/bin/python -m pip install -q -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

adopt:
	@$(PY) .ci/adopt.py $(MAKECMDGOALS)

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

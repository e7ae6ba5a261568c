# `make run` and `make test` each do all their own set-up: a virtual environment in .venv with the
# locked versions. They need Python 3.11 and nothing else.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
CORES ?= all
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
LOCK_VENV := .cache/lock-venv

.PHONY: run plans test test-faults test-ways test-stale test-slurm lint lock clean

# Embed the configured samples (as shipped: the example) and say where the results are.
run: $(READY)
	$(BIN)/snakemake --cores $(CORES)
	@$(BIN)/python example/summarise.py results

# Plan every sample and write the efficiency reports, before a GPU is taken.
plans: $(READY)
	$(BIN)/snakemake --cores $(CORES) plans

test: $(READY)
	$(BIN)/pytest

# The faults of docs/faults.md at many more moments and seeds: a quarter of an hour and more.
test-faults: $(READY)
	$(BIN)/pytest -m "long and not gpu"

# The ways in that install everything from the index anew.
test-ways: $(READY)
	$(BIN)/pytest -m long tests/workflow/test_ways.py

# Every change, at every step, ended in every way, and the same command again: some hours.
test-stale: $(READY)
	$(BIN)/pytest -m long tests/stale

# The shipped profiles on a real SLURM of one node with two imaginary GPUs. Needs root, and Debian or
# Ubuntu for what is not installed yet; the system's own SLURM, if there is one, is not touched.
test-slurm: $(READY)
	(command -v slurmctld && command -v slurmd && command -v munged) >/dev/null \
	  || (apt-get update -qq && apt-get install -qq -y --no-install-recommends slurm-wlm munge)
	$(BIN)/pytest -m slurm -p no:cacheprovider tests/slurm

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check workflow
	$(BIN)/mypy
	$(BIN)/snakemake --lint

# Made only when a version or the package's own requirements change.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -e .
	touch $@

# Write requirements.lock anew: the newest versions that pyproject.toml allows, torch apart. A build
# tag such as +cpu is cut off, so that the same lock installs the build for the machine's devices.
lock:
	$(PYTHON) -m venv --clear $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install torch==2.13.0 triton==3.7.1 -e '.[cluster,test,lint]'
	sed -n '/^#/p' requirements.lock > $(LOCK_VENV)/requirements.lock
	$(LOCK_VENV)/bin/python -m pip freeze --all --exclude pip --exclude-editable \
	  | sed -e 's/+[a-z0-9.]*$$//' -e '/^nvidia-/d' -e '/^cuda-/d' \
	  >> $(LOCK_VENV)/requirements.lock
	mv $(LOCK_VENV)/requirements.lock requirements.lock
	rm -rf $(LOCK_VENV)

# Remove what runs have made; the environment, downloaded models and the plan cache stay.
clean:
	rm -rf results logs benchmarks/results .snakemake
	rm -rf .test/results .test/resources .test/logs .test/benchmarks .test/.snakemake .test/.cache

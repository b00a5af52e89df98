# Each target does its own set-up: the virtual environment, the installation, then the work.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
export RAY_USAGE_STATS_ENABLED := 0

FIGURES := build/figures
DATA := $(or $(SPEXMAP_DATA),../shared/data)

.PHONY: demo test test-services installed services-installed check figures figures-of-demo figures-of-real-scenes figures-of-runs soak soak-short clean

installed: $(READY)

demo: $(READY)
	$(BIN)/spexmap demo demo
	$(BIN)/spexmap run demo/job.yaml

test: $(READY)
	$(BIN)/python -m pytest

# Real servers on loopback: S3 by Swift, a STAC API by pgstac, nginx. Their packages do not go together with ours, so each has an environment of its own.
SERVICES := build/services

test-services: $(READY) services-installed
	$(BIN)/python -m pytest -m services tests/services --durations=0 --durations-min=1

services-installed: $(SERVICES)/swift/.installed $(SERVICES)/pgstac/.installed
	infra/services/install.sh

$(SERVICES)/%/.installed: infra/services/%.txt
	rm -rf $(SERVICES)/$*
	$(PYTHON) -m venv $(SERVICES)/$*
	$(SERVICES)/$*/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

# The reference job again and again under random faults, and the inputs of a run made up by hypothesis.
SOAK_RUNS ?= 200
SOAK_SEED ?= 1

soak: $(READY)
	$(BIN)/python -m infra.soak --runs $(SOAK_RUNS) --seed $(SOAK_SEED) --json build/soak.json
	SPEXMAP_FUZZ_SECONDS=600 $(BIN)/python -m pytest tests/corpus/test_fuzz.py

soak-short: $(READY)
	$(BIN)/python -m infra.soak --runs 20 --seed $(SOAK_SEED) --json build/soak-short.json

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What the documentation claims of maps and runs, measured; each script prints its figures and fails where a claim does not hold.
figures: memory.figure figures-of-demo figures-of-real-scenes figures-of-runs

# Of the demo's map that memory.figure has made.
figures-of-demo: $(READY)
	$(BIN)/spexmap validate $(FIGURES)/memory/output --deep
	$(BIN)/python benchmarks/accuracy.py $(FIGURES)/memory/output $(FIGURES)/memory

figures-of-runs: $(READY)
	rm -rf $(FIGURES)/small-demo
	$(MAKE) repeatability.figure interruption.figure

%.figure: $(READY)
	rm -rf $(FIGURES)/$*
	$(BIN)/python benchmarks/$*.py $(FIGURES)/$*

figures-of-real-scenes: $(READY)
	test -d $(DATA)/scenes || { echo "no real scenes at $(DATA): their figures are left out"; exit 0; }; \
	for place in styria fort-mcmurray; do \
		catalog=$(abspath $(DATA))/scenes/$$place-s2/catalog.json output=$(FIGURES)/$$place; \
		rm -rf $$output; $(BIN)/spexmap run examples/$$place.yaml --set source.catalog=$$catalog --set output=../$$output && \
		$(BIN)/spexmap validate $$output --deep && \
		$(BIN)/python benchmarks/scenes.py $$place $$output $$catalog || exit 1; \
	done

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo build *.egg-info

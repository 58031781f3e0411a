# Everything happens in .venv; nothing is installed globally.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.requirements-installed
TORCH := $(shell grep '^torch==' requirements.txt)

.PHONY: setup train test test-system lint clean

setup: $(STAMP)

# torch first, so that what needs it does not pull in another build.
$(STAMP): requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $(STAMP)

# Overrides and options: make train ARGS="run.seed=1 --out runs/seed1"
train: setup
	$(PY) -m rllib_hypermarl train tune_configs/dispersion.yaml $(ARGS)

test: setup
	$(PY) -m pytest -m "not system" -n 2 --dist loadfile $(ARGS)

test-system: setup
	$(PY) -m pytest -m system -n 2 --dist loadfile --timeout 1200 $(ARGS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info

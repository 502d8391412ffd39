# make            set up and run the default experiment
# make test       set up and run the tests
# make test-slow  all tests, the slow ones too
# make lint       style, types, arrows between rooms, schemas, workflow
# make house      draw the picture of the rooms again
# make lock       renew the lock file from pyproject.toml

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEPENDENCIES := $(VENV)/dependencies
INSTALLED := $(VENV)/installed
# pip unpacks here what it fetches: /tmp may be memory.
TEMPORARY := $(VENV)/tmp
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: run setup test test-slow lint schemas house lock

run: setup
	snakemake --cores all
	snakemake --report data/results/report.html --quiet all
	@echo "Results: figures and tables below data/results/, everything on one page in data/results/report.html"

setup: $(INSTALLED)

# What is fetched depends on the lock alone. The marker is written last, so an interrupted installation begins again.
$(DEPENDENCIES): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "usbpo needs Python 3.11 or later, but $(PYTHON) is " + sys.version.split()[0] + "; set PYTHON=/path/to/python3.11")'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@mkdir $(TEMPORARY)
	@echo "Installing $$(grep -c == requirements.lock) packages into $(VENV): 2 GB with torch's CPU build, 6 GB (3 GB to fetch) with the CUDA build (README.md, Two commands)"
	@( while sleep 10 >/dev/null 2>&1 && kill -0 $$$$ 2>/dev/null; do echo "  $$(du -sh $(VENV) 2>/dev/null | cut -f 1) in $(VENV) so far"; done ) & \
	TMPDIR="$(CURDIR)/$(TEMPORARY)" $(PIP) --requirement requirements.lock; code=$$?; \
	kill $$! 2>/dev/null; rm -rf $(TEMPORARY); exit $$code
	@touch $@

# An edit of pyproject.toml installs the package again, which takes seconds.
$(INSTALLED): $(DEPENDENCIES) pyproject.toml
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

test: setup
	pytest -m "not slow" -n auto --dist loadgroup

test-slow: setup
	USBPO_TESTS_COLD=1 pytest -n auto --dist loadgroup  # every command is started as a shell does it

lint: setup
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	snakefmt --check Snakefile workflow
	snakemake --lint
	snakemake --lint --configfile config/experiments/quick.yaml  # with the rules of a trigger
	@usbpo schema $(VENV)/schemas && diff -r $(VENV)/schemas workflow/schemas || { echo "workflow/schemas is out of date: make schemas"; exit 1; }

schemas: setup
	usbpo schema

house: setup
	python docs/images/house.py

lock: setup
	$(BIN)/python -m pip install --quiet pip-tools
	pip-compile --quiet --extra dev --extra export --strip-extras --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		--no-emit-trusted-host --allow-unsafe --output-file requirements.lock pyproject.toml
	sed -i 's/^\(torch==[0-9.]*\)+.*/\1/' requirements.lock

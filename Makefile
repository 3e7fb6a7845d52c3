# make demo    the whole pipeline on the embedded corpus; ARGS="--config.KEY=VALUE ..." overrides
# make test    the tests
# make faults  tests of whole processes: several hosts, and what befalls them
# make rehearsal   the paper's two pipelines, narrow and short: two processes of four simulated
#              devices, then one of eight
# make lint    ruff and mypy
# make clean   removes the virtual environment and caches, not runs/
#
# Needs Python 3.11, 3.12 or 3.13 with its venv module. PYTHON=... names one, VENV=... puts the
# virtual environment elsewhere.

VENV ?= .venv
ARGS ?=
PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.13; do \
	$$python -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	2> /dev/null && { echo $$python; break; }; done)

PIP = $(VENV)/bin/python -m pip install --disable-pip-version-check

.PHONY: demo test faults rehearsal lint clean environment environment-demo environment-dev

demo: environment-demo
	$(VENV)/bin/python -m hubert_jax.pipeline --config=configs/demo.py $(ARGS)

PYTEST = $(VENV)/bin/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadscope \
	--no-loadscope-reorder

test: environment-dev
	$(PYTEST) $(ARGS)

faults: environment-dev
	$(PYTEST) tests/faults $(ARGS)

rehearsal: environment
	launch/rehearsal.sh $(VENV)/bin/python $(ARGS)

lint: environment-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis *.egg-info
	find hubert_jax configs tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 with venv found; install" \
	"one (Debian, Ubuntu: apt install python3-venv) or pass PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)

# What is installed is kept beside it, so that nothing is done twice.
environment: $(VENV)/bin/python
	@cmp -s requirements.txt $(VENV)/requirements.txt || { \
	$(PIP) --requirement requirements.txt && cp requirements.txt $(VENV)/; }

# Beam search with a language model, for which Python 3.13 has no library.
environment-demo: environment
	@cmp -s pyproject.toml $(VENV)/demo.toml || { \
	$(PIP) --editable '.[decode]' && cp pyproject.toml $(VENV)/demo.toml; }

environment-dev: environment
	@cmp -s pyproject.toml $(VENV)/pyproject.toml || { \
	$(PIP) --editable '.[dev]' && cp pyproject.toml $(VENV)/; }

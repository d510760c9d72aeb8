# Everything is installed into .venv (and .venv-other) beside this file, and again only
# after pyproject.toml changed. pip takes its index and cache from your own settings.

PYTHON ?= python3
# `make test` runs the core tests a second time, with this DuckDB.
DUCKDB_OTHER ?= duckdb>=1.5,<2
WORKERS ?= 2
# How long `make soak` runs, and where its random numbers begin: empty for the time.
MINUTES ?= 20
SEED ?=

MAIN := .venv
OTHER := .venv-other
OTHER_STAMP := $(OTHER)/$(firstword $(shell printf '%s' '$(DUCKDB_OTHER)' | cksum)).stamp
RUN := $(MAIN)/bin/python

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test soak bench docs lint clean

help:  ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10
	@echo "Variables: PYTHON=$(PYTHON)  DUCKDB_OTHER='$(DUCKDB_OTHER)'  WORKERS=$(WORKERS)"
	@echo "           MINUTES=$(MINUTES)  SEED=$(SEED)"

demo: $(MAIN)/demo.stamp  ## Install duckvec and show it at work on examples/data
	@$(RUN) examples/demo.py

# Several processes of tests share the cores: threads of OpenMP and OpenBLAS that wait for
# each other in busy loops would take their time (a third of some files').
test: export OMP_WAIT_POLICY := passive
test: export OPENBLAS_NUM_THREADS := 1
test: lint $(OTHER_STAMP)  ## Check style and types, then run the tests with two lines of DuckDB
	@echo "Tests, $(call duckdb_of,$(MAIN)):"
	@$(RUN) -m pytest -q -n $(WORKERS)
	@echo "Core tests, $(call duckdb_of,$(OTHER)):"
	@$(OTHER)/bin/python -m pytest -q -n $(WORKERS) -m core

soak: $(MAIN)/dev.stamp  ## Compare searches with exact SQL in random worlds, for long
	@$(RUN) -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: $(MAIN)/demo.stamp  ## Run the benchmarks
ifeq ($(wildcard benchmarks/__main__.py),)
	@echo "There are no benchmarks yet."
else
	@$(RUN) -m benchmarks $(ARGS)
endif

docs: $(MAIN)/dev.stamp  ## Build the documentation site into site/
	@$(RUN) -m tools.write_docs
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet
	@echo "Open site/index.html; its search needs a server: python3 -m http.server -d site"

lint: $(MAIN)/dev.stamp  ## Check style and types only
	@$(RUN) -m ruff check --quiet .
	@$(RUN) -m ruff format --quiet --check .
	@$(RUN) -m mypy --no-error-summary
	@echo "Style and types are right."

clean:  ## Remove all that make and the tools have put here
	rm -rf $(MAIN) $(OTHER) build dist site extension/*.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(MAIN)/demo.stamp: pyproject.toml
	$(call install,$(MAIN),-e '.[all$(comma)demo]')

$(MAIN)/dev.stamp: pyproject.toml
	$(call install,$(MAIN),-e '.[all$(comma)dev$(comma)docs]')

$(OTHER_STAMP): pyproject.toml
	@rm -f $(OTHER)/*.stamp
	$(call install,$(OTHER),-e '.[all$(comma)test$(comma)integrations-heavy]' '$(DUCKDB_OTHER)')

comma := ,

# $(call duckdb_of,ENVIRONMENT): its DuckDB and Python, in words.
duckdb_of = $$($(1)/bin/python -c "import duckdb, platform as p; \
	print('DuckDB', duckdb.__version__, 'on Python', p.python_version())")

# $(call install,ENVIRONMENT,REQUIREMENTS): an environment that holds them. One that an
# interrupted run left half made, or whose Python has gone, is made anew.
define install
	@command -v $(PYTHON) >/dev/null || { \
	  echo "There is no $(PYTHON) here: name a Python of 3.10 or newer with PYTHON=…"; exit 1; }
	@$(PYTHON) tools/check_setup.py
	@{ test -f $(1)/pyvenv.cfg && $(1)/bin/python -m pip --version; } >/dev/null 2>&1 || { \
	  echo "Creating $(1) with $$($(PYTHON) --version) …"; \
	  $(PYTHON) -m venv --clear $(1); }
	@echo "Installing duckvec into $(1), compiling hnswlib and annoy (minutes, once) …"
	@$(1)/bin/python -m pip install -qq $(2)
	@touch $@
endef

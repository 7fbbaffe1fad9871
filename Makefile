# Every target works from a fresh clone: it first makes a virtual environment (.venv) and installs the project into it.
#
#     make test        the tests, on python3 or on what PYTHON says: make test PYTHON=python3.12
#     make demo        the demonstration, under a minute
#     make help        all targets

PYTHON ?= python3
VENV   ?= .venv
# Added to pytest's command line: make test PYTEST_ARGS='-k cancel -x'
PYTEST_ARGS ?=
# Added to the command line of benchmarks/run.py: make bench BENCH_ARGS='--quick --bars'
BENCH_ARGS ?=

# The Pythons of `make test-all`; those that are not installed are left out.
ALL_PYTHONS := 3.10 3.11 3.12 3.13 3.14

BIN    := $(VENV)/bin
PY     := $(BIN)/python
PYTEST := $(PY) -m pytest -o cache_dir=$(VENV)/pytest-cache

# What is tested is what is installed in the environment, not what the caller's shell happens to add.
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP
# A personal pip configuration with `user = true` cannot work inside a virtual environment.
export PIP_USER := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help test conformance demo lint types docs wheel bench test-all clean

help:
	@echo 'make test         run all tests on $(PYTHON) (PYTHON=..., PYTEST_ARGS=...)'
	@echo 'make demo         run examples/mixed_app.py'
	@echo 'make conformance  run only the tests of the standard library (test.test_asyncio)'
	@echo 'make lint         ruff'
	@echo 'make types        mypy --strict'
	@echo 'make docs         run the code of README.md and docs/, check its output and the links'
	@echo 'make wheel        build the wheel, install it into a fresh environment, import it'
	@echo 'make bench        run the benchmarks (BENCH_ARGS=--quick: in two minutes)'
	@echo 'make test-3.12    run all tests on Python 3.12, in .venv-3.12'
	@echo 'make test-all     the same on every Python that is found of $(ALL_PYTHONS)'
	@echo 'make clean        remove environments, builds and caches'

# --- environments -----------------------------------------------------------------------------------------------------

# Some distributions ship a python3 without ensurepip, and with it no working `-m venv`. The pip of the system, if there
# is one, can then install pip into the bare environment.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo 'Python 3.10 or later is needed, but $(PYTHON) is' "$$($(PYTHON) --version 2>&1)." \
	         'Name another one: make PYTHON=python3.12 ...' >&2; exit 1; }
	@echo "making $(VENV) ($$($(PYTHON) --version))"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 \
	    || { rm -rf $(VENV); $(PYTHON) -m venv --without-pip $(VENV) \
	         && $(PYTHON) -m pip --python $(PY) install --quiet pip; } \
	    || { echo 'cannot make a virtual environment: install the venv module of $(PYTHON)' \
	         '(Debian, Ubuntu: apt install python3-venv)' >&2; rm -rf $(VENV); exit 1; }
	@touch $@

$(VENV)/.installed-test: $(VENV)/.created pyproject.toml
	@echo 'installing the project and what its tests use'
	@$(PY) -m pip install --quiet --editable '.[test]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-test
	@$(PY) -m pip install --quiet --editable '.[test,bench]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	@echo 'installing the development tools'
	@$(PY) -m pip install --quiet 'pip>=22.3' --editable '.[test,dev]'  # 22.3: `pip --python`, for `make wheel`
	@touch $@

# --- tests and examples -----------------------------------------------------------------------------------------------

test: $(VENV)/.installed-test
	$(PYTEST) $(PYTEST_ARGS)

conformance: $(VENV)/.installed-test
	$(PYTEST) tests/conformance $(PYTEST_ARGS)

docs: $(VENV)/.installed-test
	$(PYTEST) tests/test_docs.py $(PYTEST_ARGS)

demo: $(VENV)/.installed-test
	$(PY) examples/mixed_app.py

bench: $(VENV)/.installed-bench bench-peer bench-others
	@$(PY) benchmarks/run.py $(BENCH_ARGS) \
	    $$(for whose in peer others; do \
	           python=$(VENV)-bench-$$whose/bin/python; \
	           [ ! -x "$$python" ] || echo "--$$whose $$python"; \
	       done)

# What is measured beside this library has environments of its own: one of them has the same import name. Some of it may
# not know a new Python yet, which is no reason not to measure the rest.
BENCH_peer   := asyncio-gevent==0.2.5 uvloop aiohttp
BENCH_others := asgiref greenletio greenback eventlet gevent aiohttp

bench-%:
	@venv=$(VENV)-bench-$*; \
	[ -e "$$venv/.installed" ] || { \
	    $(MAKE) --no-print-directory "$$venv/.created" VENV="$$venv" \
	    && echo 'installing $(BENCH_$*)' \
	    && "$$venv/bin/python" -m pip install --quiet $(BENCH_$*) \
	    && touch "$$venv/.installed"; \
	} || { echo 'cannot install $(BENCH_$*): going on without' >&2; rm -rf "$$venv"; }

# An environment for each version, so that several can be tested at the same time (make -j2 test-all).
test-3.%:
	@python=$$(.ci/find-python 3.$*) || { echo 'python3.$* is not installed' >&2; exit 1; }; \
	$(MAKE) --no-print-directory test PYTHON="$$python" VENV=.venv-3.$*

test-all:
	@$(MAKE) --no-print-directory \
	    $$(for v in $(ALL_PYTHONS); do ! .ci/find-python $$v >/dev/null || echo test-$$v; done)

# --- checks -----------------------------------------------------------------------------------------------------------

lint: $(VENV)/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check asyncio_gevent benchmarks examples tests

types: $(VENV)/.installed-dev
	$(PY) -m mypy

# The check runs outside the checkout, where only the installed wheel can be imported, and `-I` ignores PYTHON* variables.
wheel: $(VENV)/.installed-dev
	@rm -rf dist
	$(PY) -m build --wheel --outdir dist . >/dev/null
	@set -e; checkout=$$PWD; scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	$(PY) -m venv --without-pip "$$scratch/venv"; \
	$(PY) -m pip --python "$$scratch/venv/bin/python" install --quiet dist/*.whl; \
	cd "$$scratch"; \
	venv/bin/python -I -W error "$$checkout/.ci/check_wheel.py"

clean:
	rm -rf .venv .venv-3.* .venv-bench-* dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The two commands of the README: `make reproduce` and `make test`. `make help` lists the rest.
# Everything is installed inside this folder: .uv/ (the installer, and Python 3.11 if the machine
# has none) and .venv/ (the environment of uv.lock). Only uv's download cache lies in the home folder.

PROFILE ?= quick
PYTHON ?= python3
PYTEST_ARGS ?=
ONLY ?=
LAB_ARGS ?=
UV_VERSION := 0.13.8

BIN := .venv/bin
UV := .uv/bin/uv
UV_READY := .uv/ready-$(UV_VERSION)
READY := .venv/ready

# A caller's own Python and uv settings must not reach into this environment.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX UV_PYTHON UV_NO_DEV UV_SYSTEM_PYTHON
export PYTHONNOUSERSITE := 1
export UV_PROJECT_ENVIRONMENT := .venv
export UV_PYTHON_INSTALL_DIR := $(CURDIR)/.uv/python
export UV_NO_CONFIG := 1
export UV_HTTP_TIMEOUT ?= 300

# Scripts hold the folder's path and a link to Python: in a moved or copied folder, or without that
# Python, the environment is made anew.
ifneq ($(shell cat $(READY) 2>/dev/null && $(BIN)/python -c "" 2>/dev/null && echo works),$(CURDIR) works)
$(shell rm -f $(READY))
endif

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup reproduce test lab figures doctor lock clean

help: ## list the commands (this)
	@echo "make <command>, where <command> is"
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'

setup: $(READY) ## make the environment in .venv (the other commands do it by themselves)

reproduce: $(READY) ## run the whole suite: PROFILE=quick (default, phantoms), smoke, or paper (real data); ONLY="02 08" some notebooks
	@$(BIN)/fl-utils reproduce --profile $(PROFILE) $(foreach number,$(ONLY),--only $(number))

test: $(READY) ## run the tests, with the coverage of fl_utils (PYTEST_ARGS="..." is passed on)
	@$(BIN)/python -m pytest --cov -n 2 --dist loadfile $(PYTEST_ARGS)

lab: $(READY) ## open the notebooks in JupyterLab (LAB_ARGS="..." is passed on)
	@$(BIN)/jupyter lab $(LAB_ARGS) notebooks

figures: $(READY) ## redraw every published figure and table from the committed records, without training
	@$(BIN)/fl-utils figures

doctor: $(READY) ## say what this machine has, and what is wrong with it
	@$(BIN)/fl-utils doctor

lock: $(UV_READY) ## for maintainers: resolve pyproject.toml again, and export requirements.lock
	@$(FROM_PYPI) $(UV) lock
	@{ sed -n 's/^# lock: \{0,1\}/# /p' Makefile; \
	   $(FROM_PYPI) $(UV) export -q --frozen --no-hashes --no-emit-project --no-annotate --no-header \
	   | sed -e "s/ and $(ONE_PLATFORM)//" -e "s/ ; $(ONE_PLATFORM)//"; } > requirements.lock.tmp
	@mv requirements.lock.tmp requirements.lock

clean: ## remove .venv, .uv, results/quick and results/smoke; data, published results and .cache stay
	rm -rf .venv .uv build dist *.egg-info results/quick results/smoke .pytest_cache .hypothesis .coverage .coverage.*
	find fl_utils tests notebooks benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# What `make lock` writes above requirements.lock:
# lock: The versions of uv.lock for plain pip and conda; written by `make lock`, not by hand. Use:
# lock:   pip install --no-deps --no-compile -r requirements.lock && pip install --no-deps -e .
# lock: --no-deps matters: TFF 0.87 pins a jaxlib that no longer exists, so a resolver finds no solution.
FROM_PYPI := env -u UV_INDEX -u UV_DEFAULT_INDEX -u UV_INDEX_URL -u UV_EXTRA_INDEX_URL -u UV_FIND_LINKS
# On another platform pip would skip a line with this marker in silence; without it, it says what is missing.
ONE_PLATFORM := platform_machine == 'x86_64' and sys_platform == 'linux'

# Exit code 2 and one sentence where the suite cannot work, before anything is installed.
define check
@$(PYTHON) -V >/dev/null 2>&1 || { echo "Cannot set up here. There is no \`$(PYTHON)\`: install Python 3 with venv (Debian, Ubuntu: sudo apt-get install python3-venv). Nothing was installed." >&2; exit 2; }
@$(PYTHON) -I fl_utils/platform_check.py --system "$$(uname -s)" --machine "$$(uname -m)"
endef

# The marks are written last, so what was interrupted is done again.
$(UV_READY):
	$(check)
	@rm -rf .uv
	@echo "Installing uv $(UV_VERSION) into .uv/"
	@{ $(PYTHON) -m venv .uv && .uv/bin/python -m pip install -q --disable-pip-version-check uv==$(UV_VERSION); } || { \
	  rm -rf .uv; \
	  echo "Cannot set up here. uv $(UV_VERSION) could not be fetched with pip (see above): check the network and pip's settings, then run make again. Nothing was installed." >&2; \
	  exit 2; }
	@touch $@

$(READY): pyproject.toml uv.lock .python-version $(UV_READY)
	$(check)
	@rm -f $@
	@$(FIND_PYTHON) >/dev/null 2>&1 || { echo "Fetching Python 3.11 into .uv/python"; $(UV) python install -q --no-bin 3.11; } || { \
	  test -d .venv || rm -rf .uv; \
	  echo "Cannot set up here. Python 3.11 is not on this machine and could not be fetched (see above): install it so that \`python3.11\` is found (your distribution's package, pyenv or conda), or connect to the network, then run make again. Nothing was installed." >&2; \
	  exit 2; }
	@echo "Installing the packages of uv.lock into .venv/ (2.8 GB; a few minutes the first time)"
	@$(UV) sync --frozen --python "$$($(FIND_PYTHON) 2>/dev/null)" $$(test -t 2 || echo -q) || { \
	  echo "The set-up is not complete: a package could not be installed (see above). Check the network and the disk, then run make again; it goes on from what was already fetched." >&2; \
	  exit 2; }
	@echo "$(CURDIR)" > $@

# --system: not the environment that is being replaced.
FIND_PYTHON := $(UV) python find --system --no-python-downloads 3.11

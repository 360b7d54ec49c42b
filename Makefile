# A comparative study of content-based image retrieval. `make` lists all commands.

STUDY ?=
ARCHITECTURES ?=
DATA ?=
SET ?=
CHECK ?=
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.cbir-installed
# An active conda environment created from environment.yml is used as it is.
ifeq ($(CONDA_DEFAULT_ENV),cbir)
BIN := $(CONDA_PREFIX)/bin
STAMP := $(CONDA_PREFIX)/.cbir-installed
endif
BENCH := $(dir $(STAMP)).cbir-bench
BROWSER := $(dir $(STAMP)).cbir-browser
SCALE := $(dir $(STAMP)).cbir-scale
RAY := $(dir $(STAMP)).cbir-ray
HEIC := $(dir $(STAMP)).cbir-heic
FAST := $(dir $(STAMP)).cbir-fast
CBIR := $(BIN)/python -m cbir
# The tests of a file share fixtures, so they stay on one worker. The slowest files come first.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
# The values reach the command through its environment: neither make nor the shell expands them.
unexport STUDY ARCHITECTURES DATA SET
export CBIR_STUDY := $(value STUDY)
export CBIR_ARCHITECTURES := $(value ARCHITECTURES)
export CBIR_DATA := $(value DATA)
export CBIR_SET := $(value SET)
ARGUMENTS = --study="$$CBIR_STUDY" --architectures="$$CBIR_ARCHITECTURES" --data="$$CBIR_DATA" --set="$$CBIR_SET"
# Variables on the command line that the named commands do not use are refused.
USED := PYTHON BIN STAMP CBIR PYTEST
USED += $(if $(filter report plan,$(MAKECMDGOALS)),STUDY ARCHITECTURES DATA SET)
USED += $(if $(filter report,$(MAKECMDGOALS)),CHECK)
USED += $(if $(filter export publish,$(MAKECMDGOALS)),STUDY)
GIVEN := $(foreach name,$(filter-out -%,$(.VARIABLES)),$(if $(filter command,$(origin $(name))),$(name)))
ifneq ($(filter-out $(USED),$(GIVEN)),)
$(error $(firstword $(filter-out $(USED),$(GIVEN))) has no effect here: `make report` and `make plan` \
use STUDY, ARCHITECTURES, DATA and SET, `make report` also CHECK, `make export` and `make publish` use STUDY)
endif

.DEFAULT_GOAL := help
COMMANDS := help report plan lab test test-slow test-faults test-browser mutants lint bench scale ray fast heic export publish results docs lock clean distclean
.PHONY: $(COMMANDS)
# Otherwise, `make report holiday` would run another study before it failed.
ifneq ($(filter-out $(COMMANDS) .venv/%,$(MAKECMDGOALS)),)
$(error $(firstword $(filter-out $(COMMANDS) .venv/%,$(MAKECMDGOALS))) is no command: `make` lists them, and DATA=... names a folder)
endif

help:  ## list all commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@awk -F '## ' '/^#   /{sub(/^#   /, "    "); print}' $(MAKEFILE_LIST)

#   report and plan accept
#     STUDY=digits                    a folder in params/; README describes each study
#     ARCHITECTURES="cnn vgg16"       run only these architectures
#     DATA=path/to/folder             your own pictures, <class>/... or {train,test}/<class>/...,
#                                     or a CSV file with the columns path, class and, optionally, split
#     SET="epochs=3"                  override parameters; the report goes to reports/<study>-trial-<digest>/
#     CHECK=1                         (report) also notice pictures that others of the same size and time replaced

report: $(STAMP)  ## run the study and write reports/<study>/index.html
	@$(CBIR) report $(ARGUMENTS) $(if $(CHECK),--check)

plan: $(STAMP)  ## show what `make report` would do, without doing it
	@$(CBIR) plan $(ARGUMENTS)

heic: $(HEIC)  ## install pillow-heif, which reads HEIC pictures

lab: $(STAMP)  ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

test: $(STAMP)  ## run the quick tests
	@$(PYTEST) -m "not browser and not slow and not faults"

test-slow: $(STAMP)  ## run the slow tests: whole studies and further architectures
	@$(PYTEST) -m "slow and not browser and not faults"

test-faults: $(STAMP)  ## run the tests with crashes, damaged files and hostile input
	@$(PYTEST) -m "faults and not browser" $$(grep -l mark.faults tests/test_*.py)

mutants: $(STAMP)  ## check that the quick tests notice mistakes seeded in the code (minutes)
	@$(BIN)/python tests/mutants.py

test-browser: $(BROWSER)  ## check the report's pages in Debian's Chromium
	@$(BIN)/python -m pytest tests/browser

lint: $(STAMP)  ## check code style, and that notebooks have no outputs
	@$(BIN)/ruff check src tests notebooks
	@$(BIN)/ruff format --check src tests notebooks
	@$(BIN)/nbstripout --keep-id --verify notebooks/*.ipynb

bench: $(BENCH)  ## compare the speed of ranking and networks with other libraries (installs PyTorch)
	@$(BIN)/python tests/benchmarks/retrieval.py
	@$(BIN)/python tests/benchmarks/networks.py

fast: $(FAST)  ## install OpenVINO, with which `cbir search` starts without TensorFlow

scale: $(SCALE)  ## install faiss and Milvus, engines for large galleries

ray: $(RAY)  ## install Ray, with which `cbir index` embeds in parallel processes

export: $(STAMP)  ## write the images and embeddings of STUDY to Parquet files for other programs
	@$(CBIR) export --study="$$CBIR_STUDY"

publish: $(STAMP)  ## copy the results of STUDY into reports/published/, which is committed
	@$(CBIR) publish --study="$$CBIR_STUDY"

results: $(STAMP)  ## write docs/results.md from reports/published/
	@$(CBIR) results

docs: $(STAMP)  ## write docs/parameters.md from the list of parameters
	@$(CBIR) docs

lock:  ## update requirements.lock from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --extra test --universal --python-version 3.11 \
		--generate-hashes --no-annotate --no-header --no-emit-index-url --upgrade \
		--quiet --output-file requirements.lock

clean:  ## delete reports and executed notebooks, except published results
	@mkdir -p reports
	find reports -mindepth 1 -maxdepth 1 -type d ! -name published -exec rm -rf {} +

distclean: clean  ## also delete caches and the environment
	rm -rf artifacts .venv .pytest_cache .ruff_cache .hypothesis src/*.egg-info

# Uses uv if it is installed, otherwise venv and pip; both install the same locked versions.
.venv/.cbir-installed: requirements.lock pyproject.toml
	@echo "setting up .venv (takes a few minutes, only once)"
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else \
	"error: TensorFlow has no release for Python %d.%d: install Python 3.11, 3.12 or 3.13 and name it, as in make PYTHON=python3.12" % v)'
	@if command -v uv >/dev/null; then \
		uv venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" .venv && \
		uv pip install --quiet --python .venv --require-hashes -r requirements.lock && \
		uv pip install --quiet --python .venv --no-deps --no-build-isolation --editable .; \
	else \
		$(PYTHON) -m venv .venv && \
		.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock && \
		.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .; \
	fi
	@touch $@

# The additional packages of an extra; the locked versions stay as they are.
$(BENCH) $(BROWSER) $(SCALE) $(RAY) $(HEIC) $(FAST): EXTRA = $(subst .cbir-,,$(notdir $@))
$(BENCH) $(BROWSER) $(SCALE) $(RAY) $(HEIC) $(FAST): $(STAMP)
	@echo "installing additional packages for $(EXTRA) (only once)"
	@sed -n 's/ *\\$$//; /^[A-Za-z0-9].*==/p' requirements.lock > $@.txt
	@if command -v uv >/dev/null; then \
		uv pip install --quiet --python $(BIN)/python --constraint $@.txt --no-build-isolation --editable ".[$(EXTRA)]"; \
	else \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $@.txt --no-build-isolation --editable ".[$(EXTRA)]"; \
	fi
	@touch $@

ifneq ($(STAMP),.venv/.cbir-installed)
$(STAMP): requirements.lock pyproject.toml
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
endif

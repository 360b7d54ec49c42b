# A comparative study of content-based image retrieval. `make` lists what it can do.

STUDY ?=
ARCHITECTURES ?=
DATA ?=
SET ?=
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.cbir-installed
# An active conda environment made from environment.yml is used as it is.
ifeq ($(CONDA_DEFAULT_ENV),cbir)
BIN := $(CONDA_PREFIX)/bin
STAMP := $(CONDA_PREFIX)/.cbir-installed
endif
BENCH := $(dir $(STAMP)).cbir-bench
BROWSER := $(dir $(STAMP)).cbir-browser
CBIR := $(BIN)/python -m cbir
# A file's tests share what they make, so they stay on one worker; the longest files come first.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
ARGUMENTS = --study "$(STUDY)" --architectures "$(ARCHITECTURES)" --data "$(DATA)" --set "$(SET)"

.DEFAULT_GOAL := help
.PHONY: help report plan lab test test-slow test-browser lint bench publish results docs lock clean distclean

help:  ## list what make can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@awk -F '## ' '/^#   /{sub(/^#   /, "    "); print}' $(MAKEFILE_LIST)

#   report and plan take
#     STUDY=digits                    a folder in params/; README says what each is about
#     ARCHITECTURES="cnn vgg16"       only these
#     DATA=path/to/folder             your own pictures, <class>/... or {train,test}/<class>/...
#     SET="epochs=3"                  parameters of a trial, into reports/<study>-trial/

report: $(STAMP)  ## run the study and write reports/<study>/index.html
	@$(CBIR) report $(ARGUMENTS)

plan: $(STAMP)  ## say what `make report` would do, without doing it
	@$(CBIR) plan $(ARGUMENTS)

lab: $(STAMP)  ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

test: $(STAMP)  ## run the quick tests
	@$(PYTEST) -m "not browser and not slow"

test-slow: $(STAMP)  ## run whole studies of networks and further architectures through their tests
	@$(PYTEST) -m "slow and not browser"

test-browser: $(BROWSER)  ## check the report's pages in Debian's Chromium, as all readers see them
	@$(BIN)/python -m pytest tests/browser

lint: $(STAMP)  ## check style, and that notebooks are committed without outputs
	@$(BIN)/ruff check src tests notebooks
	@$(BIN)/ruff format --check src tests notebooks
	@$(BIN)/nbstripout --verify notebooks/*.ipynb

bench: $(BENCH)  ## time rankings and networks beside other libraries (installs PyTorch for it)
	@$(BIN)/python tests/benchmarks/retrieval.py
	@$(BIN)/python tests/benchmarks/networks.py

publish: $(STAMP)  ## copy the results of STUDY into reports/published/, which is committed
	@$(CBIR) publish --study "$(STUDY)"

results: $(STAMP)  ## write docs/results.md from reports/published/
	@$(CBIR) results

docs: $(STAMP)  ## write docs/parameters.md from the list of parameters
	@$(CBIR) docs

lock:  ## write requirements.lock anew from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --extra test --universal --python-version 3.11 \
		--generate-hashes --no-annotate --no-header --no-emit-index-url --upgrade \
		--quiet --output-file requirements.lock

clean:  ## delete reports and executed notebooks, but what is published
	@mkdir -p reports
	find reports -mindepth 1 -maxdepth 1 -type d ! -name published -exec rm -rf {} +

distclean: clean  ## delete caches and the environment too
	rm -rf artifacts .venv .pytest_cache .ruff_cache .hypothesis src/*.egg-info

# uv where it is installed, else venv and pip: the same locked versions either way.
.venv/.cbir-installed: requirements.lock pyproject.toml
	@echo "setting up .venv (some minutes, once)"
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else \
	"error: TensorFlow has no release for Python %d.%d here: install 3.11, 3.12 or 3.13 and say which, as in make PYTHON=python3.12" % v)'
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

# What only these need, beside the locked versions, which stay as they are: an extra of its name.
$(BENCH) $(BROWSER): EXTRA = $(subst .cbir-,,$(notdir $@))
$(BENCH) $(BROWSER): $(STAMP)
	@echo "installing what only the $(EXTRA) needs (once)"
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

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PIP := $(BIN)/pip --disable-pip-version-check
EXTRAS := datasets,demo,dev,loadtest,sweep
DOWNLOAD := 380 MB
CHECKED := setup.py nash model_store server loadtest deploy docs tests benchmarks examples

.PHONY: demo test test-all check bench audit

# Where torch comes from is said before anything is fetched: on Linux the default index has the build with CUDA, which is
# gigabytes. What pip finds without an index is on this machine, or installed already. pip's own warnings, a line for
# every package where it is set up with several sources, would bury that; its errors come through.
define INSTALL
@set -e; if $(PIP) install --dry-run --no-index --no-deps -qq -c constraints.txt torch 2>/dev/null; then \
    echo "installing into .venv: about $(DOWNLOAD) to download without torch, which pip finds on this machine"; \
elif [ -n "$$TORCH_INDEX_URL" ]; then \
    echo "installing into .venv: about $(DOWNLOAD) to download, and torch from TORCH_INDEX_URL"; \
    $(PIP) install -qq --index-url "$$TORCH_INDEX_URL" --no-deps -c constraints.txt torch; \
elif [ "$$(uname -s)" = Linux ]; then \
    echo "installing into .venv: about $(DOWNLOAD) to download, and torch with CUDA: several gigabytes more"; \
    echo "without a GPU, stop this (Ctrl-C), set TORCH_INDEX_URL to the index of PyTorch's CPU builds (see pytorch.org)"; \
    echo "and call make again"; \
else \
    echo "installing into .venv: about $(DOWNLOAD) to download, and torch"; \
fi
@$(PIP) install -qq -c constraints.txt -e ".[$(EXTRAS)]"
@ls server/engine/native/operator/stack_*.so >/dev/null 2>&1 || \
    echo "without the native operator, which needs Linux and a C++ compiler: PyTorch does its work, more slowly"
endef

# Nothing but Python is required: the virtual environment is made and filled on first use.
$(INSTALLED): pyproject.toml setup.py constraints.txt $(wildcard server/engine/native/operator/*.h server/engine/native/operator/*.cpp) server/engine/native/operator/sets.py
	$(PYTHON) -m venv .venv
	$(INSTALL)
	@touch $@

demo: $(INSTALLED)
	$(BIN)/nash demo $(ARGS)

# Two at a time, each file in one process: most of it waits for one core. ARGS="-n 8" is for a larger machine, and
# ARGS="-n 0" for a debugger.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile

# The house's rules are among `make check`.
test: $(INSTALLED)
	$(PYTEST) -m "not slow and not gpu" --ignore tests/test_house_rules.py $(ARGS)

test-all: $(INSTALLED)
	$(PYTEST) -m "not gpu" $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/mypy
	$(BIN)/python -m benchmarks.readme_table --check
	$(BIN)/python -m benchmarks.peers table --check
	$(BIN)/python -m benchmarks.experiments --check
	$(BIN)/python -m deploy.grafana.dashboard --check
	$(BIN)/python -m docs.drawings --check
	$(BIN)/python -m docs.reference --check
	$(BIN)/pytest -q tests/test_house_rules.py

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.engine_cpu $(ARGS)

audit: $(INSTALLED)
	$(BIN)/pip-audit --strict --disable-pip --no-deps -r constraints.txt $(ARGS)

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
CHECKED := setup.py nash model_store server loadtest deploy tests benchmarks examples

.PHONY: demo test test-all check bench audit

# Nothing but Python is required: the virtual environment is made and filled on first use.
$(INSTALLED): pyproject.toml setup.py constraints.txt $(wildcard server/engine/native/*.h server/engine/native/*.cpp) server/engine/native/sets.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[datasets,demo,dev,loadtest,sweep]"
	@touch $@

demo: $(INSTALLED)
	$(BIN)/nash demo $(ARGS)

test: $(INSTALLED)
	$(BIN)/pytest -m "not slow and not gpu" $(ARGS)

test-all: $(INSTALLED)
	$(BIN)/pytest -m "not gpu" $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/mypy
	$(BIN)/python -m benchmarks.readme_table --check
	$(BIN)/python -m benchmarks.experiments --check
	$(BIN)/python -m deploy.grafana.dashboard --check
	$(BIN)/pytest -q tests/test_house_rules.py

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.engine_cpu $(ARGS)

audit: $(INSTALLED)
	$(BIN)/pip-audit --strict --disable-pip --no-deps -r constraints.txt $(ARGS)

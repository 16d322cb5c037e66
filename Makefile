# What the README calls. Everything is set up in .venv; PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
QUIET := --quiet --disable-pip-version-check

.PHONY: demo test test-gpu bench lint clean
.PRECIOUS: $(VENV)/.ready-%

# One stamp for each extra of pyproject.toml: the demo need not wait for the tools of the tests. A torch that is already
# in the environment stays.
$(VENV)/.ready-%: pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install $(QUIET) -r constraints.txt
	$(BIN)/python -m pip install $(QUIET) -e ".[$*]"
	touch $@

demo: $(VENV)/.ready-plot
	$(BIN)/sinmdm demo

test: $(VENV)/.ready-test
	$(BIN)/python -m pytest

test-gpu: $(VENV)/.ready-test
	$(BIN)/python -m pytest -m gpu

bench: $(VENV)/.ready-bench
	$(BIN)/python -m bench

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*')

clean:
	rm -rf $(VENV) build *.egg-info

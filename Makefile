# What the README calls. Everything is set up in .venv; PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
QUIET := --quiet --disable-pip-version-check
# For what needs an NVIDIA GPU: .venv where it is there, otherwise $(PYTHON), with torch, triton, numpy and pytest. Nothing
# is installed for it; nvcc (on PATH, or NVCC=...) builds the CUDA half in place.
GPU_PYTHON = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
CUDA_IS_BUILT = from sinmdm.kernels import _native as n; raise SystemExit(not (n._load_prebuilt() and n.has_cuda()))

.PHONY: demo test has-gpu native-cuda test-gpu gpu-sanitize bench bench-gpu lint clean
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

has-gpu:
	@$(GPU_PYTHON) -c "import torch; torch.cuda.is_available() or exit('torch sees no NVIDIA GPU here')"

native-cuda:
	@$(GPU_PYTHON) -c "$(CUDA_IS_BUILT)" || \
		SINMDM_NATIVE=1 SINMDM_FORCE_CUDA=1 $(GPU_PYTHON) setup.py -q build_ext --inplace --force

test-gpu: has-gpu native-cuda
	SINMDM_NATIVE=1 $(GPU_PYTHON) -m pytest -m gpu tests/kernels tests/diffusion

gpu-sanitize: has-gpu native-cuda
	SINMDM_NATIVE=1 $(GPU_PYTHON) tests/gpu_sanitize.py

bench: $(VENV)/.ready-bench
	$(BIN)/python -m bench

bench-gpu: has-gpu native-cuda
	SINMDM_NATIVE=1 $(GPU_PYTHON) -m bench --device cuda

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*')

clean:
	rm -rf $(VENV) build *.egg-info

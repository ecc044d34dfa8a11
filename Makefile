# A fresh machine needs Python >= 3.11 and make; everything else goes into .venv.
# PY=python3 uses an environment of your own as it is, and installs nothing.

PYTHON ?= python3
VENV ?= .venv
PY ?= $(VENV)/bin/python

# The extra whose CUDA packages run under this machine's driver: gpu, gpu12, or nothing.
EXTRA = $(shell $(PYTHON) trtcli/host.py)
comma := ,

# $(call install,extras): with uv where it can be had, else with pip.
define install
	@echo "Installing trtcli$(if $(1), with the extras $(1))"
	@$(VENV)/bin/python -m uv pip install -q --python $(VENV)/bin/python -e ".[$(1)]" 2>/dev/null \
		|| $(VENV)/bin/python -m pip install -q --disable-pip-version-check -e ".[$(1)]"
	@touch $@
endef

ifeq ($(PY),$(VENV)/bin/python)
RUN := $(VENV)/.ready-run
TEST := $(VENV)/.ready-test
GPU := $(VENV)/.ready-gpu
endif

.PHONY: help demo test lint unit bench gpu-test clean

help:
	@echo "make demo      build and benchmark ResNet-50 on this machine's GPU, or on its CPU"
	@echo "make test      lint, types and all tests that need no GPU"
	@echo "make gpu-test  the tests that need a GPU"
	@echo "make bench     time light networks beside ONNX Runtime and record the results"
	@echo "make lint      only lint and types"

demo: $(RUN)
	$(PY) -m examples.light_model resnet50 build/resnet50.onnx
	$(PY) -m trtcli --onnx=build/resnet50.onnx --saveEngine=build/resnet50.engine \
		--dumpLayerInfo --dumpProfile --warmUp=100 --duration=2

test: lint unit

lint: $(TEST)
	$(PY) -m ruff check .
	$(PY) -m mypy

unit: $(TEST)
	$(PY) -m pytest -q -n auto --maxprocesses 16 -m "not gpu" tests

gpu-test: $(GPU)
	$(PY) -m pytest -q -m gpu tests

bench: $(GPU)
	$(PY) -m benchmarks.light

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "trtcli needs Python 3.11 or newer, $(PYTHON) is older: try make PYTHON=python3.12"; exit 1; }
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@$(VENV)/bin/python -m pip install -q --disable-pip-version-check uv 2>/dev/null || true

$(VENV)/.ready-run: pyproject.toml | $(VENV)/bin/python
	$(call install,$(EXTRA))

$(VENV)/.ready-test: pyproject.toml | $(VENV)/bin/python
	$(call install,test)

$(VENV)/.ready-gpu: pyproject.toml | $(VENV)/bin/python
	$(call install,test$(addprefix $(comma),$(EXTRA)))

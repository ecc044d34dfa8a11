# A fresh machine needs Python >= 3.11 and make; everything else goes into .venv.
# PY=python3 uses an environment of your own as it is, and installs nothing.

PYTHON ?= python3
VENV ?= .venv
PY ?= $(VENV)/bin/python
INSTALL = @$(VENV)/bin/python -m uv pip install -q --python $(VENV)/bin/python -e "$(1)" 2>/dev/null \
	|| $(VENV)/bin/python -m pip install -q --disable-pip-version-check -e "$(1)"

ifeq ($(PY),$(VENV)/bin/python)
RUN_READY = $(VENV)/.ready-run
TEST_READY = $(VENV)/.ready-test
GPU_READY = $(VENV)/.ready-gpu
endif

.PHONY: demo test lint types unit bench gpu-test clean help

help:
	@echo "make demo      build and benchmark ResNet-50 on this machine's GPU, or on its CPU"
	@echo "make test      lint, types and all tests that need no GPU"
	@echo "make gpu-test  the tests that need a GPU"
	@echo "make bench     time the example networks against ONNX Runtime and record the results"
	@echo "make lint      only lint and types"

demo: $(RUN_READY)
	@$(PY) examples/light_model.py resnet50 build/resnet50.onnx
	$(PY) -m trtcli --onnx=build/resnet50.onnx --saveEngine=build/resnet50.engine \
		--dumpLayerInfo --dumpProfile --warmUp=100 --duration=2

test: lint unit

lint: $(TEST_READY)
	$(PY) -m ruff check .
	$(PY) -m mypy

unit: $(TEST_READY)
	$(PY) -m pytest -q -n auto -m "not gpu" tests

gpu-test: $(GPU_READY)
	$(PY) -m pytest -q -m gpu tests

bench: $(TEST_READY) $(if $(PY),$(GPU_READY))
	$(PY) -m benchmarks.light

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "trtcli needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try make PYTHON=python3.12"; exit 1; }
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install -q --disable-pip-version-check uv 2>/dev/null || true

$(VENV)/.ready-run: pyproject.toml | $(VENV)/bin/python
	@extra=$$($(PYTHON) trtcli/host.py); echo "Installing trtcli$${extra:+ with the $$extra extra}"; \
	$(VENV)/bin/python -m uv pip install -q --python $(VENV)/bin/python -e ".$${extra:+[$$extra]}" 2>/dev/null \
		|| $(VENV)/bin/python -m pip install -q --disable-pip-version-check -e ".$${extra:+[$$extra]}"
	@touch $@

$(VENV)/.ready-test: pyproject.toml | $(VENV)/bin/python
	@echo "Installing trtcli with the test extra"
	$(call INSTALL,.[test])
	@touch $@

$(VENV)/.ready-gpu: pyproject.toml | $(VENV)/bin/python
	@extra=$$($(PYTHON) trtcli/host.py); echo "Installing trtcli with the extras test$${extra:+ and $$extra}"; \
	$(VENV)/bin/python -m uv pip install -q --python $(VENV)/bin/python -e ".[test$${extra:+,$$extra}]" 2>/dev/null \
		|| $(VENV)/bin/python -m pip install -q --disable-pip-version-check -e ".[test$${extra:+,$$extra}]"
	@touch $@

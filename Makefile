# make demo    install what is needed to run, then route lab problems and write out/demo/report.html
# make demo-loop   install what training needs too, then two rounds of learning live; writes out/demo-loop/report.html
# make test    install everything, then run the fast tests
# make test-latest   the tests of LiteLLM, DSPy, transformers and PEFT with their newest versions
# Each is complete on a fresh machine with Python 3.11 or later, a C++ compiler and make. A second call installs nothing,
# unless pyproject.toml or constraints.txt have changed.
#
# Another Python:      make demo PYTHON=python3.12
# PyTorch (make test) comes with CUDA on Linux, several GB; set PIP_EXTRA_INDEX_URL to PyTorch's CPU index for the small one.
# llama.cpp is built for the CPU of this machine. For others too:   make demo PORTABLE=1
# A build with CUDA:   make demo CMAKE_ARGS="-DGGML_CUDA=ON"
# A build with Metal:  make demo CMAKE_ARGS="-DGGML_METAL=ON"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The demo's llama.cpp is built for this CPU, the tests' is portable (no instruction that a CPU of the last ten years may
# lack), since they hold floats within 1e-5 that were recorded so: with AVX-512 the lab's scores differ by up to 2e-4.
PORTABLE ?= $(if $(filter test% lint lab,$(MAKECMDGOALS)),1)
# Only what the Python package uses of llama.cpp.
CMAKE_ARGS ?= -DGGML_NATIVE=$(if $(PORTABLE),OFF,ON) -DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF \
	-DCMAKE_PROJECT_llama.cpp_INCLUDE=$(CURDIR)/tools/llama-core-only.cmake
# pip keeps the wheel that it builds, and would take it for a build with other options or on another CPU as well: each
# has a cache of its own.
BUILD := $(shell { echo '$(subst $(CURDIR),,$(CMAKE_ARGS))'; cat tools/llama-core-only.cmake; uname -m; \
	grep -m1 -i -E '^(flags|features)' /proc/cpuinfo || sysctl -n machdep.cpu.brand_string; } 2>/dev/null | cksum | cut -d' ' -f1)
BUILD_CACHE := PIP_CACHE_DIR="$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/stepwise/llama-cpp-$(BUILD)"
PIP := CMAKE_ARGS="$(CMAKE_ARGS)" $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

# Beside a checkout that is called stepwise, Python would take the folder for an empty package; a path entry comes first.
CHECKOUT_FIRST := $(BIN)/python -c "import pathlib, site; \
	pathlib.Path(site.getsitepackages()[0], 'stepwise-checkout.pth').write_text('$(CURDIR)\n')"

# Waiting threads that spin stop a machine whose cores are busy.
export OMP_WAIT_POLICY ?= passive

# What users get who install without our constraints: the newest of everything, in an environment of its own.
LATEST := .venv-latest
LATEST_TESTS := tests/models/test_provider.py tests/models/test_provider_dspy.py tests/models/test_native.py \
	tests/models/test_litellm.py tests/critics tests/scorers/test_classifier.py tests/training/test_lora.py \
	tests/training/test_logprobs.py tests/training/test_merge.py tests/training/test_export_lora.py

.PHONY: demo demo-loop test test-slow test-latest lint lab clean

demo: $(VENV)/.core
	@$(BIN)/python -m programs.demo --overwrite

demo-loop: $(VENV)/.train
	@$(BIN)/python -m programs.loop --lab 50 --n 40 --rounds 2 --samples 1 --refit probe --rollouts 2 --guided 8 \
		--set sft.learning_rate=1e-3 --set rl.learning_rate=1e-3 --set rl.steps=6 --out out/demo-loop

test: $(VENV)/.dev
	@$(BIN)/python -m pytest -m "not slow" -n logical --maxprocesses 8 --dist worksteal

test-slow: $(VENV)/.dev
	@$(BIN)/python -m pytest -m slow
	@$(BIN)/python -m pytest -m "hypothesis and not slow" --hypothesis-profile=thorough

test-latest: $(LATEST)/.dev
	@$(LATEST)/bin/python -m pytest -m "not slow" $(LATEST_TESTS)

lint: $(VENV)/.dev
	@failed=0; \
	$(BIN)/ruff check || failed=1; \
	$(BIN)/ruff format --check || failed=1; \
	$(BIN)/mypy || failed=1; \
	$(BIN)/lint-imports --no-cache --no-logo || failed=1; \
	exit $$failed

lab: $(VENV)/.dev
	@$(BIN)/python -m evals.pretrain_lab

clean:
	rm -rf $(VENV) $(LATEST) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.python:
	@$(PYTHON) tools/check_machine.py
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# One build is in the environment at a time; another takes its place.
$(VENV)/.llama-$(BUILD): $(VENV)/.python constraints.txt
	@echo "Installing llama.cpp. The first time it is compiled: about 5 minutes on two cores, silent while it lasts."
	@$(BUILD_CACHE) $(PIP) --force-reinstall --no-deps llama-cpp-python
	@rm -f $(VENV)/.llama-*
	@touch $@

$(VENV)/.core: $(VENV)/.llama-$(BUILD) pyproject.toml constraints.txt
	@echo "Installing stepwise."
	@$(PIP) -e .
	@$(CHECKOUT_FIRST)
	@touch $@

$(VENV)/.train: $(VENV)/.core
	@echo "Installing what training needs (PyTorch is the largest part)."
	@$(PIP) -e ".[train]"
	@$(CHECKOUT_FIRST)
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "Installing what training and the tests need (PyTorch is the largest part)."
	@$(PIP) -e ".[train,serve,dev]"
	@$(CHECKOUT_FIRST)
	@touch $@

# PyTorch alone is pinned: its newest wheel for Linux brings CUDA.
$(LATEST)/.dev: pyproject.toml
	@$(PYTHON) tools/check_machine.py
	@rm -rf $(LATEST)
	@echo "Making $(LATEST) with the newest versions (llama.cpp is compiled where pip has no wheel of it: 5 minutes)."
	@$(PYTHON) -m venv $(LATEST)
	@$(LATEST)/bin/python -m pip --disable-pip-version-check install --quiet torch==2.13.0
	@$(BUILD_CACHE) CMAKE_ARGS="$(CMAKE_ARGS)" $(LATEST)/bin/python -m pip --disable-pip-version-check install --quiet \
		llama-cpp-python
	@CMAKE_ARGS="$(CMAKE_ARGS)" $(LATEST)/bin/python -m pip --disable-pip-version-check install --quiet -e ".[train,serve,dev]"
	@$(LATEST)/bin/python -c "import pathlib, site; \
		pathlib.Path(site.getsitepackages()[0], 'stepwise-checkout.pth').write_text('$(CURDIR)\n')"
	@touch $@

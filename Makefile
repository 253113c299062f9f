# make demo    freeze and thaw a real Jupyter kernel, and check every object in it
# make test    run the tests
# make bench   run the benchmarks: a table and a plot in benchmarks/results/
# make lint    check style, types and formatting
# make soak    take two processes through hundreds of generations, and print what they hold
# make faults  fail, and be killed, at every step and at random instants, of kernels as well
# make fuzz    feed wrong bytes to every reader, for longer than the tests do
# make conformance   make docs/conformance.md anew
# make clean   remove everything that these targets made
#
# Everything happens in a virtual environment, .venv, which the targets make. PYTHON chooses the
# interpreter, PYTEST_ARGUMENTS is added to the command line of pytest.

PYTHON ?= python3
VENV := .venv

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

sources := pyproject.toml CMakeLists.txt README.md LICENSE \
           $(shell find snapkernel native arch -type f ! -name '*.pyc')
c_files := $(shell find native arch -name '*.[ch]')

# What the tests need beside the package: extras of pyproject.toml.
test_extras := test,torch,kernels

.PHONY: demo test bench lint soak faults fuzz conformance clean

demo: $(VENV)/installed-benchmark
	$(VENV)/bin/python notebooks/demo.py

# The tests run the installed package. The sources here have no native part, so Python must not
# find them because it happens to be started in this folder.
test: $(VENV)/installed-$(test_extras) $(VENV)/other-kernels
	PYTHONSAFEPATH=1 $(VENV)/bin/pytest $(PYTEST_ARGUMENTS)

bench: $(VENV)/installed-benchmark
	$(VENV)/bin/python benchmarks/freeze_thaw.py
	$(VENV)/bin/python benchmarks/process_tree.py

lint: $(VENV)/installed-lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	cd $(VENV) && bin/mypy --config-file ../pyproject.toml -p snapkernel
	$(VENV)/bin/clang-format --dry-run -Werror $(c_files)

soak: $(VENV)/installed-$(test_extras)
	SNAPKERNEL_SOAK=500 PYTHONSAFEPATH=1 $(VENV)/bin/pytest -s tests/soak

faults: $(VENV)/installed-$(test_extras)
	SNAPKERNEL_FAULTS=200 PYTHONSAFEPATH=1 $(VENV)/bin/pytest tests/faults/test_fault_steps.py

fuzz: $(VENV)/installed-$(test_extras)
	SNAPKERNEL_FUZZ=20 PYTHONSAFEPATH=1 $(VENV)/bin/pytest --timeout=3000 tests/fuzz

conformance: $(VENV)/installed-$(test_extras)
	PYTHONSAFEPATH=1 $(VENV)/bin/python tests/support/conformance_table.py

clean:
	rm -rf $(VENV) build dist benchmarks/results .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The package with the extras named after "installed-". Any changed source installs it again.
$(VENV)/installed-%: $(VENV)/created $(sources)
	$(VENV)/bin/pip install --quiet '.[$*]'
	@touch $@

$(VENV)/other-kernels: .ci/other-kernels $(VENV)/installed-$(test_extras)
	.ci/other-kernels $(VENV)
	@touch $@

$(VENV)/created:
	PYTHON='$(PYTHON)' .ci/system-packages
	$(PYTHON) -m venv $(VENV)
	@touch $@

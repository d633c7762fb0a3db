# Everything runs in .venv, which the first target that needs it makes from requirements.txt.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DEMO := runs/demo
# Two processes: most of the time goes into compiling, which uses one core. A file's fixtures stay in one process.
PYTEST := $(RUN) -m pytest --numprocesses=2 --dist=loadfile

# Large buffers in huge pages: on virtual machines, page faults can cost as much time as the training itself.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo test test-slow parity lint format clean

demo: $(VENV)/.installed
	$(RUN) train.py --config=configs/digits.py --workdir=$(DEMO)
	$(RUN) eval.py --workdir=$(DEMO)
	$(RUN) -m rml_jax report --workdir=$(DEMO)

# With the compilers of `.[compilers]`, JAX would look for a TPU and a GPU.
test test-slow: export JAX_PLATFORMS = cpu

test: lint
	$(PYTEST)

test-slow: $(VENV)/.installed-interop
	$(PYTEST) -m slow

parity: $(VENV)/.installed-dev
	$(RUN) -m tests.references --out docs/parity.md

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(VENV)/.installed-dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) runs

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable .[dev]
	touch $@

$(VENV)/.installed-interop: $(VENV)/.installed-dev
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable .[interop,compilers]
	touch $@

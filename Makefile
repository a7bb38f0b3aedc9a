# make demo: set-up, then the offline first run.    make test: set-up, then every test.
# make oldest, make newest: every test with the oldest, or newest, dependencies that pyproject.toml allows.
# make fuzz EXAMPLES=2000: damaged and made-up inputs, so many of each kind; the suite tries fewer.
PYTHON ?= python3
VENV := .venv
BIN = $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
STAMP := $(VENV)/.installed

.PHONY: setup demo test oldest newest faults fuzz check package docs site clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/labelwright demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile

oldest newest: VENV = .venv-$@
oldest newest:
	$(PYTHON) -m venv $(VENV)
	$(PYTHON) scripts/dependencies.py $@ > $(VENV)/wanted.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint $(VENV)/wanted.txt --editable '.[dev]'
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile $(if $(filter oldest,$@),-W default) # old releases warn about one another

faults: setup
	$(BIN)/python benchmarks/faults.py --out faults-work

fuzz: setup
	OMP_NUM_THREADS=1 LABELWRIGHT_FUZZ=$(or $(EXAMPLES),2000) $(BIN)/pytest tests/fuzz --numprocesses 2

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

package: setup
	$(BIN)/python scripts/try_package.py

docs: setup
	$(BIN)/python scripts/generate_docs.py

site: setup
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python scripts/build_site.py

clean:
	rm -rf .venv* demo-run faults-work build dist site src/*.egg-info

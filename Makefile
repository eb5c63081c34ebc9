# Each target works from a fresh clone that has Python (3.11 to 3.13), pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
KILLS ?= 100
JOBS ?= 2

.PHONY: demo test test-fast test-slow test-lowest test-examples torture fuzz fuzz-guided check docs clean chromium

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

demo: $(VENV)/.installed  ## train and compare on the bundled icons, with pictures in divcon-demo/
	$(BIN)/divcon demo --out divcon-demo

# The tests of pages drive a real browser; where it cannot be installed, they fail and say so.
chromium:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } \
		|| echo "no Chromium: the tests of pages will fail (apt-get install chromium)"

test: $(VENV)/.installed chromium  ## the default suite, in JOBS processes
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-fast: $(VENV)/.installed  ## for every edit: without what is marked heavy, under 90 seconds on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m 'not slow and not heavy'

test-slow: $(VENV)/.installed chromium  ## all tests, the long ones too
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m 'slow or not slow'

ROUNDS ?= 5
test-examples: $(VENV)/.installed  ## the property tests on examples that no run has tried yet, ROUNDS times
	for round in $$(seq $(ROUNDS)); do \
		HYPOTHESIS_PROFILE=new $(BIN)/python -m pytest -n $(JOBS) -m 'hypothesis and not slow' || exit 1; done

# With the lower bounds of pyproject.toml, in an environment of its own; uv chooses them.
test-lowest: chromium  ## the default suite with the oldest dependencies that are allowed
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/pip install --quiet uv
	$(VENV)-lowest/bin/uv pip install --quiet --python $(VENV)-lowest/bin/python --resolution lowest-direct -e '.[dev]'
	$(VENV)-lowest/bin/python -m pytest -n $(JOBS) --dist loadfile

# Some hundred runs are killed and resumed; where the file systems that it fills up cannot be mounted, that part is skipped.
torture: $(VENV)/.installed  ## kills and faults over and over: docs/survives.md
	DIVCON_KILLS=$(KILLS) $(BIN)/python -m pytest tests/torture -m 'slow or not slow' -s -v

EXAMPLES ?= 400
fuzz: $(VENV)/.installed  ## broken files of every kind that is read, EXAMPLES of each
	DIVCON_FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/fuzz tests/serve/test_fuzz.py -k 'broken or serve'

SECONDS ?= 60
fuzz-guided: $(VENV)/.installed  ## the same, guided by the code that is reached, SECONDS for each kind
	$(BIN)/pip install --quiet -e '.[fuzz]'
	$(BIN)/python tests/fuzz/guided.py --seconds $(SECONDS)

check: $(VENV)/.installed  ## style, types, import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(VENV)/.installed  ## the documentation, in build/docs/index.html
	$(BIN)/python -m sphinx -W --keep-going -q docs build/docs
	@echo build/docs/index.html

clean:
	rm -rf $(VENV) $(VENV)-lowest build dist divcon-demo

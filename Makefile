# Everything sets itself up: `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3.11
VENV := .venv
READY := $(VENV)/ready

.PHONY: demo test check clean

NATIVE := setup.py $(wildcard src/penstock/kernels/native/*)

$(READY): pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: $(READY)
	mkdir -p demo-out
	$(VENV)/bin/penstock run demo/requests.jsonl -o demo-out/answers.jsonl --model demo
	$(VENV)/bin/python demo/score.py demo-out/answers.jsonl

test: $(READY)
	$(VENV)/bin/python -m pytest

check: $(READY)
	./check

clean:
	rm -rf $(VENV) demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis

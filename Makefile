# Each target builds what it needs; `make setup` costs nothing when .venv is up to date.
PYTHON_IN_VENV := .venv/bin/python
BENCHMARKS = $(sort $(wildcard benchmarks/*.py) $(filter-out %/added.py,$(wildcard benchmarks/runtime/*.py))) \
	benchmarks/arrcoc/allocation.py benchmarks/arrcoc/texture.py

.DEFAULT_GOAL := help
.PHONY: help setup demo everywhere emulator test check bench bench-quantisation docs constraints clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## make .venv with everything that the targets below need
	@scripts/setup.sh

demo: setup ## build EfficientNet-Lite0 for three devices and print the table
	$(PYTHON_IN_VENV) examples/efficientnet_lite0/data.py
	.venv/bin/edgekiln build examples/efficientnet_lite0/job.toml

everywhere: setup ## build EfficientNet-Lite0 for nine devices, every target among them
	$(PYTHON_IN_VENV) examples/efficientnet_lite0/data.py
	.venv/bin/edgekiln build examples/efficientnet_lite0/every_device.toml

emulator: setup ## prepare an emulated arm64 machine, for the tests that run a board's bundle there
	scripts/arm64.sh

test: setup ## run all tests, two parts at a time; their output comes when each ends
	$(PYTHON_IN_VENV) scripts/run_tests.py

check: setup ## lint, formatting, types, import rules
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	$(PYTHON_IN_VENV) -m pytest -q tests/test_architecture.py

bench: setup ## run every benchmark, one after the other
	$(if $(BENCHMARKS),,$(error benchmarks/ holds no .py file))
	@set -e; for file in $(BENCHMARKS); do echo "== $$file"; $(PYTHON_IN_VENV) $$file; done

bench-quantisation: setup ## compare quantisers on eight models: an hour, and it installs Debian's photographs
	@scripts/bench_quantisation.sh

docs: setup ## build the documentation into site/
	.venv/bin/mkdocs build --strict

constraints: ## resolve the newest versions in a fresh environment and write constraints.txt
	scripts/constraints.sh

clean: ## remove what was built, but not .venv
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis

# make book   build the book, strictly           make lab       open the chapters in JupyterLab
# make test   lint, types, tests, notebooks      make execute   re-run the chapters that changed
# Another interpreter: make PYTHON=python3.12 book. Another browser for the page tests: make CHROMIUM=/path test.

PYTHON ?= python3
CHROMIUM ?= $(firstword $(foreach name,chromium chromium-browser google-chrome,$(shell command -v $(name))))
BIN := .venv/bin
PARALLEL := -n 2 --dist loadscope --no-loadscope-reorder
export CHROMIUM
export OMP_NUM_THREADS = 1

.PHONY: book test lab execute

book: .venv/.installed
	$(BIN)/jupyter-book build . -W -n --keep-going --all
	@echo "Open $(CURDIR)/_build/html/index.html"

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(if $(CHROMIUM),true,echo "Chromium not found: the pages are not tested in a browser (install the package chromium).")
	$(BIN)/pytest $(PARALLEL) --cov $(if $(CHROMIUM),,-m "not browser")
	$(BIN)/pytest $(PARALLEL) book

lab: .venv/.installed
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/book

execute: .venv/.installed
	$(BIN)/python tools/notebooks.py execute

.venv/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv (1.6 GB or more): some minutes."
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	touch $@

# make book   build the book, strictly           make lab       open the chapters in JupyterLab
# make test   lint, types, tests, notebooks      make execute   re-run the chapters that changed
# make fuzz   every property on 2,000 random examples, at most LIMIT=60 seconds each; SEED=... repeats a run
# make mutation  every mutant of the formulas is tested (under 45 minutes)     make mutation-sample  a fixed sample of them
# make diff   what changed, notebooks as texts and numbers; SINCE=main against another state
# make pdf    the book as one PDF, by XeLaTeX; a later make book offers it on its pages
# Another interpreter: make PYTHON=python3.12 book; it stays the one of .venv. Another browser: make CHROMIUM=/path test.

PYTHON ?= python3
CHROMIUM ?= $(firstword $(foreach name,chromium chromium-browser google-chrome,$(shell command -v $(name))))
LATEX ?= $(shell command -v latexmk)
BIN := .venv/bin
PARALLEL := -n auto --maxprocesses 8 --dist loadscope --no-loadscope-reorder
SEED ?= $(shell date +%s)
LIMIT ?= 60
# Why .venv has to be made anew (tools/environment.py); empty if it can stay. A PYTHON that is not named need not be that of .venv.
ASK := $(if $(filter file,$(origin PYTHON)),$(or $(wildcard $(BIN)/python),$(PYTHON)),$(PYTHON))
ANEW := $(shell $(ASK) tools/environment.py stale $(if $(filter file,$(origin PYTHON)),,given) || echo "$(ASK) does not run")
export CHROMIUM
export OMP_NUM_THREADS = 1

.PHONY: anew book pdf test lab execute diff fuzz mutation mutation-sample

book: .venv/.installed
	$(BIN)/python tools/warm.py
	$(BIN)/jupyter-book build . -W -n --keep-going --all
	@echo "Open $(CURDIR)/_build/html/index.html"

pdf: .venv/.installed
	@$(if $(LATEX),true,echo "latexmk not found: README names the packages for the PDF." && false)
	$(BIN)/jupyter-book build . -W -n --keep-going --all --builder latex
	cd _build/latex && latexmk -pdfxe -silent -interaction=nonstopmode -halt-on-error book.tex

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(if $(CHROMIUM),true,echo "Chromium not found: the pages are not tested in a browser (install the package chromium).")
	@$(if $(LATEX),true,echo "latexmk not found: the PDF is not tested (README names the packages).")
	$(BIN)/pytest $(PARALLEL) --cov $(if $(CHROMIUM),,-m "not browser") $(if $(LATEX),,--ignore tests/test_pdf.py)
	$(BIN)/pytest $(PARALLEL) book

lab: .venv/.installed
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/book

execute: .venv/.installed
	$(BIN)/python tools/notebooks.py execute

diff:
	@git -c diff.notebook.textconv="python3 tools/outputs.py" diff $(SINCE)

fuzz: .venv/.installed
	FUZZ_SECONDS=$(LIMIT) $(BIN)/pytest -n auto --maxprocesses 8 --dist worksteal -q --hypothesis-profile=fuzz --hypothesis-seed=$(SEED) \
	  -m "hypothesis or fuzz"

mutation: .venv/.installed
	$(BIN)/python tools/mutation.py all

mutation-sample: .venv/.installed
	$(BIN)/python tools/mutation.py sample

.venv/.installed: requirements.txt pyproject.toml $(if $(ANEW),anew)
	@$(if $(ANEW),$(PYTHON) tools/environment.py version,true)
	@$(if $(ANEW),echo "Making .venv: $(ANEW).",rm -f $@)
	$(if $(ANEW),$(PYTHON) -m venv --clear .venv)
	@echo "Installing into .venv (1.6 GB or more): some minutes."
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	touch $@

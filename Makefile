# On a machine with Python, make and git: `make demo` or `make test`, nothing before it.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test docs coverage install lint clean
.DEFAULT_GOAL := demo

demo: $(INSTALLED)  ## train on real images with SGD, finish with each late-phase strategy, draw the comparison
	$(BIN)/latephase demo

test: $(INSTALLED)  ## run all tests, as many at once as there are cores
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

docs: $(INSTALLED)  ## the documentation as a site, in site/; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

coverage: $(INSTALLED)  ## which lines of the optimizer its tests run; at least 95 % of them
	$(BIN)/python -m pytest tests src --cov --ignore=tests/study --ignore=src/latephase/study

install: $(INSTALLED)  ## create .venv with latephase and all its extras

lint: $(INSTALLED)  ## style, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ifneq ($(wildcard benchmarks/__main__.py),)
.PHONY: bench
bench: $(INSTALLED)  ## measure products and steps beside other libraries, renew docs/performance.md
	$(BIN)/python -m pip install --no-deps --requirement benchmarks/requirements.txt
	$(BIN)/python -m benchmarks
endif

clean:  ## remove the virtual environment and everything generated
	rm -rf .venv latephase-demo build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
	find src tests -depth -name __pycache__ -exec rm -rf {} +

# The stamp carries the time of the last installation: it runs again only when the requirements change.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable '.[study,ray,tensorboard,optimizers,frameworks,test,docs,lint]' --constraint constraints.txt
	touch $@

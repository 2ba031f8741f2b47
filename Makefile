# `make fashion-mnist` and `make test` do everything on a fresh Debian or Ubuntu machine: system
# packages (the one step that needs root), a virtual environment in .venv, the build, the work.
# The other targets are for people who work on asenpp.
PYTHON ?= python3
VENV ?= .venv
BUILD_PACKAGES = gcc libc6-dev python3-dev python3-venv libyaml-dev libjpeg-dev
PY = $(VENV)/bin/python

.PHONY: help system install fashion-mnist test dev sanitize wheel-check bench clean

help:           ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/:/'

fashion-mnist: EXTRA_PACKAGES = dataset-fashion-mnist
fashion-mnist: install  ## prepare FashionMNIST, train both stages, test, print the table (QUICK=1: reduced)
	sh scripts/fashion-mnist.sh $(PY)

test: install   ## run the tests
	$(PY) -m pip install -q "pytest>=7" "opencv-python-headless>=4.5" setuptools
	$(PY) -m pytest

system:
	sh scripts/system-packages.sh $(BUILD_PACKAGES) $(EXTRA_PACKAGES)

$(PY):
	$(PYTHON) -m venv $(VENV)

# Editable, so that main.py, the tests and the installed package are the same files.
install: system $(PY)
	$(PY) -m pip install -q -e .

dev:            ## build the module in place with the current interpreter
	$(PYTHON) setup.py -q build_ext --inplace

clean:          ## remove what was built
	rm -rf build asenpp/_asen*.so asenpp/_libs *.egg-info

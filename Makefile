# For people who work on asenpp. The README's commands are what users type.
PYTHON ?= python

.PHONY: dev test lint clean

dev:            ## build the module in place
	$(PYTHON) setup.py -q build_ext --inplace

test: dev
	$(PYTHON) -m pytest

clean:
	rm -rf build asenpp/_asen*.so asenpp/_libs

# `make fashion-mnist` and `make test` do everything on a fresh Debian or Ubuntu machine: system
# packages (the one step that needs root), a virtual environment in .venv, the build, the work.
# What was done already is not done again.
# The other targets are for people who work on asenpp.
PYTHON ?= python3
VENV ?= .venv
BUILD_PACKAGES = gcc libc6-dev python3-dev python3-venv libyaml-dev libjpeg-dev
PY = $(VENV)/bin/python
INSTALLED = $(VENV)/asenpp-installed
TEST_PACKAGES = $(VENV)/asenpp-test-packages
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DELETE_ON_ERROR:
.PHONY: help system venv install fashion-mnist ablation test-packages test lint sanitize tsan forks differential fuzz cuda test-gpu sanitize-gpu \
        cuda-packages test-sim mutants cudnn-plans interrupts inplace dev clean force

help:           ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/:/'

fashion-mnist: EXTRA_PACKAGES = dataset-fashion-mnist
fashion-mnist: install  ## prepare FashionMNIST, train, test, print the table (MODE=published: the published two stages; QUICK=1: reduced)
	sh scripts/fashion-mnist.sh $(PY)

# Studies that look at TEST wait until the choices made on VALID stand in benchmarks/learning/studies.py, committed.
ablation: EXTRA_PACKAGES = dataset-fashion-mnist
ablation: install       ## train each objective and aid, print tables and bars (hours; goes on after a stop; ONLY=REGEX)
	$(PY) -m asenpp.data fashion_mnist --out data/FashionMNIST
	$(PY) benchmarks/learning run $(if $(ONLY),--only '$(ONLY)')
	$(PY) benchmarks/learning summary
	$(PY) benchmarks/learning bars

test: test-packages     ## run the tests
	$(PY) -m pytest

lint: test-packages     ## compile the C core, warnings being errors (the plugin: ASENPP_CFLAGS=-Werror make cuda)
	ASENPP_CUDA=0 ASENPP_CFLAGS=-Werror $(PY) setup.py -q build_ext --build-temp build/lint/objects --build-lib build/lint/lib

sanitize: test-packages ## run op, tensor and image tests, and trainings, under AddressSanitizer and UBSan
	PYTHON=$(PY) sh tests/sanitize.sh
	ONEDNN=1 PYTHON=$(PY) sh tests/sanitize.sh

tsan: test-packages     ## run threads that train, infer, load, save and switch under ThreadSanitizer (SECONDS=15)
	PYTHON=$(PY) sh tests/tsan.sh $(or $(SECONDS),15)

forks: test-packages    ## fork while threads compute; every child computes the same (FORKS=1000)
	$(PY) tests/fork_kit.py --forks $(or $(FORKS),1000) --out build/forks.json

inplace: test-packages  ## random programs of views and writes in place beside PyTorch (PROGRAMS=50000, SEED=1)
	$(PY) tests/inplace_programs.py --programs $(or $(PROGRAMS),50000) --seed $(or $(SEED),1) --out build/inplace.json

differential: test-packages ## tensors beside NumPy: random views, dtypes, operations, writes (CHECKS=1000000, SEED=0)
	$(PY) tests/differential.py --checks $(or $(CHECKS),1000000) --seed $(or $(SEED),0) --out build/differential.json

fuzz: test-packages     ## mutate JPEG, YAML and checkpoint files (COUNT=20000 each, SEED=1)
	PYTHON=$(PY) sh tests/fuzz/run.sh $(or $(COUNT),20000) $(or $(SEED),1)

interrupts: test-packages ## interrupt the loader at each instruction, and COUNT=10000 times at random (build/interrupts*.json)
	$(PY) tests/interrupts.py --every all 2 --out build/interrupts-all-2.json
	$(PY) tests/interrupts.py --every all 0 --out build/interrupts-all-0.json
	$(PY) tests/interrupts.py --every fails 2 --out build/interrupts-fails-2.json
	$(PY) tests/interrupts.py --count $(or $(COUNT),10000) --seed $(or $(SEED),1) --out build/interrupts.json

cuda: install           ## install the CUDA toolkit from pip, and build the plugin for GPUs (ARCH=90: for those alone)
	$(PY) -m pip install -q -r kernels/requirements.txt
	ASENPP_CUDA=1 ASENPP_CUDA_ARCH="$(ARCH)" $(PY) -m pip install -q -e .

test-gpu: cuda test-packages ## run the device's tests on a GPU, and time training and kernels there
	$(PY) -c "from asenpp import cuda; import sys; sys.exit(cuda.why_not())"
	$(PY) -m pytest tests/cuda
	$(PY) benchmarks/kernels.py --device cuda
	$(PY) benchmarks/cuda_training.py

sanitize-gpu: cuda test-packages ## run the kernels' tests under compute-sanitizer, on a GPU
	ASENPP_NO_MEMORY_CACHE=1 compute-sanitizer --error-exitcode 1 $(PY) -m pytest -x tests/cuda/test_cuda_ops.py -k "equals_the_reference"

cuda-packages: test-packages # headers of CUDA, cuBLAS and cuDNN, and the real cuDNN
	$(PY) -m pip install -q -r kernels/requirements.txt

test-sim: cuda-packages ## run the device's tests on a simulated GPU, and the simulation's own
	$(PY) tests/cudasim/build.py build/cudasim/_asen_cuda_sim.so
	$(PY) tests/cudasim/build.py build/cudasim/_asen_cuda_check.so --check
	$(PY) -m pytest tests/test_cudasim.py
	ASENPP_CUDA_PLUGIN=build/cudasim/_asen_cuda_sim.so $(PY) -m pytest tests/cuda
	ASENPP_CUDA_PLUGIN=build/cudasim/_asen_cuda_check.so ASENPP_NO_MEMORY_CACHE=1 $(PY) -m pytest \
	    tests/cuda/test_cuda_ops.py tests/cuda/test_cuda_kernels.py tests/cuda/test_cuda_device.py
	ASENPP_CUDA_PLUGIN=build/cudasim/_asen_cuda_sim.so CUDASIM_DEVICE=tests/cudasim/devices/one_multiprocessor.json \
	    CUDASIM_QUEUE=drawn CUDASIM_SEED=$(or $(SEED),1) $(PY) -m pytest \
	    tests/cuda/test_cuda_ops.py tests/cuda/test_cuda_kernels.py tests/cuda/test_cuda_device.py

mutants: cuda-packages  ## take each barrier and alignment test out of the kernels: some test fails (build/mutants.json)
	$(PY) tests/cudasim/mutants.py --kinds barrier alignment --named --out build/mutants.json

cudnn-plans: cuda-packages ## plan all convolutions with the real cuDNN, without a GPU (DEVICES=folder of descriptions)
	$(PY) tests/cudnn_plans/plans.py --devices $(or $(DEVICES),../shared/cudnn-devices)
	$(PY) tests/cudnn_plans/plans.py --devices $(or $(DEVICES),../shared/cudnn-devices) --samples --dtype float64,float32,bfloat16,float16,tf32

system:
	@PYTHON=$(PYTHON) sh scripts/system-packages.sh $(BUILD_PACKAGES) $(EXTRA_PACKAGES)

venv: $(VENV)/pyvenv.cfg
$(VENV)/pyvenv.cfg: | system
	$(PYTHON) -m venv $(VENV)

# Editable, so that main.py, the tests and the installed package are the same files; anew when the
# core changed (its folders, too: a file came or went) or the module is gone.
install: system $(INSTALLED)
$(INSTALLED): $(VENV)/pyvenv.cfg setup.py pyproject.toml $(shell find csrc kernels -not -path "*__pycache__*")
$(INSTALLED): $(if $(wildcard asenpp/_asen*.so),,force)
	$(PY) -m pip install -q -e .
	@touch $@

# pip finds asenpp there and installs what its extra `test` names.
test-packages: install $(TEST_PACKAGES)
$(TEST_PACKAGES): $(VENV)/pyvenv.cfg pyproject.toml | $(INSTALLED)
	$(PY) -m pip install -q "asenpp[test]"
	@touch $@

dev:            ## build the module in place with the current interpreter
	$(PYTHON) setup.py -q build_ext --inplace

clean:          ## remove what was built
	rm -rf build dist asenpp/_asen*.so asenpp/_libs *.egg-info $(INSTALLED)

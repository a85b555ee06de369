# Targets for people; `make help` lists them. PYTHON names the interpreter that makes the environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CONFIGS := -c configs/base.yaml
# Of a local checkout's commands: make fit ARGS="-c configs/data/camvid.yaml --name camvid"
ARGS ?=
# A thread per test process: threads of several processes on the same cores wait for each other.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast bench check lint format type fit validate predict kfold grid compare wandb-sync split clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# A CPU-only or other torch may be installed into .venv first; pip keeps what fits the ranges.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V). Try make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[lite,export,dev]"
	touch $(STAMP)

install: $(STAMP)  ## make .venv and install everything

demo: install  ## make data, split, train, validate and draw predictions, in minutes on a CPU
	$(BIN)/deeplab fit $(CONFIGS) -c configs/data/synthetic.yaml -c configs/model/deeplabv3_efficientnet.yaml \
		-c configs/trainer/cpu.yaml -c configs/demo.yaml
	$(BIN)/deeplab data synthetic --output data/synthetic_new --num_images 12 --seed 1
	@run=$$(ls -td runs/demo*/ | head -1) && set -x && \
	$(BIN)/deeplab validate --ckpt_path $${run}checkpoints/best.ckpt && \
	$(BIN)/deeplab predict --ckpt_path $${run}checkpoints/best.ckpt --images data/synthetic_new && \
	echo "Everything of this run lies in $$run: panels/ and predictions/overlays/ are for looking at."

test: install  ## run all tests, a process per core
	$(TEST) -n auto --dist worksteal

test-fast: install  ## run the tests that need neither processes nor trainings
	$(TEST) -n auto --dist worksteal -m "not slow"

bench: install  ## measure what the project promises; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -o addopts= tests/benchmarks/test_folds.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -o addopts= tests/benchmarks/test_loader.py
	$(BIN)/python -m pytest -o addopts= tests/benchmarks/test_memory.py
	THP_MEM_ALLOC_ENABLE=1 $(BIN)/python -m pytest -o addopts= tests/benchmarks/test_models.py
	$(BIN)/python -m pytest -o addopts= tests/benchmarks/test_parity.py tests/benchmarks/test_backbones.py

check: install  ## format, lint, types and tests: what has to pass before a commit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

lint: install  ## mend what the linter can mend, and show the rest
	$(BIN)/ruff check --fix .

format: install  ## format the code
	$(BIN)/ruff format .

type: install  ## check the types
	$(BIN)/mypy

fit: install  ## train: make fit ARGS="-c configs/data/camvid.yaml"
	$(BIN)/deeplab fit $(CONFIGS) $(ARGS)

validate: install  ## evaluate: make validate ARGS="--ckpt_path runs/NAME/checkpoints/best.ckpt"
	$(BIN)/deeplab validate $(ARGS)

predict: install  ## draw: make predict ARGS="--ckpt_path runs/NAME/checkpoints/best.ckpt --images FOLDER"
	$(BIN)/deeplab predict $(ARGS)

kfold: install  ## train every fold: make kfold ARGS="-c configs/data/camvid.yaml --name camvid_cv"
	$(BIN)/deeplab kfold $(CONFIGS) $(ARGS)

grid: install  ## compare backbones fold by fold: make grid ARGS="-c configs/grids/demo.yaml"
	$(BIN)/deeplab grid $(or $(ARGS),-c configs/grids/demo.yaml)

compare: install  ## is B better than A: make compare ARGS="runs/A runs/B --html report.html"
	$(BIN)/deeplab compare $(ARGS)

wandb-sync: install  ## upload the offline W&B runs of all runs
	find runs -type d -path '*/wandb/offline-run-*' -prune -exec $(BIN)/wandb sync {} +

split: install  ## write the folds without training: make split ARGS="-c configs/data/coco.yaml --output FOLDER"
	$(BIN)/deeplab split $(CONFIGS) $(ARGS)

clean:  ## remove .venv and caches; runs and data stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

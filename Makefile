# `make help` lists the targets. PYTHON is the interpreter that creates the environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed_dev
# cpu installs PyTorch without CUDA, a small part of the download: make install TORCH=cpu
TORCH ?=
CONFIGS := -c configs/base.yaml
LOWEST := .venv-lowest
PYTHONS ?=
# Further options of a command: make fit ARGS="-c configs/data/camvid.yaml --name camvid"
ARGS ?=
# One thread per test process, since the threads of several processes on the same cores wait for each other.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Benchmarks are not collected by default, and a warning of another library does not stop them.
BENCH := $(BIN)/python -m pytest -o addopts= -W default

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo competition test test-fast test-long test-cluster test-versions bench campaign bench-kernels bench-gpu check lint format type fit validate predict kfold grid compare wandb-sync split clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# A CPU-only or other torch may be installed into .venv first; pip keeps what fits the ranges.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V). Try make PYTHON=python3.12"; exit 1; }
	@case "$(TORCH)" in ""|cpu) ;; *) echo "TORCH is cpu or empty, got $(TORCH)"; exit 1;; esac
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH),$(BIN)/python -m pip install --quiet torch torchvision --index-url https://download.pytorch.org/whl/cpu)
	$(BIN)/python -m pip install --quiet --editable ".[lite,export]"
	touch $(STAMP)

$(DEV_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable ".[lite,export,dev]"
	touch $(DEV_STAMP)

install: $(STAMP)  ## create .venv and install the package; TORCH=cpu without CUDA

install-dev: $(DEV_STAMP)  ## install also what tests and checks need

demo: install  ## train, validate and predict on built-in data, in minutes on a CPU
	$(BIN)/deeplab fit $(CONFIGS) -c configs/data/synthetic.yaml -c configs/model/deeplabv3plus_efficientnet.yaml \
		-c configs/trainer/cpu.yaml -c configs/demo.yaml
	$(BIN)/deeplab data synthetic --output data/synthetic_new --num_images 12 --seed 1
	@run=$$(ls -td runs/demo*/ | head -1) && set -x && \
	$(BIN)/deeplab validate --ckpt_path $${run}checkpoints/best.ckpt && \
	$(BIN)/deeplab predict --ckpt_path $${run}checkpoints/best.ckpt --images data/synthetic_new && \
	echo "Results are in $$run: see panels/ and predictions/overlays/."

competition: install  ## folds, trainings, comparison, best average, submission.csv on built-in data; again to go on
	$(BIN)/deeplab grid -c configs/grids/competition.yaml
	$(BIN)/deeplab best runs/competition/v3 runs/competition/v3plus --output runs/competition/best.yaml
	$(BIN)/deeplab data synthetic --output data/competition_test --num_images 40 --size 192 --seed 1
	rm -rf runs/competition/predictions
	$(BIN)/deeplab predict -c runs/competition/best.yaml --images data/competition_test --csv submission.csv \
		--output runs/competition/predictions
	@echo "What the new images' labels say, beside what best.yaml promises:"
	$(BIN)/deeplab test -c runs/competition/best.yaml --data.test_dataset SyntheticLitterDataset \
		--data.test_dataset.root data/competition_test --data.test_dataset.num_images 40 \
		--data.test_dataset.size 192 --data.test_dataset.seed 1

test: install-dev  ## run all tests but the long ones and those of clusters, in 5 minutes on 2 cores
	$(TEST) -n auto --dist worksteal -m "not long and not cluster"

test-long: install-dev  ## run the long tests: trainings, kills, folds, exports and notebooks by the real commands
	$(TEST) -n auto --dist worksteal -m "long and not cluster"

test-fast: install-dev  ## run all tests but the slow and the long ones, in 2 minutes
	$(TEST) -n logical --dist worksteal -m "not slow and not long and not cluster"

test-cluster: install-dev  ## run folds in SLURM (as root, with slurm-wlm and munge) and Ray, and two hosts, on this machine
	$(TEST) -n 2 --dist loadfile -rs tests/cluster $(ARGS)

# The extra `export` needs a newer torch. Warnings of old versions are no errors.
test-versions:  ## run the fast tests with the lowest versions, then with the newest in PYTHONS="python3.12 python3.13"
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) -m tests.lowest_versions lite multiband dev > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --editable ".[lite,multiband,dev]" -c $(LOWEST)/constraints.txt
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n auto --dist worksteal -m "not slow and not long and not cluster" \
		-o filterwarnings=default --disable-warnings --ignore tests/export --ignore tests/commands/test_export.py \
		--ignore tests/inference/test_engines.py
	for python in $(PYTHONS); do \
		$$python -m venv .venv-$$(basename $$python) && \
		.venv-$$(basename $$python)/bin/python -m pip install --quiet --editable ".[lite,export,dev]" && \
		OMP_NUM_THREADS=1 .venv-$$(basename $$python)/bin/python -m pytest -n auto --dist worksteal \
			-m "not slow and not long and not cluster" || exit 1; \
	done

bench: install-dev  ## measure folds, verdicts, scale, loader, storage, memory, parity, backbones, speed, suspects
	OMP_NUM_THREADS=1 $(BENCH) tests/benchmarks/test_folds.py tests/benchmarks/test_loader.py \
		tests/benchmarks/test_kills.py tests/benchmarks/test_verdicts.py tests/benchmarks/test_scale.py \
		tests/benchmarks/test_cheap.py tests/benchmarks/test_storage.py
	$(BENCH) tests/benchmarks/test_memory.py tests/benchmarks/test_parity.py tests/benchmarks/test_backbones.py
	$(BENCH) tests/benchmarks/test_peers.py tests/benchmarks/test_suspects.py
	$(BENCH) tests/benchmarks/test_engines.py

campaign: install-dev  ## attack the real commands at random for 20 minutes: make campaign ARGS="--seed 7 --minutes 5"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.campaign $(ARGS)

bench-kernels: install-dev  ## measure the CPU kernels and the settings of the process, in about an hour
	$(BENCH) tests/benchmarks/test_kernels.py tests/benchmarks/test_settings.py

bench-gpu: install-dev  ## measure a GPU against torchvision and smp; ARGS="--small" tries the script on a CPU
	$(BIN)/python -m tests.benchmarks.gpu $(ARGS)

check: install-dev  ## check format, lint, types and tests, as before a commit; CI adds test-long
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

lint: install-dev  ## fix lint errors where possible, and list the others
	$(BIN)/ruff check --fix .

format: install-dev  ## format the code
	$(BIN)/ruff format .

type: install-dev  ## check the types
	$(BIN)/mypy

fit: install  ## train: make fit ARGS="-c configs/data/camvid.yaml"
	$(BIN)/deeplab fit $(CONFIGS) $(ARGS)

validate: install  ## evaluate a checkpoint: make validate ARGS="--ckpt_path runs/NAME/checkpoints/best.ckpt"
	$(BIN)/deeplab validate $(ARGS)

predict: install  ## predict images: make predict ARGS="--ckpt_path runs/NAME/checkpoints/best.ckpt --images FOLDER"
	$(BIN)/deeplab predict $(ARGS)

kfold: install  ## train every fold: make kfold ARGS="-c configs/data/camvid.yaml --name camvid_cv"
	$(BIN)/deeplab kfold $(CONFIGS) $(ARGS)

grid: install  ## compare backbones fold by fold: make grid ARGS="-c configs/grids/demo.yaml"
	$(BIN)/deeplab grid $(or $(ARGS),-c configs/grids/demo.yaml)

compare: install  ## compare experiments: make compare ARGS="runs/A runs/B --html report.html"
	$(BIN)/deeplab compare $(ARGS)

wandb-sync: install  ## upload the offline W&B runs of all runs
	$(BIN)/deeplab wandb-sync $(ARGS)

split: install  ## write the folds without training: make split ARGS="-c configs/data/coco.yaml --output FOLDER"
	$(BIN)/deeplab split $(CONFIGS) $(ARGS)

clean:  ## remove .venv and caches, but not runs or data
	rm -rf $(VENV) .venv-* .mypy_cache .ruff_cache .pytest_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

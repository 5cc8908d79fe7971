# Two commands are all a newcomer needs: `make repro` and `make test`. `make help` lists the rest.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
PORT   ?= 5000
READY  := $(VENV)/ready

export PATH := $(abspath $(VENV))/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_DISABLE_TELEMETRY := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: repro test lint glue flow ui status clean help
.DEFAULT_GOAL := help

repro: $(READY) ## the main job: run what has changed, print the table
	@dvc repro
	@sed -n '/^###/,$$p' docs/results.md
	@echo
	@echo "table: docs/results.md   picture: docs/pareto.svg   runs and curves: make ui   figures: dvc metrics show"

test: $(READY) lint ## lint, type check, tests
	@python -m pytest

lint: $(READY)
	@ruff check .
	@ruff format --check .
	@mypy

# The hub serves GLUE and the checkpoint unless GLUE=folder (original TSV layout) and CHECKPOINT=folder say otherwise.
GLUE_TASKS ?= cola,mrpc,rte,stsb
LAYERS     ?= 0,1,2,3,4,5
hub_or      = kind=$(if $(2),folder,hub) --set-param $(1).name=$(or $(2),$(3)) --set-param $(1).within=''
glue: $(READY) ## the same pipeline on GLUE: make glue GLUE=folder CHECKPOINT=folder GLUE_TASKS=cola,rte LAYERS=0,1,2
	@dvc exp run --set-param 'tasks=[$(GLUE_TASKS)]' --set-param 'student.layers=[$(LAYERS)]' \
	  --set-param datasets.glue.$(call hub_or,datasets.glue,$(GLUE),nyu-mll/glue) \
	  --set-param checkpoint.$(call hub_or,checkpoint,$(CHECKPOINT),google-bert/bert-base-uncased)
	@sed -n '/^###/,$$p' docs/results.md
	@echo "to go back to the default: git checkout params.yaml && dvc repro"

flow: $(READY) ## the same graph as a Prefect flow, independent stages in parallel
	@python -m pipelines.flow

ui: $(READY) ## MLflow's pages on PORT (5000)
	@mlflow server --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db} --port $(PORT)

status: $(READY) ## what `make repro` would run
	@dvc status

clean: ## remove the environment and everything made by the pipeline but DVC's cache and the figures in git
	rm -rf $(VENV) .scratch mlruns mlflow.db data/raw data/prepared data/teachers data/cache data/students

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Filbert needs Python 3.11: make PYTHON=/path/to/python3.11 …")'
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), about two minutes"
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

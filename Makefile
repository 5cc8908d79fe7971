# Two commands are all a newcomer needs: `make repro` and `make test`. `make help` lists the rest.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
PORT   ?= 5000
PREFECT_PORT ?= 4200
READY  := $(VENV)/ready

export PATH := $(abspath $(VENV))/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_DISABLE_TELEMETRY := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export PREFECT_HOME ?= $(CURDIR)/.prefect
export PORT

.PHONY: repro test lint glue wikiann flow bench ui serve track status clean help
.DEFAULT_GOAL := help

repro: $(READY) ## the main job: run what has changed, print the table
	@dvc repro
	@sed -n '/^###/,$$p' docs/results.md
	@echo
	@echo "page: data/report/index.html   table: docs/results.md   picture: docs/pareto.svg   runs and curves: make ui   figures: dvc metrics show"

test: $(READY) lint ## lint, type check, tests
	@python -m pytest

lint: $(READY)
	@ruff check .
	@ruff format --check .
	@mypy

# The hub serves GLUE and the checkpoint unless GLUE=folder (original TSV layout) and CHECKPOINT=folder say otherwise.
GLUE_TASKS ?= cola,mrpc,rte,stsb
LAYERS     ?= 0,2,4,6,8,10
EPOCHS     ?= 3
JOBS       ?= 2
ONE_PHASE  := finetune kd pkd theseus theseus_constant theseus_anti
LAYERWISE  := tinybert refbert refbert_random refbert_zero
source      = -S $(1).kind=$(if $(2),folder,hub) -S $(1).name=$(or $(2),$(3)) -S $(1).within='' -S $(1).sha256=null
glue: $(READY) ## the same pipeline on GLUE: make glue GLUE=folder CHECKPOINT=folder GLUE_TASKS=cola,rte METHODS=kd,refbert
	@python -m pipelines.flow --workers $(JOBS) -S 'tasks=[$(GLUE_TASKS)]' -S 'student.layers=[$(LAYERS)]' \
	  -S teach.epochs=$(EPOCHS) $(foreach m,$(ONE_PHASE),-S distill.$(m).fit.epochs=$(EPOCHS)) \
	  $(foreach m,$(LAYERWISE),-S distill.$(m).prediction.epochs=$$(($(EPOCHS)-1))) \
	  $(if $(METHODS),-S 'methods=[$(METHODS)]' -S 'recipes=[$(RECIPES)]') \
	  $(if $(VECTORS),$(call source,vectors,$(VECTORS))) \
	  $(call source,datasets.glue,$(GLUE),nyu-mll/glue) $(call source,checkpoint,$(CHECKPOINT),google-bert/bert-base-uncased)
	@sed -n '/^###/,$$p' docs/results.md
	@echo "to go back to the default: git checkout params.yaml && make repro"

wikiann: $(READY) ## named entities in five languages, one student: make wikiann WIKIANN=folder CHECKPOINT=folder
	@python -m pipelines.flow --workers $(JOBS) -S 'tasks=[wikiann]' -S 'student.layers=[$(LAYERS)]' \
	  -S 'methods=[$(or $(METHODS),finetune,theseus,bilstm)]' -S 'recipes=[$(RECIPES)]' \
	  $(if $(VECTORS),$(call source,vectors,$(VECTORS))) \
	  $(call source,datasets.wikiann,$(WIKIANN),unimelb-nlp/wikiann) \
	  $(call source,checkpoint,$(CHECKPOINT),google-bert/bert-base-multilingual-cased)
	@sed -n '/^###/,$$p' docs/results.md
	@echo "to go back to the default: git checkout params.yaml && make repro"

flow: $(READY) ## the same graph as a Prefect flow, JOBS stages at once
	@python -m pipelines.flow --workers $(JOBS)

T ?= rotten_tomatoes
bench: $(READY) ## what cache, transfer rows and pretraining cost, on a quiet machine, after `make repro`: docs/benchmarks/
	@python -m benchmarks.cache $(T) data/prepared/$(T) data/teachers/$(T) data/checkpoint docs/benchmarks/cache.md
	@python -m benchmarks.transfer $(T) data/prepared/$(T) data/teachers/$(T) data/checkpoint data/word_vectors docs/benchmarks/transfer.md
	@python -m benchmarks.pretrain mixed data/corpus data/checkpoint docs/benchmarks/pretraining.md

ui: SHELL := bash
ui: export PREFECT_UI_API_URL ?= /api
ui: export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false
ui: $(READY) ## MLflow's pages on PORT (5000) and Prefect's on PREFECT_PORT (4200), until Ctrl-C
	@trap 'kill $$(jobs -p) 2>/dev/null; wait' EXIT; \
	case "$$MLFLOW_TRACKING_URI" in http*) echo "MLflow is at $$MLFLOW_TRACKING_URI" ;; \
	  *) mlflow server --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}" --workers 1 --port $(PORT) & ;; esac; \
	prefect server start --port $(PREFECT_PORT) & \
	wait -n

serve: export PREFECT_API_URL ?= http://127.0.0.1:$(PREFECT_PORT)/api
serve: $(READY) ## runs started from Prefect's pages and by the clock (NIGHTLY, WEEKLY: other cron lines), beside `make ui`
	@python -m pipelines.serve $(if $(NIGHTLY),--nightly '$(NIGHTLY)') $(if $(WEEKLY),--weekly '$(WEEKLY)')

track: $(READY) ## bring MLflow's runs back from the files, after its store was lost or not reached
	@python -m stages.track data/metrics data/details data/teachers data/pretrained data/masked data/students

status: $(READY) ## what `make repro` would run
	@dvc status

clean: ## remove the environment and everything made by the pipeline but DVC's cache and the figures in git
	rm -rf $(VENV) .scratch .prefect mlruns mlflow.db data/raw data/prepared data/teachers data/cache data/references data/masked data/augmented data/transfer data/corpus data/pretrained data/students data/report/index.html

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Filbert needs Python 3.11: make PYTHON=/path/to/python3.11 …")'
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), about two minutes"
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

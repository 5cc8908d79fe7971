# Two commands are all a newcomer needs: `make repro` and `make test`. `make help` lists the rest.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
JOBS   ?= 2
PORT   ?= 5000
PREFECT_PORT ?= 4200
READY  := $(VENV)/ready
TESTED := $(VENV)/ready-test

export PATH := $(abspath $(VENV))/bin:$(PATH)
# for `dvc`, `mlflow` and `prefect`, started below by themselves; everywhere else filbert/__init__.py sets it
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export PREFECT_HOME ?= $(CURDIR)/.prefect
export OMP_WAIT_POLICY ?= PASSIVE
export PORT

TASK ?= rotten_tomatoes

.PHONY: repro test test-rooms test-pipelines test-all test-long campaign lint study task pick release flow bench ui serve track status clean help
.DEFAULT_GOAL := help

# Results are repeatable bit for bit on the same type of processor with the same JOBS and number of cores, which decide the threads of a stage.
repro: $(READY) ## the main job: run what has changed, JOBS (2) stages at once, print the table
	@python -m pipelines.repro --jobs $(JOBS)
	@echo
	@echo "page: data/report/index.html   table: docs/results.md   picture: docs/pareto.svg   runs and curves: make ui   figures: dvc metrics show"

# Two at once, the output of each when it has ended.
test: $(TESTED) ## lint, type check, tests
	@$(MAKE) --no-print-directory --keep-going --jobs 2 $(if $(filter output-sync,$(.FEATURES)),--output-sync) test-rooms lint test-pipelines

test-rooms: $(TESTED)  # all but those of the whole graph
	@python -m pytest --ignore tests/pipelines

test-pipelines: $(TESTED)  # a tiny run of the graph, studies, what reruns
	@python -m pytest tests/pipelines

test-all: $(TESTED) lint ## the same and the long tests: kills, clusters, servers, whole graphs
	@python -m pytest -m ''

test-long: $(TESTED) ## the long tests alone
	@python -m pytest -m slow

# In a quiet hour; killed and started again it goes on. As root, full disks are tried too.
campaign: $(TESTED) ## kills, damage, full disks on a tiny graph, about an hour: KILLS (100), DAMAGES (400); writes docs/reliability.md
	@python -m tests.reliability.campaign --kills $(or $(KILLS),100) --damages $(or $(DAMAGES),400) --folder .scratch/campaign --write docs/reliability.md

lint: $(TESTED)
	@ruff check .
	@ruff format --check .
	@mypy

# The hub serves GLUE, WikiANN and their checkpoints unless GLUE=, WIKIANN=, CHECKPOINT= name folders. Killed and started again it goes on.
study: $(READY) ## a study of studies/: make study STUDY=glue [SEEDS=1,2,3] [GLUE=folder] [WIKIANN=folder] [CHECKPOINT=folder] [SET='a.b=c …'] [FRESH=1]
	@python -m pipelines.study $(or $(STUDY),$(error STUDY=name of studies/name.yaml)) --jobs $(JOBS) $(if $(SEEDS),--seeds $(SEEDS)) \
	  $(if $(GLUE),--glue '$(GLUE)') $(if $(WIKIANN),--wikiann '$(WIKIANN)') $(if $(CHECKPOINT),--checkpoint '$(CHECKPOINT)') \
	  $(foreach setting,$(SET),--set '$(setting)') $(if $(FRESH),--fresh)

task: $(READY) ## your own task: make task NAME=tickets DATA=folder-or-csv writes its row of params.yaml
	@python -m commands.add_task $(or $(NAME),$(error NAME=of the task DATA=folder or file)) '$(or $(DATA),$(error DATA=folder or file))' --write

pick: $(READY) ## the best exported model of TASK under a budget: make pick TASK=tickets ARGS='--max-mb 5 --max-ms 2 --min-share 0.97'
	@python -m commands.pick $(TASK) data/metrics data/exported $(ARGS)

release: $(READY) ## the same, copied into data/release/TASK: ONNX, tokenizer, model card and a predict.py without torch
	@python -m commands.release $(TASK) data/metrics data/exported data/release/$(TASK) $(ARGS)

flow: $(READY) ## the same graph as a Prefect flow, JOBS stages at once
	@python -m pipelines.flow --workers $(JOBS)

bench: $(READY) ## what cache, transfer rows, inference and pretraining cost, on a quiet machine, after `make repro`: docs/benchmarks/
	@python -m benchmarks.cache $(TASK) data/prepared/$(TASK) data/teachers/$(TASK) data/checkpoint docs/benchmarks/cache.md
	@python -m benchmarks.transfer $(TASK) data/prepared/$(TASK) data/teachers/$(TASK) data/checkpoint data/word_vectors docs/benchmarks/transfer.md
	@python -m benchmarks.inference $(TASK) data/prepared/$(TASK) data/teachers/$(TASK) data/exported/$(TASK) data/students/$(TASK) docs/benchmarks/inference.md
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
	@python -m pipelines.deployments $(if $(NIGHTLY),--nightly '$(NIGHTLY)') $(if $(WEEKLY),--weekly '$(WEEKLY)')

track: $(READY) ## bring MLflow's runs back from the files, after its store was lost or not reached
	@python -m commands.restore_mlflow data/metrics data/details data/teachers data/pretrained data/masked_lm data/students

status: $(READY) ## what `make repro` would run
	@dvc status

clean: ## remove the environment and everything made by the pipeline but DVC's cache and the figures in git
	rm -rf $(VENV) .scratch .prefect mlruns mlflow.db data/checkpoint data/word_vectors data/texts/*/ data/raw data/prepared data/teachers data/cache data/references data/masked_lm data/augmented data/transfer data/corpus data/pretrained data/students data/exported data/baselines data/release data/report/index.html

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Filbert needs Python 3.11: make PYTHON=/path/to/python3.11 …")'
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), about half a minute"
	@$(VENV)/bin/python pipelines/install.py .
	@touch $@

$(TESTED): $(READY)
	@echo "installing what the tests need"
	@$(VENV)/bin/python pipelines/install.py '.[test]'
	@touch $@

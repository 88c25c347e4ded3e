# demo: interpret a sample study | test: quick checks | check: slow checks | lab: JupyterLab on nbs | docs: the site in _docs
export OMP_NUM_THREADS ?= 2
export HF_HUB_OFFLINE ?= 1
export PYTHONPATH := $(CURDIR)
python := .venv/bin/python

.PHONY: demo test check lab docs setup
.DEFAULT_GOAL := demo

demo: setup
	@$(python) -c 'from echo_lit.cli import main; main()' interpret data_samples/phantom-dicom --out demo

test: setup
	@$(python) tools/test.py quick

check: setup
	@$(python) tools/test.py slow

lab: setup
	@$(python) -m jupyterlab --notebook-dir=nbs

docs: setup
	@$(python) tools/docs.py

setup:
	@PYTHON='$(PYTHON)' tools/setup.sh

# demo: interpret a sample study | samples: write the sample studies anew | test: quick checks | check: slow checks | lab: JupyterLab on nbs | docs: the site in _docs
export OMP_NUM_THREADS ?= 2
export HF_HUB_OFFLINE ?= 1
export PYTHONPATH := $(CURDIR)
unexport VIRTUAL_ENV
python := .venv/bin/python
echo_lit = $(python) -c 'from echo_lit.cli import main; main()'

.PHONY: demo samples test check lab docs setup
.DEFAULT_GOAL := demo

demo: setup
	@$(echo_lit) interpret data_samples/dicom/phantom-000295 --out demo

samples: setup
	@rm -rf data_samples/dicom data_samples/avi data_samples/mp4
	@$(echo_lit) phantom data_samples/dicom --seed 295 --seconds 1.3
	@$(echo_lit) phantom data_samples/avi --seed 123 --seconds 1.3 --format avi
	@$(echo_lit) phantom data_samples/mp4 --seed 331 --seconds 1.3 --format mp4

test: setup
	@$(python) tools/test.py quick

check: setup
	@$(python) tools/test.py slow

lab: setup
	@$(python) -m jupyterlab --notebook-dir=nbs $(if $(filter 0,$(shell id -u)),--allow-root) $(lab_flags)

docs: setup
	@$(python) tools/docs.py

setup:
	@PYTHON='$(PYTHON)' tools/setup.sh

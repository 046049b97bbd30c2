# make demo | test | lint | format. Each target creates .venv if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := demo

.PHONY: demo test lint format clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,plots,dask,s3,studies,dev]'
	touch $@

test: $(STAMP)
	$(BIN)/pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy patchindex cli/patchindex_cli
	$(BIN)/lint-imports --no-logo

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(DEMO)/samples/grid.png
	@echo "Look at $(DEMO)/samples/grid.png"

$(DEMO)/fashion.zarr/zarr.json: | $(STAMP)
	$(BIN)/patchindex build data/fashion_mnist_6k.npz -o $(DEMO)/fashion.zarr --limit 1500 \
		--machine bbELS --locality fashion-mnist-resnet-zeros --scales 3,5,9,13,17 --resume --no-tune

$(DEMO)/samples/grid.png: $(DEMO)/fashion.zarr/zarr.json
	$(BIN)/patchindex sample $(DEMO)/fashion.zarr -n 16 -o $(DEMO)/samples --overwrite

clean:
	rm -rf $(DEMO) build dist *.egg-info

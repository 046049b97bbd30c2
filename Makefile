# make demo | test | lint | docs | notebooks | package | format | study-mnist. Each target creates .venv if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := demo
IMAGES := data/fashion_mnist_6k.npz
NETWORK := data/fashion_resnet
MNIST ?= mnist_train.npz
# Of `make bench`; commands that need CIFAR10 or AUTHORS are left out without them.
WORK ?= bench
CIFAR10 ?=
AUTHORS ?=

SITE := site
PACKAGE := build/package

.PHONY: demo test lint docs notebooks links package format bench study-mnist clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,plots,dask,s3,studies,diffusers,docs,dev]'
	touch $@

# A test uses one core most of the time, so several run at once. A worker needs up to 2 GiB.
test: $(STAMP)
	$(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy patchindex cli/patchindex_cli
	$(BIN)/lint-imports --no-logo

# Every warning is an error: a broken link inside the site, a page that no page leads to, a malformed docstring.
docs: $(STAMP)
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs $(SITE)
	@echo "Open $(SITE)/index.html"

# Runs the notebooks again, and stores their outputs.
notebooks: $(STAMP)
	$(BIN)/python docs/run_notebooks.py

# Follows the links to other sites, too.
links: $(STAMP)
	$(BIN)/sphinx-build --builder linkcheck --quiet docs $(SITE)/links

# The wheel is built from the sdist. Both commands run from the wheel alone, in an environment of its own. Two
# commands need few of the modules, so pip does not compile all of them.
package: $(STAMP)
	rm -rf $(PACKAGE)
	$(BIN)/python -m build --outdir $(PACKAGE) . > /dev/null
	$(PYTHON) -m venv $(PACKAGE)/venv
	$(PACKAGE)/venv/bin/python -m pip install --quiet --no-compile --constraint constraints.txt "$$(echo $(PACKAGE)/*.whl)[cpu]"
	$(PACKAGE)/venv/bin/patchindex build $(IMAGES) -o $(PACKAGE)/store.zarr --limit 50 --scales 3 --no-tune --quiet
	$(PACKAGE)/venv/bin/patchindex sample $(PACKAGE)/store.zarr -n 1 --steps 3 -o $(PACKAGE)/samples --quiet
	test -s $(PACKAGE)/samples/grid.png

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(DEMO)/samples/grid.png $(DEMO)/compared/images.png
	@echo "Look at $(DEMO)/samples/grid.png: images drawn from training images, without a network"
	@echo "Look at $(DEMO)/compared/images.png: a trained network, and what the theory predicts from the same noise"

$(DEMO)/fashion.zarr/zarr.json: | $(STAMP)
	$(BIN)/patchindex build $(IMAGES) -o $(DEMO)/fashion.zarr --limit 1500 --machine bbELS \
		--locality fashion-mnist-resnet-zeros --resize-locality --scales 3,5,7,11,15 --resume --no-tune

$(DEMO)/samples/grid.png: $(DEMO)/fashion.zarr/zarr.json
	$(BIN)/patchindex sample $(DEMO)/fashion.zarr -n 16 -o $(DEMO)/samples --overwrite

$(DEMO)/compared/images.png: | $(STAMP)
	$(BIN)/patchindex compare $(IMAGES) --network $(NETWORK) --machines bbELS,LS,IS,wiener -n 10 \
		--locality $(NETWORK)/schedule.json --along 0 --noised 0 -o $(DEMO)/compared --resume

# The comparison of the paper for MNIST, from nothing but the images: hours. It resumes where it was stopped.
study-mnist: | $(STAMP)
	$(BIN)/python benchmarks/table1.py --mnist $(MNIST) --work study-mnist \
		--only mnist-resnet-zeros mnist-resnet-circular mnist-unet-zeros

# Writes docs/benchmarks.md, or $(WORK)/benchmarks.md where a command needs CIFAR10 or AUTHORS and they are not given.
bench: | $(STAMP)
	$(BIN)/python benchmarks/page.py --work $(WORK) $(if $(CIFAR10),--cifar10 $(CIFAR10)) $(if $(AUTHORS),--authors $(AUTHORS))

clean:
	rm -rf $(DEMO) $(SITE) jupyter_execute build dist *.egg-info

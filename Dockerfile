# One image per service: docker build --build-arg SERVICE=ingest --target worker .
#   SERVICE      a folder of services/ that is also an extra of pyproject.toml
#   EXTRA        another extra for it: cluster-cuda brings FAISS for GPUs
#   ACCELERATOR  none (ingest, gateway), cpu or cuda: which PyTorch the image holds
# Layers lie in the order in which they change, so that images share them:
# system, common packages, PyTorch, the service's packages, our code.

ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.07-py3
ARG ACCELERATOR=none

# ---- our code as a wheel, and what the packages below are resolved from
FROM ${PYTHON_IMAGE} AS project
WORKDIR /project
COPY pyproject.toml constraints.txt LICENSE ./
# The torch stages say which PyTorch; a README that changes must not install everything anew.
RUN sed '/^torch==/d; /^torchvision==/d' constraints.txt > pins.txt && touch README.md

FROM project AS wheel
COPY shared shared
COPY services services
COPY triton_models triton_models
COPY heterotissue heterotissue
COPY README.md ./
RUN --mount=type=cache,target=/root/.cache/pip pip wheel --no-deps --wheel-dir /dist .

# ---- packages
FROM ${PYTHON_IMAGE} AS torch-none
# libexpat1: GDAL inside rasterio's wheel needs it. libgomp1: some wheels bring no OpenMP.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libexpat1 libgomp1 tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp htd
ENV PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=project,source=/project,target=/project,rw \
    pip install --constraint /project/pins.txt "/project[imaging,zarr,czi,isyntax]"

FROM torch-none AS torch-cpu
# Another index or version (an older driver, say): --build-arg TORCH_INDEX=… TORCH_VERSION=…
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH_VERSION=2.14.1
ARG TORCHVISION_VERSION=0.29.1
# Without dependencies: those come from PyPI with the service's own.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --index-url "${TORCH_INDEX}" \
        "torch==${TORCH_VERSION}" "torchvision==${TORCHVISION_VERSION}"

FROM torch-none AS torch-cuda
ARG TORCH_VERSION=2.14.1
ARG TORCHVISION_VERSION=0.29.1
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=project,source=/project,target=/project \
    pip install --constraint /project/pins.txt \
        "torch==${TORCH_VERSION}" "torchvision==${TORCHVISION_VERSION}"

# ---- a service
FROM torch-${ACCELERATOR} AS service
ARG SERVICE
ARG EXTRA=${SERVICE}
# More packages for one image: the TensorRT that matches TRITON_IMAGE, for deploy on a GPU.
ARG PACKAGES=""
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=project,source=/project,target=/project,rw \
    pip install --constraint /project/pins.txt "/project[${EXTRA}]" ${PACKAGES}
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    pip install --no-deps --force-reinstall --no-cache-dir /dist/*.whl
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="heterotissue-${SERVICE}" \
      org.opencontainers.image.description="HeteroTissue: ${SERVICE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# Told to stop, Celery lets the shard end within HTD_STOP_SECONDS and then hands it back.
ENV SERVICE=${SERVICE} HOME=/tmp PYTHONUNBUFFERED=1 REMAP_SIGTERM=SIGQUIT GOMP_SPINCOUNT=3000 OMP_WAIT_POLICY=active
USER 10001:10001
ENTRYPOINT ["tini", "--"]
CMD ["sh", "-c", "exec python -m services.${SERVICE}"]

FROM service AS worker
HEALTHCHECK --interval=30s --timeout=10s --start-period=90s CMD ["python", "-m", "shared.queue.health"]

FROM service AS gateway
ENV HTD_GATEWAY_HOST=0.0.0.0 HTD_GATEWAY_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=10s --start-period=30s \
    CMD ["python", "-m", "shared.queue.health", "http://127.0.0.1:8000/readyz"]

# ---- Triton with our models' Python
FROM ${TRITON_IMAGE} AS triton
ARG TORCH_VERSION=2.14.1
ARG TORCHVISION_VERSION=0.29.1
ENV PIP_ROOT_USER_ACTION=ignore PIP_BREAK_SYSTEM_PACKAGES=1 PYTHONDONTWRITEBYTECODE=1
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=project,source=/project,target=/project,rw \
    pip install --constraint /project/pins.txt "/project[synthesize]" \
        "torch==${TORCH_VERSION}" "torchvision==${TORCHVISION_VERSION}"
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    pip install --no-deps --force-reinstall --no-cache-dir /dist/*.whl
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="heterotissue-triton" \
      org.opencontainers.image.description="HeteroTissue: NVIDIA Triton with the sampler's Python" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --chmod=0755 docker/triton.sh /usr/local/bin/heterotissue-triton
ENV HOME=/tmp GOMP_SPINCOUNT=3000 OMP_WAIT_POLICY=active
EXPOSE 8000 8001 8002
USER 10001:10001
# The base image's entrypoint stays: it chooses the CUDA libraries that fit the host's driver.
CMD ["heterotissue-triton"]
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s \
    CMD ["python3", "-m", "shared.queue.health", "http://127.0.0.1:8000/v2/health/ready"]

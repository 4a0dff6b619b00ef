#!/bin/sh
# Pins the production overlay to the digests that the registry has now. Needs kustomize and
# docker buildx; run by `make digests REGISTRY=…` after the images were pushed.
set -eu
registry=${1:?the registry that the images were pushed to}

pin() { # image as the manifests name it, where it lies, its tag
    digest=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$2:$3")
    kustomize edit set image "$1=$2@$digest"
}

version=$(sed -n 's/^version = "\(.*\)"/\1/p' ../../../pyproject.toml)
for service in gateway ingest triton cluster synthesize image embed train deploy evaluate; do
    case $service in
        gateway | ingest | triton) tag=$version ;;
        cluster | synthesize | image) tag=$version-cpu ;;
        *) tag=$version-cuda ;;
    esac
    pin "heterotissue/$service" "$registry/heterotissue/$service" "$tag"
done
pin redis redis "$(sed -n 's/.*image: redis://p' ../../base/redis/redis.yaml)"

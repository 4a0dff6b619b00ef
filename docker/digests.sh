#!/bin/sh
# Pins the images of an overlay to the digests that their registry has now: run by `make digests`
# after `make push`. Needs kubectl and docker buildx.
set -eu
cd "$(dirname "$0")/../${1:?a folder with a kustomization, such as k8s/overlays/production}"

pins=digests/kustomization.yaml
head='apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
# Written by make digests.'
printf '%s\nimages: []\n' "$head" >"$pins"  # without pins, so that the images are asked for by their tags
images=$(kubectl kustomize . | sed -n 's/^ *\(- \)*image: //p' | sort -u)
lines=
for image in $images; do
    digest=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$image")
    lines="$lines
  - {name: \"${image%:*}\", digest: \"$digest\"}"
done
printf '%s\nimages:%s\n' "$head" "$lines" >"$pins"

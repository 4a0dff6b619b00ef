#!/bin/sh
# Copies the images of an overlay from Docker into a cluster on this machine, which then needs no
# registry: run by `make load CLUSTER=kind`.
set -eu
cd "$(dirname "$0")/../k8s/overlays/${2:-cpu}"
registry=$(sed -n 's/^ *registry: *\([^ ]*\).*/\1/p' values.yaml)
images=$(kubectl kustomize . | sed -n "s|^ *\(- \)*image: \($registry/.*\)|\2|p" | sort -u)
# shellcheck disable=SC2086  # a list of names
case ${1:-} in
    kind) kind load docker-image $images ;;
    minikube) minikube image load $images ;;
    k3s) docker save $images | sudo k3s ctr images import - ;;
    *) echo "usage: $0 kind|minikube|k3s [overlay]" >&2; exit 2 ;;
esac

#!/bin/sh
# Starts Triton on the model repository in the store, with the keys that HeteroTissue has.
# Models are loaded by name (explicit mode) by the first worker that needs a version.
set -eu

secrets=/run/secrets
AWS_DEFAULT_REGION=${HTD_S3_REGION:-us-east-1}
TRITON_AWS_MOUNT_DIRECTORY=${TRITON_AWS_MOUNT_DIRECTORY:-/tmp/models}
export AWS_DEFAULT_REGION TRITON_AWS_MOUNT_DIRECTORY
# Without keys, the AWS library inside Triton looks for a workload identity.
if [ -n "${HTD_S3_ACCESS_KEY:-}" ] || [ -e "$secrets/htd_s3_access_key" ]; then
    AWS_ACCESS_KEY_ID=${HTD_S3_ACCESS_KEY:-$(cat "$secrets/htd_s3_access_key")}
    AWS_SECRET_ACCESS_KEY=${HTD_S3_SECRET_KEY:-$(cat "$secrets/htd_s3_secret_key")}
    export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
fi
rm -rf "$TRITON_AWS_MOUNT_DIRECTORY"  # copies that a killed server has left
mkdir -p "$TRITON_AWS_MOUNT_DIRECTORY"

# Triton refuses an empty repository, because in S3 a folder exists only if an object is in it.
python3 -c 'from shared.storage import open_store
open_store().put("triton/README", b"The model repository of Triton\n")'

# Triton takes an endpoint without a port for the name of a bucket.
endpoint=${HTD_S3_ENDPOINT%/}
case ${endpoint#*://} in
    *:*) ;;
    *) case $endpoint in https:*) endpoint=$endpoint:443 ;; *) endpoint=$endpoint:80 ;; esac ;;
esac
store=${HTD_STORE#s3://}

exec tritonserver \
    --model-repository="s3://$endpoint/${store%/}/triton" \
    --model-control-mode=explicit \
    --disable-auto-complete-config \
    --backend-directory=/opt/tritonserver/backends \
    --exit-timeout-secs=30

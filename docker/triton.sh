#!/bin/sh
# Starts Triton on the model repository in the store, with the keys that HeteroTissue has.
# Models are loaded by name (explicit mode) by the first worker that needs a version.
set -eu

secrets=/run/secrets
AWS_ACCESS_KEY_ID=${HTD_S3_ACCESS_KEY:-$(cat "$secrets/htd_s3_access_key")}
AWS_SECRET_ACCESS_KEY=${HTD_S3_SECRET_KEY:-$(cat "$secrets/htd_s3_secret_key")}
AWS_DEFAULT_REGION=${HTD_S3_REGION:-us-east-1}
TRITON_AWS_MOUNT_DIRECTORY=/tmp/models
export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_DEFAULT_REGION TRITON_AWS_MOUNT_DIRECTORY
rm -rf "$TRITON_AWS_MOUNT_DIRECTORY"  # copies of models that a killed server has left
mkdir -p "$TRITON_AWS_MOUNT_DIRECTORY"

# Triton refuses a repository that is not there, and in S3 a folder is what has something in it.
python3 -c 'from shared.storage import open_store
open_store().put("triton/README", b"The model repository of Triton\n")'

exec tritonserver \
    --model-repository="s3://${HTD_S3_ENDPOINT}/${HTD_STORE#s3://}/triton" \
    --model-control-mode=explicit \
    --disable-auto-complete-config \
    --backend-directory=/opt/tritonserver/backends \
    --exit-timeout-secs=30

#!/bin/sh
# Makes the bucket and HeteroTissue's user, who may use this bucket and nothing else.
# Another run brings keys and policy up to date.
set -eu

secrets=/run/secrets
bucket=${HTD_STORE#s3://}
bucket=${bucket%%/*}  # a prefix may follow
user=$(cat "$secrets/htd_s3_access_key")
export MC_CONFIG_DIR=/tmp

tries=0
until mc --quiet alias set store "$HTD_S3_ENDPOINT" \
    "$(cat "$secrets/s3_root_user")" "$(cat "$secrets/s3_root_password")"; do
    tries=$((tries + 1))
    [ "$tries" -lt 60 ] || exit 1
    sleep 1  # the server is starting
done
mc --quiet mb --ignore-existing "store/$bucket"
cat >/tmp/policy.json <<JSON
{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Action": ["s3:GetBucketLocation", "s3:ListBucket", "s3:ListBucketMultipartUploads"],
   "Resource": ["arn:aws:s3:::$bucket"]},
  {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject",
                                 "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"],
   "Resource": ["arn:aws:s3:::$bucket/*"]}]}
JSON
mc --quiet admin user add store "$user" "$(cat "$secrets/htd_s3_secret_key")"
mc --quiet admin policy create store heterotissue /tmp/policy.json
# mc fails if the policy is attached already; that is fine here.
mc --quiet admin policy attach store heterotissue --user "$user" || \
    mc --quiet admin user info store "$user" | grep -q heterotissue

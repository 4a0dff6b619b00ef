#!/bin/sh
# Makes the bucket, and for each service a user who may use what its policy names and nothing else.
# Another run brings keys and policies up to date.
set -eu

secrets=/run/secrets
policies=${POLICIES:-/policies}
store=${HTD_STORE#s3://}
bucket=${store%%/*}
prefix=${store#"$bucket"}  # empty, or /some/prefix
prefix=${prefix#/}
prefix=${prefix%/}
export MC_CONFIG_DIR=/tmp

tries=0
until mc --quiet alias set store "$HTD_S3_ENDPOINT" \
    "$(cat "$secrets/s3/s3_root_user")" "$(cat "$secrets/s3/s3_root_password")"; do
    tries=$((tries + 1))
    [ "$tries" -lt 60 ] || exit 1
    sleep 1  # the server is starting
done
mc --quiet mb --ignore-existing "store/$bucket"
for policy in "$policies"/*.json; do
    service=$(basename "$policy" .json)
    user=$(cat "$secrets/$service/htd_s3_access_key")
    sed "s|BUCKET|$bucket|g; s|PREFIX|$prefix${prefix:+/}|g" "$policy" >/tmp/policy.json
    mc --quiet admin user add store "$user" "$(cat "$secrets/$service/htd_s3_secret_key")"
    mc --quiet admin policy create store "heterotissue-$service" /tmp/policy.json
    # mc fails if the policy is attached already; that is fine here.
    mc --quiet admin policy attach store "heterotissue-$service" --user "$user" || \
        mc --quiet admin user info store "$user" | grep -q "heterotissue-$service"
done

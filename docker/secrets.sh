#!/bin/sh
# Draws the secrets that are missing in secrets/, and copies .env.example to .env.
# Containers run under other users: all may read the files, but only the owner may enter the folder.
set -eu
cd "$(dirname "$0")/.."
umask 077
mkdir -p secrets
chmod 700 secrets

draw() { # name, value
    if [ ! -s "secrets/$1" ]; then
        printf '%s' "$2" >"secrets/$1"
        chmod 444 "secrets/$1"
    fi
}
random() { od -An -N20 -tx1 /dev/urandom | tr -d ' \n'; }

draw redis_password "$(random)"
draw htd_broker_url "redis://:$(cat secrets/redis_password)@redis:6379/0"
draw s3_root_user "root-$(random | cut -c1-8)"
draw s3_root_password "$(random)"
draw htd_s3_access_key "heterotissue-$(random | cut -c1-8)"
draw htd_s3_secret_key "$(random)"
draw grafana_password "$(random)"
[ -e .env ] || cp .env.example .env
chmod 600 .env

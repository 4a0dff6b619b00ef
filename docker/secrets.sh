#!/bin/sh
# Draws the secrets that are missing in secrets/, a folder for each service with what it may read,
# and copies .env.example to .env.
# Only the owner may enter secrets/. Containers run under other users, so that the files are
# readable there for all; run by root, each file belongs to its container's user alone (0400).
set -eu
cd "$(dirname "$0")/.."
umask 022
mkdir -p secrets
chmod 700 secrets

give() { # uid, folder, name, value
    mkdir -p "secrets/$2"
    if [ ! -s "secrets/$2/$3" ]; then
        printf '%s' "$4" >"secrets/$2/$3"
    fi
    if [ "$(id -u)" = 0 ]; then
        chown "$1:$1" "secrets/$2" "secrets/$2/$3"
        chmod 400 "secrets/$2/$3"
        chmod 500 "secrets/$2"
    else
        chmod 444 "secrets/$2/$3"
    fi
}
random() { od -An -N20 -tx1 /dev/urandom | tr -d ' \n'; }

app=10001  # the user of our images
give 999 redis redis_password "$(random)"
give 0 s3 s3_root_user "root-$(random | cut -c1-8)"
give 0 s3 s3_root_password "$(random)"
give 472 grafana grafana_password "$(random)"
broker="redis://:$(cat secrets/redis/redis_password)@redis:6379/0"
for service in gateway reconciler ingest embed cluster train deploy synthesize image field evaluate triton; do
    give $app $service htd_s3_access_key "$service-$(random | cut -c1-8)"
    give $app $service htd_s3_secret_key "$(random)"
    [ $service = triton ] || give $app $service htd_broker_url "$broker"
done
give $app gateway htd_gateway_key "$(random)$(random)"  # signs tokens and sessions
[ -e .env ] || cp .env.example .env
chmod 600 .env

#!/bin/sh
# Starts Redis with the password from its file, so that it is on no command line.
set -eu
umask 077
printf 'requirepass %s\n' "$(cat /run/secrets/redis_password)" >/tmp/redis.conf
cat >>/tmp/redis.conf <<'CONF'
dir /data
appendonly yes
appendfsync everysec
save ""
maxmemory 700mb
maxmemory-policy noeviction
CONF
# A full Redis refuses new messages, and the reconciler sends them later. Evicting keys would lose
# messages and leases instead. The container's limit is 1 GiB: rewriting the log needs the rest.
exec redis-server /tmp/redis.conf

#!/bin/sh
# Starts Redis with the password from its file, which so appears on no command line.
set -eu
umask 077
printf 'requirepass %s\n' "$(cat /run/secrets/redis_password)" >/tmp/redis.conf
cat >>/tmp/redis.conf <<'CONF'
dir /data
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
CONF
exec redis-server /tmp/redis.conf

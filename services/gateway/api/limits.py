"""Rate limits of tokens and daily quotas of tenants, counted in Redis.

If Redis does not answer, requests are not rate-limited, and requests against a quota fail.
"""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal

from redis import Redis
from redis.exceptions import RedisError

from services.gateway.api.problems import ProblemError

Quota = Literal["images", "upload_bytes"]

WINDOW_SECONDS = 60
DAY_SECONDS = 86_400


class Limits:
    """Counts the requests of tokens and the quotas of tenants.

    Args:
        redis: holds the counters.
        requests: largest number of requests of one token per minute.
    """

    def __init__(self, redis: Redis, requests: int) -> None:
        self.redis = redis
        self.requests = requests

    def count_request(self, token: str) -> None:
        """Count a request of a token.

        Args:
            token: id of the token.

        Raises:
            ProblemError: the token has reached its limit for this minute (429).
        """
        window = int(time.time()) // WINDOW_SECONDS
        key = f"rate:{token}:{window}"
        with suppress(RedisError):
            count = int(self.redis.incr(key))
            if count == 1:
                self.redis.expire(key, WINDOW_SECONDS)
            if count > self.requests:
                wait = (window + 1) * WINDOW_SECONDS - int(time.time())
                raise ProblemError(
                    429,
                    "rate-limited",
                    f"this token has made {self.requests} requests within a minute",
                    remedy=f"wait {wait} s",
                    headers={"Retry-After": str(max(1, wait))},
                )

    def spend(self, tenant: str, quota: Quota, amount: int, limit: int | None) -> None:
        """Count `amount` against a tenant's quota of the day (UTC).

        Args:
            tenant: name of the tenant.
            quota: the quota.
            amount: number of images, or bytes.
            limit: largest sum of a day; None: no limit.

        Raises:
            ProblemError: the sum would exceed `limit` (429); nothing is counted then.
            RedisError: there is a limit, and Redis does not answer.
        """
        if limit is None:
            return
        key = f"quota:{tenant}:{quota}:{datetime.now(UTC):%Y-%m-%d}"
        spent = int(self.redis.incrby(key, amount))
        self.redis.expire(key, DAY_SECONDS)
        if spent > limit:
            self.redis.decrby(key, amount)
            raise ProblemError(
                429,
                "quota",
                f"{amount} {quota.replace('_', ' ')} exceed today's quota of tenant {tenant!r}: "
                f"{limit - spent + amount} of {limit} are left",
                remedy="ask for less, wait until tomorrow (UTC), or have the quota raised",
                headers={"Retry-After": str(DAY_SECONDS - int(time.time()) % DAY_SECONDS)},
            )

"""Rate limits of tokens and daily quotas of tenants, counted in Redis; and wrong tokens.

If Redis does not answer, neither requests nor sessions are limited, and requests against a quota
fail.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Literal

from redis import Redis
from redis.exceptions import RedisError

from services.gateway.api.problems import ProblemError

Quota = Literal["images", "upload_bytes"]

WINDOW_SECONDS = 60
DAY_SECONDS = 86_400
MAX_WRONG = 60
"""Number of wrong tokens that an address may send to the API within a minute."""

MAX_WRONG_LOG_INS = 10
"""Number of wrong tokens with which an address may try to log in within a minute."""

MAX_SESSIONS = 100
"""Number of the last sessions of a token that may be live."""

log = logging.getLogger(__name__)


class WrongTokens:
    """Counts the wrong tokens that this process is sent, by the sender's address.

    Args:
        most: number of them that an address may send within a minute.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._window = 0
        self._counts: Counter[str] = Counter()

    def check(self, address: str) -> None:
        """Raise `ProblemError` if an address has sent too many wrong tokens (429)."""
        now = time.time()
        window = int(now) // WINDOW_SECONDS
        if window != self._window:
            self._window, self._counts = window, Counter()
        if self._counts[address] >= self.most:
            wait = (window + 1) * WINDOW_SECONDS - int(now)
            raise ProblemError(
                429,
                "rate-limited",
                f"{address} has sent {self.most} wrong tokens within a minute",
                remedy=f"wait {wait} s",
                headers={"Retry-After": str(max(1, wait))},
            )

    def count(self, address: str) -> None:
        """Count and log a wrong token of an address. Raises as `check` does."""
        self.check(address)
        self._counts[address] += 1
        log.warning("%s sent a wrong token", address)


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

    def count_session(self, token: str, session: str) -> list[str]:
        """Count a session that has begun, and return those before the last `MAX_SESSIONS`.

        Args:
            token: id of the token that it began with.
            session: SHA-256 of the session's id.
        """
        key = f"sessions:{token}"
        with suppress(RedisError):
            count = int(self.redis.rpush(key, session))
            self.redis.expire(key, DAY_SECONDS)
            if count > MAX_SESSIONS:
                return [str(old) for old in self.redis.lpop(key, count - MAX_SESSIONS) or ()]
        return []

    @contextmanager
    def spending(self, tenant: str, quota: Quota, amount: int, limit: int | None) -> Iterator[None]:
        """Count `amount` against a tenant's quota of the day (UTC); an error gives it back.

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
            yield
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
        try:
            yield
        except BaseException:
            with suppress(RedisError):
                self.redis.decrby(key, amount)
            raise

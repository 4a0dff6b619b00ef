"""The HTTP API: REST below /v1, described by /openapi.json. See docs/api.md.

All state is in the object store; there is no database. Redis holds the counters of rate limits
and daily quotas, which may be lost. The API's own objects in the store are:

access/tokens/<sha256 of token>.json     TokenRecord; the token itself is not stored
access/revoked/<sha256 of token>.json    mark of a revoked token, which stays
access/tenants/<tenant>.json             TenantRecord
audit/<tenant>/<date>/<time>-<id>.json   one action of one token; never changed
idempotency/<sha256 of key>.json         the job of a request that had an Idempotency-Key
"""

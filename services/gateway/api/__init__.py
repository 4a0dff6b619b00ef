"""The HTTP API: REST below /v1, described by /openapi.json. See docs/api.md.

The object store is the truth here too: there is no database. Redis keeps rate limits and
the day's quotas, and may be lost.

access/tokens/<sha256>.json          TokenRecord; the token itself is not stored
access/tenants/<tenant>.json         TenantRecord
audit/<tenant>/<date>/<time>-<id>.json   one action of one token; never changed
idempotency/<key>.json               answer to a request with an Idempotency-Key
"""

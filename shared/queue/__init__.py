"""The queue: workers, the reconciler, and all that lives in Redis."""

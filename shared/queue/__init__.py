"""The queue: workers, the reconciler, and the state in Redis."""

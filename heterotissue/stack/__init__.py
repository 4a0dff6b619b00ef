"""The local stack: Redis, an S3 server, workers and the gateway as processes of this machine."""

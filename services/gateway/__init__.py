"""The gateway: the HTTP API and the web pages, the only service that clients reach."""

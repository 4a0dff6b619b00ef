"""The gateway: the HTTP API and the web pages. Clients reach no other service."""

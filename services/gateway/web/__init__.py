"""The web pages of the gateway: a module per section, templates, and scripts that call the API."""

"""The web pages: a module per page, templates, and scripts that call the API."""

"""The gateway's pages: a module for each, templates beside them, scripts that call the API."""

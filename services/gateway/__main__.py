"""Serve the HTTP API and the pages: `python -m services.gateway`.

`python -m services.gateway token` makes an administrator's token instead, and prints it.
"""

import sys

from services.gateway.server import print_token, serve
from shared.errors import HeteroTissueError
from shared.logging import configure_logging
from shared.settings import settings

configure_logging(settings().log_level, settings().log_format)
try:
    if sys.argv[1:] == ["token"]:
        print_token(settings())
    elif sys.argv[1:]:
        sys.exit("usage: python -m services.gateway [token]")
    else:
        serve(settings())
except HeteroTissueError as error:
    sys.stderr.write(f"{error}\n")
    sys.exit(2)

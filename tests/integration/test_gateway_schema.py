"""Generated requests against the OpenAPI document: no 5xx, no status that it does not name.

`make test-api` makes more than ten thousand of them.
"""

from __future__ import annotations

import os
import random
from contextlib import suppress
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from shared.settings import Settings
from tests.gateway import Gateway
from tests.models import publish_toy_model
from tests.region_sets import make_region_set
from tests.unit.test_gateway_datasets import BODY

KNOWN = {
    "dataset": "d", "model": "toy", "version": "1", "name": "toy", "slide": "slide-a",
    "study": "s", "reader": "r1",
}  # fmt: skip
"""Names of things that are there, for half of the requests."""

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = int(os.environ.get("API_EXAMPLES", "3"))
"""For each operation, of requests that fit and as many that do not."""

QUIET = {
    "derandomize": "API_EXAMPLES" not in os.environ,  # the same few in every run, or ever new ones
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_the_api_answers_as_it_says(config: Settings, tmp_path: Path, mode: GenerationMode) -> None:
    gateway = Gateway(tmp_path, config.broker_url.get_secret_value())
    publish_toy_model(gateway.resources.root, make_region_set(gateway.resources.root))
    gateway.work(gateway.client.post("/v1/datasets", json=BODY).json()["job"])
    gateway.client.put("/v1/slides/slide-a/source/a.svs", content=b"no slide")
    study = {"study": "s", "real": [{"regions": "toy"}], "synthetic": ["d"], "images": 2}
    made = gateway.client.post("/v1/reader-studies", json=study | {"readers": ["Ann"]}).json()
    reader = f"Bearer {made['links'][0]['token']}"
    headers = {"Authorization": gateway.client.headers["Authorization"], "Prefer": "wait=0"}
    schema = schemathesis.openapi.from_asgi("/openapi.json", gateway.app)
    for operation in (found.ok() for found in schema.get_all_operations()):

        @settings(max_examples=EXAMPLES, **QUIET)
        @given(case=operation.as_strategy(generation_mode=mode))
        def answers(case: Case) -> None:
            dice = random.Random(repr(case.path_parameters))  # noqa: S311 - no secret
            for name in KNOWN.keys() & case.path_parameters.keys():
                if dice.random() < 0.5:
                    case.path_parameters[name] = KNOWN[name]
            own = {"Authorization": reader} if case.path.startswith("/v1/reading") else {}
            case.call_and_validate(checks=CHECKS, headers=headers | own)

        with suppress(Unsatisfiable):  # an operation without input has none that does not fit
            answers()

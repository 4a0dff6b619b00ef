"""What requests over HTTP may name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from services.gateway.api.paths import check_names, check_paths
from services.gateway.api.problems import ProblemError
from shared.contracts.base import Opens, Request
from shared.contracts.embed import SHIPPED_ENCODERS
from shared.contracts.explaining import models_of
from shared.contracts.gateway import SlideReference
from shared.contracts.requests import REQUESTS
from shared.contracts.tenants import FOLDERS
from shared.encoders import REGISTRY

FREE = {
    "sha256", "labels_sha256", "patient", "site", "items.name", "label_names", "label_order",
    "imported_sha256", "imported_sha256.keys", "imported_widths.keys", "proportions.keys",
    "label_names.keys",
    "ClusterRequest.encoder",  # the name of a folder, in which all signs but ._- are replaced
    "slides.parts",  # paths below the folder of the main file
    "warm_start",  # a checkpoint of the package, or a version of the tenant's models
    "encoder_weights.keys", "references.keys",
}  # fmt: skip
"""Texts of requests by which a worker opens nothing beyond the tenant's own objects."""


def ask(kind: str, **fields: Any) -> Request:
    bodies: dict[str, dict[str, Any]] = {
        "ingest": {"cohort": "c", "classes": None},
        "embed": {"cohort": "c"},
        "cluster": {"run": "r", "cohort": "c"},
        "train": {"run": "r", "model": "m", "regions": "s"},
        "evaluate": {"report": "r", "dataset": "d"},
    }
    return REQUESTS[kind].model_validate(bodies[kind] | fields)


def recipe(**vae: Any) -> dict[str, Any]:
    return {"name": "x", "vae": {"steps": 1} | vae}


HOSTILE = (
    "/etc/passwd", "~root/x", "../beta/x", "a/../../x", "a\\b", "tenants/beta/x", "TENANTS/beta/x",
    "./tenants/beta/x", "tenants//beta", "tenants", "tenants/", "access/tokens/x", "audit/x",
    "triton/beta.m-1-sampler/x", "", ".", "a//b", "a\x00b", "x" * 1025, "file:///etc/passwd",
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_files_are_keys_of_the_tenants_own_store(name: str) -> None:
    slide = {"slide": "a", "source": "slides/a/source/a.svs"}
    asked: list[Any] = [
        ask("ingest", slides=[slide | {"source": name}]),
        ask("ingest", slides=[slide | {"labels": name}], classes=classes()),
        ask("ingest", tiles=name, classes=classes()),
        ask("embed", encoder="random", weights=name),
        ask("embed", encoder="random", imported=name),
        ask("evaluate", encoder_weights={"embedded": name}),
        ask("evaluate", references={"embedded": name}),
    ]
    if len(name) <= 1024:
        asked.append(SlideReference(slide="a", source=name))
    for request in asked:
        with pytest.raises(ProblemError):
            check_paths(request, ())


def classes() -> dict[str, Any]:
    names = ("background", "tumor")
    return {"items": [{"index": i, "name": n, "color": [0, i, 0]} for i, n in enumerate(names)]}


NETWORKS = (
    "no/such/folder", "out/store/tenants/beta/models/m/1/vae", "stabilityai/sd-vae-ft-mse", "tests",
    ".", "", "./x", "services/train", "file:x", "http://127.0.0.1:1/x", "hf-hub:owner/name",
    "hf_hub:owner/name", "local-dir:/etc", "local-dir:tests", "timm:x", "resnet18", "uni_v2",
    "tu-hf-hub:owner/name", "tu-local-dir:tests", "Embedded", " embedded", "models/m/1/vae",
)  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_those_of_the_package_or_of_the_operators_list(name: str) -> None:
    asked = [
        ask("train", recipe=recipe(pretrained=name)),
        ask("train", recipe=recipe(perceptual=name)),
        ask("embed", encoder=name),
        ask("evaluate", encoders=["embedded", name]),
    ]
    if ":" in name or "/" in name:  # a name without them is a network with random weights
        asked.append(ask("evaluate", segmenter_encoder=name))
        asked.append(ask("embed", encoder=name, weights="slides/a/w.safetensors"))
    for request in asked:
        with pytest.raises(ProblemError, match="networks"):
            check_paths(request, ("another",))
        if name not in HOSTILE:
            check_paths(request, ("another", name))


def test_what_is_at_hand_is_taken() -> None:
    for request in (
        ask("ingest", slides=[{"slide": "a", "source": "slides/a/source/a.svs"}]),
        ask("train", recipe=recipe(pretrained="embedded", perceptual="efficientnet-lite1")),
        ask("embed", encoder="resnet18", weights="slides/a/source/w.safetensors"),
        ask("embed", encoder="hf-hub:owner/name", imported="features/theirs/"),
        ask("cluster", encoder="hf-hub:owner/name"),
        ask("evaluate", encoders=["resnet18"], encoder_weights={"resnet18": "w.safetensors"}),
        *(ask("evaluate", segmenter_encoder=name) for name in ("resnet18", "tu-resnet18")),
        *(ask("embed", encoder=name) for name in SHIPPED_ENCODERS),
    ):
        check_paths(request, ())
    packaged = {name for name, known in REGISTRY.items() if known.package}
    assert packaged | {"embedded", "random"} == SHIPPED_ENCODERS


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_nothing_of_a_tenant_is_called_like_a_folder(name: str) -> None:
    slide = {"slide": "a", "stored_as": name, "source": "slides/a/source/a.svs"}
    for request in (
        ask("ingest", cohort=name, slides=[slide | {"stored_as": "a"}]),
        ask("ingest", slides=[slide]),
        ask("train", model=name, recipe=recipe()),
        ask("train", version=name, recipe=recipe()),
        ask("cluster", run=name),
        ask("evaluate", report=name),
    ):
        with pytest.raises(ProblemError, match="folder of the store"):
            check_names(request)
    check_names(ask("train", recipe=recipe()))


def test_every_text_of_every_request_says_what_it_opens() -> None:
    for kind in REQUESTS.values():
        for place, marks in _texts(kind, kind.__name__):
            bounded = any(getattr(mark, "pattern", None) for mark in marks)
            opens = any(isinstance(mark, Opens) for mark in marks)
            free = any(place.endswith(f".{each}") or place == each for each in FREE)
            assert bounded or opens or free, place


def _texts(kind: type[BaseModel], place: str) -> Iterator[tuple[str, list[Any]]]:
    for name, field in kind.model_fields.items():
        where = f"{place}.{name}"
        for suffix, marks in _plain(field.annotation, list(field.metadata)):
            yield where + suffix, marks
        for inner in models_of(field.annotation):
            yield from _texts(inner, where)


def _plain(annotation: Any, marks: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    if annotation is str:
        yield "", marks
    elif get_origin(annotation) is dict:
        keys, values = get_args(annotation)
        yield from ((f"{place}.keys", own) for place, own in _plain(keys, marks))
        yield from _plain(values, marks)
    elif hasattr(annotation, "__metadata__"):
        yield from _plain(get_args(annotation)[0], marks + list(annotation.__metadata__))
    elif get_origin(annotation) is not Literal:
        for part in get_args(annotation):
            yield from _plain(part, marks)

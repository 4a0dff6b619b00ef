"""Check what requests over HTTP name: objects of the caller's tenant, and networks at hand."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, get_args

from services.gateway.api.problems import ProblemError, pointer
from shared.contracts.base import NAME_PATTERN, Contract, Opens, Request
from shared.contracts.embed import SHIPPED_ENCODERS, EmbedRequest
from shared.contracts.evaluate import EvaluateRequest
from shared.contracts.ingest import IngestRequest
from shared.contracts.recipe import EMBEDDED_VAE
from shared.contracts.tenants import FOLDERS, is_path, is_reserved
from shared.errors import InputError
from shared.storage import check_key

Place = tuple[str | int, ...]

SHIPPED = {
    Opens.ENCODER: SHIPPED_ENCODERS,
    Opens.SEGMENTER: SHIPPED_ENCODERS,
    Opens.VAE: {EMBEDDED_VAE},
}
"""Networks that are in the package."""


def check_paths(request: Contract, listed: Collection[str]) -> None:
    """Refuse a request that names a path, another tenant's object, or a network that is not listed.

    The command line accepts all of them in the same requests, because its user owns the files.

    Args:
        request: the request.
        listed: networks that may be named beyond those in the package (HTD_GATEWAY_NETWORKS).

    Raises:
        ProblemError: a field holds such a name; the problem document names the field (422).
    """
    for place, text, kind in named(request):
        if is_path(text):
            raise _refused(
                place,
                f"{text!r} is a path; over HTTP, files are named by their keys in the store",
                "upload the file, and give its key",
            )
        if is_reserved(text if kind is not Opens.FILE else f"{text}/"):
            raise _refused(
                place,
                f"{text!r} is not a key of your tenant",
                "name one of your tenant's objects, such as 'slides/a/source/a.svs'",
            )
        if kind is Opens.FILE:
            try:
                check_key(text.removesuffix("/"))
            except InputError as error:
                raise _refused(place, str(error), "upload the file, and give its key") from error
        elif kind is not None and not _is_at_hand(request, text, kind, listed):
            raise _refused(
                place,
                f"{text!r} is not among the networks that requests over HTTP may name",
                f"take one of {', '.join(sorted({*SHIPPED[kind], *listed}))}, or ask whoever runs "
                "the gateway to list it in HTD_GATEWAY_NETWORKS",
            )


def check_names(request: Request) -> None:
    """Refuse a tenant's request for results or slides that are called like a folder of the store.

    Raises:
        ProblemError: a name is one of `FOLDERS` (422).
    """
    made = [part for product in request.products() for part in product.split("/")[1:]]
    slides = request.slides if isinstance(request, IngestRequest) else ()
    for name in (*made, *(slide.folder for slide in slides)):
        if name in FOLDERS:
            raise ProblemError(
                422,
                "invalid",
                f"{name!r} is the name of a folder of the store, so nothing of a tenant can be "
                "called so",
                remedy="choose another name",
            )


def _is_at_hand(request: Contract, name: str, kind: Opens, listed: Collection[str]) -> bool:
    """Say whether a worker has a network without looking for it on its disk or on a hub."""
    if name in SHIPPED[kind] or name in listed:
        return True
    if kind is Opens.SEGMENTER:  # starts from random weights
        built = True
    elif isinstance(request, EmbedRequest):
        if request.imported is not None:
            return True  # only the name of the features
        built = request.weights is not None
    else:
        built = isinstance(request, EvaluateRequest) and name in request.encoder_weights
    return built and kind is not Opens.VAE and re.fullmatch(NAME_PATTERN, name) is not None


def named(request: Contract) -> Iterator[tuple[Place, str, Opens | None]]:
    """Yield all texts of a request: their place, the text, and what a worker opens by it."""
    for name, field in type(request).model_fields.items():
        kinds = [each for each in field.metadata if isinstance(each, Opens)]
        kind = next(iter(kinds), None) or _kind(field.annotation)
        yield from _texts(getattr(request, name), (name,), kind)


def _kind(annotation: Any) -> Opens | None:
    """Return what a type says that its texts open, such as `dict[str, FileName] | None`."""
    if isinstance(annotation, Opens):
        return annotation
    return next(filter(None, map(_kind, get_args(annotation))), None)


def _texts(
    value: Any, place: Place, kind: Opens | None
) -> Iterator[tuple[Place, str, Opens | None]]:
    if isinstance(value, str):
        yield place, value, kind
    elif isinstance(value, Contract):
        yield from (((*place, *inner), text, own) for inner, text, own in named(value))
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _texts(part, (*place, name), kind)
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _texts(part, (*place, number), kind)


def _refused(place: Place, why: str, remedy: str) -> ProblemError:
    return ProblemError(422, "invalid", why, remedy=remedy, pointer=pointer(*place))

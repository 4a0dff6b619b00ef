"""/v1/reader-studies: make and evaluate reader studies. /v1/reading: answer them as a reader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from services.gateway.api.access import Caller, MayGenerate, Sender, address_of, resources_of
from services.gateway.api.json_bodies import JsonRoute
from services.gateway.api.paging import Cursor, Limit, page
from services.gateway.api.problems import ProblemError, blaming, documented, returning
from services.gateway.api.resources import Resources
from services.gateway.reader_study.links import drop_links, find_link, make_link
from services.gateway.reader_study.readings import (
    Desk,
    SubmittedError,
    UnansweredError,
    UnknownImageError,
)
from services.gateway.reader_study.records import StudyRecord
from services.gateway.reader_study.results import results_csv, study_results
from services.gateway.reader_study.sets import real_set, synthetic_set
from services.gateway.reader_study.studies import (
    delete_study,
    find_study,
    make_study,
    study_status,
)
from shared.contracts.base import Name
from shared.contracts.reader_study import (
    AnswerBody,
    ImageId,
    NewStudy,
    ReaderLink,
    Reading,
    StudyBody,
    StudyPage,
    StudyResults,
    StudyStatus,
)
from shared.queue.redis_state import RedisLeases
from shared.storage import Store

LEASE_SECONDS = 30

router = APIRouter(prefix="/v1", tags=["reader studies"], route_class=JsonRoute)

StudyName = Annotated[Name, Path(description="name of the study")]
ReaderId = Annotated[str, Path(pattern=r"^r\d{1,2}$", description="id of the reader: r1, r2, …")]

_bearer = HTTPBearer(
    auto_error=False, scheme_name="Reader", description="the token of a reader's link"
)


@dataclass(frozen=True)
class OwnStudy:
    """A study of the caller's tenant."""

    caller: Caller
    record: StudyRecord


def find_own(caller: Caller, study: str) -> OwnStudy:
    """Find a study of the caller's tenant. Raises `ProblemError` if there is none (404)."""
    record = find_study(caller.store, study)
    if record is None:
        raise ProblemError(
            404,
            "no-study",
            f"there is no reader study {study!r}",
            remedy="GET /v1/reader-studies lists those there are",
        )
    return OwnStudy(caller, record)


def _own_study(caller: MayGenerate, study: StudyName) -> OwnStudy:
    return find_own(caller, study)


Own = Annotated[OwnStudy, Depends(_own_study)]


@router.post("/reader-studies", status_code=201, responses=documented(409))
def make_reader_study(body: StudyBody, caller: MayGenerate, response: Response) -> NewStudy:
    """Make a blinded reader study; only this answer contains the readers' links."""
    with RedisLeases(caller.resources.redis, LEASE_SECONDS).hold(
        f"reader-study/{caller.token.tenant}/{body.study}"
    ) as held:
        if not held or find_study(caller.store, body.study) is not None:
            raise ProblemError(
                409,
                "study-exists",
                f"reader study {body.study!r} "
                + ("exists already" if held else "is being made at this moment"),
                remedy="choose another name",
                pointer="#/study",
            )
        record = _make(caller.store, body)
    caller.audit("make reader study", study=record.study, readers=list(record.readers.values()))
    response.headers["Location"] = f"/v1/reader-studies/{record.study}"
    response.headers["Cache-Control"] = "no-store"
    return NewStudy(
        status=study_status(caller.store, record),
        links=tuple(_link(caller, record, reader) for reader in record.readers),
    )


def _make(store: Store, body: StudyBody) -> StudyRecord:
    sets = []
    for number, selection in enumerate(body.real):
        with blaming(f"#/real/{number}"):
            sets.append(real_set(store, selection))
    for number, dataset in enumerate(body.synthetic):
        with blaming(f"#/synthetic/{number}"):
            sets.append(synthetic_set(store, dataset))
    with blaming("#/images"):
        return make_study(store, body, sets)


def _link(caller: Caller, record: StudyRecord, reader: str) -> ReaderLink:
    token = make_link(caller.resources.records, caller.token.tenant, record.study, reader)
    return ReaderLink(
        reader=reader, name=record.readers[reader], token=token, path=f"/read#{token}"
    )


@router.get("/reader-studies")
def list_reader_studies(caller: MayGenerate, limit: Limit = 50, cursor: Cursor = None) -> StudyPage:
    """List reader studies by name."""

    def read(name: str) -> StudyStatus | None:
        record = find_study(caller.store, name)
        return study_status(caller.store, record) if record is not None else None

    items, following = page(caller.store.folders("reader_studies/"), cursor, limit, read)
    return StudyPage(items=items, next=following)


@router.get("/reader-studies/{study}", responses=documented(404))
def show_reader_study(own: Own) -> StudyStatus:
    """Return a study's status: its image sets, and the progress of its readers."""
    return study_status(own.caller.store, own.record)


@router.delete("/reader-studies/{study}", status_code=204, responses=documented(404))
def delete_reader_study(own: Own) -> None:
    """Delete a study with its pictures, answers and links."""
    caller, study = own.caller, own.record.study
    drop_links(caller.resources.records, caller.token.tenant, study)
    delete_study(caller.store, study)
    caller.audit("delete reader study", study=study)


@router.post(
    "/reader-studies/{study}/readers/{reader}/link", status_code=201, responses=documented(404)
)
def renew_reader_link(own: Own, reader: ReaderId, response: Response) -> ReaderLink:
    """Give a reader a new link, and revoke the old one; the reader's answers stay."""
    caller, record = own.caller, own.record
    if reader not in record.readers:
        raise ProblemError(404, "no-reader", f"study {record.study!r} has no reader {reader!r}")
    drop_links(caller.resources.records, caller.token.tenant, record.study, reader)
    caller.audit("renew reader link", study=record.study, reader=reader)
    response.headers["Cache-Control"] = "no-store"
    return _link(caller, record, reader)


@router.get("/reader-studies/{study}/results", responses=documented(404))
def show_study_results(own: Own) -> StudyResults:
    """Return the results of a study from the answers so far."""
    return study_results(own.caller.store, own.record)


@router.get(
    "/reader-studies/{study}/answers.csv",
    response_class=Response,
    responses=documented(404) | returning("text/csv"),
)
def download_answers(own: Own) -> Response:
    """Download every answer of a study with the true origin of its image, as CSV."""
    name = f"{own.record.study}.csv"
    return Response(
        results_csv(own.caller.store, own.record),
        media_type="text/csv",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


def _desk(
    request: Request,
    resources: Annotated[Resources, Depends(resources_of)],
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Desk:
    link = find_link(resources.records, credentials.credentials) if credentials else None
    store = resources.ledger(link.tenant).store if link else None
    record = find_study(store, link.study) if link and store else None
    if link is None or store is None or record is None:
        if credentials:
            resources.wrong.count(address_of(request))
        raise ProblemError(
            401,
            "no-reading",
            "this link opens no reader study",
            remedy="open the link as it was sent to you, or ask for a new one",
            headers={"WWW-Authenticate": "Bearer"},
        )
    resources.limits.count_request(link.id)
    request.state.sender = Sender(link.id, link.tenant)
    return Desk(store, record, link.reader)


ReaderDesk = Annotated[Desk, Depends(_desk)]
Image = Annotated[ImageId, Path(description="id of an image in the reader's series")]


def _no_image(error: UnknownImageError) -> ProblemError:
    return ProblemError(404, "no-image", str(error), remedy="GET /v1/reading lists the series")


@router.get("/reading")
def show_reading(desk: ReaderDesk, response: Response) -> Reading:
    """Return a reader's series of images, with the answers so far."""
    response.headers["Cache-Control"] = "no-store"
    return desk.reading()


@router.get(
    "/reading/images/{image}",
    response_class=Response,
    responses=documented(404) | returning("image/jpeg"),
)
def show_reading_image(desk: ReaderDesk, image: Image) -> Response:
    """Return an image of the series as JPEG; all images have equal size, in pixels and bytes.

    No image says that it is synthetic, as readers are to judge that; the study's record knows it.
    """
    try:
        picture = desk.picture(image)
    except UnknownImageError as error:
        raise _no_image(error) from error
    return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "no-store"})


@router.put("/reading/answers/{image}", responses=documented(404, 409))
def put_answer(desk: ReaderDesk, image: Image, body: AnswerBody) -> AnswerBody:
    """Save or change the answer for an image, as long as the series is not submitted."""
    try:
        return desk.answer(image, body)
    except UnknownImageError as error:
        raise _no_image(error) from error
    except SubmittedError as error:
        raise ProblemError(409, "submitted", str(error)) from error


@router.post("/reading/submit", responses=documented(409))
def submit_reading(desk: ReaderDesk) -> Reading:
    """Submit the series, which makes its answers final."""
    try:
        return desk.submit()
    except UnansweredError as error:
        raise ProblemError(
            409, "unanswered", str(error), remedy="give an answer for every image, then submit"
        ) from error

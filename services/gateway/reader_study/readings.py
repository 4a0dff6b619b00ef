"""The reader's side of a study: series, pictures and answers. This module never reads the key."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from services.gateway.reader_study.records import Series, StudyRecord, Submitted
from services.gateway.reader_study.studies import find_submitted, submission
from shared.contracts.reader_study import Answer, AnswerBody, Reading, ReadingImage, study_key
from shared.errors import InputError
from shared.storage import ObjectNotFoundError, Store

SUBMIT_SECONDS = 2.0
"""Time that a submission takes at most between its mark and its record."""


class SubmittedError(InputError):
    """An answer is sent after its series was submitted."""


class UnansweredError(InputError):
    """A series is submitted before all images have an answer."""


class UnknownImageError(InputError):
    """An image is requested that is not in the reader's series."""


class Desk:
    """The series of one reader, and everything that this reader may do.

    Args:
        store: holds the study.
        record: record of the study.
        reader: id of the reader (r1, r2, …).
    """

    def __init__(self, store: Store, record: StudyRecord, reader: str) -> None:
        self._store = store
        self._record = record
        self._reader = reader
        self._series = store.get_model(self._key(f"series/{reader}.json"), Series)

    def _key(self, name: str) -> str:
        return study_key(self._record.study, name)

    def reading(self) -> Reading:
        """Return the images that this reader judges, in their order, with the answers so far."""
        answers = read_answers(self._store, self._record.study, self._reader)
        return Reading(
            study=self._record.study,
            reader=self._record.readers[self._reader],
            size=self._record.size,
            mpp=self._record.mpp,
            submitted=self._submitted(),
            images=tuple(
                ReadingImage(
                    image=place.image,
                    answer=_as_body(answers[place.image]) if place.image in answers else None,
                )
                for place in self._series.places
            ),
        )

    def _submitted(self) -> bool:
        return find_submitted(self._store, self._record.study, self._reader) is not None

    def picture(self, image: str) -> bytes:
        """Return an image of the series as JPEG. Raises `UnknownImageError`."""
        return self._store.get(self._key(f"images/{self._picture(image)}.jpg"))

    def _picture(self, image: str) -> str:
        for place in self._series.places:
            if place.image == image:
                return place.picture
        raise UnknownImageError(f"this series has no image {image!r}")

    def answer(self, image: str, body: AnswerBody) -> AnswerBody:
        """Store the reader's answer to an image, and return the stored answer.

        An answer may be changed until the series is submitted; sending it twice changes nothing.
        A changed answer keeps the `seconds` of the first one.

        Raises:
            UnknownImageError: the series has no such image.
            SubmittedError: the series was submitted.
        """
        self._picture(image)
        if self._submitted():
            raise SubmittedError("this series was submitted, so its answers are final")
        key = self._key(f"answers/{self._reader}/{image}.json")
        try:
            before = self._store.get_model(key, Answer)
        except ObjectNotFoundError:
            before = None
        stored = Answer(**body.model_dump(), answered=datetime.now(UTC))
        if before is not None:
            stored = stored.model_copy(update={"seconds": before.seconds, "changed": True})
            if _content(before) == _content(stored):
                return _as_body(before)
        self._store.put_json(key, stored)
        # A submission reads the answers after it has put its mark, so that it has all answers that
        # were stored before the mark. Of a later one, only the submission itself can tell.
        if self._store.exists(self._mark) and self._final().get(image) != stored:
            raise SubmittedError("this series was submitted meanwhile, so its answers are final")
        return _as_body(stored)

    @property
    def _mark(self) -> str:
        return self._key(f"closed/{self._reader}")

    def _final(self) -> dict[str, Answer]:
        """Return the submitted answers; wait for a submission that has put its mark."""
        deadline = time.monotonic() + SUBMIT_SECONDS
        while True:
            submitted = submission(self._store, self._record.study, self._reader)
            if submitted is not None or time.monotonic() > deadline:
                return (submitted.answers if submitted else None) or {}
            time.sleep(0.02)

    def submit(self) -> Reading:
        """Submit the series, which makes the answers final; submitting it twice changes nothing.

        Raises:
            UnansweredError: some images have no answer yet.
        """
        reading = self.reading()
        left = sum(item.answer is None for item in reading.images)
        if left:
            raise UnansweredError(f"{left} of {len(reading.images)} images have no answer yet")
        if not reading.submitted:
            self._store.put(self._mark, b"")
            answers = read_answers(self._store, self._record.study, self._reader)
            record = Submitted(time=datetime.now(UTC), answers=answers)
            key = self._key(f"submitted/{self._reader}.json")
            self._store.create(key, record.model_dump_json().encode())
        return self.reading()


def read_answers(store: Store, study: str, reader: str) -> dict[str, Answer]:
    """Return a reader's answers: name of the image in the reader's series → answer.

    Once the reader has submitted, these are the submitted ones.
    """
    submitted = submission(store, study, reader)
    if submitted is not None and submitted.answers is not None:
        return dict(submitted.answers)
    prefix = study_key(study, f"answers/{reader}/")
    return {
        key.removeprefix(prefix).removesuffix(".json"): store.get_model(key, Answer)
        for key in store.list(prefix)
    }


def _content(answer: AnswerBody) -> tuple[str, int, str]:
    return answer.answer, answer.quality, answer.note


def _as_body(answer: Answer) -> AnswerBody:
    return AnswerBody.model_validate(answer.model_dump(include=set(AnswerBody.model_fields)))

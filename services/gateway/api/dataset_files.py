"""The files of a dataset, as its job has made them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, repeat
from pathlib import PurePosixPath

from services.gateway.api.streams import TarMember, check_made, made_file, read_made
from shared.contracts.gateway import ShardLink, Submission
from shared.contracts.jobs import WITHOUT_RESULT, JobResult, Marker
from shared.contracts.synthesize import PRIVATE, DatasetRecord, dataset_key
from shared.datasets.preview import PREVIEW_SAMPLES
from shared.datasets.samples import Sample, read_members
from shared.jobs import Ledger
from shared.jobs.markers import markers_of
from shared.storage import DamagedObjectError, ObjectNotFoundError, Store

LINK_SECONDS = 3600


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a dataset.

    What a finished dataset holds follows from its record. What its shards' markers say of them is
    compared with that: a marker may be gone, or be an older one from a backup.

    Attributes:
        ledger: jobs of the store that holds the dataset.
        submission: the job that makes it, and its request.
    """

    ledger: Ledger
    submission: Submission

    @property
    def store(self) -> Store:
        """The store that holds the files."""
        return self.ledger.store

    def _key(self, name: str) -> str:
        return dataset_key(self.submission.request.dataset, name)

    @cached_property
    def _ended(self) -> JobResult | None:
        return self.ledger.result(self.submission.job)

    @cached_property
    def _held(self) -> dict[str, str]:
        """The shards of a finished dataset, with their SHA-256; it is empty in older records."""
        if self._ended is None or self._ended.state in WITHOUT_RESULT:
            return {}
        key = self._key("dataset.json")
        data = read_made(self.store, key, self._ended.outputs.get(key))
        record = self.store.parse(key, data, DatasetRecord)
        return dict(zip(record.shards, record.digests or repeat(""), strict=False))

    def _check_held(self, key: str, digest: str | None) -> None:
        """Check a shard's SHA-256 in its marker (None: it has none) with the dataset's record.

        Raises:
            DamagedObjectError: the dataset is finished, and holds another shard.
        """
        if key in self._held and (digest is None or self._held[key] not in {"", digest}):
            raise DamagedObjectError(self.store, key, "its job has no record of it")

    def shards(self, after: str | None = None) -> Iterator[str]:
        """Yield the keys of finished shards, in order; those before `after` may be left out."""
        if self._held:
            yield from self._held
            return
        snapshot = self.ledger.snapshot(self.submission.job)
        plan = snapshot.plan
        for segment in plan.every if plan else ():
            if plan is None or not snapshot.count_done(segment):
                continue
            done, shards = snapshot.done_in(segment), plan.shards(segment)
            if after is None or self._shard_key(shards[-1].id) > after:
                yield from (self._shard_key(shard.id) for shard in shards if shard.id in done)

    def _shard_key(self, unit: str) -> str:
        return self._key(f"shards/{unit.removeprefix('shard-')}.tar")

    def _marker(self, key: str) -> Marker | None:
        """Return the marker of the shard that makes a file, by the number in the file's name.

        None: the shard is not done, or no shard makes such a file.

        Raises:
            DamagedObjectError: the finished dataset holds the shard, but its marker is gone.
        """
        path = PurePosixPath(key)
        if not path.stem.isdecimal():
            return None
        number = int(path.stem)
        if path.parent.name != "shards":  # it is of one image, in an export
            number //= self.submission.request.shard_size
        unit = f"shard-{number:06d}"
        shard, marker = self._shard_key(unit), None
        with suppress(ObjectNotFoundError):
            marker = self.ledger.marker(self.submission.job, unit)
        self._check_held(shard, marker.outputs.get(shard) if marker else None)
        return marker

    def link(self, key: str) -> ShardLink | None:
        """Return the link of a finished shard; None if it holds no image.

        Raises:
            DamagedObjectError: the shard is missing, or not as it was made.
        """
        marker, name = self._marker(key), PurePosixPath(key).name
        if marker is None or not marker.result["images"]:
            return None
        return ShardLink(
            shard=name,
            url=self.store.presign(key, LINK_SECONDS)
            or f"/v1/datasets/{self.submission.request.dataset}/files/shards/{name}",
            bytes=check_made(self.store, key, marker.outputs[key]),
            sha256=marker.outputs[key],
        )

    def digest(self, key: str) -> str | None:
        """Return the SHA-256 of a file as it was made; None: the job has no record of it.

        Raises:
            DamagedObjectError: the job must have made it.
        """
        if self._ended is not None and key in self._ended.outputs:
            return self._ended.outputs[key]
        marker = self._marker(key)
        return marker.outputs.get(key) if marker else None

    def first_samples(self, key: str) -> list[Sample]:
        """Read the first samples of a shard. Raises `DamagedObjectError`."""
        path = made_file(self.store, key, self.digest(key))
        try:
            with tarfile.open(path, mode="r|") as tar:
                members = (
                    (member.name, file.read())
                    for member in tar
                    if (file := tar.extractfile(member)) is not None
                )
                return list(islice(read_members(members), PREVIEW_SAMPLES))
        except (tarfile.TarError, KeyError) as error:
            raise DamagedObjectError(self.store, key, str(error)) from error

    def archive(self) -> list[TarMember]:
        """Return the files of a finished dataset's archive: those that its job says it has made.

        Raises:
            DamagedObjectError: one is missing, or is found not to be as it was made.
        """
        prefix = self._key("")
        sizes = {key: stat.size for key, stat in self.store.stats(prefix)}
        members = []
        for key, digest in sorted(self._made().items()):
            name = key.removeprefix(prefix)
            # The manifest repeats the rows of these tables.
            is_shard_table = name.startswith("shards/") and name.endswith(".parquet")
            if not key.startswith(prefix) or name in PRIVATE or is_shard_table:
                continue
            if key not in sizes or not self.store.fetches():
                check_made(self.store, key, digest)
            path = f"{self.submission.request.dataset}/{name}"
            members.append(TarMember(path, key, sizes[key], digest))
        return members

    def _made(self) -> dict[str, str]:
        """Return the key and the SHA-256 of each file that the job has made and kept."""
        snapshot = self.ledger.snapshot(self.submission.job)
        made: dict[str, str] = {}
        removed: set[str] = set()
        for segment in snapshot.plan.every if snapshot.plan else ():
            for unit, marker in markers_of(snapshot, segment).items():
                if marker is None:
                    key = self.ledger.key(snapshot.job, segment.marker(unit))
                    raise DamagedObjectError(self.store, key, "it is no marker")
                made |= marker.outputs
                removed.update(marker.removed)
        for key in self._held:
            self._check_held(key, made.get(key))
        if snapshot.result is not None:
            removed.update(snapshot.result.removed)
            made |= snapshot.result.outputs
            removed -= snapshot.result.outputs.keys()
        return {key: digest for key, digest in made.items() if key not in removed}

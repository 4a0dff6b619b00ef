"""The files of a dataset, as its job has made them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath

from services.gateway.api.streams import TarMember, check_made
from shared.contracts.gateway import ShardLink
from shared.contracts.synthesize import PRIVATE, dataset_key
from shared.datasets.preview import PREVIEW_SAMPLES
from shared.datasets.samples import Sample, read_members
from shared.jobs import Ledger
from shared.jobs.markers import markers_of
from shared.storage import DamagedObjectError, ObjectNotFoundError, Store

LINK_SECONDS = 3600


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a dataset.

    Attributes:
        ledger: jobs of the store that holds the dataset.
        job: id of the job that makes it.
        dataset: its name.
    """

    ledger: Ledger
    job: str
    dataset: str

    @property
    def store(self) -> Store:
        """The store that holds the files."""
        return self.ledger.store

    def shards(self, after: str | None = None) -> Iterator[str]:
        """Yield the keys of finished shards, in order; those before `after` may be left out."""
        snapshot = self.ledger.snapshot(self.job)
        plan = snapshot.plan
        for segment in plan.every if plan else ():
            if plan is None or not snapshot.count_done(segment):
                continue
            done, shards = snapshot.done_in(segment), plan.shards(segment)
            if after is None or self._shard_key(shards[-1].id) > after:
                yield from (self._shard_key(shard.id) for shard in shards if shard.id in done)

    def _shard_key(self, unit: str) -> str:
        return dataset_key(self.dataset, f"shards/{unit.removeprefix('shard-')}.tar")

    def link(self, key: str) -> ShardLink | None:
        """Return the link of a finished shard; None if it holds no image.

        Raises:
            DamagedObjectError: the shard is missing, or not as it was made.
        """
        name = PurePosixPath(key).name
        marker = self.ledger.marker(self.job, f"shard-{name.removesuffix('.tar')}")
        if not marker.result["images"]:
            return None
        return ShardLink(
            shard=name,
            url=self.store.presign(key, LINK_SECONDS)
            or f"/v1/datasets/{self.dataset}/files/shards/{name}",
            bytes=check_made(self.store, key, marker.outputs[key]),
            sha256=marker.outputs[key],
        )

    def digest(self, key: str) -> str | None:
        """Return the SHA-256 of a shard, or of a file of the whole dataset; None: of others."""
        ended = self.ledger.result(self.job)
        if ended is not None and key in ended.outputs:
            return ended.outputs[key]
        path = PurePosixPath(key)
        if str(path.parent) == dataset_key(self.dataset, "shards"):
            with suppress(ObjectNotFoundError):  # it is not done
                return self.ledger.marker(self.job, f"shard-{path.stem}").outputs.get(key)
        return None

    def first_samples(self, key: str) -> list[Sample]:
        """Read a shard only as far as its first samples. Raises `DamagedObjectError`."""
        try:
            with self.store.open(key) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
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
        prefix = dataset_key(self.dataset, "")
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
            members.append(TarMember(f"{self.dataset}/{name}", key, sizes[key], digest))
        return members

    def _made(self) -> dict[str, str]:
        """Return the key and the SHA-256 of each file that the job has made and kept."""
        snapshot = self.ledger.snapshot(self.job)
        made: dict[str, str] = {}
        removed: set[str] = set()
        for segment in snapshot.plan.every if snapshot.plan else ():
            for unit, marker in markers_of(snapshot, segment).items():
                if marker is None:
                    key = self.ledger.key(self.job, segment.marker(unit))
                    raise DamagedObjectError(self.store, key, "it is no marker")
                made |= marker.outputs
                removed.update(marker.removed)
        if snapshot.result is not None:
            removed.update(snapshot.result.removed)
            made |= snapshot.result.outputs
            removed -= snapshot.result.outputs.keys()
        return {key: digest for key, digest in made.items() if key not in removed}

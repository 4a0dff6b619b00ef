"""Series of images in a folder: an interrupted one is continued by the same request.

<name>.json     SeriesRecord
<name>.sha256   SHA-256 of each file of the images, as `sha256sum -c` reads them
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import ClassVar

from pydantic import Field, ValidationError

from shared.contracts.base import Contract, Seed
from shared.errors import InputError
from shared.storage import sha256, sha256_file
from shared.whole_files import write_whole


class SeriesRecord(Contract):
    """What a series is made from; it lies beside the images."""

    derived: ClassVar[frozenset[str]] = frozenset()
    """Fields that follow from the other ones."""

    model: str = Field(description="the model version")
    n: int = Field(ge=1, description="number of images or pairs; a larger one adds to the series")
    seed: Seed
    inputs: dict[str, str] = Field(description="what was read → its SHA-256")


def record_sha256(record: Contract) -> str:
    """Return the SHA-256 of a record; fields that later versions add do not change it."""
    return sha256(record.model_dump_json(exclude_defaults=True).encode())


class Series:
    """A folder of images of which each is kept once it is whole, and the others are made.

    Args:
        path: the file of the record, in the folder of the images.
        record: what the images are made from. It is written before the first of them.
        files: number of an image or pair → its files, by their names in the folder.
        names: pattern of the names that nothing else in the folder may have.

    Raises:
        InputError: the folder holds something of that name without a record, or the record of
            another request, or of more images, or another file in the place of an image.
    """

    def __init__(
        self, path: Path, record: SeriesRecord, files: Callable[[int], list[str]], names: str = "*"
    ) -> None:
        self.folder, self._path, self._record, self._files = path.parent, path, record, files
        self._list, self._made = path.with_suffix(".sha256"), dict[str, str]()
        self._begun = False
        if path.exists():
            self._check_same()
            self._made = self._listed()
            self._check_own()
        elif self.folder.is_dir():
            self._check_free(names)
        elif self.folder.exists():
            raise InputError(f"--out {self.folder} is a file: give a folder")

    def lacks(self, number: int) -> bool:
        """Whether a file of this image or pair is still to be made.

        Raises:
            InputError: one is not as it was written.
        """
        there = [name for name in self._files(number) if (self.folder / name).exists()]
        for name in there:
            if sha256_file(self.folder / name) != self._made[name]:
                raise InputError(
                    f"{self.folder / name} is not as this command wrote it: it is damaged or "
                    "another file. Move it, and run the command again, which makes it again"
                )
        return len(there) < len(self._files(number))

    def begin(self) -> None:
        """Make the folder and write the record, unless that is done."""
        if self._begun:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        text = self._record.model_dump_json(indent=1) + "\n"
        write_whole(self._path, text.encode())
        lines = "".join(map(_line, self._made, self._made.values()))
        write_whole(self._list, lines.encode())
        self._begun = True

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the series, after its digest: so what is not listed is not of it.

        Args:
            name: its path in the folder.
            data: its content.
        """
        self.begin()
        digest = sha256(data)
        if self._made.get(name) != digest:
            self._made[name] = digest
            with self._list.open("a", encoding="utf-8") as file:
                file.write(_line(name, digest))
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        write_whole(path, data)

    def _check_same(self) -> None:
        try:
            old = type(self._record).model_validate_json(self._path.read_bytes())
        except ValidationError as error:
            raise InputError(
                f"{self._path} does not say what the images beside it are made from, so they "
                "cannot be continued: choose another --out"
            ) from error
        if differing := list(_differences(old, self._record)):
            raise InputError(
                f"--out {self.folder} holds images of another request, which differs in "
                f"{', '.join(differing)}: repeat that request, or choose another folder"
            )

    def _listed(self) -> dict[str, str]:
        if not self._list.exists():
            return {}
        lines = self._list.read_text(encoding="utf-8", errors="replace").splitlines()
        return {line[66:]: line[:64] for line in lines if line[64:66] == "  "}

    def _check_own(self) -> None:
        for name in chain.from_iterable(map(self._files, range(self._record.n))):
            if name not in self._made and (self.folder / name).exists():
                raise InputError(
                    f"--out {self.folder} holds {name}, which was not made by this command, since "
                    f"{self._list.name} does not list it: move it, or choose another folder"
                )

    def _check_free(self, names: str) -> None:
        part = self._path.with_name(f"{self._path.name}.part")  # of a record that was cut off
        if found := {*self.folder.glob(names)} - {part}:
            raise InputError(
                f"--out {self.folder} is not empty: {min(found).name} was not made by this "
                f"command, since there is no {self._path.name}; choose another folder"
            )


def _line(name: str, digest: str) -> str:
    return f"{digest}  {name}\n"


def _differences(old: SeriesRecord, new: SeriesRecord) -> Iterator[str]:
    """Name what another request differs in."""
    for name in type(new).model_fields:
        was, now = getattr(old, name), getattr(new, name)
        if name == "n":
            if was > now:
                yield f"--n ({was} there; take as many, or more)"
        elif name == "inputs":
            every = sorted(was.keys() | now.keys())
            yield from (f"the {what}" for what in every if was.get(what) != now.get(what))
        elif name not in new.derived and was != now:
            yield f"--{name} ({was} there)"

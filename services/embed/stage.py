"""The embed stage: one shard per slide, or several and one that joins them.

If needed, a shard before them trains the embedded encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from pydantic import JsonValue

from services.embed.encoding import encode_patches, join_parts, part_count, read_corners
from services.embed.imported import (
    SUFFIXES,
    check_owner,
    checked,
    match_files,
    usual_width,
    widths_of,
)
from services.embed.training import fit_encoder
from shared.contracts.embed import (
    EmbedRequest,
    FeatureRecord,
    feature_record_key,
    features_key,
    part_key,
)
from shared.contracts.ingest import CohortRecord, cohort_key
from shared.encoders import REGISTRY, load_encoder
from shared.encoders.embedded import PatchNet
from shared.errors import InputError
from shared.features import BATCH, FeaturesFile, write_features
from shared.imaging.stored_slides import count_patches, read_record
from shared.jobs import Context, Plan, Shard, Stage
from shared.jobs.records import READERS
from shared.storage import (
    Store,
    check_room,
    content_hash,
    file_identity,
    file_size,
    sha256,
    sha256_file,
)

FIT = "fit-encoder"


class EmbedStage(Stage[EmbedRequest]):
    """Computes the features of a cohort's patches, or imports them from another tool."""

    name: ClassVar[str] = "embed"
    request = EmbedRequest

    def plan(self, request: EmbedRequest, context: Context) -> Plan:
        record = context.store.get_model(cohort_key(request.cohort), CohortRecord)
        if request.imported is not None:
            return Plan(phases=(_plan_import(request, record, context.store),))
        if request.encoder == "embedded":
            first: tuple[tuple[Shard, ...], ...] = ((_fit_shard(request, record),),)
            dim = 2 * PatchNet.WIDTHS[-1]
        else:
            first = ()
            dim = load_encoder(request.encoder, context.store, weights=request.weights).dim
        _check_room(context.store, record, dim)
        return Plan(phases=(*first, *_plan_slides(request, record, context.store)))

    def run(self, request: EmbedRequest, shard: Shard, context: Context) -> dict[str, Any]:
        record = context.store.get_model(cohort_key(request.cohort), CohortRecord)
        if shard.id == FIT:
            return fit_encoder(request, record, context)
        if request.imported is not None:
            return _import(request, record, shard, context)
        return _embed(request, record, shard, context)

    def finish(
        self, request: EmbedRequest, done: Mapping[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        slides = {name: part for name, part in sorted(done.items()) if "sha256" in part}
        licence = next(part["license"] for part in done.values() if "license" in part)
        # Files in the store may have a width that was not known before they were imported.
        usual = usual_width({name: part["dim"] for name, part in slides.items()})
        left_out = {
            name: f"features of width {part['dim']}, where most slides have {usual}"
            for name, part in slides.items()
            if part["dim"] != usual
        }
        slides = {name: part for name, part in slides.items() if name not in left_out}
        first = next(iter(slides.values()))
        record = FeatureRecord(
            encoder=request.encoder,
            cohort=request.cohort,
            dim=first["dim"],
            license=licence,
            slides={name: part["patches"] for name, part in slides.items()},
            sha256={name: part["sha256"] for name, part in slides.items()},
            patches={name: part["patches_sha256"] for name, part in slides.items()},
            max_white=request.max_white,
            min_sharpness=request.min_sharpness,
            filtered={name: found for name, part in slides.items() if (found := _filtered(part))},
        )
        context.store.put_json(feature_record_key(request.encoder, request.cohort), record)
        result: dict[str, Any] = {
            "slides": len(slides), "patches": sum(record.slides.values()), "dim": record.dim
        }  # fmt: skip
        if request.imported is not None:
            covered = min(part["covered"] for part in slides.values())
            result["own_patches_covered"] = f"{covered:.0%} or more"
            elsewhere = max(part.get("elsewhere", 0.0) for part in slides.values())
            result["where_slides_have_no_patch"] = f"{elsewhere:.0%} or less"
            doubts = {name: part["doubt"] for name, part in slides.items() if part.get("doubt")}
            result |= {"features of other places?": doubts} if doubts else {}
            result["left_out_at_edges"] = sum(part["over_the_edge"] for part in slides.values())
            taken = {part["file"] for part in slides.values()}
            unused = [n for n in _files(_place(request), context.store) if n not in taken]
            more = f" and {len(unused) - 10} more" if len(unused) > 10 else ""
            result |= {"files_not_used": ", ".join(unused[:10]) + more} if unused else {}
        result |= {"left_out": left_out} if left_out else {}
        result |= {"filtered_patches": record.filtered} if record.filtered else {}
        damaged = {name: part["damaged"] for name, part in slides.items() if part.get("damaged")}
        return result | ({"damaged_patches": damaged} if damaged else {})


def _shard(
    request: EmbedRequest,
    record: CohortRecord,
    slide: str,
    store: Store,
    weights: str | None,
    file: str | None = None,
    width: int | None = None,
    unclear: str | None = None,
) -> Shard:
    """Return the shard of a slide, with what its features follow from.

    Args:
        request: the request.
        record: the cohort.
        slide: name of the slide.
        store: holds imported files.
        weights: identity of the encoder's own weights, if there are any.
        file: file of imported features, if there is one.
        width: width that its features must have; None: any.
        unclear: why it is not clear which file is the slide's.
    """
    own = request.model_dump_json(exclude={"batch_size", "imported_sha256", "imported_widths"})
    reads = {
        "request": sha256(own.encode()),
        "slide": record.sha256[slide],
        "mpp": str(record.mpp.get(slide)),
        "patches": record.places.get(slide, ""),
    }
    if weights is not None:
        reads["weights"] = weights
    if file is not None:
        reads["imported"] = file_identity(store, file)
    args: dict[str, JsonValue] = {} if file is None else {"file": file, "width": width}
    if unclear is not None:
        args["unclear"] = unclear
    after = (FIT,) if request.encoder == "embedded" and request.imported is None else ()
    return Shard(
        id=slide,
        args=args,
        reads=reads if slide in record.places else None,
        after=after,
    )


def _plan_slides(
    request: EmbedRequest, record: CohortRecord, store: Store
) -> tuple[tuple[Shard, ...], ...]:
    """Make a shard for each slide; several for a large one, which a shard of a next phase joins."""
    weights = _weights(request, store)
    units: list[Shard] = []
    joins: list[Shard] = []
    for slide in sorted(record.splits):
        whole = _shard(request, record, slide, store, weights)
        count = part_count(count_patches(store, record, slide))
        if count == 1:
            units.append(whole)
            continue
        args: dict[str, JsonValue] = {"slide": slide, "parts": count}
        parts = [
            whole.model_copy(update={"id": f"part{part}-{slide}", "args": args | {"part": part}})
            for part in range(count)
        ]
        units += parts
        after = tuple(part.id for part in parts)
        joins.append(whole.model_copy(update={"args": args, "after": after}))
    return (tuple(units), tuple(joins)) if joins else (tuple(units),)


def _check_room(store: Store, record: CohortRecord, dim: int) -> None:
    """Raise `InputError` if the store has no room for features of width `dim`."""
    if store.free() is None:
        return
    patches = sum(count_patches(store, record, slide) for slide in record.splits)
    check_room(store, patches * (dim * 4 + 16), f"features of {patches:,} patches, {dim} wide")


def _fit_shard(request: EmbedRequest, record: CohortRecord) -> Shard:
    """Return the shard that trains the encoder; if the cohort grows, the encoder stays."""
    own = request.model_dump_json(exclude={"batch_size"})
    slides = {slide: record.sha256[slide] for slide in record.of_split("train")}
    return Shard(id=FIT, reads={"request": sha256(own.encode()), **slides}, grows=True)


def _plan_import(request: EmbedRequest, record: CohortRecord, store: Store) -> tuple[Shard, ...]:
    """Make a shard for each slide, with its file; the shard of a slide without a file fails."""
    place = _place(request)
    names = sorted(record.splits)
    with ThreadPoolExecutor(READERS) as pool:
        slides = dict(
            zip(names, pool.map(lambda name: read_record(store, record, name), names), strict=True)
        )
    files, unclear = match_files(_files(place, store), slides)
    if not files:
        raise InputError(
            "; ".join(dict.fromkeys(unclear.values()))
            or f"{place} lacks <slide>.h5 of {', '.join(slides)}, which cohort {request.cohort!r} "
            "needs: give the folder with the features of these slides"
        )
    widths = request.imported_widths
    if widths is None and Path(place).is_absolute():
        widths = widths_of(Path(place), files.values())
    taken = set(files.values())
    if store.free() is not None:
        needed = sum(file_size(store, f"{place}/{file}") for file in taken)
        check_room(store, needed, f"features of {len(files):,} slides")
    weights = _weights(request, store)
    usual = usual_width({name: own for name, own in (widths or {}).items() if name in taken})
    return tuple(
        _shard(
            request, record, name, store, weights,
            f"{place}/{files[name]}" if name in files else None, usual, unclear.get(name),
        )
        for name in slides
    )  # fmt: skip


def _weights(request: EmbedRequest, store: Store) -> str | None:
    return None if request.weights is None else file_identity(store, request.weights)


def _place(request: EmbedRequest) -> str:
    return str(request.imported).rstrip("/")


def _files(place: str, store: Store) -> list[str]:
    """List the HDF5 files of a folder or of a prefix in the store."""
    if Path(place).is_absolute():
        if not Path(place).is_dir():
            raise InputError(f"{place} is no folder that the worker sees")
        names = [path.name for path in Path(place).iterdir()]
    else:
        names = [key.removeprefix(f"{place}/") for key in store.list(f"{place}/")]
    return sorted(name for name in names if name.lower().endswith(SUFFIXES))


def _import(
    request: EmbedRequest, record: CohortRecord, shard: Shard, context: Context
) -> dict[str, Any]:
    """Read a slide's features as another tool wrote them, and write them in the usual format."""
    if "file" not in shard.args:
        missing = f"{request.imported} holds no {shard.id}.h5"
        raise InputError(str(shard.args.get("unclear", missing)))
    file, store = str(shard.args["file"]), context.store
    path = Path(file) if Path(file).is_absolute() else store.local(file)
    where = PurePosixPath(file).name
    if not path.is_file():
        raise InputError(f"{file} is not a file, or cannot be reached")
    expected = (request.imported_sha256 or {}).get(where)
    if expected is not None and content_hash(path) != expected:
        raise InputError(f"{where} has changed since the import began: run the command again")
    slide = read_record(store, record, shard.id)
    own = read_corners(store, record, shard.id)
    with FeaturesFile(path, where) as found:
        check_owner(where, found.slide, shard.id, slide)
        kept, places = checked(where, found, slide, record.patches, own)
        total, width, coords = len(found), found.dim, found.coords[kept]
        known = REGISTRY.get(request.encoder)
        if known is not None and width != known.dim:
            raise InputError(
                f"{where} has features of width {width}, but those of {request.encoder} have "
                f"{known.dim}: give the encoder that made them by --encoder"
            )
        usual = shard.args.get("width")
        if usual is not None and width != usual:
            raise InputError(
                f"{where} has features of width {width}, but most files have {usual}: is it of "
                "another encoder?"
            )
        with store.writing(features_key(request.encoder, request.cohort, shard.id)) as written:
            batches = (
                rows[kept[start : start + BATCH]]
                for start, rows in zip(range(0, total, BATCH), found.batches(), strict=True)
            )
            about = (slide, record.patches, request.encoder)
            write_features(written, coords, batches, width, *about)
            digest = sha256_file(written)
    return {
        "file": where,
        "patches": len(coords),
        "dim": width,
        "license": known.license if known else "unknown",
        "sha256": digest,
        "patches_sha256": record.patches_of(shard.id),
        "covered": places.covered,
        "elsewhere": places.elsewhere,
        "doubt": places.doubt,
        "over_the_edge": total - len(coords),
    }


def _embed(
    request: EmbedRequest, record: CohortRecord, shard: Shard, context: Context
) -> dict[str, Any]:
    """Encode a slide or a part of it, or join the parts of a slide."""
    name, parts = str(shard.args.get("slide", shard.id)), int(str(shard.args.get("parts", 1)))
    own = {"patches_sha256": record.patches_of(name)}
    if parts > 1 and "part" not in shard.args:
        dim, joined = join_parts(request, record, name, parts, context.store)
        return own | {"dim": dim} | joined.model_dump()
    encoder = load_encoder(
        request.encoder,
        context.store,
        cohort=request.cohort,
        weights=request.weights,
        device=context.device,
    )
    about = {"dim": encoder.dim, "license": encoder.license}
    if parts == 1:
        key = features_key(request.encoder, request.cohort, name)
        whole = encode_patches(request, record, name, encoder, key, context)
        return own | about | whole.model_dump()
    part = int(str(shard.args["part"]))
    key, beside = (
        part_key(request.encoder, request.cohort, name, part, suffix) for suffix in (".h5", ".json")
    )
    encoded = encode_patches(request, record, name, encoder, key, context, (part, parts))
    context.store.put_json(beside, encoded)
    return about


def _filtered(part: Mapping[str, Any]) -> dict[str, int]:
    """Return how many patches of a slide were filtered out, by fault, by what its shard says."""
    return {fault: part[fault] for fault in ("white", "blurred") if part.get(fault)}

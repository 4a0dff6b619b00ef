"""Descriptions of a dataset: a card for people and the Hugging Face hub, and Croissant metadata.

The front matter of the card names the WebDataset shards, so that
`datasets.load_dataset(folder)` opens the folder of a dataset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import PurePosixPath
from typing import Any

from shared.contracts.synthesize import DatasetRecord, Provenance, wanted_shares
from shared.datasets.cards import card_head

CROISSANT = "http://mlcommons.org/croissant/"
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": CROISSANT,
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "samplingRate": "cr:samplingRate",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The JSON-LD context of Croissant 1.0."""

KEY = r"^(\d+)"
"""Finds a sample's key in a file name, with its suffixes, or without them as in mlcroissant."""

CITATION = (
    "@inproceedings{alfasly2025heterotissue, author={Alfasly and others}, booktitle={NeurIPS}, "
    "title={HeteroTissue-Diffuse}, year={2025}, eprint={2509.17847}, archivePrefix={arXiv}}"
)
"""BibTeX of the method."""


def sample_features(weights: Sequence[str]) -> list[dict[str, Any]]:
    """Return the columns of the shards, as `datasets` names them in a card.

    Stated here, they do not depend on the first samples, in which a value may be missing.

    Args:
        weights: names of the model's files of weights.
    """
    schema = Provenance.model_json_schema()
    return [
        {"name": "json", "struct": _fields(schema, schema["$defs"], weights)},
        {"name": "mask.png", "dtype": "image"},
        {"name": "png", "dtype": "image"},
        {"name": "__key__", "dtype": "string"},
        {"name": "__url__", "dtype": "string"},
    ]


DTYPES = {"string": "string", "integer": "int64", "number": "float64", "boolean": "bool"}


def _fields(
    schema: dict[str, Any], defs: dict[str, Any], weights: Sequence[str]
) -> list[dict[str, Any]]:
    return [{"name": name} | _type(part, defs, weights) for name, part in
            schema["properties"].items()]  # fmt: skip


def _type(part: dict[str, Any], defs: dict[str, Any], weights: Sequence[str]) -> dict[str, Any]:
    """Return the type of a field, by its JSON schema."""
    if "anyOf" in part:  # or null
        part = next(each for each in part["anyOf"] if each.get("type") != "null")
    if "$ref" in part:
        part = defs[part["$ref"].rpartition("/")[2]]
    if part["type"] == "array":
        return {"list": _type(part["items"], defs, weights)["struct"]}
    if part["type"] == "object" and "properties" in part:
        return {"struct": _fields(part, defs, weights)}
    if part["type"] == "object":
        return {"struct": [{"name": name, "dtype": "string"} for name in weights]}
    return {"dtype": DTYPES[part["type"]]}


def dataset_card(record: DatasetRecord, weights: Sequence[str]) -> str:
    """Write a dataset's card: YAML front matter, then Markdown.

    Args:
        record: the dataset.
        weights: names of the model's files of weights.
    """
    files = [{"split": "train", "path": "shards/*.tar"}]
    head = card_head(
        record,
        tags=["histopathology", "synthetic", "webdataset"],
        size_categories=[_size_category(record.images)],
        dataset_info={"features": sample_features(weights)},
        configs=[{"config_name": "default", "data_files": files}],
    )
    request = record.request
    requested = wanted_shares(request.proportions, record.classes)
    rows = [
        f"| {item.index} | {item.name} | {_share(requested.get(item.index))} | "
        f"{_share(record.proportions.get(item.name))} |"
        for item in record.classes.items
    ]
    lines = [
        *head,
        "| label | class | requested share of labelled pixels | share in the dataset |",
        "|---|---|---|---|",
        *rows,
        "",
        "Each sample is `<key>.png` (RGB), `<key>.mask.png` (label indices) and `<key>.json`",
        "(its origin: map, crops, seed, sampling, weights) in the shards `shards/*.tar`;",
        "`manifest.parquet` has one row per image. Slides and regions have pseudonyms. Every PNG",
        "says in XMP that it is synthetic.",
        "",
        f"Maps: {'sampled by class shares of ' if request.maps.sampled else ''}"
        f"{request.maps.regions or 'the region set of the model'}, splits "
        f"{', '.join(request.maps.splits)}. Crops: "
        f"{request.crops.regions or 'the region set of the model'}, splits "
        f"{', '.join(request.crops.splits)}, slide: {request.crops.slide}. Seed {request.seed}.",
        record.bounds,
        record.terms,
    ]
    return "\n".join(lines) + "\n"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _size_category(images: int) -> str:
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"),
              (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))  # fmt: skip
    return next((name for bound, name in bounds if images < bound), "10M<n<100M")


def croissant(record: DatasetRecord, sha256: Mapping[str, str], published: date) -> dict[str, Any]:
    """Describe a dataset as Croissant 1.0 JSON-LD.

    Args:
        record: the dataset.
        sha256: file name → SHA-256 of `manifest.parquet` and of every shard.
        published: day on which the images were made.
    """
    files = [
        {
            "@type": "cr:FileObject",
            "@id": name,
            "name": PurePosixPath(name).name,
            "contentUrl": name,
            "encodingFormat": "application/x-tar"
            if name.endswith(".tar")
            else "application/x-parquet",
            "sha256": digest,
        }
        for name, digest in sorted(sha256.items())
    ]
    shards = [{"@id": name} for name in sorted(sha256) if name.endswith(".tar")]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": record.dataset,
        "description": record.description,
        "conformsTo": CROISSANT + "1.0",
        "license": record.origin.url if record.origin else "not stated: that of the slides",
        "citeAs": CITATION,
        "version": "1.0.0",
        "datePublished": published.isoformat(),
        **_responsible(record),
        "distribution": [
            *files,
            _file_set("images", "*[0-9].png", "image/png", shards),
            _file_set("masks", "*.mask.png", "image/png", shards),
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "samples",
                "name": "samples",
                "key": {"@id": "samples/key"},
                "field": [
                    _column("key", "sc:Text"),
                    _column("map_slide", "sc:Text"),
                    _column("seed", "sc:Integer"),
                ],
            },
            _pictures("images"),
            _pictures("masks"),
        ],
    }


def _responsible(record: DatasetRecord) -> dict[str, Any]:
    """Return the fields of Croissant's vocabulary for responsible AI (RAI)."""
    request = record.request
    splits = " and ".join(dict.fromkeys((*request.maps.splits, *request.crops.splits)))
    classes = record.classes.names[record.classes.first :]
    return {
        "rai:hasSyntheticData": True,
        "rai:dataCollection": (
            f"Every image was made by the latent diffusion model {record.model}, from a label map "
            f"and crops of real tissue of the {splits} split of its region sets. The label map "
            + (
                "was sampled, and has only the class shares of a real region"
                if request.maps.sampled
                else "is that of a real region, turned or mirrored"
            )
            + "; it was given to the model, not drawn on the image."
        ),
        "rai:dataCollectionType": ["Synthetic"],
        "rai:dataAnnotationProtocol": (
            "Label maps come from the annotations or tissue clusters of the real regions. How "
            "well images follow them is measured by 'htd evaluate' (faithfulness)."
        ),
        "rai:dataLimitations": (
            "For research, not for diagnosis. Images can differ from their label map, and can "
            "show structures that no tissue has. Figures that were reached on these images do not "
            "stand for figures on slides of patients."
        ),
        "rai:dataBiases": (
            "The dataset has the patients, scanners and stains of its source slides, and can "
            "exaggerate what is frequent there. Shares of the labelled pixels: "
            + ", ".join(f"{name} {record.proportions.get(name, 0):.3f}" for name in classes)
            + "."
        ),
        "rai:personalSensitiveInformation": (
            "Slides, patients and regions have pseudonyms. The images were made from tissue of "
            "patients, and a model can repeat parts of what it was trained on. " + record.bounds
        ),
        "rai:dataUseCases": (
            "Training and testing of segmentation models of histology, together with real images."
        ),
    }


def _file_set(
    name: str, pattern: str, media_type: str, containers: list[dict[str, str]]
) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        "containedIn": containers,
        "encodingFormat": media_type,
        "includes": pattern,
    }


def _column(name: str, kind: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"samples/{name}",
        "name": name,
        "dataType": kind,
        "source": {"fileObject": {"@id": "manifest.parquet"}, "extract": {"column": name}},
    }


def _pictures(files: str) -> dict[str, Any]:
    """Describe a record set of images, whose file names begin with the sample's key."""

    def field(name: str, kind: str, source: dict[str, Any]) -> dict[str, Any]:
        return {
            "@type": "cr:Field",
            "@id": f"{files}/{name}",
            "name": name,
            "dataType": kind,
            "source": {"fileSet": {"@id": files}} | source,
        }

    names = {"extract": {"fileProperty": "filename"}, "transform": {"regex": KEY}}
    return {
        "@type": "cr:RecordSet",
        "@id": f"{files}-of-samples",
        "name": f"{files}-of-samples",
        "field": [
            field("key", "sc:Text", names) | {"references": {"field": {"@id": "samples/key"}}},
            field("pixels", "sc:ImageObject", {"extract": {"fileProperty": "content"}}),
        ],
    }

"""What each service may do in the store, by the policies of the S3 server's users."""

from __future__ import annotations

import json

import pytest

from shared.contracts.requests import REQUESTS
from shared.contracts.tenants import FOLDERS, RESERVED_FOLDERS
from tests.deploy.manifests import ROOT
from tests.policies import FOLDER, SERVICES, allows

READ, WRITE, DELETE, LIST = "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"
SECRET = ("access/tokens/0.json", "access/readings/0.json", "access/sessions/0.json", "audit/a")
OTHERS = {
    "ingest": ("datasets/d/manifest.parquet", "models/m/1/model.json", "training/r/x", "images/i"),
    "embed": ("datasets/d/dataset.json", "models/m/1/model.json", "clusters/c/run.json"),
    "cluster": ("datasets/d/dataset.json", "models/m/1/model.json", "training/r/x"),
    "train": ("datasets/d/dataset.json", "slides/s/source/s.svs", "triton/local.m-1-sampler/x"),
    "deploy": ("datasets/d/dataset.json", "slides/s/source/s.svs", "training/r/x"),
    "synthesize": ("slides/s/source/s.svs", "training/r/x", "reports/r/report.json"),
    "image": ("slides/s/source/s.svs", "datasets/d/dataset.json", "training/r/x"),
    "field": ("slides/s/source/s.svs", "datasets/d/dataset.json", "training/r/x"),
    "evaluate": ("slides/s/source/s.svs", "training/r/x", "triton/local.m-1-sampler/x"),
    "triton": ("models/m/1/model.json", "datasets/d/dataset.json", "jobs/deploy-0/plan.json"),
    "reconciler": ("slides/s/source/s.svs", "datasets/d/dataset.json", "models/m/1/model.json"),
}
"""Objects that are none of a service's business."""


def test_every_service_has_a_policy() -> None:
    assert set(SERVICES) == {*REQUESTS, "gateway", "reconciler", "triton"}
    for service in SERVICES:
        assert allows(service, LIST, "open-jobs/-"), "a store is opened so"
    text = (ROOT / "docker/s3/kustomization.yaml").read_text()
    assert all(f"policies/{service}.json" in text for service in SERVICES)


@pytest.mark.parametrize("service", OTHERS)
def test_a_service_reads_and_writes_nothing_that_is_not_its_own(service: str) -> None:
    for prefix in ("", "tenants/acme/"):
        for key in OTHERS[service]:
            for action in (READ, WRITE, DELETE):
                assert not allows(service, action, prefix + key), (action, prefix + key)
            assert not allows(service, LIST, f"{prefix}{key.split('/')[0]}/")
    for key in SECRET:
        for action in (READ, WRITE, DELETE):
            swept = service == "reconciler" and key.startswith("access/sessions/")
            if swept and action == DELETE:
                continue
            assert not allows(service, action, key), (action, key)
    for action in (READ, WRITE, LIST):
        assert not allows(service, action, "")
    for prefix in ("access/", "audit/", "tenants/", "a"):
        assert not allows(service, LIST, prefix)


@pytest.mark.parametrize("stage", REQUESTS)
def test_a_worker_ends_jobs_of_its_own_stage_only(stage: str) -> None:
    for prefix, owner in (("", ""), ("tenants/acme/", "acme.")):
        for other in REQUESTS:
            job = f"{owner}{other}-0123456789abcdef"
            for key in (f"jobs/{job}/result.json", f"open-jobs/{job}"):
                assert allows(stage, WRITE, prefix + key) == (other == stage), key
    for name in ("names/datasets/d.json", "names/models/m/1.json"):
        assert allows(stage, READ, name)
        assert not allows(stage, WRITE, name)


WRITTEN = {
    "ingest": {"slides", "cohorts", "tiles", "patches", "regions"},
    "embed": {"features", "encoders"},
    "cluster": {"clusters", "regions"},
    "train": {"training", "models"},
    "deploy": {"triton"},
    "synthesize": {"datasets"},
    "image": {"images"},
    "field": {"fields"},
    "evaluate": {"reports"},
    "triton": set(),
    "reconciler": {"images", "idempotency", "uploads", "parts", "jobs", "open-jobs", "names"},
}
"""Folders that a service writes to, besides its own jobs."""


@pytest.mark.parametrize("service", WRITTEN)
def test_no_name_of_a_tenant_opens_another_folder(service: str) -> None:
    own = WRITTEN[service]
    jobs = {"jobs", "open-jobs"} - own
    for action in (WRITE, DELETE):
        for top in FOLDERS - own - jobs - RESERVED_FOLDERS:
            for inner in own | jobs | {"fields", "images"}:
                for key in (
                    f"{top}/{inner}/x", f"{top}/a/{inner}/x", f"{top}/a/1/{inner}/b/x.json",
                    f"{top}/{inner}/acme.{service}-0/x", f"{top}/{inner}/{inner}/inputs/x",
                ):  # fmt: skip
                    swept = service == "reconciler" and key.startswith("fields/inputs/")
                    assert swept or not allows(service, action, f"tenants/acme/{key}"), key
        for other in REQUESTS.keys() - {service}:
            for name in (f"acme.{service}-0", f"done/acme.{service}-0", f"x.{service}-1/y"):
                key = f"tenants/acme/jobs/acme.{other}-0/{name}"
                assert service == "reconciler" or not allows(service, action, key), key
    for top in own:
        assert allows(service, WRITE, f"tenants/acme/{top}/a/b.json")
    if service == "reconciler":
        assert not allows(service, DELETE, "names/datasets/d.json")
        for place in ("fields/inputs/", "tenants/acme/fields/inputs/", "access/links/"):
            assert allows(service, DELETE, f"{place}0")
            assert not allows(service, WRITE, f"{place}0")
            assert not allows(service, READ, f"{place}0")


def test_a_service_uses_its_policies_only_in_its_bucket() -> None:
    for service in SERVICES:
        document = json.loads((FOLDER / f"{service}.json").read_text())
        for statement in document["Statement"]:
            assert statement["Effect"] in {"Allow", "Deny"}
            for action in statement["Action"]:
                assert action.startswith("s3:")
                assert "*" not in action
            for resource in statement["Resource"]:
                assert resource.startswith("arn:aws:s3:::BUCKET")
                assert resource == "arn:aws:s3:::BUCKET" or "/PREFIX" in resource

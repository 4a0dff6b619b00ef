"""The images, the store, the values and the figures of a cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlparse

import pytest
import yaml

from shared.contracts.requests import REQUESTS
from tests.deploy.manifests import (
    OVERLAYS,
    ROOT,
    VARIANTS,
    compose,
    containers,
    dockerfile_stages,
    draw_secrets,
    pods,
    rendered,
    settings_of,
)
from tests.policies import SERVICES

TRITON_S3 = re.compile(
    r"s3://(http://|https://|)([0-9a-zA-Z\-.]+):([0-9]+)/([0-9a-z.\-]+)(((/[0-9a-zA-Z.\-_]+)*)?)"
)
"""The pattern of Triton's S3 file system (core/src/filesystem/implementations/s3.h)."""


# ---- the store


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("endpoint", "server"),
    [
        ("https://s3.eu-central-1.amazonaws.com", "https://s3.eu-central-1.amazonaws.com:443"),
        ("https://s3.eu-central-1.amazonaws.com/", "https://s3.eu-central-1.amazonaws.com:443"),
        ("https://store.example.org:9443", "https://store.example.org:9443"),
        ("https://store.example.org:9443/", "https://store.example.org:9443"),
        ("http://store.example.org", "http://store.example.org:80"),
        ("http://s3:9000", "http://s3:9000"),
        ("http://10.0.0.5:9000/", "http://10.0.0.5:9000"),
    ],
)
@pytest.mark.parametrize(
    "store", ["s3://my-bucket", "s3://my-bucket/", "s3://my-bucket/some/place"]
)
def test_triton_gets_an_address_that_it_reads_as_we_mean_it(
    endpoint: str, server: str, store: str, tmp_path: Path
) -> None:
    program(tmp_path, "tritonserver", 'printf "%s\\n" "$@"')
    program(tmp_path, "python3", "true")
    done = subprocess.run(
        ["sh", str(ROOT / "docker/triton.sh")],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "HTD_S3_ENDPOINT": endpoint,
            "HTD_STORE": store,
            "HTD_S3_ACCESS_KEY": "key",
            "HTD_S3_SECRET_KEY": "secret",
            "TRITON_AWS_MOUNT_DIRECTORY": str(tmp_path / "models"),
        },
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    given = dict(line.split("=", 1) for line in done.stdout.split() if "=" in line)
    read = TRITON_S3.fullmatch(given["--model-repository"])
    assert read, given["--model-repository"]
    protocol, host, port, bucket, folder = read.groups()[:5]
    assert f"{protocol}{host}:{port}" == server
    assert f"{bucket}{folder}" == f"{store.removeprefix('s3://').rstrip('/')}/triton"


def test_triton_starts_without_keys_where_its_pod_has_an_identity(tmp_path: Path) -> None:
    program(tmp_path, "tritonserver", "env")
    program(tmp_path, "python3", "true")
    done = subprocess.run(
        ["sh", str(ROOT / "docker/triton.sh")],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "HTD_S3_ENDPOINT": "https://s3.amazonaws.com",
            "HTD_STORE": "s3://bucket",
            "TRITON_AWS_MOUNT_DIRECTORY": str(tmp_path / "models"),
        },
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "AWS_DEFAULT_REGION=us-east-1" in done.stdout
    assert "AWS_ACCESS_KEY_ID" not in done.stdout


def test_tritons_image_keeps_the_entrypoint_that_fits_cuda_to_the_driver() -> None:
    assert "\nENTRYPOINT" not in dockerfile_stages()["triton"]
    for name in ("triton", "triton-gpu"):
        assert "entrypoint" not in compose()["services"][name]
    for folder in OVERLAYS:
        for name, template in pods(rendered(folder)):
            if name == "Deployment triton":
                assert not {"command", "args"} & set(template["spec"]["containers"][0])


@pytest.mark.parametrize("name", VARIANTS)
def test_the_way_to_the_store_has_the_stores_port(name: str) -> None:
    manifests = rendered(name)
    endpoint = urlparse(settings_of(manifests)["HTD_S3_ENDPOINT"])
    policies = {i["metadata"]["name"]: i["spec"] for i in manifests if i["kind"] == "NetworkPolicy"}
    if "clients-to-store" in policies:  # it lies outside
        (rule,) = policies["clients-to-store"]["egress"]
        assert rule["ports"] == [{"protocol": "TCP", "port": endpoint.port}]
        cidr = VARIANTS[name].all_values()["store-network"]
        assert rule["to"] == [{"ipBlock": {"cidr": cidr}}]
    else:
        assert (endpoint.hostname, endpoint.port) == ("s3", 9000)


def test_the_store_is_set_up_again_when_settings_change() -> None:
    """A Job cannot be applied again with another ConfigMap: its template never changes."""
    for folder in ("cpu", "one-gpu", "gpu"):
        manifests = rendered(folder)
        assert not [item for item in manifests if item["kind"] == "Job"]
        store = next(
            i for i in manifests if i["metadata"]["name"] == "s3" and "template" in i["spec"]
        )
        (container,) = store["spec"]["template"]["spec"]["containers"]
        assert container["lifecycle"]["postStart"]["exec"]["command"] == [
            "sh",
            "/start/setup.sh",
        ]
        variables = {each["name"]: each["value"] for each in container["env"]}
        assert variables["HTD_S3_ENDPOINT"] == "http://127.0.0.1:9000", (
            "the Service leads to no pod that is not ready"
        )
        assert container["envFrom"], "the script reads HTD_STORE"


def test_the_set_up_waits_for_the_server(tmp_path: Path) -> None:
    draw_secrets(tmp_path)
    program(
        tmp_path, "mc",
        f'case $2 in alias) echo x >>{tmp_path}/asked; [ "$(wc -l <{tmp_path}/asked)" = 3 ] ;; '
        f'*) echo "$@" >>{tmp_path}/done; [ "${{4:-}}" != create ] || '
        f'cat "$7" >>{tmp_path}/policies ;; esac',

    )  # fmt: skip
    program(tmp_path, "sleep", "true")
    text = (ROOT / "docker/s3/setup.sh").read_text()
    (tmp_path / "script").write_text(text.replace("/run/secrets", str(tmp_path / "secrets")))
    subprocess.run(
        ["sh", str(tmp_path / "script")],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "HTD_STORE": "s3://bucket/prefix",
            "HTD_S3_ENDPOINT": "http://127.0.0.1:9000",
            "POLICIES": str(ROOT / "docker/s3/policies"),
        },
        check=True,
    )
    done = (tmp_path / "done").read_text()
    assert "mb --ignore-existing store/bucket" in done
    for service in SERVICES:
        user = (tmp_path / "secrets" / service / "htd_s3_access_key").read_text()
        assert f"admin user add store {user} " in done
        assert f"admin policy attach store heterotissue-{service} --user {user}" in done
    policies = (tmp_path / "policies").read_text()
    assert '"arn:aws:s3:::bucket/prefix/datasets/*"' in policies
    assert '"prefix/tenants/*/jobs/*"' in policies
    assert not re.search("BUCKET|PREFIX", policies)


# ---- one file of values


def test_values_reach_every_object() -> None:
    values = VARIANTS["elsewhere"].all_values()
    manifests = rendered("elsewhere")
    cluster_wide = {"Namespace", "PriorityClass"}
    for item in manifests:
        if item["kind"] not in cluster_wide:
            assert item["metadata"]["namespace"] == "my-tissue", item["metadata"]
    (namespace,) = (item for item in manifests if item["kind"] == "Namespace")
    assert namespace["metadata"]["name"] == "my-tissue"
    for item in manifests:
        if item["kind"] == "PriorityClass":
            assert item["metadata"]["name"].startswith("my-tissue-")
    others = {"redis"}
    for _, template in pods(manifests):
        for container in containers(template):
            image = VARIANTS["elsewhere"].own(container["image"])
            assert ":" not in image or image.split(":")[0] in others, image
    settings = settings_of(manifests)
    wanted = {
        "HTD_STORE": values["store"],
        "HTD_S3_ENDPOINT": values["endpoint"],
        "HTD_S3_REGION": values["region"],
    }
    assert wanted.items() <= settings.items()
    node = dict(pods(manifests))["Job node"]
    variables = {each["name"]: each["value"] for each in containers(node)[0]["env"]}
    assert wanted.items() <= variables.items()
    left = re.findall(r"[\w./-]*heterotissue\.(?:svc|example)[\w.-]*|ingress-nginx", str(manifests))
    assert not left, f"these names are not from values.yaml: {left}"
    assert not any(item["metadata"]["name"] == "values" for item in manifests)


def test_every_value_is_used(tmp_path: Path) -> None:
    used = set()
    for path in (ROOT / "k8s").rglob("kustomization.yaml"):
        used |= set(re.findall(r"name: values, fieldPath: data\.([\w-]+)", path.read_text()))
    for variant in VARIANTS.values():
        assert set(variant.all_values()) <= used


# ---- images


def test_push_builds_and_pushes_all_images_under_one_name(tmp_path: Path) -> None:
    program(
        tmp_path, "docker",
        f'echo "$HTD_REGISTRY $HTD_VERSION $*" >>{tmp_path}/asked',
    )  # fmt: skip
    done = subprocess.run(
        ["make", "-C", str(ROOT), "push", "REGISTRY=registry.lab/tissue", "TAG=9.9.9"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == [
        f"registry.lab/tissue 9.9.9 compose --profile cpu --profile gpu {verb}"
        for verb in ("build", "push")
    ]
    pushed = {
        service["image"].split(":")[0].split("/")[1]
        for service in compose()["services"].values()
        if "build" in service and {"cpu", "gpu"} & set(service.get("profiles", ["cpu"]))
    }
    run = {
        VARIANTS[name].own(container["image"])
        for name in VARIANTS
        for _, template in pods(rendered(name))
        for container in containers(template)
    }
    assert {image for image in run if ":" not in image} <= pushed
    missing = subprocess.run(["make", "-C", str(ROOT), "push"], capture_output=True, text=True)
    assert missing.returncode
    assert "REGISTRY=" in missing.stderr


@pytest.mark.parametrize(
    ("cluster", "overlay", "command"),
    [
        ("kind", "cpu", "kind load docker-image"),
        ("minikube", "one-gpu", "minikube image load"),
    ],
)
def test_load_copies_what_an_overlay_runs(
    cluster: str, overlay: str, command: str, tmp_path: Path
) -> None:
    program(tmp_path, cluster, f'echo "{cluster} $*" >{tmp_path}/asked')
    subprocess.run(
        ["sh", str(ROOT / "docker/load.sh"), cluster, overlay],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=True,
    )  # fmt: skip
    run = {
        container["image"]
        for _, template in pods(rendered(overlay))
        for container in containers(template)
        if container["image"].startswith("heterotissue/")
    }
    asked = (tmp_path / "asked").read_text().strip()
    assert asked.startswith(command + " ")
    assert set(asked.removeprefix(command).split()) == run
    assert len(run) >= len(REQUESTS) + 1


def test_images_of_production_come_with_the_password_of_their_registry() -> None:
    account = next(item for item in rendered("production") if item["kind"] == "ServiceAccount")
    assert account["imagePullSecrets"] == [{"name": "registry"}]
    assert "create secret docker-registry registry" in (ROOT / "docs/kubernetes.md").read_text()


# ---- identity, certificates, figures


def test_pods_trust_the_bundle_and_are_the_role() -> None:
    manifests = rendered("platform")
    path = "/etc/ssl/certs/ca-certificates.crt"
    assert settings_of(manifests)["SSL_CERT_FILE"] == path
    for name, template in pods(manifests):
        mounts = {each["mountPath"]: each for each in containers(template)[0]["volumeMounts"]}
        assert mounts[path]["subPath"] == "ca-certificates.crt", name
        volumes = {each["name"]: each for each in template["spec"]["volumes"]}
        assert volumes[mounts[path]["name"]]["configMap"] == {"name": "ca-bundle"}
    account = next(item for item in manifests if item["kind"] == "ServiceAccount")
    role = VARIANTS["platform"].values["store-role"]
    assert account["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": role}


def test_a_managed_redis_replaces_ours() -> None:
    manifests = rendered("platform")
    names = {(item["kind"], item["metadata"]["name"]) for item in manifests}
    assert not {("StatefulSet", "redis"), ("Service", "redis")} & names


def test_alerts_are_those_of_the_compose_file_and_of_the_cluster() -> None:
    (rules,) = (item for item in rendered("elsewhere") if item["kind"] == "PrometheusRule")
    ours = yaml.safe_load((ROOT / "docker/monitoring/alerts.yml").read_text())["groups"][0]
    common, cluster = rules["spec"]["groups"]
    assert common == ours
    assert rules["metadata"]["labels"]["release"] == "prometheus"
    alerts = {each["alert"]: each["expr"] for each in cluster["rules"]}
    assert set(alerts) == {"NotRunning", "RedisMemory", "VolumeNearlyFull", "PodEvicted"}
    for expression in alerts.values():
        assert 'namespace="my-tissue"' in expression
    watched = re.search(r'deployment=~"([^"]+)"', alerts["NotRunning"])
    assert watched
    there = {i["metadata"]["name"] for i in rendered("elsewhere") if i["kind"] == "Deployment"}
    assert set(watched[1].split("|")) == {"gateway", "reconciler", "triton"} <= there


def test_the_dashboard_is_a_config_map_that_grafana_finds() -> None:
    (board,) = (
        item
        for item in rendered("production")
        if item["kind"] == "ConfigMap" and "grafana_dashboard" in item["metadata"].get("labels", {})
    )
    (text,) = board["data"].values()
    assert json.loads(text)["title"] == "HeteroTissue"

"""The Kubernetes manifests: valid, safe, and in step with the code and the compose file."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from shared.contracts.requests import REQUESTS
from shared.queue.redis_state import running_key
from shared.settings import Settings
from tests.deploy.manifests import (
    GATEWAY_PATHS,
    OVERLAYS,
    ROOT,
    VARIANTS,
    Manifest,
    check_command,
    compose,
    containers,
    drawn_secrets,
    exposed_ports,
    gpus,
    jobs_of_runtime,
    pods,
    rendered,
    secret_names,
    setting_names,
    settings_of,
)

SCHEMAS = {
    path.stem: json.loads(path.read_text())
    for path in (Path(__file__).parent / "schemas").glob("*.json")
}


@pytest.mark.parametrize(
    ("name", "version"),
    [*((name, "1.37") for name in VARIANTS), ("production", "1.35"), ("production", "1.36")],
)
def test_every_object_is_valid(name: str, version: str) -> None:
    for item in rendered(name):
        if item["kind"] in SCHEMAS:
            jsonschema.validate(item, SCHEMAS[item["kind"]])
        else:
            kubernetes_validate.validate(item, version, strict=True)
        for job in jobs_of_runtime(item):
            kubernetes_validate.validate(job, version, strict=True)


def test_no_object_appears_twice(manifests: tuple[Manifest, ...]) -> None:
    names = [(item["kind"], item["metadata"]["name"]) for item in manifests]
    assert len(names) == len(set(names))


def test_pods_run_without_rights(manifests: tuple[Manifest, ...]) -> None:
    for item in manifests:
        if item["kind"] == "Namespace":
            enforced = item["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
            assert enforced == "restricted", "the namespace lets pods have rights"
    for name, template in pods(manifests):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False, f"{name} gets a token it never uses"
        assert spec["securityContext"]["runAsNonRoot"], f"{name} may run as root"
        assert spec["securityContext"]["runAsUser"] > 0, f"{name} runs as root"
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in containers(template):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, f"{name} may gain rights"
            assert context["readOnlyRootFilesystem"], f"{name} may change its image"
            assert context["capabilities"] == {"drop": ["ALL"]}, f"{name} keeps capabilities"


def test_containers_state_what_they_take(manifests: tuple[Manifest, ...]) -> None:
    for name, template in pods(manifests):
        for container in containers(template):
            for kind in ("requests", "limits"):
                stated = container["resources"][kind]
                missing = {"cpu", "memory", "ephemeral-storage"} - set(stated)
                assert not missing, f"{name}: no {kind} for {missing}"
        assert "priorityClassName" in template["spec"] or "Job" in name, f"{name} has no priority"


def test_what_serves_is_probed_and_what_runs_on_is_watched(
    manifests: tuple[Manifest, ...],
) -> None:
    for name, template in pods(manifests):
        for container in containers(template):
            if name.startswith("Job"):
                continue
            assert "livenessProbe" in container, f"{name} may hang for ever"
            if "ports" in container:
                assert "readinessProbe" in container, f"{name} gets requests before it is ready"


@pytest.mark.parametrize("name", VARIANTS)
def test_images_are_those_of_the_compose_file(name: str) -> None:
    services = compose()["services"].values()
    built = {each["image"].split(":")[0].split("/")[1] for each in services if "build" in each}
    others = {each["image"] for each in services if "build" not in each}
    for pod, template in pods(rendered(name)):
        for container in containers(template):
            image = VARIANTS[name].own(container["image"])
            assert image in built | others, f"{pod}: docker-compose.yml knows no {image}"


def test_digests_pin_every_image_that_production_runs(tmp_path: Path) -> None:
    """`make digests` looks up what production runs, under the tags that it runs."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/docker").write_text(
        f'#!/bin/sh\necho "$6" >>{tmp_path}/asked\n'
        'echo "sha256:$(echo "$6" | sha256sum | cut -c1-64)"\n'
    )
    (tmp_path / "bin/docker").chmod(0o755)
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    shutil.copytree(ROOT / "docker", tmp_path / "docker")
    environment = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    before = rendered("production")
    run = {c["image"] for _, template in pods(before) for c in containers(template)}
    for _ in range(2):  # a second run replaces the digests of the first
        subprocess.run(
            ["sh", str(tmp_path / "docker/digests.sh"), "k8s/overlays/production"],
            env=environment,
            check=True,
        )
        assert set((tmp_path / "asked").read_text().split()) == run
    done = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path / "k8s/overlays/production")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    pinned = {
        c["image"]
        for _, template in pods(tuple(yaml.safe_load_all(done.stdout)))
        for c in containers(template)
    }
    assert {image.split("@sha256:")[0] for image in pinned} == {i.rpartition(":")[0] for i in run}


def test_variables_and_secrets_are_known_to_the_settings(manifests: tuple[Manifest, ...]) -> None:
    other = {"MINIO_API_STALE_UPLOADS_EXPIRY", "HOME", "SSL_CERT_FILE"}
    other |= {"MINIO_ROOT_USER_FILE", "MINIO_ROOT_PASSWORD_FILE"}
    drawn = _secrets_by_name()
    configs = {item["metadata"]["name"]: item for item in manifests if item["kind"] == "ConfigMap"}
    for name, template in pods(manifests):
        for container in containers(template):
            variables = {each["name"] for each in container.get("env", [])}
            for source in container.get("envFrom", []):
                variables |= set(configs[source["configMapRef"]["name"]]["data"])
            unknown = variables - setting_names() - other
            assert not unknown, f"{name} sets {unknown}, which no setting reads"
        for volume in template["spec"].get("volumes", []):
            secrets = [volume["secret"]] if "secret" in volume else []
            secrets += [s["secret"] for s in volume.get("projected", {}).get("sources", [])]
            for secret in secrets:
                known = drawn[secret.get("secretName") or secret["name"]]
                assert volume.get("projected", secret)["defaultMode"] == 0o440, name
                assert {item["key"] for item in secret.get("items", [])} <= known, name


def _secrets_by_name() -> dict[str, set[str]]:
    """Which secrets are in which Secret, as docs/kubernetes.md makes them: one of each folder."""
    text = (ROOT / "docs/kubernetes.md").read_text()
    made = re.findall(r"create secret generic (\S+) --from-file=secrets/(\w+)$", text, re.M)
    found = {name: drawn_secrets()[folder] for name, folder in made}
    assert {folder for _, folder in made} == drawn_secrets().keys() - {"grafana"}
    assert set().union(*found.values()) <= secret_names()
    return found


def test_the_production_secrets_are_those_that_the_docs_make() -> None:
    drawn, given = _secrets_by_name(), set()
    for item in rendered("production"):
        if item["kind"] == "ExternalSecret":
            name = item["metadata"]["name"]
            (entry,) = item["spec"]["dataFrom"]
            assert (item["spec"]["target"]["name"], name in drawn) == (name, True)
            assert entry["extract"]["key"] == name.replace("-", "/", 1)
            given.add(name)
        assert item["kind"] != "Secret", "a secret lies in the repository"
    assert given == drawn.keys() - {"heterotissue-s3-root"}


def test_commands_exist(manifests: tuple[Manifest, ...]) -> None:
    for name, template in pods(manifests):
        for container in containers(template):
            for command in _commands(container):
                check_command(name, command)
    for item in manifests:
        if item["kind"] == "TrainJob":
            check_command("TrainJob", item["spec"]["trainer"]["args"])


def _commands(container: Manifest) -> list[list[str]]:
    probes = [container.get(key, {}) for key in ("startupProbe", "livenessProbe", "readinessProbe")]
    found = [probe["exec"]["command"] for probe in probes if "exec" in probe]
    return [*found, [*container.get("command", []), *container.get("args", [])]]


def test_ports_are_those_of_the_images(manifests: tuple[Manifest, ...]) -> None:
    others = {"redis": {6379}, "pgsty/silo": {9000}}
    for name, template in pods(manifests):
        for container in containers(template):
            image = container["image"].rpartition(":")[0]
            exposed = others.get(image) or exposed_ports(image.rpartition("/")[2])
            ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
            assert set(ports.values()) <= exposed, name
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                asked = container.get(probe, {}).get("httpGet")
                assert asked is None or asked["port"] in ports, f"{name}: {probe} asks no port"
                if asked and image.endswith("/gateway"):
                    assert asked["path"] in GATEWAY_PATHS, f"{name} does not answer {probe}"


def test_what_a_pod_names_exists(manifests: tuple[Manifest, ...]) -> None:
    kinds = ("ServiceAccount", "PriorityClass", "ConfigMap")
    there = {
        (item["kind"], item["metadata"]["name"]) for item in manifests if item["kind"] in kinds
    } | {("ConfigMap", "ca-bundle")}  # which the platform makes
    for name, template in pods(manifests):
        spec = template["spec"]
        named = {("ServiceAccount", spec["serviceAccountName"])}
        if "priorityClassName" in spec:
            named.add(("PriorityClass", spec["priorityClassName"]))
        for volume in spec["volumes"]:
            if "configMap" in volume:
                named.add(("ConfigMap", volume["configMap"]["name"]))
        for container in containers(template):
            for source in container.get("envFrom", []):
                named.add(("ConfigMap", source["configMapRef"]["name"]))
        assert named <= there, f"{name} names {named - there}"


def test_every_stage_has_a_worker_that_may_finish_its_shard() -> None:
    for folder in OVERLAYS:
        manifests = rendered(folder)
        settings = settings_of(manifests)
        config = Settings.model_validate(
            {k.removeprefix("HTD_").lower(): v for k, v in settings.items()}
        )
        workers = dict(pods(manifests))
        for stage in REQUESTS:
            spec = workers[f"Deployment {stage}-worker"]["spec"]
            image = VARIANTS[folder].own(spec["containers"][0]["image"])
            assert image.removesuffix("-cuda") == stage
            assert config.stop_seconds < spec["terminationGracePeriodSeconds"]
            assert spec["terminationGracePeriodSeconds"] < config.visibility_timeout
            assert spec["terminationGracePeriodSeconds"] <= 600, (
                "cluster-autoscaler waits no longer"
            )
        guarded = {i["metadata"]["name"] for i in manifests if i["kind"] == "PodDisruptionBudget"}
        for name in ("gateway", *(f"{stage}-worker" for stage in REQUESTS)):
            assert name in guarded, f"{folder}: a drained node may take every {name}"
            spread = workers[f"Deployment {name}"]["spec"].get("topologySpreadConstraints")
            assert spread, f"{folder}: every {name} may lie on one node"


def test_keda_counts_the_queues_of_the_workers() -> None:
    for folder in ("gpu", "production", "platform", "elsewhere"):
        namespace = VARIANTS[folder].all_values()["namespace"]
        inside = f"redis.{namespace}.svc:6379"
        address = VARIANTS[folder].all_values().get("redis", inside)
        scaled = {
            i["metadata"]["name"]: i["spec"]
            for i in rendered(folder)
            if i["kind"] == "ScaledObject"
        }
        deployments = {
            i["metadata"]["name"]: i for i in rendered(folder) if i["kind"] == "Deployment"
        }
        assert set(scaled) == {f"{stage}-worker" for stage in REQUESTS}
        for stage in REQUESTS:
            spec = scaled[f"{stage}-worker"]
            lists = [trigger["metadata"]["listName"] for trigger in spec["triggers"]]
            assert lists == [stage, running_key(stage)]
            assert "replicas" not in deployments[f"{stage}-worker"]["spec"], "KEDA sets these"
            assert spec["scaleTargetRef"]["name"] in deployments
            assert spec["fallback"]["replicas"] >= 1, "without Redis there are no figures"
            for trigger in spec["triggers"]:
                assert trigger["metadata"]["address"] == address
                assert ("enableTLS" in trigger["metadata"]) == (address != inside)
            assert {t["authenticationRef"]["name"] for t in spec["triggers"]} == {"redis"}
        login = next(i for i in rendered(folder) if i["kind"] == "TriggerAuthentication")
        assert login["metadata"]["name"] == "redis"
        login = {each["parameter"]: each["key"] for each in login["spec"]["secretTargetRef"]}
        if address == inside:
            assert login == {"password": "redis_password"}
            assert "redis_password" in _secrets_by_name()["heterotissue-redis"]
        else:
            assert login == {"password": "redis_password", "username": "redis_username"}


def test_nodes_of_a_training_meet() -> None:
    job, service = (
        next(i for i in rendered("train") if (i["kind"], i["metadata"]["name"]) == (kind, "train"))
        for kind in ("Job", "Service")
    )
    spec = job["spec"]["template"]["spec"]
    container = spec["containers"][0]
    given = dict(word.lstrip("-").split("=") for word in container["args"] if "=" in word)
    first = f"{job['metadata']['name']}-0.{spec['subdomain']}"
    assert given["master-addr"] == first
    assert given["node-rank"] == "$(JOB_COMPLETION_INDEX)"
    assert "rdzv-endpoint" not in given, "which of the pods is the host would depend on names"
    assert service["metadata"]["name"] == spec["subdomain"]
    assert service["spec"]["clusterIP"] == "None"
    assert int(given["nnodes"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert int(given["nproc-per-node"]) == container["resources"]["limits"]["nvidia.com/gpu"]


def test_who_asks_for_a_gpu_gets_a_node_that_has_one(manifests: tuple[Manifest, ...]) -> None:
    for name, template in pods(manifests):
        if gpus(template):
            spec = template["spec"]
            assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in (
                spec["tolerations"]
            ), f"{name}: GPU nodes are tainted, and it does not bear that"
            # Not every cluster labels its GPU nodes; the request for a GPU finds them already.
            assert set(spec.get("nodeSelector", {})) <= {"nvidia.com/gpu.product"}, name


def test_scripts_are_those_of_the_compose_file() -> None:
    for copy in (ROOT / "k8s").rglob("*.sh"):
        assert copy.read_text() == (ROOT / "docker" / copy.name).read_text(), (
            f"cp docker/{copy.name} {copy}"
        )


def test_the_gpu_overlay_asks_for_gpus_where_the_compose_file_does() -> None:
    gpu = {name.removesuffix("-gpu") for name in compose()["services"] if name.endswith("-gpu")}
    asked = {
        name.removeprefix("Deployment ").removesuffix("-worker")
        for name, template in pods(rendered("gpu"))
        if gpus(template)
    }
    assert asked == gpu - {"synthesize", "image", "deploy", "field", "cluster"}, (
        "two ask Triton, one only copies, two take a GPU only where there is one to spare"
    )


def test_monitors_name_ports_that_there_are() -> None:
    manifests = rendered("elsewhere")
    services = {i["metadata"]["name"]: i for i in manifests if i["kind"] == "Service"}
    monitors = [item for item in manifests if item["kind"] == "ServiceMonitor"]
    assert {item["metadata"]["name"] for item in monitors} == {"gateway", "triton"}
    for item in monitors:
        assert item["metadata"]["labels"]["release"] == "prometheus", "Prometheus selects by it"
        service = services[item["metadata"]["name"]]
        wanted = item["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= service["metadata"]["labels"].items()
        ports = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in item["spec"]["endpoints"]} <= ports

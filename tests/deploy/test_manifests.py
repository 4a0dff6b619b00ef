"""The Kubernetes manifests: valid, safe, and in step with the code and the compose file."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
from fastapi.routing import APIRoute

from services.gateway.api.cohorts import MAX_FEATURE_BYTES
from services.gateway.api.ops import router
from services.gateway.api.slides import MAX_ANNOTATION_BYTES
from shared.contracts.requests import REQUESTS
from shared.queue.worker import make_app
from shared.settings import Settings
from tests.deploy.manifests import (
    FOLDERS,
    OVERLAYS,
    ROOT,
    Manifest,
    check_command,
    compose,
    containers,
    exposed_ports,
    jobs_of_runtime,
    pods,
    rendered,
    secret_names,
    setting_names,
)

SCHEMAS = {
    path.stem: json.loads(path.read_text())
    for path in (Path(__file__).parent / "schemas").glob("*.json")
}


BODY_SIZE = "nginx.ingress.kubernetes.io/proxy-body-size"
GATEWAY_PATHS = {route.path for route in router.routes if isinstance(route, APIRoute)}


@pytest.fixture(params=FOLDERS)
def manifests(request: pytest.FixtureRequest) -> tuple[Manifest, ...]:
    return rendered(request.param)


@pytest.mark.parametrize("version", ["1.35", "1.36", "1.37"])
def test_every_object_is_valid(manifests: tuple[Manifest, ...], version: str) -> None:
    for item in manifests:
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


def test_images_are_those_of_the_compose_file(manifests: tuple[Manifest, ...]) -> None:
    known = {service["image"] for service in compose()["services"].values()}
    for name, template in pods(manifests):
        for container in containers(template):
            image = container["image"].removeprefix("registry.example.org/")
            assert image in known, f"{name}: docker-compose.yml neither builds nor names {image}"


def test_production_takes_our_images_from_its_registry_and_pins_them_all(tmp_path: Path) -> None:
    """`make digests` looks up what production runs, under the tags that it runs."""
    for program, line in (
        ("docker", 'echo "sha256:$(echo "$6" | cksum | cut -c1-8)"; echo "$6" >>asked'),
        ("kustomize", 'echo "$4" >>set'),
    ):
        (tmp_path / program).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / program).chmod(0o755)
    overlay = shutil.copytree(ROOT / "k8s", tmp_path / "k8s") / "overlays/production"
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    subprocess.run(
        ["sh", str(ROOT / "docker/digests.sh"), "registry.example.org"],
        cwd=overlay, env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=True,
    )  # fmt: skip
    run = {
        container["image"]
        for _, template in pods(rendered("overlays/production"))
        for container in containers(template)
    }
    assert set((overlay / "asked").read_text().split()) == run
    pinned = {line.split("=")[1].split("@")[0] for line in (overlay / "set").read_text().split()}
    assert pinned == {image.split(":")[0] for image in run}


def test_variables_and_secrets_are_known_to_the_settings(manifests: tuple[Manifest, ...]) -> None:
    other = {"MINIO_ROOT_USER_FILE", "MINIO_ROOT_PASSWORD_FILE", "HOME"}
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
                assert {item["key"] for item in secret.get("items", [])} <= known, name


def _secrets_by_name() -> dict[str, set[str]]:
    """Which secrets are in which Secret, as docs/deploy.md makes them."""
    text = (ROOT / "docs/deploy.md").read_text()
    made = re.findall(r"create secret generic (\S+) ((?:--from-file=secrets/\w+\s*)+)", text)
    found = {name: set(re.findall(r"secrets/(\w+)", files)) for name, files in made}
    assert set().union(*found.values()) <= secret_names()
    return found


def test_the_production_secrets_are_those_that_the_docs_make() -> None:
    drawn = _secrets_by_name()
    for item in rendered("overlays/production"):
        if item["kind"] == "ExternalSecret":
            keys = {entry["secretKey"] for entry in item["spec"]["data"]}
            assert keys == drawn[item["metadata"]["name"]]
        assert item["kind"] != "Secret", "a secret lies in the repository"


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
            image = container["image"].split(":")[0]
            exposed = others.get(image) or exposed_ports(image.rpartition("/")[2])
            ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
            assert set(ports.values()) <= exposed, name
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                asked = container.get(probe, {}).get("httpGet")
                assert asked is None or asked["port"] in ports, f"{name}: {probe} asks no port"
                if asked and image.endswith("/gateway"):
                    assert asked["path"] in GATEWAY_PATHS, f"{name} does not answer {probe}"


def _addresses(manifests: tuple[Manifest, ...]) -> set[str]:
    """`host:port` of every Service whose port leads to one of its pod."""
    workloads = dict(pods(manifests))
    return {
        f"{item['metadata']['name']}:{port['port']}"
        for item in manifests
        if item["kind"] == "Service" and "selector" in item["spec"]
        for name in _chosen(manifests, item["spec"]["selector"])
        for container in containers(workloads[name])
        for port in item["spec"].get("ports", [])
        if port["targetPort"] in {each["name"] for each in container.get("ports", [])}
    }


def _asked(settings: dict[str, str]) -> set[str]:
    """Servers that settings name and that are to be in the cluster."""
    urls = (settings.get("HTD_S3_ENDPOINT", ""), settings.get("HTD_TRITON_URL", ""))
    return {url.removeprefix("http://") for url in urls if url and not url.startswith("https:")}


def test_addresses_are_those_of_services() -> None:
    for folder in OVERLAYS:
        asked = {"redis:6379"} | _asked(_settings(rendered(folder)))
        missing = asked - _addresses(rendered(folder))
        assert not missing, f"{folder}: nothing answers at {missing}"
    for folder in ("jobs/train", "jobs/engine", "examples"):
        for name, template in pods(rendered(folder)):
            variables = {each["name"]: each["value"] for each in containers(template)[0]["env"]}
            missing = _asked(variables) - _addresses(rendered("overlays/gpu"))
            assert not missing, f"{name}: nothing answers at {missing}"


def test_the_ingress_leads_to_services_speaks_tls_and_lets_files_in() -> None:
    manifests = rendered("overlays/production")
    services = {i["metadata"]["name"]: i["spec"] for i in manifests if i["kind"] == "Service"}
    workloads = dict(pods(manifests))
    ingress = next(item for item in manifests if item["kind"] == "Ingress")
    spec = ingress["spec"]
    assert spec["tls"][0]["hosts"] == [spec["rules"][0]["host"]]
    limit = int(ingress["metadata"]["annotations"][BODY_SIZE].removesuffix("g"))
    assert max(MAX_FEATURE_BYTES, MAX_ANNOTATION_BYTES) <= limit << 30, "files that the API takes"
    scratch = workloads["Deployment gateway"]["spec"]["volumes"][0]["emptyDir"]["sizeLimit"]
    assert limit < int(scratch.removesuffix("Gi")), "a body would fill the gateway's scratch"
    for path in spec["rules"][0]["http"]["paths"]:
        backend = path["backend"]["service"]
        ports = [set(port.values()) for port in services[backend["name"]]["ports"]]
        assert any(set(backend["port"].values()) <= port for port in ports), path
    assert "gateway:80" in _addresses(manifests), "the Service leads to no port of the gateway"


def _settings(manifests: tuple[Manifest, ...]) -> dict[str, str]:
    found: dict[str, str] = next(
        i["data"] for i in manifests if i["metadata"]["name"].startswith("settings-")
    )
    return found


def test_what_a_pod_names_exists(manifests: tuple[Manifest, ...]) -> None:
    kinds = ("ServiceAccount", "PriorityClass", "ConfigMap")
    there = {
        (item["kind"], item["metadata"]["name"])
        for item in (*manifests, *rendered("overlays/gpu"))
        if item["kind"] in kinds
    }
    for name, template in pods(manifests):
        spec = template["spec"]
        named = {("ServiceAccount", spec["serviceAccountName"])}
        if "priorityClassName" in spec:
            named.add(("PriorityClass", spec["priorityClassName"]))
        for volume in spec["volumes"]:
            if "configMap" in volume:
                named.add(("ConfigMap", volume["configMap"]["name"]))
        assert named <= there, f"{name} names {named - there}"


def test_every_stage_has_a_worker_that_may_finish_its_shard() -> None:
    for folder in OVERLAYS:
        manifests = rendered(folder)
        settings = _settings(manifests)
        config = Settings.model_validate(
            {k.removeprefix("HTD_").lower(): v for k, v in settings.items()}
        )
        workers = dict(pods(manifests))
        for stage in REQUESTS:
            spec = workers[f"Deployment {stage}-worker"]["spec"]
            assert spec["containers"][0]["image"].split(":")[0].endswith(f"heterotissue/{stage}")
            assert config.stop_seconds < spec["terminationGracePeriodSeconds"]
            assert spec["terminationGracePeriodSeconds"] < config.visibility_timeout
        guarded = {i["metadata"]["name"] for i in manifests if i["kind"] == "PodDisruptionBudget"}
        for name in ("gateway", *(f"{stage}-worker" for stage in REQUESTS)):
            assert name in guarded, f"{folder}: a drained node may take every {name}"
            spread = workers[f"Deployment {name}"]["spec"].get("topologySpreadConstraints")
            assert spread, f"{folder}: every {name} may lie on one node"


def test_keda_counts_the_queues_of_the_workers() -> None:
    for folder in ("overlays/gpu", "overlays/production"):
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
            options = make_app(Settings(broker_url="redis://redis/0"), stage).conf  # type: ignore[arg-type]
            busy = options.broker_transport_options["unacked_index_key"]
            lists = [trigger["metadata"]["listName"] for trigger in spec["triggers"]]
            assert lists == [stage, busy]
            assert "replicas" not in deployments[f"{stage}-worker"]["spec"], "KEDA sets these"
            assert spec["scaleTargetRef"]["name"] in deployments
            assert spec["fallback"]["replicas"] >= 1, "without Redis there are no figures"
            address = {trigger["metadata"]["address"] for trigger in spec["triggers"]}
            assert address == {"redis.heterotissue.svc:6379"}
            assert {t["authenticationRef"]["name"] for t in spec["triggers"]} == {"redis"}
        login = next(i for i in rendered(folder) if i["kind"] == "TriggerAuthentication")
        assert login["metadata"]["name"] == "redis"
        for secret in login["spec"]["secretTargetRef"]:
            assert secret["key"] in _secrets_by_name()[secret["name"]]


def _chosen(manifests: tuple[Manifest, ...], selector: Manifest) -> list[str]:
    """Pods that a selector chooses."""
    wanted = selector.get("matchLabels", selector).items()
    return [name for name, pod in pods(manifests) if wanted <= pod["metadata"]["labels"].items()]


def test_selectors_choose_the_pods_that_are_meant(manifests: tuple[Manifest, ...]) -> None:
    for item in manifests:
        name = f"{item['kind']} {item['metadata']['name']}"
        if item["kind"] in {"Service", "PodDisruptionBudget"} and item["spec"].get("selector"):
            assert len(_chosen(manifests, item["spec"]["selector"])) == 1, name
        if item["kind"] == "NetworkPolicy" and item["metadata"]["name"] != "online":
            assert _chosen(manifests, item["spec"]["podSelector"]), f"{name} is for nobody"


def test_nothing_may_talk_unless_a_policy_says_so() -> None:
    for folder in OVERLAYS:
        policies = {
            i["metadata"]["name"]: i["spec"]
            for i in rendered(folder)
            if i["kind"] == "NetworkPolicy"
        }
        assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        for name, spec in policies.items():
            for rule in [*spec.get("ingress", []), *spec.get("egress", [])]:
                assert rule.get("from") or rule.get("to"), f"{name} lets everybody in or out"


def _ways(manifests: tuple[Manifest, ...], direction: str) -> Iterator[tuple[str, str, object]]:
    """From which pod to which, and to which port, policies of one direction let through."""
    out = direction == "egress"
    for item in manifests:
        if item["kind"] != "NetworkPolicy":
            continue
        for rule in item["spec"].get(direction, []):
            peers = [p["podSelector"] for p in rule["to" if out else "from"] if "podSelector" in p]
            here = _chosen(manifests, item["spec"]["podSelector"])
            there = [name for peer in peers for name in _chosen(manifests, peer)]
            ports = [each["port"] for each in rule.get("ports", [{"port": "any"}])]
            for near, far, port in product(here, there, ports):
                yield (near, far, port) if out else (far, near, port)


def test_a_way_out_of_one_pod_is_a_way_into_another(manifests: tuple[Manifest, ...]) -> None:
    ports = {
        name: {p["containerPort"] for c in containers(template) for p in c.get("ports", [])}
        for name, template in pods(manifests)
    }
    out, into = set(_ways(manifests, "egress")), set(_ways(manifests, "ingress"))
    assert out == into, f"open on one side only: {out ^ into}"
    for _, target, port in out:
        assert port == "any" or port in ports[target], f"{target} does not listen on {port}"


def test_nodes_of_a_training_meet() -> None:
    job, service = (
        next(item for item in rendered("jobs/train") if item["kind"] == kind)
        for kind in ("Job", "Service")
    )
    spec = job["spec"]["template"]["spec"]
    container = spec["containers"][0]
    given = dict(word.lstrip("-").split("=") for word in container["args"] if "=" in word)
    first = f"{job['metadata']['name']}-0.{spec['subdomain']}"
    assert given["rdzv-endpoint"].split(":")[0] == first
    assert service["metadata"]["name"] == spec["subdomain"]
    assert service["spec"]["clusterIP"] == "None"
    assert int(given["nnodes"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert int(given["nproc-per-node"]) == container["resources"]["limits"]["nvidia.com/gpu"]


def test_who_asks_for_a_gpu_gets_a_node_that_has_one(manifests: tuple[Manifest, ...]) -> None:
    for name, template in pods(manifests):
        if "nvidia.com/gpu" in containers(template)[0]["resources"]["limits"]:
            spec = template["spec"]
            assert any(key.startswith("nvidia.com/gpu") for key in spec["nodeSelector"]), name
            assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in (
                spec["tolerations"]
            ), f"{name}: GPU nodes are tainted, and it does not bear that"


def test_scripts_are_those_of_the_compose_file() -> None:
    for copy in (ROOT / "k8s").rglob("*.sh"):
        assert copy.read_text() == (ROOT / "docker" / copy.name).read_text(), (
            f"cp docker/{copy.name} {copy}"
        )


def test_the_gpu_overlay_asks_for_gpus_where_the_compose_file_does() -> None:
    gpu = {name.removesuffix("-gpu") for name in compose()["services"] if name.endswith("-gpu")}
    asked = {
        name.removeprefix("Deployment ").removesuffix("-worker")
        for name, template in pods(rendered("overlays/gpu"))
        if "nvidia.com/gpu" in containers(template)[0]["resources"]["limits"]
    }
    assert asked == gpu - {"synthesize", "image"}, "these two ask Triton"


def test_monitors_name_ports_that_there_are() -> None:
    manifests = rendered("overlays/production")
    services = {i["metadata"]["name"]: i for i in manifests if i["kind"] == "Service"}
    monitors = [item for item in manifests if item["kind"] == "ServiceMonitor"]
    assert {item["metadata"]["name"] for item in monitors} == {"gateway", "triton"}
    for item in monitors:
        service = services[item["metadata"]["name"]]
        wanted = item["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= service["metadata"]["labels"].items()
        ports = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in item["spec"]["endpoints"]} <= ports

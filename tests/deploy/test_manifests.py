"""The Kubernetes manifests: valid, safe, and in step with the code and the compose file."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from services.stages import REQUESTS
from shared.settings import Settings
from shared.worker import make_app
from tests.deploy.manifests import (
    FOLDERS,
    ROOT,
    Manifest,
    compose,
    containers,
    pods,
    rendered,
    secret_names,
    services,
    setting_names,
)

SCHEMAS = {
    path.stem: json.loads(path.read_text())
    for path in (Path(__file__).parent / "schemas").glob("*.json")
}
BUILT = {f"heterotissue/{name}" for name in {*services(), "triton"}}


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


def test_the_example_of_a_train_job_is_valid() -> None:
    example = yaml.safe_load((ROOT / "k8s/examples/trainjob.yaml").read_text())
    jsonschema.validate(example, SCHEMAS["TrainJob"])
    for variable in example["spec"]["trainer"]["env"]:
        assert variable["name"] in setting_names()
        key = variable.get("valueFrom", {}).get("secretKeyRef", {}).get("key")
        assert key is None or key in secret_names()


def test_no_object_appears_twice(manifests: tuple[Manifest, ...]) -> None:
    names = [(item["kind"], item["metadata"]["name"]) for item in manifests]
    assert len(names) == len(set(names))


def test_pods_run_without_rights(manifests: tuple[Manifest, ...]) -> None:
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


def test_images_are_ours_or_those_of_the_compose_file(manifests: tuple[Manifest, ...]) -> None:
    foreign = set(re.findall(r"_IMAGE:-([^}]+)\}", (ROOT / "docker-compose.yml").read_text()))
    for name, template in pods(manifests):
        for container in containers(template):
            image = container["image"].removeprefix("registry.example.org/")
            base, tag = re.fullmatch(r"([^:@]+)(?:[:@](.+))?", image).groups()  # type: ignore[union-attr]
            assert tag not in {None, "latest"}, f"{name}: {image} names no version"
            assert image in foreign or base in BUILT, f"{name}: nobody builds {image}"


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
                if "-m" in command:
                    module = command[command.index("-m") + 1]
                    assert importlib.util.find_spec(module), f"{name}: there is no {module}"


def _commands(container: Manifest) -> list[list[str]]:
    probes = [container.get(key, {}) for key in ("startupProbe", "livenessProbe", "readinessProbe")]
    found = [probe["exec"]["command"] for probe in probes if "exec" in probe]
    return [*found, [*container.get("command", []), *container.get("args", [])]]


def test_ports_are_those_of_the_images(manifests: tuple[Manifest, ...]) -> None:
    exposed = set(
        map(int, re.findall(r"^EXPOSE (.+)$", (ROOT / "Dockerfile").read_text(), re.M)[0].split())
    )
    exposed |= set(
        map(int, re.findall(r"^EXPOSE (.+)$", (ROOT / "Dockerfile").read_text(), re.M)[1].split())
    )
    exposed |= {6379, 9000}
    ports = {
        p["containerPort"]
        for _, template in pods(manifests)
        for c in containers(template)
        for p in c.get("ports", [])
    }
    assert ports <= exposed
    allowed = {
        port["port"]
        for item in manifests
        if item["kind"] == "NetworkPolicy"
        for rule in item["spec"].get("ingress", [])
        for port in rule.get("ports", [])
    }
    assert allowed <= ports | {9000}


def test_every_stage_has_a_worker_that_may_finish_its_shard() -> None:
    for folder in ("overlays/cpu", "overlays/gpu", "overlays/production"):
        manifests = rendered(folder)
        settings = next(
            i["data"] for i in manifests if i["metadata"]["name"].startswith("settings-")
        )
        config = Settings.model_validate(
            {k.removeprefix("HTD_").lower(): v for k, v in settings.items()}
        )
        workers = dict(pods(manifests))
        for stage in REQUESTS:
            spec = workers[f"Deployment {stage}-worker"]["spec"]
            assert spec["containers"][0]["image"].split(":")[0].endswith(f"heterotissue/{stage}")
            assert config.stop_seconds < spec["terminationGracePeriodSeconds"]
            assert spec["terminationGracePeriodSeconds"] < config.visibility_timeout


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


def test_selectors_choose_the_pods_that_are_meant(manifests: tuple[Manifest, ...]) -> None:
    labels = {name: template["metadata"]["labels"] for name, template in pods(manifests)}

    def chosen(selector: Manifest) -> list[str]:
        wanted = selector.get("matchLabels", selector)
        return [name for name, own in labels.items() if wanted.items() <= own.items()]

    for item in manifests:
        name = f"{item['kind']} {item['metadata']['name']}"
        if item["kind"] in {"Service", "PodDisruptionBudget"} and item["spec"].get("selector"):
            assert len(chosen(item["spec"]["selector"])) == 1, name
        if item["kind"] == "NetworkPolicy" and item["metadata"]["name"] != "online":
            assert chosen(item["spec"]["podSelector"]), f"{name} is for nobody"


def test_nothing_may_talk_unless_a_policy_says_so() -> None:
    for folder in ("overlays/cpu", "overlays/gpu", "overlays/production"):
        policies = {
            i["metadata"]["name"]: i["spec"]
            for i in rendered(folder)
            if i["kind"] == "NetworkPolicy"
        }
        assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        for name, spec in policies.items():
            for rule in [*spec.get("ingress", []), *spec.get("egress", [])]:
                assert rule.get("from") or rule.get("to"), f"{name} lets everybody in or out"


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

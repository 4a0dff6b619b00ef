"""What the pods ask for, added up: GPUs, memory, CPUs, threads."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.deploy.manifests import (
    ROOT,
    VARIANTS,
    Manifest,
    compose,
    containers,
    gpus,
    pods,
    rendered,
    settings_of,
)


def amount(text: str | int) -> float:
    """A Kubernetes quantity as a number."""
    units = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    number, unit = re.fullmatch(r"([0-9.]+)(\w*)", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * (units[unit] if unit else 1)


def most_replicas(manifests: tuple[Manifest, ...]) -> dict[str, int]:
    """How many pods of a Deployment there can be at once."""
    most = {
        f"Deployment {item['spec']['scaleTargetRef']['name']}": item["spec"]["maxReplicaCount"]
        for item in manifests
        if item["kind"] == "ScaledObject"
    }
    for item in manifests:
        if item["kind"] in {"Deployment", "StatefulSet"}:
            name = f"{item['kind']} {item['metadata']['name']}"
            most.setdefault(name, item["spec"].get("replicas", 1))
    return most


def requested(manifests: tuple[Manifest, ...], resource: str) -> float:
    """Sum over all pods that there can be at once."""
    most = most_replicas(manifests)
    return sum(
        most[name] * amount(container["resources"]["requests"][resource])
        for name, template in pods(manifests)
        if not name.startswith("Job")
        for container in containers(template)
    )


def gpus_by_workload(manifests: tuple[Manifest, ...]) -> dict[str, int]:
    most = most_replicas(manifests)
    return {
        name: most[name] * gpus(template)
        for name, template in pods(manifests)
        if not name.startswith("Job") and gpus(template)
    }


def test_the_cpu_overlay_fits_a_laptop() -> None:
    manifests = rendered("cpu")
    assert requested(manifests, "cpu") <= 4
    assert requested(manifests, "memory") <= 10 * 2**30
    assert requested(manifests, "ephemeral-storage") <= 15 * 2**30
    claims = [
        amount(claim["spec"]["resources"]["requests"]["storage"])
        for item in manifests
        if item["kind"] == "StatefulSet"
        for claim in item["spec"]["volumeClaimTemplates"]
    ]
    assert sum(claims) <= 25 * 2**30


@pytest.mark.parametrize("name", ["cpu", "one-gpu"])
def test_an_overlay_for_one_machine_says_how_much_it_asks_for(name: str) -> None:
    text = (ROOT / f"k8s/overlays/{name}/kustomization.yaml").read_text()
    stated = re.search(r"asks for ([0-9.]+) CPUs and ([0-9.]+) GiB", text)
    assert stated
    assert float(stated[1]) == pytest.approx(requested(rendered(name), "cpu"), abs=0.06)
    assert float(stated[2]) == pytest.approx(requested(rendered(name), "memory") / 2**30, abs=0.06)


def test_one_gpu_is_cut_into_as_many_slices_as_are_asked_for() -> None:
    manifests = rendered("one-gpu")
    sharing = yaml.safe_load((ROOT / "k8s/components/gpu-shared/time-slicing.yaml").read_text())
    slicing = sharing["sharing"]["timeSlicing"]
    (resource,) = slicing["resources"]
    assert sum(gpus_by_workload(manifests).values()) == resource["replicas"]
    asked = {
        name
        for _, template in pods(manifests)
        for container in containers(template)
        for name in container["resources"]["limits"]
        if name.startswith(resource["name"])
    }
    assert asked == {f"{resource['name']}.shared"}
    assert slicing["renameByDefault"]
    assert requested(manifests, "memory") <= 56 * 2**30, "a machine of 64 GiB"
    assert requested(manifests, "cpu") <= 7, "a machine of 8 CPUs"


def test_two_and_four_gpus_suffice() -> None:
    asked = gpus_by_workload(rendered("gpu"))
    always = asked.pop("Deployment triton")
    scaled = {
        f"Deployment {item['metadata']['name']}"
        for item in rendered("gpu")
        if item["kind"] == "ScaledObject" and item["spec"]["minReplicaCount"] == 0
    }
    assert set(asked) <= scaled, "a worker without work gives its GPU back"
    assert always + 1 == 2, "two GPUs: the workers take turns on the second"
    assert always + sum(asked.values()) == 4, "four GPUs: all run at once"


def test_gpus_of_embedding_and_sampling_are_those_of_the_values() -> None:
    asked = gpus_by_workload(rendered("gpu-sampling"))
    assert asked["Deployment embed-worker"] == 3
    assert asked["Deployment synthesize-worker"] == 6
    assert (
        asked[
            "Deployment image-worker" if "Deployment image-worker" in asked else "Deployment triton"
        ]
        == 1
    )
    worker = dict(pods(rendered("gpu-sampling")))["Deployment synthesize-worker"]
    (container,) = containers(worker)
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert variables["HTD_TRITON_URL"] == "", "it samples in its own process"
    assert VARIANTS["gpu-sampling"].own(container["image"]) == "synthesize-cuda"


def test_deploying_needs_no_gpu_and_building_a_plan_does() -> None:
    for name in ("one-gpu", "gpu", "production"):
        worker = dict(pods(rendered(name)))["Deployment deploy-worker"]
        assert not gpus(worker), "Triton may hold the only GPU"
        assert "nodeSelector" not in worker["spec"]
    assert gpus(dict(pods(rendered("engine")))["Job engine-l40s"]) == 1


@pytest.mark.parametrize("name", VARIANTS)
def test_pods_with_a_gpu_are_replaced_and_not_doubled(name: str) -> None:
    for item in rendered(name):
        if item["kind"] == "Deployment" and gpus(item["spec"]["template"]):
            strategy = item["spec"]["strategy"]
            surge = strategy.get("rollingUpdate", {}).get("maxSurge")
            assert strategy.get("type") == "Recreate" or surge == 0, (
                f"{item['metadata']['name']}: its second pod waits for a GPU for ever"
            )


@pytest.mark.parametrize("name", VARIANTS)
def test_pods_with_a_gpu_are_given_the_memory_that_they_may_take(name: str) -> None:
    for pod, template in pods(rendered(name)):
        resources = containers(template)[0]["resources"]
        if gpus(template):
            assert resources["requests"]["memory"] == resources["limits"]["memory"], pod


@pytest.mark.parametrize("name", VARIANTS)
def test_threads_are_as_many_as_the_cpus_of_a_pod(name: str) -> None:
    manifests = rendered(name)
    for pod, template in pods(manifests):
        (container,) = containers(template)
        variables = {each["name"]: each["value"] for each in container.get("env", [])}
        threads = int(variables.get("HTD_THREADS", settings_of(manifests)["HTD_THREADS"]))
        computes = "worker" in pod or "Job" in pod or "triton" in pod
        if computes:
            words = " ".join(container.get("args", []))
            processes = re.search(r"--nproc-per-node=(\d+)", words)
            count = int(processes[1]) if processes else 8 if pod == "Job node" else 1
            assert threads * count == amount(container["resources"]["limits"]["cpu"]), pod


def test_gpu_services_of_the_compose_file_have_threads_for_their_cpus() -> None:
    for name, service in compose()["services"].items():
        if service.get("profiles") and "HTD_THREADS" in service.get("environment", {}):
            assert int(service["environment"]["HTD_THREADS"]) == int(service["cpus"]), name


def test_fetched_files_fit_into_the_volumes() -> None:
    manifests = rendered("cpu")
    most = float(settings_of(manifests)["HTD_CACHE_GB"]) * 1e9
    for pod, template in pods(manifests):
        if pod.startswith("Deployment") and ("worker" in pod or "gateway" in pod):
            (scratch,) = (v for v in template["spec"]["volumes"] if v["name"] == "scratch")
            assert most <= 0.8 * amount(scratch["emptyDir"]["sizeLimit"]), pod


def test_redis_refuses_before_its_container_is_killed() -> None:
    script = (ROOT / "docker/redis.sh").read_text()
    limit = re.search(r"^maxmemory (\d+)mb$", script, re.M)
    assert limit
    assert re.search(r"^maxmemory-policy noeviction$", script, re.M)
    most = int(limit[1]) * 2**20
    redis = dict(pods(rendered("gpu")))["StatefulSet redis"]
    assert most <= 0.75 * amount(containers(redis)[0]["resources"]["limits"]["memory"])
    assert compose()["services"]["redis"]["mem_limit"] == "1g"
    assert most <= 0.75 * 2**30

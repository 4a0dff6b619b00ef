"""Services, routes and network policies: each dependency gets through, and no more does."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from urllib.parse import urlparse

import pytest

from services.gateway.api.body_sizes import MAX_ANNOTATION_BYTES, MAX_FEATURE_BYTES
from tests.deploy.manifests import (
    GATEWAY_PATHS,
    OVERLAYS,
    VARIANTS,
    Manifest,
    containers,
    pods,
    rendered,
    settings_of,
)

BODY_SIZE = "nginx.ingress.kubernetes.io/proxy-body-size"
CLUSTER_DNS = {
    "pods in kube-system": "kube-system",
    "NodeLocal DNSCache": "169.254.20.10",
    "NodeLocal DNSCache at the Service address": "10.96.0.10",
    "Cloud DNS of GKE": "169.254.169.254",
}


@dataclass(frozen=True)
class Peer:
    """A pod of ours (its labels), the pods of another namespace, or an address."""

    labels: tuple[tuple[str, str], ...] = ()
    namespace: str = ""
    address: str = ""

    def is_in(self, peers: list[Manifest]) -> bool:
        return any(self._is(peer) for peer in peers)

    def _is(self, peer: Manifest) -> bool:
        if "ipBlock" in peer:
            block = peer["ipBlock"]
            blocks = [block["cidr"], *block.get("except", [])]
            if not self.address:
                return False
            inside, *outside = (
                ipaddress.ip_address(self.address) in ipaddress.ip_network(each) for each in blocks
            )
            return inside and not any(outside)
        if "namespaceSelector" in peer:
            wanted = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
            return self.namespace == wanted
        labels = peer["podSelector"].get("matchLabels", {})
        return bool(self.labels) and labels.items() <= dict(self.labels).items()


def pod_of(template: Manifest) -> Peer:
    return Peer(labels=tuple(template["metadata"]["labels"].items()))


def lets_through(
    manifests: tuple[Manifest, ...],
    way: str,
    near: Peer,
    far: Peer,
    port: int,
    protocol: str = "TCP",
) -> bool:
    """Whether the policies let `near` send to `far` (Egress), or take from it (Ingress)."""
    rules, isolated = [], False
    for item in manifests:
        if item["kind"] != "NetworkPolicy" or way not in item["spec"]["policyTypes"]:
            continue
        chosen = item["spec"]["podSelector"].get("matchLabels", {})
        if chosen.items() <= dict(near.labels).items():
            isolated = True
            rules += item["spec"].get(way.lower(), [])
    side = "to" if way == "Egress" else "from"
    return not isolated or any(
        far.is_in(rule[side])
        and ("ports" not in rule or {"protocol": protocol, "port": port} in rule["ports"])
        for rule in rules
    )


def reaches(manifests: tuple[Manifest, ...], source: Peer, target: Peer, port: int) -> bool:
    """Whether both ends let a connection through; policies of others are not ours to know."""
    return lets_through(manifests, "Egress", source, target, port) and (
        not target.labels or lets_through(manifests, "Ingress", target, source, port)
    )


def needs(manifests: tuple[Manifest, ...], name: str) -> Iterator[tuple[str, Peer, Peer, int]]:
    """Each dependency that a pod declares: by its settings, its secrets, its name."""
    workloads = {key: pod_of(template) for key, template in pods(manifests)}
    values = VARIANTS[name].all_values()
    store = urlparse(values["endpoint"])
    assert store.port
    inside = workloads.get("StatefulSet s3")
    network = values.get("store-network", "0.0.0.0/0")
    outside = Peer(address=str(ipaddress.ip_network(network).network_address + 5))
    redis = workloads.get("StatefulSet redis") or Peer(address="10.20.1.2")
    redis_port = int(values.get("redis", ":6379").split(":")[1])
    shared = settings_of(manifests)
    for pod, template in pods(manifests):
        here = workloads[pod]
        (container,) = containers(template)
        variables = {each["name"]: each["value"] for each in container.get("env", [])}
        if "envFrom" in container:
            variables = shared | variables
        if "HTD_STORE" in variables and pod != "StatefulSet s3":
            yield f"{pod} to the store", here, inside or outside, store.port
        if pod.startswith("Deployment") and pod != "Deployment triton":
            yield f"{pod} to Redis", here, redis, redis_port
        worker = dict(here.labels).get("app.kubernetes.io/component") == "worker"
        if worker and variables.get("HTD_TRITON_URL"):
            yield f"{pod} to Triton", here, workloads["Deployment triton"], 8001
        if re.search("embed|train|evaluate", pod):
            yield f"{pod} to a model hub", here, Peer(address="151.101.1.1"), 443
        if pod.startswith("Job train"):
            yield f"{pod} to its fellows", here, here, 29400
    gateway = workloads["Deployment gateway"]
    if "host" in values:
        yield "people to the gateway", Peer(namespace=values["proxy-namespace"]), gateway, 8000
    if "keda-namespace" in values and redis.labels:
        yield "KEDA to Redis", Peer(namespace=values["keda-namespace"]), redis, 6379
    if "monitoring-namespace" in values:
        prometheus = Peer(namespace=values["monitoring-namespace"])
        yield "Prometheus to the gateway", prometheus, gateway, 8000
        yield "Prometheus to Triton", prometheus, workloads["Deployment triton"], 8002


@pytest.mark.parametrize("name", VARIANTS)
def test_policies_let_every_declared_dependency_through(name: str) -> None:
    manifests = rendered(name)
    for what, source, target, port in needs(manifests, name):
        if source.namespace:
            assert lets_through(manifests, "Ingress", target, source, port), what
        else:
            assert reaches(manifests, source, target, port), what


@pytest.mark.parametrize("name", VARIANTS)
def test_names_resolve_wherever_a_cluster_keeps_its_dns(name: str) -> None:
    manifests = rendered(name)
    for pod, template in pods(manifests):
        for where, server in CLUSTER_DNS.items():
            peer = Peer(address=server) if server[0].isdigit() else Peer(namespace=server)
            for protocol in ("UDP", "TCP"):
                assert lets_through(manifests, "Egress", pod_of(template), peer, 53, protocol), (
                    f"{pod} resolves no name: {where}"
                )


def test_names_resolve_on_openshift() -> None:
    for _, template in pods(rendered("platform")):
        peer = Peer(namespace="openshift-dns")
        assert lets_through(rendered("platform"), "Egress", pod_of(template), peer, 5353, "UDP")
    binding = next(item for item in rendered("elsewhere") if item["kind"] == "RoleBinding")
    assert binding["subjects"][0]["name"] == "system:serviceaccounts:my-tissue"


def test_pods_reach_nothing_else() -> None:
    for name in VARIANTS:
        manifests = rendered(name)
        workloads = {key: pod_of(template) for key, template in pods(manifests)}
        far = Peer(address="151.101.1.1")
        for pod, here in workloads.items():
            online = re.search("embed|train|evaluate", pod)
            stored = dict(here.labels).get("heterotissue/store")
            if name in {"cpu", "gpu", "one-gpu"}:
                assert bool(online) == reaches(manifests, here, far, 443), f"{name}: {pod}"
            if not online and not stored:
                assert not reaches(manifests, here, far, 443), f"{name}: {pod}"
        triton, redis = workloads.get("Deployment triton"), workloads.get("StatefulSet redis")
        if triton and redis:
            assert not reaches(manifests, triton, redis, 6379), "Triton has no use for the queue"
        if redis and "StatefulSet s3" in workloads:
            assert not reaches(manifests, redis, workloads["StatefulSet s3"], 9000)
        if triton:
            gateway = workloads["Deployment gateway"]
            assert not reaches(manifests, gateway, triton, 8001), "it might load models"


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
    """Servers in the cluster that the settings name."""
    urls = (settings.get("HTD_S3_ENDPOINT", ""), settings.get("HTD_TRITON_URL", ""))
    hosts = {url.removeprefix("http://") for url in urls if not url.startswith("https:")}
    return {host for host in hosts if host and "." not in host}


def test_addresses_are_those_of_services() -> None:
    for name in OVERLAYS:
        asked = {"redis:6379"} | _asked(settings_of(rendered(name)))
        missing = asked - _addresses(rendered(name))
        assert not missing, f"{name}: nothing answers at {missing}"


def test_the_route_leads_to_the_gateway_and_keeps_metrics_inside() -> None:
    manifests = rendered("production")
    values = VARIANTS["production"].all_values()
    spec = next(item["spec"] for item in manifests if item["kind"] == "HTTPRoute")
    assert spec["hostnames"] == [values["host"]]
    assert spec["parentRefs"] == [
        {"name": values["route-gateway"], "namespace": values["route-gateway-namespace"]}
    ]
    open_, closed = spec["rules"]
    assert [match["path"]["value"] for match in open_["matches"]] == ["/"]
    assert open_["timeouts"] == {"request": "0s"}, "live events outlast any other limit"
    (backend,) = open_["backendRefs"]
    assert f"{backend['name']}:{backend['port']}" in _addresses(manifests)
    hidden = {match["path"]["value"] for match in closed["matches"]}
    assert hidden == {"/metrics", "/readyz"} <= GATEWAY_PATHS
    assert "backendRefs" not in closed


def test_the_ingress_leads_to_services_speaks_tls_and_lets_files_in() -> None:
    manifests = rendered("ingress")
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
    for folder in VARIANTS:
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

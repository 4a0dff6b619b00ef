"""The network policies, read as a cluster reads them: each dependency gets through, no more."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlparse

import pytest

from tests.deploy.manifests import (
    VARIANTS,
    Manifest,
    containers,
    pods,
    rendered,
    settings_of,
)

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

"""Kubernetes manifests → roles: Dynamo's graphs, LeaderWorkerSets, and the plain kinds."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from dsv4_shard.catalog.gpus import gpus_called
from dsv4_shard.configurations.programs import role_of, roles_in
from dsv4_shard.configurations.role import EngineRole
from dsv4_shard.configurations.shell_text import Filler, ShellCommand
from dsv4_shard.configurations.yaml_documents import child, items, mapping, number_at, text_at

_PLAIN = ("Deployment", "StatefulSet", "DaemonSet", "Job", "ReplicaSet")

KINDS = (*_PLAIN, "Pod", "LeaderWorkerSet", "DynamoGraphDeployment")
"""Kinds whose pods may start an engine."""

_SHELLS = ("sh", "bash", "dash", "zsh")

_GPU = "nvidia.com/gpu"

_PRODUCT = "nvidia.com/gpu.product"


def is_manifest(document: Any) -> bool:
    """Whether a document is of Kubernetes."""
    return bool(text_at(document, "kind")) and bool(text_at(document, "apiVersion"))


def manifest_roles(document: Any) -> Iterator[EngineRole]:
    """Yield the roles of a manifest; none if its kind starts no pods."""
    kind, name = text_at(document, "kind"), text_at(document, "metadata", "name")
    spec = child(document, "spec")
    match kind:
        case "List":
            for item in items(document, "items"):
                yield from manifest_roles(item)
        case "DynamoGraphDeployment":
            yield from _dynamo(spec)
        case "LeaderWorkerSet":
            template = child(spec, "leaderWorkerTemplate")
            size = number_at(template, "size") or 1
            about = {"nodes": size, "replicas": number_at(spec, "replicas") or 1}
            pods = [child(template, part, "spec") for part in ("leaderTemplate", "workerTemplate")]
            names = set[str]()
            for role in (role for pod in pods for role in _of_pod(pod, {"LWS_GROUP_SIZE": str(size)}, name, about)):
                if role.name not in names:
                    yield role
                names.add(role.name)
        case "Pod":
            yield from _of_pod(spec, {}, name, {})
        case _ if kind in _PLAIN:
            yield from _of_pod(child(spec, "template", "spec"), {}, name, {})


def _dynamo(spec: Any) -> Iterator[EngineRole]:
    """Yield the roles of Dynamo's graph: of `services` (v1alpha1) or `components` (v1beta1)."""
    common = _environment(items(spec, "envs"))
    parts = [(name, part, child(part, "extraPodSpec")) for name, part in mapping(spec, "services").items()]
    parts += [(text_at(part, "name"), part, child(part, "podTemplate", "spec")) for part in items(spec, "components")]
    for name, part, pod in parts:
        container = child(pod, "mainContainer")
        pod = {**mapping(pod), "containers": [container]} if container else pod
        about = {"nodes": number_at(part, "multinode", "nodeCount"), "replicas": number_at(part, "replicas") or 1}
        gpus = number_at(part, "resources", "limits", "gpu")
        for role in _of_pod(pod, common | _environment(items(part, "envs")), name, about):
            kind = text_at(part, "subComponentType") or text_at(part, "type")
            named = replace(role, gpus_per_node=role.gpus_per_node or gpus)
            yield replace(named, name=kind if kind in ("prefill", "decode") else named.name)


def _of_pod(pod: Any, variables: Mapping[str, str], name: str, about: Mapping[str, Any]) -> Iterator[EngineRole]:
    """Yield the roles that the containers of a pod start. `name` is for one whose options give it none."""
    for container in items(pod, "containers"):
        known = {**variables, **_environment(items(container, "env"))}
        limits, requests = mapping(container, "resources", "limits"), mapping(container, "resources", "requests")
        facts = {
            "gpu": _gpu(pod),
            "gpus_per_node": number_at(limits, _GPU) or number_at(requests, _GPU),
            "image": text_at(container, "image"),
            **about,
        }
        for role in _of_container(container, known):
            yield replace(role, name=name if role.name == "serve" and name else role.name, **facts)


def _of_container(container: Any, known: Mapping[str, str]) -> Iterator[EngineRole]:
    """Yield the roles of a container's command: words as they stand, or the text for a shell."""
    words = [str(word) for key in ("command", "args") for word in items(container, key)]
    if len(words) > 2 and words[0].rpartition("/")[2] in _SHELLS and words[1].startswith("-") and "c" in words[1]:
        yield from roles_in(words[2], known)
        return
    role = role_of(ShellCommand([*map(Filler(known), words)], dict(known)))
    if role is not None:
        yield role


def _environment(entries: list[Any]) -> dict[str, str]:
    """Return the variables of a container that have a value in the manifest itself."""
    return {text_at(entry, "name"): text_at(entry, "value") for entry in entries if child(entry, "value") is not None}


def _gpu(pod: Any) -> str:
    """Return the GPU that a pod selects, by the label of NVIDIA's device plugin; empty if it selects none."""
    wanted = [text_at(pod, "nodeSelector", _PRODUCT)]
    terms = ("affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms")
    for term in items(pod, *terms):
        for match in items(term, "matchExpressions"):
            wanted += map(str, items(match, "values")) if text_at(match, "key") == _PRODUCT else []
    return next((gpus[0].name for name in wanted if len(gpus := gpus_called(name.removesuffix("-SHARED"))) == 1), "")

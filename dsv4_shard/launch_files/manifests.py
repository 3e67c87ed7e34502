"""Plan → Kubernetes manifests: a LeaderWorkerSet for several nodes, else a Deployment; a Job that writes the shards."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

from dsv4_shard.launch_files.scripts import MARK, about, comment_of, name_of
from dsv4_shard.planning import BY_PLAN, Plan, PlanWay

REGISTRY = "registry.example.com"
"""Stands for the registry of the user's images."""

_MOUNT = "/models"
"""Where the claim `models` is mounted, and commands run: names of folders are below it."""

_PORTS = {"sglang": 30000, "vllm": 8000, "trtllm": 8000}
"""Engine → the port that it listens on by default."""

_HOST = {"sglang": " --host 0.0.0.0", "trtllm": " --host 0.0.0.0"}
"""Engine → the option without which it listens on the pod itself alone."""


def manifests_of(plan: Plan, name: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each manifest; none for an engine without a server. `name` names the objects."""
    program = _program(plan)
    for way in plan.ways:
        if way.serves == BY_PLAN or program not in _PORTS:
            continue
        if way.prepare is not None:
            yield f"{name_of(way)}-write.yaml", _text(plan, [_job(plan, name)])
        if way.launch.program is not None:
            yield f"{name_of(way)}.yaml", _text(plan, list(_serving(plan, way, name, program)))


def _program(plan: Plan) -> str:
    """The engine whose program the commands start; node folders are for SGLang's."""
    return "sglang" if plan.request.engine == "node" else plan.request.engine


def _serving(plan: Plan, way: PlanWay, name: str, program: str) -> Iterator[dict[str, Any]]:
    """Yield the objects that serve one way: the pods, and the service in front of the first one.

    A LeaderWorkerSet makes a service of its own name for its pods.
    """
    nodes, host, port = len(way.launch.commands), _HOST.get(program, ""), _PORTS[program]
    labels = {"app": name}
    if nodes == 1:
        pod = _pod(plan, way, program, f"exec {way.launch.commands[0]}{host}", port)
        template = {"metadata": {"labels": labels}, "spec": pod}
        spec: dict[str, Any] = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
        yield {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}
    else:
        command, more = way.launch.on_every_node
        command = command.removeprefix(" ".join(f"{key}={value}" for key, value in way.launch.environment.items()))
        here = "export NODE0=$LWS_LEADER_ADDRESS NODE_RANK=$LWS_WORKER_INDEX\nexec "
        leader = _pod(plan, way, program, f"{here}{way.launch.commands[0]}{host}", port)
        worker = _pod(plan, way, program, f"{here}{' '.join([command.strip(), *more])}{host}", None)
        group = {
            "size": nodes,
            "restartPolicy": "RecreateGroupOnPodRestart",
            "leaderTemplate": {"metadata": {"labels": labels}, "spec": leader},
            "workerTemplate": {"spec": worker},
        }
        kind = {"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet"}
        yield {**kind, "metadata": {"name": name}, "spec": {"replicas": 1, "leaderWorkerTemplate": group}}
    spec = {"selector": labels, "ports": [{"name": "http", "port": port}]}
    yield {"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"{name}-http"}, "spec": spec}


def _pod(plan: Plan, way: PlanWay, program: str, command: str, port: int | None) -> dict[str, Any]:
    """Return the spec of a pod that has a node's GPUs, the claim `models`, and memory shared by its processes."""
    image = f"{REGISTRY}/{program}{'-dsv4-shard' if way.launch.needs_plugin else ''}:{plan.engine_version}"
    files = [f"[ -e {name} ] || cat > {name} <<'END'\n{text.strip()}\nEND\n" for name, text in way.launch.files.items()]
    container: dict[str, Any] = {
        "name": program,
        "image": image,
        "workingDir": _MOUNT,
        "command": ["sh", "-c", _as_it_is("".join(files) + command)],
        "resources": {"limits": {"nvidia.com/gpu": plan.deployment.world // max(1, len(way.launch.commands))}},
        "volumeMounts": [{"name": "models", "mountPath": _MOUNT}, {"name": "shm", "mountPath": "/dev/shm"}],
    }
    if way.launch.environment:
        container["env"] = [{"name": name, "value": value} for name, value in way.launch.environment.items()]
    if port is not None:
        container["ports"] = [{"name": "http", "containerPort": port}]
    shared = {"name": "shm", "emptyDir": {"medium": "Memory"}}
    return {"containers": [container], "volumes": [_models(), shared]}


def _job(plan: Plan, name: str) -> dict[str, Any]:
    """Return the Job whose pods write the ranks of a node each."""
    nodes = plan.deployment.nodes
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    reshard = {
        "name": "reshard",
        "image": f"{REGISTRY}/dsv4-shard:{plan.tool_version}",
        "workingDir": _MOUNT,
        "args": [*map(_as_it_is, _reshard_words(plan)), "--ranks=auto"],
        "env": [
            {"name": "RANK", "valueFrom": {"fieldRef": {"fieldPath": index}}},
            {"name": "WORLD_SIZE", "value": str(nodes)},
        ],
        "volumeMounts": [{"name": "models", "mountPath": _MOUNT}],
    }
    pod = {"restartPolicy": "OnFailure", "containers": [reshard], "volumes": [_models()]}
    spec = {"completionMode": "Indexed", "completions": nodes, "parallelism": nodes, "template": {"spec": pod}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": f"{name}-write"}, "spec": spec}


def _reshard_words(plan: Plan) -> list[str]:
    assert plan.reshard is not None
    return shlex.split(plan.reshard)[1:]


def _as_it_is(text: str) -> str:
    """Return the text of a command or argument that Kubernetes, which fills in `$(NAME)`, passes on as `text`."""
    return re.sub(r"\$(?=[$(])", "$$", text)


def _models() -> dict[str, Any]:
    return {"name": "models", "persistentVolumeClaim": {"claimName": "models"}}


def _text(plan: Plan, documents: list[dict[str, Any]]) -> str:
    """Return objects as YAML, with what is to be set before they are applied."""
    import yaml

    head = ["---", MARK, comment_of(f"{about(plan)}."), f"# Set the images ({REGISTRY}) and the claim `models`,",
            f"# which all nodes mount at {_MOUNT}: commands run there."]  # fmt: skip
    text: str = yaml.dump_all(documents, Dumper=_dumper(), sort_keys=False, width=1 << 20)
    return "\n".join(head) + "\n" + text


def _dumper() -> Any:
    """PyYAML's safe dumper, with texts of several lines as such, and no aliases."""
    import yaml

    plain: Any = type("Plain", (yaml.SafeDumper,), {"ignore_aliases": lambda self, data: True})

    def represent(dumper: Any, text: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    plain.add_representer(str, represent)
    return plain

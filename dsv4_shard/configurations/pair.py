"""Prefill and decode as one deployment: what their shards have in common, and the commands that connect them."""

from collections.abc import Iterator, Mapping
from typing import Any

from dsv4_shard.catalog.option import words_of
from dsv4_shard.catalog.request import PlanOptions
from dsv4_shard.checkpoint import Checkpoint, Inventory
from dsv4_shard.configurations.documents import PlannedDeployment, PlannedPair, PlannedRole
from dsv4_shard.engines import FIRST_NODE, Request
from dsv4_shard.errors import UsageError
from dsv4_shard.planning import Plan, make_plan, request_of
from dsv4_shard.text.shell import replace_unquoted, shell_word
from dsv4_shard.version import __version__

PREFILL, DECODE = "prefill", "decode"

OPTIONS = "options of plan"
"""Format of a deployment whose roles are given as options of `plan`."""

_ADDRESS = {PREFILL: "$PREFILL0", DECODE: "$DECODE0"}
"""The address of the first node of each role: variables that the user sets."""

_BOOTSTRAP_PORT = 8998
"""SGLang's default of --disaggregation-bootstrap-port."""

_NIXL = """--kv-transfer-config '{"kv_connector": "NixlConnector", "kv_role": "ROLE"}'"""

_KV_ROLES = {PREFILL: "kv_producer", DECODE: "kv_consumer"}
"""vLLM's names of the roles; of `kv_both`, vLLM 0.33.0 says that it is deprecated."""

_CONNECTED = {
    "sglang": {role: ("", f"--disaggregation-mode {role} --host 0.0.0.0") for role in (PREFILL, DECODE)},
    "vllm": {
        role: ("VLLM_NIXL_SIDE_CHANNEL_HOST=$(hostname -i) ", _NIXL.replace("ROLE", name))
        for role, name in _KV_ROLES.items()
    },
}
"""Engine → role → the variables and options with which it sends its KV cache to the other, or gets it."""

_ROUTERS = {
    "sglang": "python3 -m sglang_router.launch_router --pd-disaggregation "
    f"--prefill http://$PREFILL0:30000 {_BOOTSTRAP_PORT} --decode http://$DECODE0:30000 --host 0.0.0.0 --port 8000",
    "vllm": "python3 tests/v1/kv_connector/nixl_integration/toy_proxy_server.py --port 8192 "
    "--prefiller-hosts $PREFILL0 --prefiller-ports 8000 --decoder-hosts $DECODE0 --decoder-ports 8000",
}
"""Engine → the command of its router, as its documentation has it."""

_NOTES = {
    "sglang": "The router is the package sglang-router. Both roles need the same page size and format of KV cache.",
    "vllm": "The proxy is in vLLM's repository, not in its package. Each node names its own address to the other role.",
}

_NOT_VERIFIED = "That the KV cache moves between these two layouts is not verified here."


def planned_roles(
    checkpoint: Checkpoint, inventory: Inventory, roles: Mapping[str, Mapping[str, Any]]
) -> PlannedDeployment:
    """Plan roles that are given as values of `plan`'s options.

    Raises:
        UsageError: An option is missing, unknown or out of bounds.
    """
    planned = []
    for name, values in roles.items():
        options = PlanOptions.of(dict(values))
        request = request_of(options)
        plan = make_plan(checkpoint, inventory, request, session=options.context)
        text = " ".join(words_of(options.part(Request)))
        role = PlannedRole(
            name=name, engine=request.engine, replicas=1, image=None, options=(), request=text, lacks=(), plan=plan,
            reason=None,
        )  # fmt: skip
        planned.append(role)
    found = PlannedDeployment(
        schema_version=1, tool_version=__version__, source=OPTIONS, format=OPTIONS, roles=tuple(planned), pair=None
    )
    return with_pair(found)


def with_pair(found: PlannedDeployment) -> PlannedDeployment:
    """Return a deployment with its `pair`, if it has one prefill and one decode role of an engine, and both run."""
    plans = {role.name: role.plan for role in found.roles if role.plan is not None and role.plan.way is not None}
    prefill, decode = plans.get(PREFILL), plans.get(DECODE)
    if prefill is None or decode is None or _engine(prefill) != _engine(decode) or _engine(prefill) not in _ROUTERS:
        return found
    notes = tuple(_notes(found, {PREFILL: prefill, DECODE: decode}))
    return found.model_copy(update={"pair": _pair(prefill, decode, notes)})


def refuse_two_engines(roles: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse roles of two engines, which do not read each other's KV cache.

    Raises:
        UsageError: The roles name different engines.
    """
    engines = {str(values.get("engine", "sglang")).lower() for values in roles.values()}
    if len(engines) > 1:
        raise UsageError(f"prefill and decode are for {' and '.join(sorted(engines))}",
                         hint="One engine's KV cache is not read by another: name the same with --engine.")  # fmt: skip


def _engine(plan: Plan) -> str:
    """The engine that runs; node folders are for SGLang."""
    return "sglang" if plan.request.engine == "node" else plan.request.engine


def _pair(prefill: Plan, decode: Plan, notes: tuple[str, ...]) -> PlannedPair:
    is_same = has_same_files(prefill, decode)
    decode_command = _command(decode, DECODE)
    if is_same and prefill.out and decode.out:
        decode_command = decode_command.replace(shell_word(decode.out), shell_word(prefill.out))
    writes = (prefill.reshard, None if is_same else decode.reshard)
    return PlannedPair(
        same_files=is_same,
        equal_bytes=equal_bytes(prefill, decode),
        writes=tuple(command for command in writes if command is not None),
        prefill=_command(prefill, PREFILL),
        decode=decode_command,
        router=_ROUTERS[_engine(prefill)],
        notes=notes,
    )


def _command(plan: Plan, role: str) -> str:
    """Return the command of a role on all of its nodes, with what connects it to the other."""
    assert plan.way is not None
    command, _ = plan.way.launch.on_every_node
    variables, options = _CONNECTED[_engine(plan)][role]
    return replace_unquoted(f"{variables}{command} {options}", FIRST_NODE, _ADDRESS[role])


def _notes(found: PlannedDeployment, plans: Mapping[str, Plan]) -> Iterator[str]:
    """Yield what the commands leave open."""
    for role, plan in plans.items():
        assert plan.way is not None
        if more := plan.way.launch.on_every_node[1]:
            yield f"On every node of {role} but the first, add {' '.join(more)}."
    if any(role.options for role in found.roles):
        yield "The commands have the plans' options: add those of the configuration that have no effect on weights."
    yield _NOTES[_engine(plans[PREFILL])]
    yield _NOT_VERIFIED


def has_same_files(one: Plan, other: Plan) -> bool:
    """Whether the shards of two plans of a checkpoint are certain to be the same files.

    GPUs and nodes may differ, unless folders are for nodes: files name the architecture alone. Files of another size of
    parts may be the same too, but are not called so.
    """
    if one.layout is None or other.layout is None:
        return False
    return _of_files(one) == _of_files(other)


def _of_files(plan: Plan) -> tuple[object, ...]:
    """What decides the files of a plan."""
    apart = {"gpu"} if plan.request.engine == "node" else {"gpu", "nodes"}
    deployment = plan.deployment.model_dump(exclude=apart)
    digest = plan.source.config_digest
    return digest, plan.engine_version, plan.layout, plan.request.part_size, deployment, plan.modules, plan.losses


def equal_bytes(one: Plan, other: Plan) -> int:
    """Return the bytes of tensors that every rank of both plans holds whole, with one shape and dtype.

    Each result has them once, as its ranks share them. Results of different layouts do not share files: the header of a
    file names its layout.
    """
    theirs = {_whole(row) for row in other.modules}
    return sum(row.bytes_per_rank for row in one.modules if _whole(row) is not None and _whole(row) in theirs)


def _whole(row: Any) -> tuple[object, ...] | None:
    if row.placement != "whole on every rank":
        return None
    return row.part_of, row.module, row.role, row.rank_shape, row.rank_dtype, row.bytes_per_rank

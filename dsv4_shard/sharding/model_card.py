"""README.md of a result: a model card that the Hub reads, made from the plan and the checkpoint's own card.

The card depends on nothing else, so a second run, another share and `verify --against` make the same bytes. Text from
the checkpoint and the command line is quoted: as JSON in the metadata, in code spans and blocks in the text. Releases
of dsv4-shard that word it in another way must still make these words for the plans of earlier ones.
"""

import json
import re
import shlex
from collections.abc import Collection, Iterator
from typing import Any

from dsv4_shard.engines import ANY_ENGINE, title_of
from dsv4_shard.limits import CARD
from dsv4_shard.planning import Plan
from dsv4_shard.sources.base import COMMIT
from dsv4_shard.sources.checkpoint_files import CARD_FILE
from dsv4_shard.sources.release_files import is_legal, is_license
from dsv4_shard.text.sanitize import clean
from dsv4_shard.text.units import counted

SOURCE_CARD = "README.source.md"
"""The checkpoint's own README.md in a result."""

_METADATA = re.compile(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
"""The block at the beginning of a card, as huggingface_hub finds it."""

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}", re.ASCII)

_LICENSE_NAME = re.compile(r"[\w.+-]{1,100}", re.ASCII)

_URL = re.compile(r"https?://[\w.~:/?#@!$&()*+,;=%-]{1,500}", re.ASCII)

_REPOSITORY = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(?:@[\w.+/-]+)?", re.ASCII)

_SNAPSHOT = re.compile(r"(?:.*/)?models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)/snapshots/[0-9a-f]{40}/?", re.ASCII)
"""A folder of huggingface_hub's cache."""

_PLUGIN = "--load-format dsv4_shard"


def model_card(plan: Plan, source_card: bytes | None, names: Collection[str], *, by_node: bool) -> bytes:
    """The card of the result that `plan` makes.

    Args:
        plan: The plan.
        by_node: Whether the result has a folder for each node.
        source_card: The checkpoint's own README.md, if it has one.
        names: The checkpoint's files that the result holds.
    """
    metadata = {
        "base_model": base_model(plan),
        "base_model_relation": "quantized" if base_model(plan) else None,
        **license_of(source_card or b"", names),
        "library_name": "dsv4-shard",
        "tags": [str(plan.layout), f"tp-{plan.deployment.tp}"],
    }
    lines = ["---", *_yaml(metadata), "---", "", *_text(plan, names, by_node)]
    return ("\n".join(lines) + "\n").encode()


def base_model(plan: Plan) -> str | None:
    """The Hub's name of the model that the plan's checkpoint is; None if the checkpoint is not known to be there."""
    label, revision = plan.source.label, plan.source.revision
    if revision is None:
        return None
    if cached := _SNAPSHOT.fullmatch(label):
        return f"{cached['owner']}/{cached['name']}"
    named = _REPOSITORY.fullmatch(label)
    return named["id"] if named and not COMMIT.fullmatch(named["id"].rpartition("/")[2]) else None


def license_of(card: bytes, names: Collection[str]) -> dict[str, object]:
    """The licence in a card's metadata: `license`, `license_name` and `license_link`, as far as they are well-formed.

    A link may name one of `names`.
    """
    found = _metadata_of(card)
    given = found.get("license")
    values = [str(one).lower() for one in (given if isinstance(given, list) else [given]) if isinstance(one, str)]
    if not values or not all(map(_LICENSE.fullmatch, values)):
        return {}
    name, link = found.get("license_name"), found.get("license_link")
    return {
        "license": values if isinstance(given, list) else values[0],
        "license_name": name if isinstance(name, str) and _LICENSE_NAME.fullmatch(name) else None,
        "license_link": link if isinstance(link, str) and (link in names or _URL.fullmatch(link)) else None,
    }


def _metadata_of(card: bytes) -> dict[str, Any]:
    """The metadata of a card, all scalars as text; empty if there is none, or if it is not YAML."""
    import yaml

    head = card[: CARD.nbytes].decode("utf-8", errors="replace").removeprefix("\ufeff")
    block = _METADATA.match(head)
    try:
        # Of YAML's loaders, this one alone makes nothing but text, lists and dictionaries, and merges no keys.
        found = yaml.load(block[1], Loader=yaml.BaseLoader) if block else None
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _yaml(metadata: dict[str, object]) -> Iterator[str]:
    """Lines of YAML. A JSON string is a YAML string."""
    for key, value in metadata.items():
        if isinstance(value, list):
            yield f"{key}:"
            yield from (f"- {json.dumps(one)}" for one in value)
        elif value is not None:
            yield f"{key}: {json.dumps(value)}"


def _text(plan: Plan, names: Collection[str], by_node: bool) -> Iterator[str]:
    engine, at = title_of(plan.request.engine, plan.engine_version), plan.deployment
    label, commit = plan.source.label, plan.source.revision
    name = (base_model(plan) or label.rstrip("/")).rpartition("/")[2]
    yield f"# {_code(name)} for {engine}, TP {at.tp}"
    yield ""
    yield from _what_it_is(engine, by_node)
    yield ""
    yield "## Base model"
    yield ""
    yield f"- Checkpoint: {_code(label)}"
    yield f"- Commit: {_code(commit) if commit else 'not known'}"
    yield f"- Weight files: {len(plan.source.files)}, {sum(file.nbytes for file in plan.source.files):,} bytes"
    yield f"- SHA-256 of config.json with sorted keys: {_code(plan.source.config_digest)}"
    yield ""
    yield from _files(names)
    yield ""
    yield "## Layout"
    yield ""
    yield f"- Engine: {engine}" + ("" if plan.engine_version == ANY_ENGINE else f" (version {plan.engine_version})")
    yield f"- Layout: {_code(str(plan.layout))}"
    stages = f"PP {at.pp} ({', '.join(map(str, at.stage_layers))} layers), " if at.pp > 1 else ""
    yield f"- Parallelism: TP {at.tp}, EP {at.ep}, attention DP {at.dp}, {stages}{counted(at.nodes, 'node')}"
    yield f"- GPU: {_code(at.gpu) if at.gpu else 'not named'} ({_code(at.architecture)})"
    yield f"- Routed experts: {_code(at.experts)}, MoE runner {_code(at.runner)}, shared experts {_code(at.shared)}"
    if plan.changes:
        yield ""
        yield "Changes from the engine's defaults, which the launch command contains:"
        yield ""
    for change in plan.changes:
        settings = f"{_code(' '.join(change.settings))}, " if change.settings else ""
        yield f"- {settings}{clean(str(change))}"
    yield ""
    yield "## How it was made"
    yield ""
    yield f"dsv4-shard {_code(plan.tool_version)}, and the plan in `plan.json`:"
    yield ""
    yield from _block(plan.reshard or "")
    yield ""
    yield from _serving(plan, names, engine)
    yield ""
    yield from _verification(plan)


def _what_it_is(engine: str, by_node: bool) -> Iterator[str]:
    if by_node:
        yield "These folders are parts of a checkpoint: each node's folder lacks the experts of other nodes."
    else:
        yield f"These are the weights of a checkpoint, cut for the ranks of {engine}. Other programs do not load them."
    yield "`dsv4-shard merge` makes a checkpoint of them again, and names tensors that it gives back in another form."


def _files(names: Collection[str]) -> Iterator[str]:
    legal = [SOURCE_CARD if name == CARD_FILE else name for name in sorted(names) if is_legal(name) and "/" not in name]
    yield "The files that came with the weights are here unchanged. `reshard --dry-run` names those that stayed behind."
    if legal:
        yield f"Licence, notices and README: {', '.join(map(_code, legal))}."
    if not any(map(is_license, names)):
        yield "The checkpoint has no licence file."


def _serving(plan: Plan, names: Collection[str], engine: str) -> Iterator[str]:
    launch = plan.launch
    yield "## How to serve it"
    yield ""
    if not launch.commands:
        yield "No launch command is known."
        return
    if any(_PLUGIN in command for command in launch.commands):
        yield f"{engine} loads these files with a plugin. Install it beside the engine on each node:"
        yield ""
        yield from _block(f"pip install dsv4-shard=={clean(plan.tool_version)}")
        yield ""
    program = launch.program.program if launch.program else ""
    for name in sorted(name for name in names if name.endswith(f"/{program}")):
        yield f"{_code(program)} came with the weights: run it in the folder of {_code(name)}."
        yield ""
    for name, content in launch.files.items():
        yield f"{_code(name)} holds {_code(content.strip())}."
        yield ""
    out = shlex.quote(str(plan.out))
    command, more = launch.on_every_node
    settings = ["export SHARDS=/path/to/these/files   # the folder with manifest.json"]
    if len(launch.commands) > 1:
        settings.append("export NODE0=10.0.0.1 NODE_RANK=0   # node 0's address, this node's number")
        yield "On every node:"
        yield ""
    yield from _block(*settings, command.replace(out, "$SHARDS"))
    if more:
        yield ""
        yield f"On every node but the first, add {_code(' '.join(more))}."
    if launch.draft_options:
        yield ""
        yield "For the draft model, add:"
        yield ""
        yield from _block(launch.draft_options.replace(out, "$SHARDS"))


def _verification(plan: Plan) -> Iterator[str]:
    label, revision = plan.source.label, plan.source.revision
    repo = base_model(plan)
    source = f"{repo}@{revision}" if repo and revision else label
    yield "## How to verify it"
    yield ""
    yield "In the folder with `manifest.json`:"
    yield ""
    yield from _block("dsv4-shard verify .", f"dsv4-shard verify . --against {shlex.quote(source)}")
    yield ""
    yield "The first command compares every file with the digests in `manifest.json` and finds damage."
    yield "The second derives every byte again from the checkpoint, this card too."
    yield ""
    yield "- Done while writing: the SHA-256 of each file and a digest of each tensor, which `manifest.json` holds."
    yield "- Not done while writing: reading the files back, comparing them with the checkpoint, starting an engine."
    yield "- A digest is no signature: it does not show who made the files."


def _code(text: str) -> str:
    """A code span, in which Markdown and HTML mean nothing."""
    text = clean(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") or not text.strip() else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _block(*lines: str) -> Iterator[str]:
    """A block of shell commands."""
    cleaned = [clean(line) for line in lines]
    fence = "`" * max(3, 1 + max((len(run) for line in cleaned for run in re.findall("`+", line)), default=0))
    yield f"{fence}sh"
    yield from cleaned
    yield fence

"""Node folders for SGLang and vLLM under EP: a checkpoint per node, which lacks only the experts of other nodes.

SGLang and vLLM read a checkpoint's index, load the tensors that it names, and request no expert that their ranks do not
own. So a node needs only a folder with all dense tensors and the experts of its own EP ranks, in the checkpoint's
names, dtypes and bytes. It reads about 1/nodes of the checkpoint and needs no plugin. A deployment follows SGLang's
rules and bytes per GPU; rank numbers of files (`--ranks`, the manifest) are node numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dsv4_shard.catalog.gpus import GPUS
from dsv4_shard.catalog.options import NO_DRAFT, VERSIONS
from dsv4_shard.checkpoint import Inventory
from dsv4_shard.engines.deployment import Context, Deployment, Request
from dsv4_shard.engines.drafts import KNOWN_DRAFT_RULE
from dsv4_shard.engines.engine import Engine
from dsv4_shard.engines.launch import NODE_RANK, Launch, Options
from dsv4_shard.engines.layout import Constant, Disposition, LeftOut, TargetTensor
from dsv4_shard.engines.parallelism import dp_alone
from dsv4_shard.engines.parameters import DRAFT_FOLDER, TOKENIZER_FILES
from dsv4_shard.engines.pipeline_rules import NO_PIPELINE_RULE
from dsv4_shard.engines.remedies import for_engine, leave_out
from dsv4_shard.engines.rules import Requires
from dsv4_shard.engines.sglang.launch import DRAFT_PATH, MODEL_PATH
from dsv4_shard.engines.sglang.v3 import SGLANG_V3
from dsv4_shard.engines.sglang.v4 import SGLANG
from dsv4_shard.engines.vllm import v4 as vllm
from dsv4_shard.engines.vllm.v3 import VLLM_V3
from dsv4_shard.models import Module, Part, Stage, TensorName
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE
from dsv4_shard.tensors.header import Tensor
from dsv4_shard.text.units import size

EP_RULE = Requires(
    "ep-tp", Module.ROUTED, lambda c: c.deployment.ep == c.deployment.tp,
    "a node's folder has whole experts for EP over all {at.tp} GPUs, here EP is {at.ep} and MoE TP {at.moe_tp}",
    consequence="experts would be cut over GPUs of several nodes, or be missing", fatal=True,
    remedies=(leave_out("ep"), for_engine("sglang", ", whose rank files serve every MoE TP")),
)  # fmt: skip

_PLACES_RULE = Requires(
    "node-places", Module.ROUTED, lambda c: not (c.deployment.redundant_experts or c.deployment.locations),
    "a node's folder has its experts in order; redundant experts and other places need those of other nodes",
    consequence="{engine} would miss experts without a word", fatal=True,
    remedies=(leave_out("redundant_experts", "expert_locations"), for_engine("sglang", ", whose rank files have both")),
)  # fmt: skip


class NodeLayout:
    """`node-{m}/`: a complete checkpoint folder with the original file names, an index, config and tokenizer."""

    name = "node"
    shares_files = True
    has_parts = False
    by_node = True

    def file_name(self, rank: int, part: int, deployment: Deployment) -> str:
        """The folder of node `rank`."""
        return folder_of(rank)

    def fate(self, tensor: Tensor, name: TensorName, context: Context) -> Disposition:
        """The tensor unchanged, in its original file; those of a draft that is asked for in a folder of their own.

        Every node has the input scales of all NVFP4 experts, since engines read those of all on every rank.
        """
        file, draft = tensor.file, context.deployment.draft
        if name.stage is Stage.MTP and draft == NO_DRAFT:
            return LeftOut(f"left out by --draft {NO_DRAFT}")
        if name.stage is Stage.MTP and draft is not None:
            file = DRAFT_FOLDER + file
        return (TargetTensor("", tensor.dtype, file=file, everywhere=name.part is Part.INPUT_SCALE),)

    def refusal(self, context: Context) -> str | None:
        """Refuse a single node: it needs the whole checkpoint."""
        return (
            "one node needs every expert, which is the checkpoint as it is" if context.deployment.nodes == 1 else None
        )

    def constants(self, context: Context) -> tuple[Constant, ...]:
        """None: checkpoint loaders need only the checkpoint's tensors."""
        return ()

    def identity(self, context: Context) -> dict[str, str]:
        """Properties that decide which experts go to which node. They are in the manifest, and in no header."""
        deployment = context.deployment
        return {
            "layout": "dsv4-shard node 1",
            "nodes": str(deployment.nodes),
            "tp": str(deployment.tp),
            "ep": str(deployment.ep),
        }

    def companions(self, document: dict[str, object], context: Context) -> dict[str, bytes]:
        """None; the index follows from the files."""
        return {}

    def copied(self, context: Context) -> dict[str, str]:
        """Config and tokenizer, for each folder, and for that of a draft."""
        names = {name: name for name in (CONFIG_FILE, *TOKENIZER_FILES)}
        drafts = {DRAFT_FOLDER + name: name for name in names} if context.deployment.serves_draft else {}
        return names | drafts


def folder_of(node: int) -> str:
    """The folder of a node within the result."""
    return f"node-{node}/"


def folders_notes(context: Context) -> tuple[str, ...]:
    """Notes on the content and the limits of a folder, for any engine."""
    deployment = context.deployment
    if deployment.nodes == 1:
        return ()
    dense, experts = _nbytes(context)
    each = dense + experts // deployment.nodes
    return (
        f"a folder for each of {deployment.nodes} nodes, {size(each)} of {size(dense + experts)}: dense tensors whole "
        f"({size(dense)}), and {_experts(context)}; --ranks takes node numbers",
        "for EP over all GPUs with experts in order, without EPLB, redundant experts or expert maps; no engine "
        "notices a missing expert, so start each node on its own folder",
        "files that a node gets whole are hard links to the checkpoint's own where both are on one file system: "
        "editing the checkpoint in place edits the folders; deleting it frees no room that they use",
    )


@dataclass(frozen=True, slots=True)
class Subsets:
    """Node folders for the engine `serving` (SGLang). `other` (vLLM) also loads them if its rules hold."""

    serving: Engine
    other: Engine

    def candidates(self, inventory: Inventory, request: Request) -> Iterator[Deployment]:
        """SGLang's deployments, with EP over all GPUs by default."""
        asked = replace(request, ep=request.ep if request.ep is not None else request.tp)
        for deployment in self.serving.candidates(inventory, asked):
            yield replace(deployment, engine="node")

    def launch(self, context: Context, model_path: str, sharded: bool) -> Launch:
        """SGLang's commands, one per node on its own folder, with the stock loader."""
        if not sharded:
            return self.serving.launch(context, model_path, False)
        folders = [f"{model_path}/{folder_of(node)}".rstrip("/") for node in range(context.deployment.nodes)]
        start = self.serving.launch(context, folders[0], False)
        own: list[Options] = [_paths(folder, context) for folder in folders]
        if start.program is not None:
            start = replace(start, program=replace(start.program, options=start.program.options | own[0]))
        options = zip(start.node_options, [{}, *own[1:]], strict=True)
        return replace(start, node_options=tuple(folder | others for others, folder in options))

    def notes(self, context: Context) -> tuple[str, ...]:
        """Notes on the content and limits of a folder, and how to start vLLM on it."""
        return () if context.deployment.nodes == 1 else (*folders_notes(context), self._on_vllm(context))

    def _on_vllm(self, context: Context) -> str:
        """vLLM's command for the same GPUs, or the reason why vLLM does not run there."""
        deployment = context.deployment
        gpu = deployment.gpu.name if deployment.gpu.name in GPUS and deployment.gpu_named else None
        request = Request(
            deployment.tp // deployment.dp,
            ep=deployment.tp,
            dp=deployment.dp,
            engine="vllm",
            gpu=gpu,
            nodes=deployment.nodes,
        )
        there = Context(context.inventory, next(self.other.candidates(context.inventory, request)))
        breaches = self.other.breaches(there)
        reason = breaches[0].reason if breaches else vllm.misloads(there)
        if reason is not None:
            return f"vLLM {vllm.VERSION} does not serve these folders: {reason}"
        start = self.other.launch(there, "OUT/node-M", False)
        (command,) = replace(start, node_options=(start.node_options[1] | {NODE_RANK: "M"},)).commands
        return f"vLLM {vllm.VERSION} serves the same folders; on node M, without --headless on node 0: {command}"

    def engine(self) -> Engine:
        """The engine `node` for this model."""
        return Engine(
            name="node",
            title="node folders, SGLang",
            version=self.serving.version,
            families=self.serving.families,
            serves=False,
            versions=VERSIONS["node"],
            files_for_any_gpu=True,
            parallelism=dp_alone,
            bytes_sent=self.serving.bytes_sent,
            kv_cache=self.serving.kv_cache,
            memory_share=self.serving.memory_share,
            host=self.serving.host,
            candidates=self.candidates,
            rules=(
                NO_PIPELINE_RULE,
                EP_RULE,
                _PLACES_RULE,
                KNOWN_DRAFT_RULE,
                *self.serving.rules,
            ),
            place=self.serving.place,
            store=self.serving.store,
            launch=self.launch,
            addition=self.serving.addition,
            notes=self.notes,
            changes=self.serving.changes,
            layout=NodeLayout(),
        )


def _paths(folder: str, context: Context) -> Options:
    """The options of a node that name its folder, and that of the draft model in it."""
    draft = {DRAFT_PATH: f"{folder}/{DRAFT_FOLDER.rstrip('/')}"} if context.deployment.serves_draft else {}
    return {MODEL_PATH: folder, **draft}


def _experts(context: Context) -> str:
    """Number of experts per node, and of the draft model's experts if it differs."""
    nodes, config = context.deployment.nodes, context.config
    layers, draft = config.n_routed_experts, config.experts_in(Stage.MTP)
    words = f"{layers // nodes} of {layers} experts"
    if draft == layers or not context.inventory.mtp_blocks:
        return words
    return f"{words}, {draft // nodes} of {draft} in the draft model"


def _nbytes(context: Context) -> tuple[int, int]:
    """Bytes of all dense tensors, and of all routed experts."""
    dense = experts = 0
    for group, count in context.inventory.groups.items():
        if group.role.module is Module.ROUTED:
            experts += group.nbytes * count
        else:
            dense += group.nbytes * count
    return dense, experts


NODE = Subsets(SGLANG, vllm.VLLM).engine()

NODE_V3 = Subsets(SGLANG_V3, VLLM_V3).engine()

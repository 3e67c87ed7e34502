"""Rules and choices that several engines share, since they build DeepSeek-V4 from the same kinds of layers."""

from dsv4_shard.blocks import DECODED_BLOCK
from dsv4_shard.engines.base import ASSUMED_GPU, Context, Divides, Pad, Request, Requires, Split
from dsv4_shard.gpus import Gpu, find_gpu
from dsv4_shard.inventory import NVFP4, Inventory
from dsv4_shard.roles import Module, Role

COLUMN_QUOTE = (
    "ValueError: Weight output_partition_size = {part} is not divisible by weight quantization block_n = {unit}."
)
ROW_QUOTE = (
    "ValueError: Weight input_size_per_partition = {part} is not divisible by weight quantization block_k = {unit}."
)
GATE_UP_QUOTE = (
    "ValueError: The output_size of gate's and up's weight = {part} is not divisible by weight quantization "
    "block_n = {unit}."
)
"""The engines' own words, the same in SGLang (`fp8.py`) and vLLM (`fp8_utils.py`)."""

GPUS_PER_NODE = {"gb200": 4, "gb300": 4}
"""GPUs of one host where it is not eight."""


def pick_gpu(request: Request) -> Gpu:
    """The GPU that the request names, or the one that stands for Hopper."""
    return find_gpu(request.gpu) if request.gpu else ASSUMED_GPU


def pick_nodes(request: Request, world: int, gpu: Gpu) -> int:
    """Hosts: as asked for, else as few as hold the GPUs."""
    return request.nodes or -(-world // GPUS_PER_NODE.get(gpu.name, 8))


def shares_blocks_evenly(inventory: Inventory, parts: int) -> bool:
    """Whether the shared expert's intermediate size falls into `parts` parts of whole blocks."""
    fmt = inventory.shared
    unit = fmt.block.rows if fmt is not None and fmt.block is not None else 1
    return inventory.config.shared_intermediate % (parts * unit) == 0


def version_rule(*versions: str) -> Requires:
    """Rules and layouts are those of certain versions, and are claimed for no other."""
    return Requires(
        "version", Module.ATTENTION, lambda c: c.at.version in versions,
        "version {at.version} was not held against its own classes; known: " + ", ".join(versions),
        consequence="rules, names and shapes may differ", fatal=True, remedies=("leave --engine-version out",),
    )  # fmt: skip


VOCAB_UNIT = 64
"""Rows to which engines pad the vocabulary."""


def vocab_placement(context: Context) -> Split | Pad:
    """Rows over TP: padded to 64, and to 64 × TP where that does not divide (SGLang)."""
    vocab, tp = context.config.vocab_size, context.at.tp
    if vocab % tp == 0 and vocab % VOCAB_UNIT == 0:
        return Split(0, "tp")
    padded = -(-vocab // VOCAB_UNIT) * VOCAB_UNIT
    return Pad(0, "tp", padded // tp if padded % tp == 0 else VOCAB_UNIT)


NODES_RULE = Divides(
    "nodes", Module.ATTENTION, lambda c: c.at.world, "GPUs", lambda c: c.at.nodes, "nodes",
    consequence="some nodes would hold more ranks than others", fatal=True,
    remedies=("choose a number of nodes that divides the GPUs",),
)  # fmt: skip

NO_CAST_RULE = Requires(
    "expert-dtype", Module.ROUTED, lambda c: c.at.experts == c.inventory.routed.name,
    "experts are asked for in {at.experts}, but they are {context.inventory.routed.name} in the checkpoint",
    consequence="the engine holds the experts as the checkpoint does", fatal=True,
    remedies=("leave --expert-dtype out: only --engine reference casts experts",),
)  # fmt: skip


def nvfp4_rule(reason: str, consequence: str = "not known") -> Requires:
    """NVFP4 experts are refused where nothing is known of how the engine's classes hold them."""
    return Requires(
        "nvfp4", Module.ROUTED, lambda c: c.inventory.routed.name != NVFP4, reason, consequence=consequence,
        remedies=("--engine node, which keeps the checkpoint's tensors as they are",), fatal=True,
    )  # fmt: skip


O_A_DECODING_RULE = Requires(
    "o_a-decoding", Module.ATTENTION,
    lambda c: c.format(Role.O_A).name != "FP8" or c.block(Role.O_A) == (DECODED_BLOCK, DECODED_BLOCK),
    "wo_a is decoded to BF16 in blocks of 128×128, here it is {context.o_a_format}",
    consequence="the engine's own decoding assumes that block",
)  # fmt: skip

EXPERTS_RULE = Divides(
    "experts", Module.ROUTED, lambda c: c.config.n_routed_experts, "n_routed_experts", lambda c: c.at.ep, "EP",
    remedies=("choose an EP that divides the number of experts",),
)  # fmt: skip


def attention_rules(
    remedies: tuple[str, ...], rows_quote: str | None, heads_consequence: str, groups_consequence: str
) -> tuple[Divides, ...]:
    """Heads, output groups and blocks of q_b, o_a and o_b under attention TP, in the order of the constructors.

    `rows_quote` is what the engine prints where q_b's rows do not divide. No engine looks at `o_groups`:
    `groups_consequence` says what happens then.
    """

    def attention_tp(context: Context) -> int:
        return context.at.attention_tp

    return (
        Divides(
            "q_b-blocks", Module.ATTENTION, lambda c: c.q_rows, "q_b rows", attention_tp, "attention TP",
            lambda c: c.block(Role.Q_B).rows, "blocks", COLUMN_QUOTE, rows_quote, remedies=remedies,
        ),
        Divides(
            "heads", Module.ATTENTION, lambda c: c.config.num_attention_heads, "num_attention_heads",
            attention_tp, "attention TP", consequence=heads_consequence, remedies=remedies,
        ),
        Divides(
            "o_groups", Module.ATTENTION, lambda c: c.v4.o_groups, "o_groups", attention_tp, "attention TP",
            consequence=groups_consequence, remedies=remedies,
        ),
        Divides(
            "o_a-blocks", Module.ATTENTION, lambda c: c.o_cols, "o_a rows", attention_tp, "attention TP",
            lambda c: c.block(Role.O_A).rows, "blocks", COLUMN_QUOTE, remedies=remedies,
        ),
        Divides(
            "o_b-blocks", Module.ATTENTION, lambda c: c.o_cols, "o_b columns", attention_tp, "attention TP",
            lambda c: c.block(Role.O_B).cols, "blocks", ROW_QUOTE, remedies=remedies,
        ),
    )  # fmt: skip

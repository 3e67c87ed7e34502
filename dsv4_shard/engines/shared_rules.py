"""Rules and choices that several engines share, since they build DeepSeek's models from the same kinds of layers."""

from collections.abc import Callable
from dataclasses import replace

from dsv4_shard.checkpoint import NVFP4, Inventory
from dsv4_shard.engines.deployment import Context
from dsv4_shard.engines.placement import Pad, Split
from dsv4_shard.engines.remedies import ANY_EP, for_engine, leave_out
from dsv4_shard.engines.rules import NO_OPTION, NOT_VERIFIED, Divides, Remedies, Requires, Symptom
from dsv4_shard.models import Module, Role, V3Config
from dsv4_shard.tensors.geometry import DECODED_BLOCK

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

DOWN_QUOTE = (
    "ValueError: The input_size of down's weight = {part} is not divisible by weight quantization block_k = {unit}."
)
"""Error text of SGLang (`fp8.py`) and vLLM (`fp8_utils.py`), which is the same."""


def shares_blocks_evenly(inventory: Inventory, parts: int) -> bool:
    """Whether the shared expert's intermediate size divides into `parts` parts of whole blocks."""
    fmt = inventory.shared
    unit = fmt.block.rows if fmt is not None and fmt.block is not None else 1
    return inventory.config.shared_intermediate % (parts * unit) == 0


def version_rule(*versions: str) -> Requires:
    """Rule: the version is one of `versions`. Rules and layouts are not verified for any other."""
    return Requires(
        "version", Module.DEPLOYMENT, lambda c: c.deployment.version in versions,
        "the engine's own classes were not run in version {at.version}; verified: " + ", ".join(versions),
        consequence=NOT_VERIFIED, fatal=True, remedies=(leave_out("engine_version"),),
    )  # fmt: skip


ADDED_IN_PARTS = (
    "Each rank holds a part of the shared expert: its output is summed by the same all-reduce as the routed one."
)
"""How the shared expert's output joins the sum if no rank holds the whole expert."""

VOCAB_UNIT = 64
"""Engines pad the vocabulary to a multiple of this number of rows."""


def vocab_placement(context: Context, group: str = "tp") -> Split | Pad:
    """Placement of the vocabulary's rows over the ranks of `group`.

    The rows are padded to a multiple of 64; if that does not divide, to a multiple of 64 × ranks (SGLang).
    """
    vocab, parts = context.config.vocab_size, context.deployment.group(group)
    if vocab % parts == 0 and vocab % VOCAB_UNIT == 0:
        return Split(0, group)
    padded = -(-vocab // VOCAB_UNIT) * VOCAB_UNIT
    return Pad(0, group, padded // parts if padded % parts == 0 else VOCAB_UNIT)


INDIVISIBLE_QUOTE = "AssertionError: {size} is not divisible by {parts}"
"""Error text of `ensure_divisibility`, the same in SGLang and vLLM."""


def vocab_rule(uneven: Symptom) -> Divides:
    """Rule: the vocabulary, padded to 64 rows, divides over TP."""
    return Divides(
        "vocab", Module.EMBEDDING, lambda c: -(-c.config.vocab_size // VOCAB_UNIT) * VOCAB_UNIT,
        "vocab_size (padded to 64)", lambda c: c.deployment.tp, "TP", uneven=uneven,
    )  # fmt: skip


SGLANG_OPTIONS_RULE = Requires(
    "sglang-options", Module.DEPLOYMENT,
    lambda c: not (c.deployment.dp_lm_head or c.deployment.redundant_experts or c.deployment.locations),
    "--dp-lm-head, --redundant-experts and --expert-locations are SGLang's", consequence=NO_OPTION,
    remedies=(leave_out("dp_lm_head", "redundant_experts", "expert_locations"), for_engine("sglang")), fatal=True,
)  # fmt: skip
"""Rule of engines other than SGLang."""

NODES_RULE = Divides(
    "nodes", Module.DEPLOYMENT, lambda c: c.deployment.world, "GPUs", lambda c: c.deployment.nodes, "nodes",
    uneven=Symptom(
        consequence="some nodes would hold more ranks than others",
        remedies=(leave_out("nodes"),),
    ),
)  # fmt: skip

NO_CAST_RULE = Requires(
    "expert-dtype", Module.ROUTED, lambda c: c.deployment.experts == c.inventory.routed.name,
    "experts are asked for in {at.experts}, but they are {context.inventory.routed.name} in the checkpoint",
    consequence="{engine} holds the experts as the checkpoint does", fatal=True,
    remedies=(leave_out("expert_dtype"), for_engine("reference", ", which alone casts experts")),
)  # fmt: skip


def nvfp4_rule(reason: str, consequence: str = NOT_VERIFIED) -> Requires:
    """Rule: no NVFP4 experts, since it is not known how the engine's classes hold them."""
    return Requires(
        "nvfp4", Module.ROUTED, lambda c: c.inventory.routed.name != NVFP4, reason, consequence=consequence,
        remedies=(for_engine("node", ", which keeps the checkpoint's tensors as they are"),), fatal=True,
    )  # fmt: skip


def o_a_decoding_rule(*sides: int) -> Requires:
    """Rule: wo_a is plain, or in square blocks of one of `sides`, which divide the decoded matrix."""

    def holds(context: Context) -> bool:
        rows, cols = context.block(Role.O_A)
        return context.format(Role.O_A).name != "FP8" or (rows == cols and rows in sides)

    known = " or ".join(f"{side}×{side}" for side in sides)
    return Requires(
        "o_a-decoding", Module.ATTENTION, holds,
        f"wo_a is decoded to BF16 in blocks of {known}, here it is {{context.o_a_format}}",
        consequence="the engine's own decoding assumes that block",
    )  # fmt: skip


O_A_DECODING_RULE = o_a_decoding_rule(DECODED_BLOCK)

EXPERTS = Symptom(remedies=(ANY_EP,))

EXPERTS_RULE = Divides(
    "experts", Module.ROUTED, lambda c: c.config.n_routed_experts, "n_routed_experts", lambda c: c.deployment.ep, "EP",
    uneven=EXPERTS,
)  # fmt: skip


def heads_rule(uneven: Symptom) -> Divides:
    """Rule: the attention heads divide over attention TP."""
    return Divides(
        "heads", Module.ATTENTION, lambda c: c.config.num_attention_heads, "num_attention_heads",
        lambda c: c.deployment.attention_tp, "attention TP", uneven=uneven,
    )  # fmt: skip


def attention_rules(
    remedies: Remedies, rows_quote: str | None, heads: Symptom | None, groups: Symptom
) -> tuple[Divides, ...]:
    """Rules for heads, groups and blocks of q_b, o_a and o_b under attention TP, in the order of the constructors.

    Args:
        remedies: Remedies of all these rules.
        rows_quote: Text that the engine prints if the rows of q_b or o_a, or the columns of o_b, do not divide.
        heads: How the breach shows if the heads do not divide. None for engines that check them before.
        groups: How the breach shows if the output groups do not divide. No engine checks `o_groups`.
    """

    def attention_tp(context: Context) -> int:
        return context.deployment.attention_tp

    uneven = Symptom(rows_quote, remedies=remedies)
    rows, cols = Symptom(COLUMN_QUOTE, remedies=remedies), Symptom(ROW_QUOTE, remedies=remedies)
    q_b = Divides(
        "q_b-blocks", Module.ATTENTION, lambda c: c.q_rows, "q_b rows", attention_tp, "attention TP",
        lambda c: c.block(Role.Q_B).rows, "blocks", uneven, rows,
    )  # fmt: skip
    whole_heads = () if heads is None else (heads_rule(replace(heads, remedies=remedies)),)
    return (
        q_b,
        *whole_heads,
        Divides(
            "o_groups", Module.ATTENTION, lambda c: c.v4.o_groups, "o_groups", attention_tp, "attention TP",
            uneven=replace(groups, remedies=remedies),
        ),
        Divides(
            "o_a-blocks", Module.ATTENTION, lambda c: c.o_cols, "o_a rows", attention_tp, "attention TP",
            lambda c: c.block(Role.O_A).rows, "blocks", uneven, rows,
        ),
        Divides(
            "o_b-blocks", Module.ATTENTION, lambda c: c.o_cols, "o_b columns", attention_tp, "attention TP",
            lambda c: c.block(Role.O_B).cols, "blocks", uneven, cols,
        ),
    )  # fmt: skip


def latent_attention_rules(remedies: Remedies) -> tuple[Divides, ...]:
    """Rules for the blocks of V3's q_b, kv_b and o under attention TP, in the order of the constructors."""

    def rule(name: str, role: Role, size: Callable[[V3Config], int], size_name: str, axis: int, quote: str) -> Divides:
        return Divides(
            name, Module.ATTENTION, lambda c: size(c.v3), size_name, lambda c: c.deployment.attention_tp,
            "attention TP",
            lambda c: c.block(role)[axis], "blocks", Symptom(remedies=remedies), Symptom(quote, remedies=remedies),
        )  # fmt: skip

    return (
        rule("q_b-blocks", Role.Q_B, lambda c: c.q_rows, "q_b rows", 0, COLUMN_QUOTE),
        rule("kv_b-blocks", Role.KV_B, lambda c: c.kv_rows, "kv_b rows", 0, COLUMN_QUOTE),
        rule("o-blocks", Role.O_PROJ, lambda c: c.o_cols, "o columns", 1, ROW_QUOTE),
    )  # fmt: skip

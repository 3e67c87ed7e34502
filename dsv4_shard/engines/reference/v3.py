"""DeepSeek's own inference code of V3 and V3.2: the files of `convert.py`, the rules of `model.py`.

Routed experts are whole and spread by contiguous blocks, as in V4. All other large tensors are tensor-parallel, also
the shared experts and the dense MLP, and the names are DeepSeek's own, not the checkpoint's. V3.2's indexer is whole on
every rank. The converter leaves out the MTP layer. It identifies that layer by its number, 61; this module by its role.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from dsv4_shard.checkpoint import Inventory, TensorGroup
from dsv4_shard.engines.deployment import Context, Deployment, Request
from dsv4_shard.engines.engine import Engine
from dsv4_shard.engines.layout import Disposition, LeftOut, TargetTensor
from dsv4_shard.engines.placement import Expert, Placement, RankTensor, Replicate, Split, rank_tensor
from dsv4_shard.engines.reference import v4 as reference
from dsv4_shard.engines.reference.converter import config_file, value_at
from dsv4_shard.engines.reference.v4 import ONE_WAY_RULES, VOCAB_RULE, WHOLE_EXPERTS_RULE, WRONG, ranks, scale_rule
from dsv4_shard.engines.remedies import leave_out
from dsv4_shard.engines.rules import NO_OPTION, Divides, Requires, Rule, Symptom, in_stage
from dsv4_shard.engines.shared_rules import NO_CAST_RULE, NODES_RULE, version_rule
from dsv4_shard.engines.stages import StartStage
from dsv4_shard.models import (
    NATIVE_PARTS,
    V3,
    V32,
    Family,
    Grammar,
    ModelConfig,
    Module,
    Names,
    Role,
    Stage,
    TensorName,
    V3Config,
)
from dsv4_shard.tensors.header import Tensor

BLOCK = (128, 128)
"""`block_size` of model.py: its parameters have one scale per such block."""

BIASED_WIDTH = 7168
"""The only hidden size for which model.py's router has a bias."""

_WORDS: dict[Role, str] = {
    Role.EMBED: "embed",
    Role.HEAD: "head",
    Role.FINAL_NORM: "norm",
    Role.ATTN_NORM: "attn_norm",
    Role.FFN_NORM: "ffn_norm",
    Role.Q_A: "attn.wq_a",
    Role.Q_NORM: "attn.q_norm",
    Role.Q_B: "attn.wq_b",
    Role.KV_A: "attn.wkv_a",
    Role.KV_NORM: "attn.kv_norm",
    Role.KV_B: "attn.wkv_b",
    Role.O_PROJ: "attn.wo",
    Role.INDEXER_Q_B: "attn.indexer.wq_b",
    Role.INDEXER_K: "attn.indexer.wk",
    Role.INDEXER_K_NORM: "attn.indexer.k_norm",
    Role.INDEXER_K_NORM_BIAS: "attn.indexer.k_norm.bias",
    Role.INDEXER_WEIGHTS: "attn.indexer.weights_proj",
    Role.DENSE_GATE: "ffn.w1",
    Role.DENSE_UP: "ffn.w3",
    Role.DENSE_DOWN: "ffn.w2",
    Role.ROUTER: "ffn.gate",
    Role.ROUTER_BIAS: "ffn.gate.bias",
    Role.SHARED_GATE: "ffn.shared_experts.w1",
    Role.SHARED_UP: "ffn.shared_experts.w3",
    Role.SHARED_DOWN: "ffn.shared_experts.w2",
    Role.ROUTED_GATE: "w1",
    Role.ROUTED_UP: "w3",
    Role.ROUTED_DOWN: "w2",
}
"""The converter's words, by role."""


def _converted_names(family: Family) -> Names:
    """Names in the converter's files. They have no MTP layer, so the number of layers does not matter."""
    specs = {
        stage: tuple(replace(spec, name=_WORDS[spec.role]) for spec in family.specs[stage])
        for stage in (Stage.MODEL, Stage.LAYER)
    }
    return Names(Grammar({Stage.LAYER: "layers."}, "ffn.experts.", NATIVE_PARTS), specs, 0)


# --- rules ---------------------------------------------------------------------------------------------------------


def _cut_rule(
    name: str, module: Module, role: Role, size: Callable[[V3Config], int], size_name: str, axis: int = 0
) -> Divides:
    return scale_rule(name, module, role, lambda c: size(c.v3), size_name, axis)


def _has_dense(context: Context) -> bool:
    return context.v3.first_k_dense_replace > 0


def _config_rules(version: str, runner: str) -> tuple[Rule, ...]:
    """What the reference has no option for, and what its model.py cannot hold."""
    return (
        Requires(
            "options", Module.ROUTED, lambda c: c.deployment.a2a is None and c.deployment.runner == runner,
            "the reference has no runners or all-to-all backends to choose", consequence=NO_OPTION,
            remedies=(leave_out("runner", "a2a"),), fatal=True,
        ),
        Requires(
            "shared-way", Module.SHARED, lambda c: c.deployment.shared == "split",
            f"{version}'s reference splits the shared experts over all ranks; it cannot {{at.shared}} them",
            consequence=NO_OPTION, remedies=(leave_out("shared_experts"),), fatal=True,
        ),
        NO_CAST_RULE,
        Requires(
            "format", Module.ROUTED, lambda c: c.inventory.routed.name in ("FP8", "BF16"),
            f"{version}'s model.py computes in FP8 or BF16, the experts are {{context.inventory.routed}}",
            consequence=WRONG, fatal=True,
        ),
        Requires(
            "blocks", Module.ROUTED, lambda c: c.inventory.routed.block in (None, BLOCK),
            "model.py has a scale for each block of 128×128, here experts are {context.inventory.routed}",
            consequence="the model refuses the files: its parameters have other shapes", fatal=True,
        ),
        Requires(
            "shared-experts", Module.SHARED, lambda c: c.config.n_shared_experts > 0,
            "model.py always has shared experts, the checkpoint has none",
            consequence="the model refuses the files: its parameters are missing", fatal=True,
        ),
    )  # fmt: skip


_CUT_RULES = (
    replace(
        _cut_rule("dense-columns", Module.DENSE, Role.DENSE_DOWN, lambda c: c.intermediate_size, "intermediate_size",
                  axis=1),
        when=_has_dense,
    ),
    replace(
        _cut_rule("dense-rows", Module.DENSE, Role.DENSE_GATE, lambda c: c.intermediate_size, "intermediate_size"),
        when=_has_dense,
    ),
    _cut_rule("kv_b-blocks", Module.ATTENTION, Role.KV_B, lambda c: c.kv_rows, "kv_b rows"),
    _cut_rule("o-blocks", Module.ATTENTION, Role.O_PROJ, lambda c: c.o_cols, "o columns", axis=1),
    _cut_rule("q_b-blocks", Module.ATTENTION, Role.Q_B, lambda c: c.q_rows, "q_b rows"),
    _cut_rule("shared-columns", Module.SHARED, Role.SHARED_DOWN, lambda c: c.shared_intermediate,
              "shared intermediate size", axis=1),
    _cut_rule("shared-rows", Module.SHARED, Role.SHARED_GATE, lambda c: c.shared_intermediate,
              "shared intermediate size"),
)  # fmt: skip
"""What the converter cuts, in the order of the first tensors' names."""

_HEADS_RULE = Divides(
    "heads", Module.ATTENTION, lambda c: c.config.num_attention_heads, "num_attention_heads", ranks, "ranks",
    uneven=Symptom(consequence=WRONG),
)  # fmt: skip


def _rules(version: str, runner: str) -> tuple[Rule, ...]:
    """What the converter refuses, then the model's faults."""
    return (
        *ONE_WAY_RULES,
        *_config_rules(version, runner),
        NODES_RULE,
        version_rule(version),
        *in_stage(StartStage.CONVERSION, WHOLE_EXPERTS_RULE, VOCAB_RULE, *_CUT_RULES),
        *in_stage(StartStage.SERVING, _HEADS_RULE),
    )


# --- placements ----------------------------------------------------------------------------------------------------


_PLACEMENTS: dict[Role, Placement] = {
    **dict.fromkeys((Role.EMBED, Role.HEAD, Role.Q_B, Role.KV_B), Split(0, "tp")),
    **dict.fromkeys((Role.DENSE_GATE, Role.DENSE_UP, Role.SHARED_GATE, Role.SHARED_UP), Split(0, "tp")),
    **dict.fromkeys((Role.O_PROJ, Role.DENSE_DOWN, Role.SHARED_DOWN), Split(1, "tp")),
    **dict.fromkeys((Role.ROUTED_GATE, Role.ROUTED_UP, Role.ROUTED_DOWN), Expert(Replicate())),
}
"""The converter's `mapping`, by role; other roles are whole on every rank."""


def place(role: Role, context: Context) -> Placement:
    """The converter's placement of `role`."""
    return _PLACEMENTS.get(role, Replicate())


def store(group: TensorGroup, placement: Placement, context: Context) -> RankTensor | None:
    """Content of a rank's file, in the checkpoint's dtypes; None for the MTP layer."""
    return None if group.stage is Stage.MTP else rank_tensor(group, placement, context)


class ReferenceV3Layout(reference.ReferenceLayout):
    """`model{rank}-mp{N}.safetensors`, one file per rank, with DeepSeek's own names."""

    def __init__(self, family: Family, keys: Mapping[str, str]) -> None:
        self._names, self._keys = _converted_names(family), keys

    def fate(self, tensor: Tensor, name: TensorName, context: Context) -> Disposition:
        """The tensor's bytes under the converter's name."""
        if name.stage is Stage.MTP:
            return LeftOut("DeepSeek's inference code has no MTP layer: its converter leaves it out")
        return (TargetTensor("", tensor.dtype, names=self._names),)

    def names(self, config: ModelConfig) -> Names:
        """DeepSeek's own names, which checkpoints use only since V4."""
        return self._names

    def companions(self, document: dict[str, object], context: Context) -> dict[str, bytes]:
        """The config of DeepSeek's `inference/model.py`."""
        return config_file(inference_config(document, context.deployment.experts, self._keys))


# --- config --------------------------------------------------------------------------------------------------------


_V3_KEYS = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "inter_dim": "intermediate_size",
    "moe_inter_dim": "moe_intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_dense_layers": "first_k_dense_replace",
    "n_heads": "num_attention_heads",
    "n_routed_experts": "n_routed_experts",
    "n_shared_experts": "n_shared_experts",
    "n_activated_experts": "num_experts_per_tok",
    "n_expert_groups": "n_group",
    "n_limited_groups": "topk_group",
    "route_scale": "routed_scaling_factor",
    "score_func": "scoring_func",
    "q_lora_rank": "q_lora_rank",
    "kv_lora_rank": "kv_lora_rank",
    "qk_nope_head_dim": "qk_nope_head_dim",
    "qk_rope_head_dim": "qk_rope_head_dim",
    "v_head_dim": "v_head_dim",
    "dtype": "",
    "scale_fmt": "quantization_config.scale_fmt",
    "original_seq_len": "rope_scaling.original_max_position_embeddings",
    "rope_theta": "rope_theta",
    "rope_factor": "rope_scaling.factor",
    "beta_fast": "rope_scaling.beta_fast",
    "beta_slow": "rope_scaling.beta_slow",
    "mscale": "rope_scaling.mscale_all_dim",
}
"""`ModelArgs` of V3's model.py ← config.json: keys in the order of the released configs, then those with defaults.

`mscale` scales the softmax, as `mscale_all_dim` does in the checkpoint's own modelling code.
"""

_V32_KEYS = _V3_KEYS | {key: key for key in ("index_n_heads", "index_head_dim", "index_topk")}


def inference_config(document: dict[str, object], experts: str, keys: Mapping[str, str]) -> dict[str, object]:
    """config.json with the keys of V3's inference code; the dtype is that of the expert tensors."""
    found = {key: value_at(document, path) for key, path in keys.items()}
    found["dtype"] = experts.lower()
    return {key: value for key, value in found.items() if value is not None}


# --- engines -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InferenceCode:
    """Differences between V3's and V3.2's inference code: kernels, config, and how shared experts join the sum."""

    family: Family
    version: str
    kernels: str
    keys: Mapping[str, str]
    addition: str

    def candidates(self, inventory: Inventory, request: Request) -> Iterator[Deployment]:
        """The only deployment of the reference."""
        yield reference.one_way(
            request, inventory, version=self.version, kernels=self.kernels, shared="split", shared_parts=request.tp
        )

    def notes(self, context: Context) -> tuple[str, ...]:
        """Limits of model.py for files that the converter writes."""
        lines = []
        if context.config.hidden_size != BIASED_WIDTH:
            lines.append(
                f"model.py has a router bias only where hidden_size is {BIASED_WIDTH}, here it is "
                f"{context.config.hidden_size}: generate.py does not load these files"
            )
        if self.family is V32 and context.deployment.tp == 1:
            lines.append("V3.2's indexer broadcasts also where there is one rank, and fails there: take two or more")
        return tuple(lines)

    def engine(self) -> Engine:
        """The reference engine for this family."""
        return replace(
            reference.REFERENCE,
            version=self.version,
            families=(self.family,),
            candidates=self.candidates,
            rules=_rules(self.version, self.kernels),
            place=place,
            store=store,
            addition=lambda _: self.addition,
            notes=self.notes,
            layout=ReferenceV3Layout(self.family, self.keys),
        )


_PARTS = "Each rank holds a part of the shared experts: "

REFERENCE_V3 = InferenceCode(
    V3, "V3", "triton", _V3_KEYS,
    _PARTS + "their output has an all-reduce of its own, after which model.py adds it to the routed output once.",
).engine()  # fmt: skip

REFERENCE_V32 = InferenceCode(
    V32, "V3.2", "tilelang", _V32_KEYS,
    _PARTS + "their output is added to the rank's routed output, and both are summed by one all-reduce.",
).engine()  # fmt: skip

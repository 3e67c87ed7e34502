"""Common parts of the raw-parameter layouts of SGLang and vLLM: a parameter's name by role, and the files around it."""

from dataclasses import dataclass

from dsv4_shard.engines.deployment import Context
from dsv4_shard.engines.drafts import draft_blocks
from dsv4_shard.models import Part
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE

DRAFT_FOLDER = "draft/"
"""Folder of the draft model (MTP), which the engines load as a model of its own."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the engine.

    Attributes:
        name: Name within the layer.
        order: Position of the role among those that are joined along their rows.
        bare: Whether the name has no `.weight`.
    """

    name: str
    order: int = 0
    bare: bool = False

    def full_name(self, prefix: str, part: Part) -> str:
        """The name in the engine's state."""
        suffix = "" if self.bare else ".weight" if part is Part.WEIGHT else ".weight_scale_inv"
        return f"{prefix}{self.name}{suffix}"


def rank_file_name(rank: int, part: int, replica: int | None = None, stage: int | None = None) -> str:
    """File name by the pattern of `--load-format sharded_state`, the same in SGLang and vLLM.

    Where replicas or pipeline stages have files of their own, `rank` is counted within `replica` or `stage`; SGLang has
    no names for stages, so its files have vLLM's.
    """
    if stage is not None:
        return f"model-pp-{stage}-tp-{rank}-part-{part}.safetensors"
    return f"model-{'' if replica is None else f'dp-{replica}-'}rank-{rank}-part-{part}.safetensors"


def model_files(context: Context) -> dict[str, str]:
    """Config and tokenizer files, for the model and its draft: name in the output → name in the checkpoint."""
    names = {name: name for name in (CONFIG_FILE, *TOKENIZER_FILES)}
    return names | ({DRAFT_FOLDER + name: name for name in names} if draft_blocks(context) else {})

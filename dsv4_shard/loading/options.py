"""What `--model-loader-extra-config` says, and where a rank's bytes come from by it."""

from dataclasses import dataclass
from pathlib import Path

from dsv4_shard.errors import LoadRefused
from dsv4_shard.loading.load import WeightOrigin
from dsv4_shard.loading.rank_files import WrittenFiles
from dsv4_shard.text.sanitize import short


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """`{"verify": true}` hashes every tensor of rank files, `{"plan": "plan.json"}` loads from the checkpoint."""

    verify: bool = False
    plan: Path | None = None

    @classmethod
    def of(cls, given: object) -> "LoadOptions":
        """Read the options as the engine gives them. Raises LoadRefused if one is not known."""
        if isinstance(given, dict) and given.keys() == {"plan"} and isinstance(given["plan"], str):
            return cls(plan=Path(given["plan"]))
        if given in (None, {}, {"verify": True}, {"verify": False}):
            return cls(verify=isinstance(given, dict) and given.get("verify", False))
        raise LoadRefused(
            f'--model-loader-extra-config is {short(given)}: {{}}, {{"verify": true}} and '
            '{"plan": "plan.json"} are known'
        )


def origin_of(options: LoadOptions, model: str, engine: str, *, is_draft: bool) -> WeightOrigin:
    """What the model path and the options name. `is_draft` says which model of a checkpoint is loaded.

    Raises NotAResult, LoadRefused, or another error of the plan and the checkpoint.
    """
    if options.plan is None:
        return WrittenFiles(Path(model), verify=options.verify)
    from dsv4_shard.loading.planned_checkpoint import PlannedCheckpoint

    return PlannedCheckpoint(model, options.plan, engine, is_draft=is_draft)

"""What SGLang's own classes have of the names that the plugin uses."""

from typing import Any

from sglang.srt.arg_groups.arg_utils import Derived
from sglang.srt.arg_groups.fields.exec_ import ExecMoe
from sglang.srt.arg_groups.fields.parallel import Parallel
from sglang.srt.model_executor.model_runner import ModelRunner

from conformance.signatures import calls_in_order, members, signatures


def record(job: dict[str, Any]) -> dict[str, Any]:
    """Signatures and fields, and in which order ModelRunner places experts and loads the model."""
    derived = [name for name, value in vars(Parallel).items() if isinstance(value, Derived)]
    order = frozenset({"maybe_init_expert_location_metadata", "load_model"})
    return {
        "signatures": signatures(),
        "members": members()
        | {
            "get_parallel()": sorted([*Parallel.__struct_fields__, *derived]),
            "get_exec().moe": sorted(ExecMoe.__struct_fields__),
        },
        "ModelRunner.initialize": calls_in_order(ModelRunner.initialize, order),
    }

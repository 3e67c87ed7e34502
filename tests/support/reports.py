"""Plans, reports and pages of the real models, each made once per process."""

from datetime import UTC, datetime
from functools import cache

from support.checkpoints.full_size import FLASH, PRO, PRO_FP8, PRO_NVFP4, V3, V32, V41, inventory_of

from dsv4_shard.engines.deployment import Request
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.reporting.page import to_html
from dsv4_shard.reporting.report import Report, make_report

RUNNING = (
    (PRO, Request(1)),
    (PRO, Request(16, gpu="h20-96")),
    (PRO, Request(16, dp=16, a2a="deepep", gpu="h200")),
    (PRO, Request(16, ep=16, gpu="h20-96", shared_experts="whole")),
    (PRO, Request(16, engine="vllm")),
    (PRO, Request(16, engine="vllm", shared_experts="pad")),
    (PRO, Request(1, dp=5, ep=5, engine="vllm", gpu="b300")),
    (PRO, Request(8, engine="trtllm")),
    (PRO, Request(8, engine="node", nodes=2)),
    (PRO, Request(8, engine="reference", gpu="b200")),
    (PRO, Request(8, engine="reference", expert_dtype="fp8")),
    (PRO_NVFP4, Request(8, engine="node", nodes=2)),
    (FLASH, Request(4, gpu="h200")),
    (V41, Request(4, engine="reference")),
    (V3, Request(8, engine="sglang")),
    (V32, Request(8, engine="vllm")),
)
REFUSED = (
    (PRO, Request(7, engine="vllm", dp=1, ep=7)),
    (PRO_FP8, Request(16)),
)
LAYOUTS = RUNNING + REFUSED

WHOLE = Request(16, gpu="h20-96", shared_experts="whole", nodes=2)
BROKEN = Request(16, gpu="h20-96", shared_experts="split")
PADDED = Request(16, gpu="h20-96", engine="vllm")


def plan_of(model: str, request: Request, label: str | None = None) -> Plan:
    return make_plan(*inventory_of(model), request, label or f"deepseek-ai/{model}")


def report_of(request: Request | None, model: str = PRO) -> Report:
    return make_report(*inventory_of(model), plan_of(model, request) if request else None)


@cache
def page_of(request: Request | None, model: str = PRO) -> str:
    return to_html(report_of(request, model), MADE)


MADE = datetime(2026, 12, 1, 9, 30, tzinfo=UTC)

HOSTILE = "x</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x1b[31m\u202e{{7*7}}"

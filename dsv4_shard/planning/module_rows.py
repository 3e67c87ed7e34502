"""Outcome → the rows of a plan's table of modules, and the divisions that were checked."""

from collections.abc import Iterable, Iterator

from dsv4_shard.engines import Context, Divides, Engine, say_placement
from dsv4_shard.models import Module, Part, Stage
from dsv4_shard.planning.layout_documents import PlanModule
from dsv4_shard.planning.verdict_documents import PlanCheck
from dsv4_shard.planning.weights import GroupLoad


def module_rows(engine: Engine, context: Context, weights: Iterable[GroupLoad]) -> Iterator[PlanModule]:
    """Yield a row per role, weights and scales together; shapes are the weight's in the most common kind of layer."""
    rows: dict[tuple[bool, str], list[GroupLoad]] = {}
    for load in weights:
        rows.setdefault((load.group.stage is Stage.MTP, load.group.role), []).append(load)
    order = list(Module)
    for (is_draft, _), members in sorted(rows.items(), key=lambda row: order.index(row[1][0].group.role.module)):
        yield _row(engine, context, members, is_draft=is_draft)


def _row(engine: Engine, context: Context, members: list[GroupLoad], *, is_draft: bool) -> PlanModule:
    main = max((m for m in members if m.group.part is Part.WEIGHT), key=lambda m: m.count)
    group = main.group
    fmt = context.inventory.format(group.role, group.stage)
    return PlanModule(
        part_of="draft" if is_draft else "target",
        module=group.role.module,
        role=str(group.role),
        format=str(fmt) if fmt else group.dtype,
        block=(fmt.block.rows, fmt.block.cols) if fmt and fmt.block else None,
        placement=say_placement(engine.held(group, context)[0], group, main.stored, context.deployment),
        shape=group.shape,
        rank_shape=main.stored.shape,
        rank_dtype=main.stored.dtype,
        tensors_per_rank=sum(m.per_rank[1] for m in members),
        bytes_per_rank=sum(m.stored.nbytes * m.per_rank[1] for m in members),
        padding_per_rank=sum(m.stored.padding * m.per_rank[1] for m in members),
    )


def checked_divisions(engine: Engine, context: Context) -> Iterator[PlanCheck]:
    """Yield every division that the engine's rules check on a deployment."""
    for rule in engine.rules:
        arithmetic = rule.explain(context)
        if arithmetic is not None and isinstance(rule, Divides):
            yield PlanCheck(
                rule=rule.name,
                module=rule.module,
                arithmetic=arithmetic,
                holds=rule.check(context) is None,
                size=rule.size(context),
                size_name=rule.size_name,
                parts=rule.parts(context),
                parts_name=rule.parts_name,
                unit=rule.unit(context),
                unit_name=rule.unit_word(context),
            )

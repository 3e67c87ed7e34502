"""The answer on a checkpoint of an unknown family: the TP sizes at which its weights divide into whole blocks."""

from dsv4_shard.inspection.unknown_family import UnknownInspection


def whole_sizes(inspection: UnknownInspection) -> str | None:
    """Return a sentence on the axes that engines cut; None if no quantized weight has one."""
    cut = [axis for row in inspection.quantized for axis in row.axes if axis.cut]
    if not cut:
        return None
    fails = {share.tp for axis in cut for share in axis.shares if not share.whole}
    sizes = [share.tp for share in cut[0].shares]
    good, bad = (", ".join(str(tp) for tp in sizes if (tp in fails) is broken) for broken in (False, True))
    if not good:
        return "At no TP do all weights divide into whole blocks"
    return f"The weights divide into whole blocks at TP {good}{f'; not at {bad}' if bad else ''}"

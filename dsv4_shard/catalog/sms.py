"""Sets of NVIDIA's GPU architectures, by compute capability × 10, for the rules of engines.

Sets follow what engines ask their platforms: vLLM `is_device_capability(90)`, `is_device_capability_family(100)`,
`has_device_capability(89)`; SGLang `is_sm90`, `is_sm100` (10.x), `is_sm120` (12.x).
"""

SM_90 = frozenset({90})
"""Hopper."""

SM_10X = frozenset({100, 103})
"""Blackwell for data centres: B200, GB200, B300, GB300."""

SM_12X = frozenset({120, 121})
"""Blackwell for workstations: RTX PRO 6000, GB10."""

FROM_HOPPER = SM_90 | SM_10X | SM_12X

FROM_ADA = frozenset({89}) | FROM_HOPPER

EVERY_SM = frozenset({80}) | FROM_ADA

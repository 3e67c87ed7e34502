"""Rank files against their manifest and against the checkpoint; MoE numerics."""

from dsv4_shard.verification.contents import parse_share
from dsv4_shard.verification.documents import Numerics, Problem, SharesVerification, Verification
from dsv4_shard.verification.moe_numerics import check_numerics
from dsv4_shard.verification.result_folder import bytes_to_verify, quick_problems, verify
from dsv4_shard.verification.shares import put_together, verify_together

__all__ = [
    "Numerics",
    "Problem",
    "SharesVerification",
    "Verification",
    "bytes_to_verify",
    "check_numerics",
    "parse_share",
    "put_together",
    "quick_problems",
    "verify",
    "verify_together",
]

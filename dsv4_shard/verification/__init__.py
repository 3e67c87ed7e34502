"""Rank files against their manifest and against the checkpoint; MoE numerics."""

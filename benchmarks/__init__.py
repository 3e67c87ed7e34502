"""Measurements, run by `python -m benchmarks`; some of them take checkpoints from the helpers of the tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

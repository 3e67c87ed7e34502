"""Puts the repository and its tests first on the search path, for scripts that `python tools/NAME.py` starts."""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent

sys.path[:0] = [str(_ROOT), str(_ROOT / "tests")]

"""A pytest plugin for environments without torch: tests that import it are skipped.

    python -m pytest -p tools.without_torch

It changes nothing where torch is installed.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

import pytest


class _SkipTorch(MetaPathFinder):
    """Comes last among the finders, so it is asked for torch only where no other finder has it."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == "torch":
            pytest.skip("torch is not installed", allow_module_level=True)


sys.meta_path.append(_SkipTorch())

"""What holds for all modules together. Their imports are held by the contracts in pyproject.toml."""

import ast
from collections import Counter

from support.paths import ROOT


def test_a_class_name_means_one_thing() -> None:
    trees = (ast.parse(path.read_text()) for path in (ROOT / "dsv4_shard").rglob("*.py"))
    names = Counter(node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []

"""`Wheel`: the modules of an engine's wheel, and what a name means in each. The wheel is read, not installed."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import ZipFile

from engine_messages.conditions import Facts, guarded

Function = ast.FunctionDef | ast.AsyncFunctionDef

_LOOKUPS = 8
"""Modules that pass a name on to each other, at most."""


@dataclass(eq=False, slots=True)
class Module:
    """A module, by its dotted name below the package.

    Attributes:
        path: Its path in the wheel.
        tree: Its syntax tree.
        imports: Name → "module:attribute" below the package; the attribute is empty for a module.
        tops: Name → class or function that it defines.
        values: Name → expression that it assigns.
        stars: The modules whose names it takes over.
    """

    name: str
    path: str
    tree: ast.Module
    imports: dict[str, str] = field(default_factory=dict)
    tops: dict[str, Function | ast.ClassDef] = field(default_factory=dict)
    values: dict[str, ast.expr] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Definition:
    """What a name means: a module, a class, a function, or the expression of a module's variable."""

    module: Module
    node: ast.Module | ast.ClassDef | Function | ast.expr


class Wheel:
    """The modules of a wheel, each parsed when it is first needed."""

    def __init__(self, path: Path, package: str, facts: Facts) -> None:
        self.package, self._facts, self._zip = package, facts, ZipFile(path)
        self.files = {name for name in self._zip.namelist() if name.endswith(".py") and name.startswith(f"{package}/")}
        self._modules: dict[str, Module | None] = {}

    def names(self) -> Iterator[str]:
        """The dotted names of all modules."""
        for path in sorted(self.files):
            yield path[len(self.package) + 1 : -3].replace("/", ".").removesuffix("__init__").rstrip(".")

    def module(self, name: str) -> Module | None:
        """The module of that name; None if there is none."""
        if name not in self._modules:
            self._modules[name] = self._read(name)
        return self._modules[name]

    def _read(self, name: str) -> Module | None:
        stem = f"{self.package}/{name.replace('.', '/')}" if name else self.package
        path = next((one for one in (f"{stem}.py", f"{stem}/__init__.py") if one in self.files), None)
        if path is None:
            return None
        module = Module(name, path, ast.parse(self._zip.read(path)))
        for node, _ in guarded(module.tree.body, self._facts, into_functions=False):
            match node:
                case ast.ImportFrom() | ast.Import():
                    found = self.imported(module, node)
                    module.stars += [found.pop("*")[:-2]] if "*" in found else []
                    module.imports.update(found)
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    module.tops.setdefault(node.name, node)
                case ast.Assign(targets=[ast.Name(id=target)], value=value):
                    module.values.setdefault(target, value)
                case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value):
                    module.values.setdefault(target, value)
        return module

    def imported(self, module: Module, node: ast.Import | ast.ImportFrom) -> dict[str, str]:
        """The names that an import statement binds to parts of the package."""
        if isinstance(node, ast.Import):
            inside = (alias for alias in node.names if alias.asname and alias.name.startswith(f"{self.package}."))
            return {alias.asname or "": f"{alias.name[len(self.package) + 1 :]}:" for alias in inside}
        base = self._base(module, node)
        if base is None:
            return {}
        return {alias.asname or alias.name: f"{base}:{alias.name}" for alias in node.names}

    def _base(self, module: Module, node: ast.ImportFrom) -> str | None:
        if not node.level:
            name, _, rest = (node.module or "").partition(".")
            return rest if name == self.package else None
        parts = module.name.split(".")
        if not module.path.endswith("__init__.py"):
            parts = parts[:-1]
        parts = parts[: len(parts) - (node.level - 1)]
        return ".".join([*parts, *([node.module] if node.module else [])])

    def find(self, module: Module, name: str, depth: int = 0) -> Definition | None:
        """What `name` means in a module; None for names that are not the package's."""
        if name in module.tops:
            return Definition(module, module.tops[name])
        if name in module.imports:
            return self.at(module.imports[name], depth + 1)
        if name in module.values:
            return Definition(module, module.values[name])
        stars = (self.at(f"{star}:{name}", depth + 1) for star in module.stars if depth < _LOOKUPS)
        return next((found for found in stars if found is not None), None)

    def at(self, target: str, depth: int = 0) -> Definition | None:
        """What "module:attribute" means."""
        name, _, attribute = target.partition(":")
        outer = self.module(name)
        if attribute and outer is not None and depth < _LOOKUPS:
            found = self.find(outer, attribute, depth)
            if found is not None:
                return found
        inner = self.module(f"{name}.{attribute}".strip("."))
        return Definition(inner, inner.tree) if inner is not None else None

    def by_path(self, dotted: str) -> Definition | None:
        """What a string such as "package.module.Class" means."""
        package, _, rest = dotted.replace(":", ".").partition(".")
        name, _, attribute = rest.rpartition(".")
        if package != self.package or not name or self.module(name) is None:
            return None
        return self.at(f"{name}:{attribute}")

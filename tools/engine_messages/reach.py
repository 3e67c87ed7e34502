"""`Reach`: the functions that can run, from where the way begins: calls by name, and methods of objects that are made.

A call on an object reaches the method of its class, and of the subclasses that are made. A call on an object whose
class is not known reaches the methods of that name of all classes that are made, if the name has several words: names
such as `get` are Python's own. What is excluded is not followed.
"""

import ast
import re
from collections.abc import Callable

from engine_messages.conditions import Facts
from engine_messages.scope import Class, Scope, Scopes
from engine_messages.wheel import Definition, Function, Module, Wheel

_MADE = ("__init__", "__post_init__", "__new__", "__enter__", "__exit__", "__call__", "__getattr__", "__setattr__",
         "__getitem__", "__set_name__")  # fmt: skip

_TYPE_CHECKS = ("isinstance", "issubclass", "hasattr", "cast", "TypeVar", "getattr")

_DOTTED = re.compile(r"\w+(?:\.\w+)+(?::\w+)?")

Place = tuple[str, str]
"""A function or method, by module and name."""


class Reach:
    """What can be reached in a wheel."""

    def __init__(self, wheel: Wheel, facts: Facts, excluded: Callable[[str], str | None]) -> None:
        self.wheel, self.scopes, self._excluded = wheel, Scopes(wheel, facts), excluded
        self.functions: set[Place] = set()
        self.made: dict[Place, Class] = {}
        self.left_out: dict[Place, str] = {}
        self._of_any: set[str] = set()
        self._wanted: dict[Place, set[str]] = {}
        self._values: set[int] = set()
        self._todo: list[Scope] = []

    # --- entries -----------------------------------------------------------------------------------------------------

    def enter(self, entry: str) -> bool:
        """Add an entry: `module:class`, `module:class.method`, `module:function` or `module.*`; whether it exists."""
        if entry.endswith(".*"):
            stem = entry[:-2]
            names = [name for name in self.wheel.names() if name == stem or name.startswith(f"{stem}.")]
            for each in filter(None, map(self.wheel.module, names)):
                for node in each.tops.values():
                    self._enter(Definition(each, node), "")
            return bool(names)
        name, _, path = entry.partition(":")
        outer, _, method = path.partition(".")
        module = self.wheel.module(name)
        found = self.wheel.find(module, outer) if module else None
        if found is None:
            return False
        return self._enter(found, method)

    def _enter(self, found: Definition, method: str) -> bool:
        """A function, or a method of a class, or all of its methods."""
        if not isinstance(found.node, ast.ClassDef):
            self._take(found)
            return True
        one = Class(found.module, found.node)
        self._make(one)
        for name in [method] if method else [node.name for node in one.node.body if isinstance(node, Function)]:
            self._call(one, name)
        return not method or self.scopes.resolve(one, method) is not None

    def run(self) -> None:
        """Follow calls until nothing new is reached."""
        while self._todo:
            scope = self._todo.pop()
            for node, _ in scope.nodes:
                self._follow(scope, scope.module, node)
            for decorator in scope.node.decorator_list:
                self._follow(scope, scope.module, decorator)

    # --- what is reached ---------------------------------------------------------------------------------------------

    def _take(self, found: Definition) -> None:
        match found.node:
            case ast.ClassDef():
                self._make(Class(found.module, found.node))
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self._add(found.module, found.node.name)
            case ast.expr():
                if id(found.node) not in self._values:
                    self._values.add(id(found.node))
                    for node in ast.walk(found.node):
                        self._follow(None, found.module, node, as_value=True)

    def _is_out(self, module: Module, name: str) -> bool:
        reason = self._excluded(module.name)
        if reason is not None:
            self.left_out[module.name, name] = reason
        return reason is not None

    def _add(self, module: Module, name: str) -> None:
        key = module.name, name
        if key in self.functions or self._is_out(module, name):
            return
        scope = self.scopes.scope(module, name)
        if scope is not None:
            self.functions.add(key)
            self._todo.append(scope)

    def _make(self, one: Class) -> None:
        """A class is made: its constructor and validators run, and methods of it that are called anywhere."""
        if one.key in self.made or self._is_out(one.module, one.node.name):
            return
        self.made[one.key] = one
        for decorator in one.node.decorator_list:
            self._follow(None, one.module, decorator)
        wanted = set(_MADE)
        for base in self.scopes.bases(one):
            wanted |= self._wanted.get(base.key, set())
            for node in base.node.body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    validates = any("validator" in ast.unparse(each) for each in node.decorator_list)
                    if validates or node.name in self._of_any:
                        wanted.add(node.name)
        for name in wanted:
            self._reach(one, name)

    def _reach(self, one: Class, name: str) -> bool:
        base = self.scopes.resolve(one, name)
        if base is not None:
            self._add(base.module, f"{base.node.name}.{name}")
        return base is not None

    def _call(self, one: Class, name: str) -> bool:
        """A method of an object of a class is called: of the class, or of its subclasses that are made."""
        wanted = self._wanted.setdefault(one.key, set())
        if name not in wanted:
            wanted.add(name)
            for each in list(self.made.values()):
                if one in self.scopes.bases(each):
                    self._reach(each, name)
        return self._reach(one, name)

    # --- calls -------------------------------------------------------------------------------------------------------

    def _follow(self, scope: Scope | None, module: Module, node: ast.AST, as_value: bool = False) -> None:
        match node:
            case ast.Call(func=func, args=args, keywords=keywords):
                self._called(scope, module, func)
                if not (isinstance(func, ast.Name) and func.id in _TYPE_CHECKS):
                    for value in (*args, *(keyword.value for keyword in keywords)):
                        self._value(scope, module, value)
            case ast.Return(value=ast.expr() as value) | ast.Assign(value=value):
                self._value(scope, module, value)
            case ast.Dict(values=values) | ast.List(elts=values) | ast.Tuple(elts=values):
                for value in values if as_value or not isinstance(node, ast.Tuple) else ():
                    self._value(scope, module, value)
            case ast.Attribute(value=value, attr=attr):
                for one in self.scopes.classes(scope, module, value) or ():
                    self._call(one, attr)
                self._named(scope, module, node)
            case ast.Name(ctx=ast.Load()):
                self._named(scope, module, node)
            case ast.Constant(value=str() as text) if _DOTTED.fullmatch(text) and text.startswith(self.wheel.package):
                found = self.wheel.by_path(text)
                if found is not None:
                    self._take(found)

    def _named(self, scope: Scope | None, module: Module, node: ast.AST) -> None:
        """A function that is named may be called; a variable's expression has been evaluated."""
        found = self.scopes.find(scope, module, node)
        if found is not None and not isinstance(found.node, ast.ClassDef | ast.Module):
            self._take(found)

    def _value(self, scope: Scope | None, module: Module, node: ast.expr) -> None:
        """A class that is passed on may be made."""
        values = (node.body, node.orelse) if isinstance(node, ast.IfExp) else (node,)
        for value in values:
            found = self.scopes.find(scope, module, value)
            if found is not None and isinstance(found.node, ast.ClassDef):
                self._make(Class(found.module, found.node))

    def _called(self, scope: Scope | None, module: Module, func: ast.expr) -> None:
        found = self.scopes.find(scope, module, func)
        if found is not None:
            self._take(found)
            if isinstance(found.node, ast.expr):
                self._forward(scope, module, func)
            return
        owner = scope.owner if scope is not None else None
        match func:
            case ast.Name(id="cls") if owner is not None:
                self._make(owner)
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name) if owner is not None:
                for base in self.scopes.bases(owner)[1:]:
                    if self._reach(base, name):
                        return
            case ast.Attribute(value=value, attr=name):
                self._method(scope, module, value, name)
                self._forward(scope, module, func)
            case _:
                self._forward(scope, module, func)

    def _method(self, scope: Scope | None, module: Module, value: ast.expr, name: str) -> None:
        classes = self.scopes.classes(scope, module, value)
        for one in classes or ():
            self._call(one, name)
        if classes is None and "_" in name.strip("_") and name not in self._of_any:
            self._of_any.add(name)
            for one in list(self.made.values()):
                self._reach(one, name)

    def _forward(self, scope: Scope | None, module: Module, func: ast.expr) -> None:
        """An object that is called: a layer's `forward`."""
        for one in self.scopes.classes(scope, module, func) or ():
            if one.key in self.made:
                self._call(one, "forward")

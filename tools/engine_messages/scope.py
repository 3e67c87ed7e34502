"""`Scopes`: what an expression in a function is: which classes of the engine its value may have.

Classes come from constructors, annotations, attributes that a class assigns, and functions' returns. None: not known.
An empty set: an object that is not the engine's, such as a tensor.
"""

import ast
import re
from dataclasses import dataclass, field
from functools import cache

from engine_messages.conditions import Facts, Guarded, guarded
from engine_messages.wheel import Definition, Function, Module, Wheel

_DEPTH = 6
"""Expressions that are followed through one another, at most."""

_WRAPPERS = ("Optional", "Union", "Annotated", "ClassVar", "Final", "type", "Type")

_FOREIGN = re.compile(
    r"int|str|float|bool|bytes|dict|list|tuple|set|frozenset|Any|object|None|Path|Callable|Iterable|Sequence|Mapping|"
    r"Dict|List|Tuple|Set|Iterator|Generator|Literal"
)


@dataclass(frozen=True, slots=True)
class Class:
    """A class of the engine."""

    module: Module
    node: ast.ClassDef

    @property
    def key(self) -> tuple[str, str]:
        return self.module.name, self.node.name


Classes = frozenset[Class] | None


@dataclass(eq=False, slots=True)
class Scope:
    """A function, the class that it is of, its nodes that can run, and what its own names are."""

    module: Module
    name: str
    node: Function
    owner: Class | None
    nodes: list[Guarded]
    imports: dict[str, str] = field(default_factory=dict)
    assigned: dict[str, list[ast.expr]] = field(default_factory=dict)
    annotated: dict[str, ast.expr] = field(default_factory=dict)


class Scopes:
    """The functions of a wheel, and the classes of their expressions."""

    def __init__(self, wheel: Wheel, facts: Facts) -> None:
        self.wheel, self._facts = wheel, facts
        self._scopes: dict[tuple[str, str], Scope | None] = {}
        self._attributes: dict[tuple[str, str], dict[str, list[tuple[Scope | None, ast.expr, bool]]]] = {}
        self.bases = cache(self._bases)
        self._methods = cache(self._methods_of)

    # --- definitions -------------------------------------------------------------------------------------------------

    def scope(self, module: Module, name: str) -> Scope | None:
        """The function `name` or method `Class.name` of a module."""
        key = module.name, name
        if key not in self._scopes:
            self._scopes[key] = self._make(module, name)
        return self._scopes[key]

    def _make(self, module: Module, name: str) -> Scope | None:
        outer, _, method = name.partition(".")
        top = module.tops.get(outer)
        owner = Class(module, top) if method and isinstance(top, ast.ClassDef) else None
        node = self.method(owner, method) if owner else top
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return None
        scope = Scope(module, name, node, owner, guarded(node.body, self._facts))
        arguments = node.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            if argument.annotation is not None:
                scope.annotated[argument.arg] = argument.annotation
        for inner, _ in scope.nodes:
            match inner:
                case ast.Import() | ast.ImportFrom():
                    scope.imports.update(self.wheel.imported(module, inner))
                case ast.AnnAssign(target=ast.Name(id=target), annotation=annotation):
                    scope.annotated.setdefault(target, annotation)
                case ast.Assign(targets=[ast.Name(id=target)], value=value):
                    scope.assigned.setdefault(target, []).append(value)
                case ast.NamedExpr(target=ast.Name(id=target), value=value):
                    scope.assigned.setdefault(target, []).append(value)
                case ast.withitem(context_expr=value, optional_vars=ast.Name(id=target)):
                    scope.assigned.setdefault(target, []).append(value)
        return scope

    def method(self, owner: Class | None, name: str) -> Function | None:
        """A class's own method, without its bases."""
        return self._methods(owner).get(name) if owner is not None else None

    def _methods_of(self, owner: Class) -> dict[str, Function]:
        nodes = guarded(owner.node.body, self._facts, into_functions=False)
        return {node.name: node for node, _ in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}

    def _bases(self, one: Class) -> tuple[Class, ...]:
        """The class and those that it inherits from, in the order in which Python looks them up."""
        found = [one]
        for base in one.node.bases:
            inner = base.value if isinstance(base, ast.Subscript) else base
            definition = self.find(None, one.module, inner)
            if definition is not None and isinstance(definition.node, ast.ClassDef):
                found += self.bases(Class(definition.module, definition.node))
        return tuple(dict.fromkeys(reversed(found)))[::-1]

    def resolve(self, one: Class, name: str) -> Class | None:
        """The class of the bases that defines a method."""
        return next((base for base in self.bases(one) if self.method(base, name) is not None), None)

    def find(self, scope: Scope | None, module: Module, node: ast.AST) -> Definition | None:
        """What a name, or an attribute of a module or class, means."""
        if isinstance(node, ast.Name):
            if scope is not None and node.id in scope.imports:
                return self.wheel.at(scope.imports[node.id])
            return self.wheel.find(module, node.id)
        if isinstance(node, ast.Attribute):
            outer = self.find(scope, module, node.value)
            if outer is not None and isinstance(outer.node, ast.Module):
                return self.wheel.at(f"{outer.module.name}:{node.attr}")
        return None

    # --- classes of expressions --------------------------------------------------------------------------------------

    def classes(self, scope: Scope | None, module: Module, node: ast.AST | None, depth: int = 0) -> Classes:
        """The classes that an expression's value may have."""
        if node is None or depth > _DEPTH:
            return None
        match node:
            case ast.Constant() | ast.JoinedStr() | ast.Dict() | ast.List() | ast.Tuple() | ast.Set() | ast.Compare():
                return frozenset()
            case ast.ListComp() | ast.DictComp() | ast.BinOp() | ast.UnaryOp() | ast.GeneratorExp():
                return frozenset()
            case ast.Name(id="self" | "cls") if scope is not None and scope.owner is not None:
                return frozenset((scope.owner,))
            case ast.Name(id=name):
                return self._of_name(scope, module, name, depth)
            case ast.Attribute(value=value, attr=attr):
                return self._of_attribute(scope, module, value, attr, depth)
            case ast.Call(func=func):
                return self._of_call(scope, module, func, depth)
            case ast.IfExp(body=body, orelse=orelse):
                return self._union([self.classes(scope, module, one, depth + 1) for one in (body, orelse)])
            case ast.BoolOp(values=values):
                return self._union([self.classes(scope, module, one, depth + 1) for one in values])
            case ast.Await(value=value) | ast.NamedExpr(value=value):
                return self.classes(scope, module, value, depth + 1)
        return None

    @staticmethod
    def _union(found: list[Classes]) -> Classes:
        known = [one for one in found if one is not None]
        return frozenset().union(*known) if known else None

    def _of_name(self, scope: Scope | None, module: Module, name: str, depth: int) -> Classes:
        if scope is not None:
            if name in scope.annotated:
                return self.of_annotation(scope, module, scope.annotated[name])
            if name in scope.assigned:
                return self._union([self.classes(scope, module, one, depth + 1) for one in scope.assigned[name]])
        found = self.find(scope, module, ast.Name(id=name))
        if found is None:
            return None
        if isinstance(found.node, ast.ClassDef):
            return frozenset((Class(found.module, found.node),))
        return self.classes(None, found.module, found.node, depth + 1) if isinstance(found.node, ast.expr) else None

    def _of_attribute(self, scope: Scope | None, module: Module, value: ast.expr, attr: str, depth: int) -> Classes:
        found = self.find(scope, module, ast.Attribute(value=value, attr=attr))
        if found is not None and isinstance(found.node, ast.ClassDef):
            return frozenset((Class(found.module, found.node),))
        owners = self.classes(scope, module, value, depth + 1)
        if not owners:
            return owners
        return self._union([self.attribute(owner, attr, depth + 1) for owner in owners])

    def attribute(self, owner: Class, name: str, depth: int = 0) -> Classes:
        """The classes of an attribute of an object, by annotation, by property or by what its class assigns."""
        for base in self.bases(owner):
            method = self.scope(base.module, f"{base.node.name}.{name}")
            if method is not None:
                return self.of_annotation(method, base.module, method.node.returns) if method.node.returns else None
            found = self._of_class(base).get(name, [])
            annotations = [
                self.of_annotation(scope, base.module, node) for scope, node, annotated in found if annotated
            ]
            if annotations:
                return self._union(annotations)
            if found:
                return self._union([self.classes(scope, base.module, node, depth + 1) for scope, node, _ in found])
        return None

    def _of_class(self, one: Class) -> dict[str, list[tuple[Scope | None, ast.expr, bool]]]:
        """Attribute → where it is assigned or annotated: (scope, expression, whether it is the annotation)."""
        if one.key in self._attributes:
            return self._attributes[one.key]
        found: dict[str, list[tuple[Scope | None, ast.expr, bool]]] = {}
        self._attributes[one.key] = found
        for node in one.node.body:
            match node:
                case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                    found.setdefault(name, []).append((None, annotation, True))
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    scope = self.scope(one.module, f"{one.node.name}.{node.name}")
                    for inner, _ in scope.nodes if scope is not None else ():
                        match inner:
                            case ast.AnnAssign(
                                target=ast.Attribute(value=ast.Name(id="self"), attr=name), annotation=annotation
                            ):
                                found.setdefault(name, []).append((scope, annotation, True))
                            case ast.Assign(targets=targets, value=value):
                                for target in targets:
                                    if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                                        found.setdefault(target.attr, []).append((scope, value, False))
        return found

    def _of_call(self, scope: Scope | None, module: Module, func: ast.expr, depth: int) -> Classes:
        found = self.find(scope, module, func)
        if found is not None and isinstance(found.node, ast.ClassDef):
            return frozenset((Class(found.module, found.node),))
        if found is not None and isinstance(found.node, ast.FunctionDef | ast.AsyncFunctionDef):
            return self._returned(self.scope(found.module, found.node.name), depth)
        if isinstance(func, ast.Name) and func.id == "cls" and scope is not None and scope.owner is not None:
            return frozenset((scope.owner,))
        if isinstance(func, ast.Attribute):
            owners = self.classes(scope, module, func.value, depth + 1)
            if not owners:
                return owners
            results = []
            for owner in owners:
                base = self.resolve(owner, func.attr)
                if base is not None:
                    results.append(self._returned(self.scope(base.module, f"{base.node.name}.{func.attr}"), depth))
            return self._union(results) if results else None
        return None

    def _returned(self, scope: Scope | None, depth: int) -> Classes:
        if scope is None:
            return None
        if scope.node.returns is not None:
            found = self.of_annotation(scope, scope.module, scope.node.returns)
            if found is not None:
                return found
        values = [node.value for node, _ in scope.nodes if isinstance(node, ast.Return)]
        return self._union([self.classes(scope, scope.module, value, depth + 1) for value in values if value])

    def of_annotation(self, scope: Scope | None, module: Module, node: ast.expr | None) -> Classes:
        """The classes of an annotation; empty for those that are not the engine's."""
        match node:
            case ast.Constant(value=str() as text):
                try:
                    return self.of_annotation(scope, module, ast.parse(text, mode="eval").body)
                except SyntaxError:
                    return None
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return self._union([self.of_annotation(scope, module, one) for one in (left, right)])
            case ast.Subscript(value=value, slice=inner) if ast.unparse(value).rpartition(".")[2] in _WRAPPERS:
                parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
                return self._union([self.of_annotation(scope, module, one) for one in parts])
            case ast.Name(id="Self") if scope is not None and scope.owner is not None:
                return frozenset((scope.owner,))
            case ast.Name(id="Any" | "object") | None:
                return None
            case ast.Name(id=name) if _FOREIGN.fullmatch(name):
                return frozenset()
            case ast.Name() | ast.Attribute():
                found = self.find(scope, module, node) or self._typed(module, node)
                if found is not None and isinstance(found.node, ast.ClassDef):
                    return frozenset((Class(found.module, found.node),))
                return frozenset() if found is None else None
        return frozenset()

    def _typed(self, module: Module, node: ast.expr) -> Definition | None:
        """What a name means that is imported for type checkers only."""
        if not isinstance(node, ast.Name):
            return None
        for top in module.tree.body:
            if isinstance(top, ast.If) and "TYPE_CHECKING" in ast.unparse(top.test):
                for inner in ast.walk(top):
                    if isinstance(inner, ast.ImportFrom):
                        target = self.wheel.imported(module, inner).get(node.id)
                        if target is not None:
                            return self.wheel.at(target)
        return None

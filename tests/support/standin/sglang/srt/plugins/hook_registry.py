"""Hooks around functions of SGLang, by their dotted path."""

import functools
import pkgutil
from enum import Enum


class HookType(Enum):
    BEFORE = "before"
    AFTER = "after"
    AROUND = "around"
    REPLACE = "replace"


class HookRegistry:
    _hooks: list = []  # noqa: RUF012

    @classmethod
    def register(cls, target, hook, hook_type=HookType.AFTER, *, source=None):
        cls._hooks.append((target, hook, hook_type))

    @classmethod
    def apply_hooks(cls):
        """Wrap each target once; the plugin registers hooks of type AROUND alone."""
        while cls._hooks:
            target, hook, hook_type = cls._hooks.pop()
            assert hook_type is HookType.AROUND
            owner_path, _, name = target.rpartition(".")
            owner = pkgutil.resolve_name(owner_path)
            original = getattr(owner, name)
            setattr(owner, name, functools.wraps(original)(functools.partialmethod(_call, hook, original)))


def _call(config, hook, original, *args, **kwargs):
    return hook(original, config, *args, **kwargs)

"""The load format `dsv4_shard`, with which SGLang loads rank files. `register` is the entry point.

SGLang finds `register` through the entry point `sglang.srt.plugins` and calls it in every process, before it parses its
options. The name of the load format is added to SGLang's choices. SGLang turns names into members of an enum, so a hook
replaces our name by the loader class, which SGLang accepts unchanged.
"""

from collections.abc import Callable
from typing import Any

from dsv4_shard.catalog.options import LOAD_FORMAT


def register() -> None:
    """Register the load format. SGLang calls it; the loader is imported only when a model is loaded with it."""
    from sglang.srt.arg_groups.choices import add_load_format_choices
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    add_load_format_choices([LOAD_FORMAT])
    HookRegistry.register(
        "sglang.srt.configs.load_config.LoadConfig._verify_load_format", _resolve_load_format, HookType.AROUND
    )


def _resolve_load_format(original: Callable[..., Any], config: Any, *args: Any, **kwargs: Any) -> Any:
    """Replace our name by the loader class; pass any other name to SGLang's own function."""
    if isinstance(config.load_format, str) and config.load_format.lower() == LOAD_FORMAT:
        from dsv4_shard.sglang_plugin.loader import RankFileLoader

        config.load_format = RankFileLoader
        return None
    return original(config, *args, **kwargs)

"""The SGLang plugin: `--load-format dsv4_shard` loads rank files that reshard wrote.

SGLang finds `register` through the entry point `sglang.srt.plugins` and calls it in every process, before it looks at
its options. The load format's name is added where SGLang keeps its choices; since it turns names into members of an
enum, the one hook replaces ours by the loader class, which SGLang takes as it is.
"""

from collections.abc import Callable
from typing import Any

from dsv4_shard.engines.sglang.v4 import PLUGIN_FORMAT


def register() -> None:
    """Called by SGLang; imports nothing of the loader until a model is loaded with it."""
    from sglang.srt.arg_groups.choices import add_load_format_choices
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    add_load_format_choices([PLUGIN_FORMAT])
    HookRegistry.register(
        "sglang.srt.configs.load_config.LoadConfig._verify_load_format", _resolve_load_format, HookType.AROUND
    )


def _resolve_load_format(original: Callable[..., Any], config: Any, *args: Any, **kwargs: Any) -> Any:
    """Our name becomes the loader class; every other goes SGLang's own way."""
    if isinstance(config.load_format, str) and config.load_format.lower() == PLUGIN_FORMAT:
        from dsv4_shard.sglang_plugin.loader import RankFileLoader

        config.load_format = RankFileLoader
        return None
    return original(config, *args, **kwargs)

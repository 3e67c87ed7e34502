"""The load format `dsv4_shard`, with which SGLang loads rank files. `register` is the entry point.

SGLang finds `register` through the entry point `sglang.srt.plugins` and calls it in every process, before it parses its
options. The name of the load format is added to SGLang's choices. SGLang turns names into members of an enum, so a hook
replaces our name by the loader class, which SGLang accepts unchanged.
"""

import logging
from collections.abc import Callable
from typing import Any

from dsv4_shard.catalog.options import LOAD_FORMAT, SGLANG_VERSIONS

logger = logging.getLogger(__name__)


def register() -> None:
    """Register the load format. SGLang calls it; the loader is imported only when a model is loaded with it.

    An SGLang without these extension points gets no load format, and a warning: then it refuses the name itself.
    """
    try:
        from sglang.srt.arg_groups.choices import add_load_format_choices
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    except ImportError as error:
        logger.warning("no load format %s: %s. Install SGLang %s", LOAD_FORMAT, error, " or ".join(SGLANG_VERSIONS))
        return
    add_load_format_choices([LOAD_FORMAT])
    HookRegistry.register(
        "sglang.srt.configs.load_config.LoadConfig._verify_load_format", _resolve_load_format, HookType.AROUND
    )


def _resolve_load_format(original: Callable[..., Any], config: Any, *args: Any, **kwargs: Any) -> Any:
    """Replace our name by the loader class; pass any other name to SGLang's own function."""
    if isinstance(config.load_format, str) and config.load_format.lower() == LOAD_FORMAT:
        config.load_format = _loader_class()
        return None
    return original(config, *args, **kwargs)


def _loader_class() -> type:
    """The loader. Raises LoadRefused if this SGLang is another version, or lacks a name that the loader imports."""
    import sglang

    from dsv4_shard.errors import LoadRefused

    verified, found = " or ".join(SGLANG_VERSIONS), getattr(sglang, "__version__", "no version")
    # A build number, as in 0.5.23+cu130, is the packager's; .dev and .post versions have other code.
    if found.partition("+")[0] not in SGLANG_VERSIONS:
        raise LoadRefused(
            f"engine: this loader is verified with SGLang {verified}, found {found}: install SGLang {verified}, or a "
            f"release of dsv4-shard that knows {found}"
        )
    try:
        from dsv4_shard.sglang_plugin.loader import RankFileLoader
    except ImportError as error:
        raise LoadRefused(
            f"engine: the loader does not import in SGLang {found} ({error}): install SGLang {verified} and dsv4-shard "
            "as they were released"
        ) from None
    return RankFileLoader

"""Messages of this package's loaders in SGLang and vLLM, and of engines in which they are not installed."""

from dsv4_shard.diagnosis.messages.message import SHARDS, Message, say
from dsv4_shard.diagnosis.origin import CONFIGURATION, LOADING
from dsv4_shard.engines import BOTH, SGLANG, VLLM

_INSTALL = ("pip install dsv4-shard in the engine's environment, on every node",)

_NOT_INSTALLED = say("the load format dsv4_shard comes with dsv4-shard, which this environment lacks")

_REFUSED = (
    "the options and variables of the plan: README.md beside the files has the command, plan.json the plan",
    *SHARDS[:1],
)

PLUGIN = (
    Message(SGLANG, r"invalid choice: 'dsv4_shard'", _NOT_INSTALLED, _INSTALL, CONFIGURATION),
    Message(VLLM, r"[Ll]oad[ _]format [`'\"]?dsv4_shard[`'\"]? is not supported", _NOT_INSTALLED, _INSTALL,
            CONFIGURATION, anchors=("dsv4_shard",)),
    Message(BOTH, r"LoadRefused: (?P<why>[^\n]{1,400})",
            say("dsv4-shard's loader refused the files before it loaded a tensor: {why}"), _REFUSED, LOADING),
)  # fmt: skip

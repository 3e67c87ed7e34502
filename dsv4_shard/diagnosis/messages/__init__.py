"""Messages that engines print and that belong to no rule: the cause and the remedies."""

from dsv4_shard.diagnosis.messages.experts import EXPERTS
from dsv4_shard.diagnosis.messages.files import FILES
from dsv4_shard.diagnosis.messages.launch import LAUNCH
from dsv4_shard.diagnosis.messages.memory import MEMORY
from dsv4_shard.diagnosis.messages.message import Evidence, Message
from dsv4_shard.diagnosis.messages.names import NAMES
from dsv4_shard.diagnosis.messages.plugin import PLUGIN
from dsv4_shard.diagnosis.messages.shapes import SHAPES
from dsv4_shard.diagnosis.messages.sizes import SIZES

MESSAGES = (*MEMORY, *FILES, *NAMES, *SHAPES, *EXPERTS, *SIZES, *LAUNCH, *PLUGIN)

__all__ = ["MESSAGES", "Evidence", "Message"]

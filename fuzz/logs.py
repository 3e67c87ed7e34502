"""What must hold for any text that `explain` is given."""

import json
import re
from functools import cache
from io import BytesIO
from random import Random

from dsv4_shard.diagnosis import KnownModel, explain, lines_of, way_out
from dsv4_shard.errors import ShardError
from fuzz.checkpoints import small_checkpoint, without_search
from fuzz.target import Target, check_message, mutate_bytes

_SEEDS = (
    "INFO server_args=ServerArgs(model_path='deepseek-ai/DeepSeek-V4-Pro', tp_size=16, dp_size=1, ep_size=1)\n"
    "\x1b[31mValueError: Weight output_partition_size = 192 is not divisible by weight quantization block_n = "
    "128.\x1b[0m\n",
    "vLLM API server version 0.33.0 tensor_parallel_size=24\nAssertionError: 129280 is not divisible by 24\n" * 3,
    "ValueError: moe_intermediate_size 2048 must be divisible by moe_tp_size (24) which is tp_size (24) divided by "
    "moe_ep_size (1).\r\nLoading: 1%\rLoading: 2%\r\ntorch.OutOfMemoryError: CUDA out of memory. Tried to "
    "allocate 2.00 GiB. GPU 0 has a total capacity of 95.00 GiB of which 1.00 GiB is free.\n",
    "MXFP4 Marlin requires SM90 or SM120.\\nValueError: tp_size 16 must be divisible by ep_size 3",
)

_NUMBER = re.compile(rb"\d+")

_NUMBERS = (
    *(b"0", b"1", b"-1", b"4096", b"4097", b"99999999999999999999", b"1" * 400, b"1.5", b"1e9", b""),
    *(b"128", b"192", b"7168"),
)


def _mutate(data: bytes, random: Random) -> bytes:
    """Other numbers, lines in another order or repeated; or bytes."""
    for _ in range(random.randint(1, 3)):
        numbers = list(_NUMBER.finditer(data))
        match random.randrange(3):
            case 0 if numbers:
                found = random.choice(numbers)
                data = data[: found.start()] + random.choice(_NUMBERS) + data[found.end() :]
            case 1:
                lines = data.split(b"\n")
                lines.insert(random.randrange(len(lines) + 1), random.choice(lines))
                random.shuffle(lines)
                data = b"\n".join(lines)
            case _:
                data = mutate_bytes(data, random)
    return data


@cache
def _model() -> KnownModel:
    """A model of 50 tensors."""
    return KnownModel("org/model", small_checkpoint()[1], given=True)


def _check(data: bytes) -> None:
    """Any log has an explanation, whose messages stand where it says and which is JSON."""
    try:
        with without_search(way_out, len(data) % 32 > 0):
            found = explain(lines_of(BytesIO(data)), _model())
    except ShardError as error:
        check_message(error)
        return
    json.loads(found.model_dump_json())
    assert found.recognised == (found.message is not None)
    lines = data.decode(errors="replace").split("\n")
    for message in (found.message, *found.also):
        if message is not None:
            assert 1 <= message.line <= len(lines)
            assert message.times >= 1
            words = re.findall(r"[a-z]{4,}", message.text)
            assert all(word in lines[message.line - 1] for word in words), (message, lines[message.line - 1])


TARGETS = {"log": Target(lambda: [seed.encode() for seed in _SEEDS], _mutate, _check)}

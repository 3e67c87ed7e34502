"""What must hold for any file that `plan --from` is given."""

import re
import tempfile
from functools import cache
from pathlib import Path
from random import Random

from dsv4_shard.configurations import PlannedDeployment, planned, read_configuration
from dsv4_shard.configurations.translation import translated
from dsv4_shard.errors import ShardError
from dsv4_shard.limits import CONFIGURED_OPTIONS, CONFIGURED_ROLES
from dsv4_shard.planning import plan_builder
from fuzz.checkpoints import small_checkpoint, without_search
from fuzz.target import Target, check_message, memory_folder, mutate_bytes

_FOLDER = Path(__file__).parent.parent / "tests" / "data" / "configurations"


@cache
def _seeds() -> list[bytes]:
    """Files of each format, after a line with the name that tells it."""
    files = sorted(path for path in _FOLDER.iterdir() if path.suffix != ".md")
    return [f"input{path.suffix}\n".encode() + path.read_bytes() for path in files]


_TOKEN = re.compile(rb"[^\s:=,'\"\[\]{}]+")

_HOSTILE = (
    *(b"!!int ''", b"!!float ''", b"!!bool x", b"!!timestamp x", b"!!binary x", b"!!set {1, 2}", b"!!python/name:x"),
    *(b"1" + b":1" * 40 + b".5", b"0x" + b"f" * 99, b"1e999", b".nan", b"2001-99-99", b"2001-01-01", b"~", b"true"),
    *(b"&a [*a]", b"*a", b"&a", b"<<: *a", b"? [1]", b"{1: 2}", b"[" * 30 + b"]" * 30, b"|", b"---", b"- ", b"\x00"),
    *(b"$A", b"${A:-x}", b"$(A)", b"$((A * 8))", b"$((9" + b"9*9" * 99 + b"))", b"A=$A$A", b"export A=8", b"`", b"'"),
    *(b"--config", b"input.yaml", b"/etc/passwd", b"a" * 300, b"../x", b"\x1b[31m", b"\\", b"#", b";", b"&&", b"-c"),
    *(b"sglang serve M", b"vllm serve M", b"trtllm-serve M", b"trtllm", b"node", b"0", b"-1", b"1k", b"999999999"),
)


@cache
def _tokens() -> list[bytes]:
    return sorted({token for seed in _seeds() for token in _TOKEN.findall(seed)})


def _mutate(data: bytes, random: Random) -> bytes:
    """Other words and values, lines lost, repeated, indented or in another place; or bytes."""
    for _ in range(random.randint(1, 3)):
        found, lines = list(_TOKEN.finditer(data)), data.split(b"\n")
        at = random.randrange(len(lines))
        match random.randrange(6):
            case 0 | 1 if found:
                token = random.choice(found)
                other = random.choice(_HOSTILE if random.random() < 0.5 else _tokens())
                data = data[: token.start()] + other + data[token.end() :]
            case 2:
                size = random.choice((1, 3, 16))
                lines[at:at] = lines[at : at + size] * random.choice((1, 1, 2, 70))
                data = b"\n".join(lines)
            case 3:
                del lines[at : at + random.choice((1, 3))]
                data = b"\n".join(lines)
            case 4:
                lines[at] = random.choice((b"  " + lines[at], lines[at].removeprefix(b"  "), random.choice(lines)))
                data = b"\n".join(lines)
            case _:
                data = mutate_bytes(data, random)
    return data


def _check(data: bytes) -> None:
    """A file that is accepted has roles that can be told apart, within the limits, and a deployment that is JSON."""
    name, _, text = data.partition(b"\n")
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        path = Path(folder) / ("input.yaml" if name == b"input.yaml" else "input.sh")
        path.write_bytes(text)
        try:
            read = read_configuration(str(path))
            assert 0 < len({role.name for role in read.roles}) == len(read.roles) <= CONFIGURED_ROLES.count
            assert sum(len(role.options) for role in read.roles) <= CONFIGURED_OPTIONS.count
            asked = [translated(role) for role in read.roles]
            assert all(row.note for one in asked for row in one.rows), "each option has a reason"
            if len(data) % 8:
                return  # a plan takes ten times as long
            with without_search(plan_builder, len(data) % 512 > 0):
                found = planned(read, None, {}, lambda _: small_checkpoint())
        except ShardError as error:
            check_message(error)
            return
    assert PlannedDeployment.model_validate_json(found.model_dump_json()) == found
    assert [role.name for role in found.roles] == [role.name for role in read.roles]


TARGETS = {"configuration": Target(_seeds, _mutate, _check)}

"""Options of the engines on our command lines: read as ours where they mean the same, else answered with ours.

The names are those of SGLang 0.5.23 (`srt/server_args.py`), vLLM 0.33.0 (`engine/arg_utils.py`) and TensorRT-LLM
(`trtllm-serve`).
"""

from collections.abc import Collection, Iterator, Sequence

from dsv4_shard.catalog.gpus import count_and_name
from dsv4_shard.catalog.options import DEFAULT_ENGINE
from dsv4_shard.errors import UsageError

SAME = {
    "--tensor-parallel-size": "--tp",
    "--tp-size": "--tp",
    "-tp": "--tp",
    "--expert-parallel-size": "--ep",
    "--ep-size": "--ep",
    "--moe-expert-parallel-size": "--ep",
    "--nnodes": "--nodes",
    "--num-nodes": "--nodes",
    "--pp-size": "--pp",
    "--pipeline-parallel-size": "--pp",
    "--moe-a2a-backend": "--a2a",
    "--enable-dp-lm-head": "--dp-lm-head",
    "--ep-num-redundant-experts": "--redundant-experts",
    "--init-expert-location": "--expert-locations",
    "--moe-runner-backend": "--runner",
    "--moe-backend": "--runner",
    "--context-length": "--context",
    "--max-model-len": "--context",
    "--max-seq-len": "--context",
    "--num-gpus": "--gpus",
    "--world-size": "--gpus",
}
"""Option of an engine → our option of the same meaning."""

_DATA_PARALLEL = ("--data-parallel-size", "--dp-size", "-dp")

_DP_ATTENTION = "--enable-dp-attention"

_EP = ("--enable-expert-parallel", "-ep")

_REPO = "the checkpoint is an argument, not an option"

ANSWERS = {
    "--model-path": (_REPO, "Write it after the command: `dsv4-shard plan REPO --tp 16`."),
    "--model": (_REPO, "Write it after the command: `dsv4-shard plan REPO --tp 16`."),
    "--revision": ("a revision stands in the name of the repository", "Write it as org/name@REVISION."),
    "--all2all-backend": ("vLLM's all-to-all backend does not change what ranks hold", "Leave it out."),
    "--node-rank": ("a plan has the commands of all nodes", "Give the number of nodes: --nodes N."),
    "--mem-fraction-static": ("plans take the engine's own share of the memory", "Leave it out."),
    "--gpu-memory-utilization": ("plans take the engine's own share of the memory", "Leave it out."),
    "--trust-remote-code": ("no code of a checkpoint is run here", "Leave it out."),
    "--kv-cache-dtype": ("plans take the engine's own format of the KV cache", "Leave it out."),
    "--quantization": ("the formats are those of the checkpoint", "Leave it out; --expert-dtype casts experts."),
    "--speculative-algorithm": ("--draft names the draft model", "Write --draft mtp (EAGLE) or --draft dspark."),
    "--speculative-config": ("--draft names the draft model", "Write --draft mtp or --draft dspark."),
    "--load-format": ("the launch commands of a plan have it", "Leave it out."),
}
"""Option of an engine → why there is none here, and what to write."""


def in_our_words(words: Sequence[str], known: Collection[str]) -> list[str]:
    """Return a command line with the engines' options as ours; `known` are the command's own options.

    Raises:
        UsageError: An option of an engine has another meaning here, or none.
    """
    if "--tp" not in known:
        return list(words)
    words = _without_count(words, known)
    end = list(words).index("--") if "--" in words else len(words)
    mine = list(_translated(words[:end], known))
    return [*mine, *words[end:]]


def _translated(words: Sequence[str], known: Collection[str]) -> Iterator[str]:
    given = {_spelled(word, known)[0] for word in words}
    for word in words:
        name, value = _spelled(word, known)
        if name in known:
            yield word
        elif name in SAME and SAME[name] in known:
            yield SAME[name] + value
        elif name in _DATA_PARALLEL and "--dp" in known:
            _refuse_replicas(name, words, given)
            yield f"--dp{value}"
        elif name == _DP_ATTENTION and "--dp" in known:
            if not given & {"--dp", *_DATA_PARALLEL}:
                raise UsageError(f"{name}: the size is missing", hint="Give the data parallelism of attention: --dp N.")
        elif name in _EP:
            raise UsageError(f"{name}: the size is wanted here", hint="Write --ep N, in vLLM N = TP × DP.")
        elif name in ANSWERS:
            why, hint = ANSWERS[name]
            raise UsageError(f"{name}: {why}", hint=hint)
        else:
            yield word


def _without_count(words: Sequence[str], known: Collection[str]) -> list[str]:
    """Return the words with `--gpu 8xH20-96` as `--gpu h20-96`, and `--gpus 8` if no layout is named.

    A number that contradicts the layout stays, and is refused as part of the name.
    """
    value = _value_of("--gpu", words)
    found = count_and_name(value) if value else None
    if found is None:
        return list(words)
    count, name = found
    sizes = {option: _number(_value_of(option, words)) for option in ("--tp", "--dp", "--nodes", "--gpus")}
    tp, dp, nodes = (sizes[option] or 1 for option in ("--tp", "--dp", "--nodes"))
    fits = {sizes["--gpus"]} if sizes["--gpus"] else {tp, tp * dp, tp // nodes} if sizes["--tp"] else {count}
    if count not in fits or (not sizes["--tp"] and "--gpus" not in known):
        return list(words)
    named = {value: name, f"--gpu={value}": f"--gpu={name}"}
    searched = () if sizes["--tp"] or sizes["--gpus"] else ("--gpus", str(count))
    return [*(named.get(word.lower(), word) for word in words), *searched]


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _spelled(word: str, known: Collection[str]) -> tuple[str, str]:
    """Return the option in a word with hyphens for underscores, and `=value` where it has one."""
    name, equals, value = word.partition("=")
    if name.startswith("--") and name not in known:
        name = name.replace("_", "-")
    return name, equals + value


def _refuse_replicas(name: str, words: Sequence[str], given: Collection[str]) -> None:
    """Raise UsageError where data parallelism means replicas of the whole model, as SGLang's alone does."""
    from dsv4_shard.engines import ENGINES

    engine = ENGINES.get(_value_of("--engine", words) or DEFAULT_ENGINE)
    if _DP_ATTENTION not in given and engine is not None and engine.logs_count_replicas:
        raise UsageError(
            f"{name}: without {_DP_ATTENTION}, {engine.title} runs replicas of the whole model",
            hint="Plan one of them without it; data parallelism of attention, inside TP, is --dp N.",
        )


def _value_of(option: str, words: Sequence[str]) -> str | None:
    """Return the last value of an option on a command line, in lower case."""
    found = None
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == option:
            found = value if equals else (words[number + 1] if number + 1 < len(words) else None)
    return found.lower() if found else None

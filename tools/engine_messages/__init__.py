"""Collects every message of an engine on the way from its arguments to the first forward pass, and what explain says.

    python tools/engine_messages sglang-0.5.23-*.whl vllm-0.33.0-*.whl    # writes the table, prints the coverage
    python tools/engine_messages                                          # prints the coverage of the kept table

The wheels are read, not installed (pip download --no-deps). A message is the text of a `raise` or an `assert`, or of an
error in the log; a bare `assert` shows by its own source. The way is the set of functions that calls reach from the
engine's start and from what it looks up by a name (`facts.ENTRIES`), with branches left out that cannot run for these
models on NVIDIA GPUs (`facts.KNOWN`), and modules of other models, formats and features (`facts.EXCLUDED`, each with
its reason; `--off` counts them).

The table, dsv4_shard/diagnosis/engine_messages.json, holds for each message: file and line, function, exception, text
with {} for values, and the condition on which the engine says it.
"""

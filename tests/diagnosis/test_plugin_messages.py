"""`explain` answers the failures of this package's own loaders, which docs/how-to/serve.md quotes."""

import pytest

import dsv4_shard


@pytest.mark.parametrize(("text", "said", "helps"), [
    ("sglang serve: error: argument --load-format: invalid choice: 'dsv4_shard' (choose from auto, pt, safetensors)",
     "which this environment lacks", "pip install dsv4-shard"),
    ("ValueError: load_format dsv4_shard is not supported", "which this environment lacks", "pip install dsv4-shard"),
    ("ValueError: Load format `dsv4_shard` is not supported", "which this environment lacks", "pip install dsv4-shard"),
    ("dsv4_shard.errors.LoadRefused: tp: the files are for 16, found 8: start with --tp 16",
     "the files are for 16, found 8", "README.md beside the files has the command"),
])  # fmt: skip
def test_failures_of_our_loaders_are_answered(text: str, said: str, helps: str) -> None:
    found = dsv4_shard.explain(text).model_dump_json()
    assert said in found
    assert helps in found

"""`load` fills what has no memory of its own tensor by tensor, and its log says how much there is."""

import logging
from pathlib import Path

import pytest
import torch

from dsv4_shard.loading.load import Taker, load
from dsv4_shard.loading.parameters import meta_tensor
from dsv4_shard.loading.progress import LoadProgress
from dsv4_shard.loading.rank_files import WrittenFiles

TURNED, TAKEN = "lm_head.weight", "model.embed_tokens.weight"


def test_parameters_without_contiguous_memory_and_takers_get_the_same_bytes(result: Path) -> None:
    files = WrittenFiles(result, verify=True)
    kinds = files.open(0)
    plain = {name: meta_tensor(*kind).new_empty(kind[1], device="cpu") for name, kind in kinds.items()}
    load(files, 0, plain)
    others = {name: torch.empty_like(tensor) for name, tensor in plain.items() if name != TAKEN}
    others[TURNED] = others[TURNED].t().contiguous().t()
    taken: list[torch.Tensor] = []
    load(files, 0, others, {TAKEN: Taker(taken.append, plain[TAKEN].to("meta"))})
    assert not others[TURNED].is_contiguous()
    for name, tensor in (others | {TAKEN: taken[0]}).items():
        assert torch.equal(tensor.contiguous().view(torch.uint8), plain[name].view(torch.uint8)), name


def test_the_log_has_a_line_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr("dsv4_shard.loading.progress.time.monotonic", lambda: now[0])
    progress = LoadProgress("rank 0", 4_000_000_000)
    with caplog.at_level(logging.INFO):
        for _ in range(8):
            now[0] += 3
            progress.add(500_000_000)
    assert caplog.messages == ["rank 0: 2.00 GB of 4.00 GB (50 %)", "rank 0: 4.00 GB of 4.00 GB (100 %)"]
    assert progress.summary() == "4.00 GB in 24.0 s (166.67 MB/s)"

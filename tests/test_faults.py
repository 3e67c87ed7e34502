"""Every fault that a checkpoint, a result or a terminal can have, and the test that says what is done about it.

`FAULTS` is the table; most of its tests stand with the module that they are about. Those that concern no single module
are here.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints.small import (
    contents,
    least_config,
    load_checkpoint,
    raw,
    reshard_folder,
    small_config,
    write_sparse,
)
from support.paths import TESTS

from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.errors import ExitCode
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE, INDEX_FILE
from dsv4_shard.tensors.header import build_header

FAULTS = {
    # headers
    "a key twice, with the same value or another": "header: refuses_and_says_what_where_and_how_much",
    "overlap, hole, trailing bytes, truncation": "header: refuses_and_says_what_where_and_how_much",
    "header longer than the file": "header: header_beyond_the_end_of_the_file_is_refused_before_it_is_read",
    "header of 2^63 bytes, or over 100 MB": "header: header_over_the_limit_is_refused_before_it_is_read",
    "header of 100 MB of brackets or keys": "strict_json: a_hundred_megabytes_cost_no_gigabyte",
    "space before the brace, NUL padding, not UTF-8": "header: refuses_and_says_what_where_and_how_much",
    "padding with line breaks, unknown fields": "header: accepts_what_the_library_accepts_and_warns_of_what_is_odd",
    "metadata null or empty": "header: metadata_null_and_empty_read_as_empty",
    "metadata that is no text": "header: refuses_and_says_what_where_and_how_much",
    "unknown dtype, odd shapes and offsets": "header: refuses_and_says_what_where_and_how_much",
    "shapes whose product overflows": "hostile: a_shape_of_a_million_sizes_is_not_multiplied_out",
    "F4 with an odd number of elements": "header: refuses_and_says_what_where_and_how_much",
    "tensors not aligned are read": "header: accepts_what_the_library_accepts_and_warns_of_what_is_odd",
    "tensors not aligned are never written":
        "header: what_is_written_reads_back_the_same_aligned_and_without_a_warning",
    "tensors called like paths": "hostile: tensors_called_like_paths_are_no_paths",
    "tensors of no dimension or no size": "header: accepts_what_the_library_accepts_and_warns_of_what_is_odd",
    "empty file": "header: refuses_and_says_what_where_and_how_much",
    "folder, FIFO or loop of links for a weight file":
        "reader: what_stands_in_place_of_a_file_and_is_none_counts_as_absent",
    "folder, FIFO or loop of links for config or index": "faults: what_is_no_file_is_no_config_and_no_index",
    # index and files
    "no index": "reader: several_files_without_an_index_are_refused",
    "one file and no index": "reader: one_file_needs_no_index",
    "a file of the index is absent": "reader: files_that_the_index_names_and_that_are_absent_are_counted_and_named",
    "a tensor that the index lacks": "reader: tensors_that_the_index_lacks_are_counted_and_named_with_their_file",
    "a tensor that no file has": "reader: tensors_that_no_file_has_are_counted_and_named_with_their_file",
    "a tensor in two files": "reader: a_tensor_in_two_files_is_named_with_both",
    "file names with .., /, NUL and such":
        "reader: a_file_name_that_is_no_plain_name_is_refused_and_nothing_is_opened",
    "file names that differ only in case": "reader: file_names_that_differ_only_in_case_are_refused",
    "links out of the folder": "reader: links_out_of_the_folder_are_read_and_noted",
    "an index that is no weight map": "reader: an_index_that_is_no_weight_map_is_refused",
    "an index of absurd size": "reader: an_index_of_absurd_size_is_refused_before_it_is_read",
    "a weight_block_size that the scales do not have":
        "inventory: blocks_on_which_config_and_headers_disagree_are_planned_for_by_no_command",
    "a wrong total_size": "reader: a_wrong_total_size_is_a_warning_with_both_numbers",
    "links into a Hub cache's blobs": "reader: a_hub_cache_with_its_links_reads_as_the_files_do",
    "a Git-LFS pointer": "reader: a_git_lfs_pointer_is_called_that",
    "a file downloaded in part":
        "reader: a_file_that_was_downloaded_in_part_is_called_truncated_with_the_bytes_that_lack",
    "leftovers of a download": "reader: what_an_unfinished_download_leaves_is_a_warning_that_names_it",
    "another format in the folder": "reader: another_format_in_the_folder_is_left_alone_with_a_warning",
    "odd names of files": "reader: files_may_have_any_plain_name",
    "files of an older revision": "reader: shards_of_an_older_revision_are_left_alone_with_a_warning",
    "names that are not UTF-8": "faults: a_folder_whose_name_is_not_utf8_is_refused_before_anything_is_written",
    # the model
    "no config": "reader: a_folder_without_a_config_is_refused",
    "another family": "config: another_family_is_refused_by_its_name",
    "another family, for all but inspect": "unknown_family: every_other_command_refuses_and_says_that_inspect_works",
    "a config of another family of odd types": "unknown_family: fields_of_odd_types_are_as_good_as_absent",
    "names and shapes of another family": "hostile: names_of_a_family_that_is_not_known_are_shown_escaped",
    "more names of another family than fit a page":
        "unknown_family: templates_beyond_the_limit_are_counted_and_not_listed",
    "a lost scale or weight of another family": "unknown_family: a_lost_scale_and_a_lost_weight_are_found",
    "an unknown tensor": "inventory: an_unknown_tensor_is_an_error_that_names_it",
    "a missing tensor": "inventory: whatever_one_tensor_is_missing_is_named",
    "missing experts": "inventory: missing_experts_are_counted_over_layers_and_projections",
    "a weight without its scale": "inventory: a_weight_without_its_scale_is_an_error_that_names_it",
    "a scale of another shape": "inventory: a_scale_of_another_shape_is_an_error_that_names_it",
    "a weight and its scale in two files, read": "inventory: a_weight_and_its_scale_may_stand_in_different_files",
    "a weight and its scale in two files, written": "faults: scales_in_a_file_of_their_own_give_the_same_ranks",
    "scales in F32": "run: f32_scales_are_the_oracles_too",
    "a format that no model has": "inventory: a_format_that_no_v4_checkpoint_has_is_an_error",
    "one expert in another format": "inventory: one_expert_in_another_format_is_an_error_that_counts_both",
    "a cut through a block": "recipe_builder: rules_refuse_blocks_that_the_ranks_would_cut",
    "a cut through an FP4 group": "rules: sglang_cuts_no_fp4_group_in_half",
    "a cut through a byte": "geometry: a_rectangle_of_values_below_a_byte_is_numpys_slice_or_refused",
    "experts that EP does not divide": "rules: a_broken_rule_is_told_with_its_words",
    "projections of different shapes": "inventory: a_projection_of_another_shape_is_an_error_that_names_it",
    "a gap among the experts": "inventory: a_gap_among_the_experts_is_an_error_that_names_it",
    "an expert too many": "inventory: an_expert_beyond_the_configs_number_is_an_error_that_names_it",
    "names without .weight": "names: a_name_says_role_part_stage_layer_and_expert",
    "no MTP block": "inventory: a_checkpoint_without_its_mtp_block_is_usable_and_says_what_it_cannot_do",
    "an embedding in the MTP block too":
        "run: an_mtp_blocks_own_embedding_and_head_are_dropped_as_the_converter_does",
    "a head tied to the embedding": "inventory: a_missing_plain_tensor_is_an_error_that_names_it",
    "one rank": "plan_builder: one_rank_replicates_nothing",
    "more ranks than heads": "faults: more_ranks_than_there_are_heads_or_groups_are_refused_with_the_arithmetic",
    "a config that says impossible numbers": "fuzz: damaged_documents_are_refused_or_hold",
    # reading
    "an error of the disk": "local: an_error_of_the_disk_is_named_with_the_offset_it_came_at",
    "short reads": "local: reads_that_come_in_pieces_are_put_together",
    "a source that changes": "copy: a_source_that_changes_during_the_run_is_found",
    "a source cut off meanwhile": "copy: a_source_truncated_meanwhile_is_named_with_the_offset",
    "few open files allowed": "faults: many_files_need_few_descriptors",
    "a huge sparse source": "faults: a_source_of_terabytes_is_judged_by_its_headers",
    "a result damaged later": "result_folder: any_flip_in_a_rank_file_is_found_where_it_is",
    "a manifest that names files elsewhere": "hostile: a_manifest_names_nothing_outside_its_folder",
    "a plan that names files elsewhere": "hostile: a_plan_that_names_other_files_is_refused_and_they_are_not_opened",
    # in the engine
    "experts in other slots": "loader: experts_in_other_slots_are_refused",
    "experts that move after the load": "loader: locations_that_come_after_the_loader_are_refused",
    "a kernel that takes w13 in another order":
        "loader: experts_that_another_kernel_runs_are_refused_in_any_layer",
    "another number of ranks, stages or replicas": "loader: another_deployment_is_refused_with_both_values",
    "an engine of another version": "loader: another_version_is_refused",
    "an engine that does not tell a fact": "loader: a_fact_that_sglang_does_not_tell_is_a_refusal",
    "rank files for another engine": "loader: files_for_another_engine_are_refused",
    # writing
    "a disk too small": "filesystems: a_disk_that_is_too_small_is_refused_before_anything_is_made",
    "a disk full at the start": "filesystems: a_disk_that_fills_up_at_preallocation_leaves_nothing",
    "a disk full midway": "filesystems: a_disk_that_fills_up_midway_is_gone_on_with_when_it_has_room",
    "a quota used up": "filesystems: a_quota_that_is_used_up_is_said_and_gone_on_with_when_it_is_raised",
    "a limit of file sizes": "filesystems: a_file_size_limit_is_said_with_the_size",
    "a read-only file system": "filesystems: a_read_only_file_system_serves_as_source_and_is_refused_as_output",
    "no permission": "filesystems: a_folder_of_someone_else_is_refused_as_output",
    "a disk that cannot be read midway":
        "filesystems: a_source_that_cannot_be_read_midway_is_named_with_the_byte_and_gone_on_with",
    "a disk that loses what it took": "filesystems: a_disk_that_loses_what_it_took_is_found_out_when_it_is_flushed",
    "no preallocation": "staging: a_file_system_that_reserves_nothing_is_no_reason_to_stop",
    "no links to another file system":
        "filesystems: files_that_cannot_be_links_to_another_file_system_are_copies_that_are_gone_on_with",
    "short writes": "staging: writes_that_take_little_are_continued",
    "the output in or around the input": "run: an_output_that_is_in_or_around_the_checkpoint_is_refused",
    "an output that is not empty": "run: a_folder_that_holds_something_is_refused",
    "two processes on one output": "staging: two_processes_on_one_output_are_one_too_many",
    "modes of files": "run: umask_is_respected",
    # ending early
    "whichever call is the last": "crashes: whichever_call_is_the_last_the_next_run_ends_as_if_nothing_had_been",
    "signals at any moment": "resume: a_process_that_is_killed_fifty_times_loses_nothing",
    "going on with another layout": "resume: another_layout_is_refused",
    "going on with another version": "resume: what_another_version_left_is_continued",
    "going on with other weights": "resume: weights_that_were_written_to_since_are_refused",
    "going on with a damaged journal": "resume: whichever_byte_of_a_journal_is_damaged_the_result_is_right",
    "going on with damaged files": "resume: staged_files_that_are_not_as_they_were_left_are_written_anew",
    "a crash before the manifest": "staging: a_run_that_crashed_before_its_manifest_is_no_result",
    # several machines
    "the node of the driver or the head dies":
        "ray_cluster: a_run_whose_own_node_dies_ends_says_what_to_do_and_can_go_on",
    "another node dies": "ray_cluster: a_share_whose_node_is_killed_is_gone_on_with_elsewhere",
    "a program that called ray.init": "ray_cluster: a_program_that_is_connected_keeps_its_connection_and_its_output",
    "shares that overlap": "claims: the_command_refuses_at_the_start_what_overlaps_and_leaves_nothing",
    "ranks that are missing": "shares: the_command_names_ranks_that_are_missing",
    "a folder named twice": "shares: a_folder_that_is_named_twice_is_refused_before_it_is_read",
    "another number of processes": "launched: another_number_of_processes_writes_what_is_missing",
    "launchers that contradict each other": "launched: launchers_that_contradict_each_other_are_refused",
    # terminal
    "names that control the terminal": "hostile: the_name_of_a_tensor_is_shown_escaped",
    "output closed early": "cli: output_closed_early_is_no_error",
    "an encoding that lacks our signs": "faults: a_terminal_of_any_encoding_gets_an_answer",
    "a narrow terminal": "faults: a_narrow_terminal_gets_all_of_it_in_its_width",
}  # fmt: skip
"""Fault → module and name of its test."""


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_test(fault: str) -> None:
    module, name = FAULTS[fault].split(": ")
    sources = [path.read_text() for path in TESTS.rglob(f"test_{module}.py")]
    assert any(re.search(rf"^def test_{name}\(", source, re.MULTILINE) for source in sources), FAULTS[fault]


def run(*arguments: str | Path, before: str = "", **environment: Any) -> subprocess.CompletedProcess[Any]:
    """Run a command in a process of its own, after the statements `before`."""
    code = f"{before}\nfrom dsv4_shard.cli import main; main()"
    variables = os.environ | {"XDG_STATE_HOME": os.devnull, "COLUMNS": "80"} | environment
    return subprocess.run([sys.executable, "-c", code, *map(os.fspath, map(str, arguments))],
                          capture_output=True, env=variables)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("faults") / "model", small_config(), 3)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The least checkpoint, with nothing in it to be decoded on the way. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("faults") / "plain", least_config(), 4, 0, o_a="BF16")


def split_up(folder: Path, groups: Callable[..., Any]) -> Path:
    """The checkpoint in `folder` with its tensors dealt out anew: file → names."""
    tensors = load_checkpoint(folder)
    headers: dict[str, Any] = {}
    for path in folder.glob("*.safetensors"):
        length = int.from_bytes(path.read_bytes()[:8], "little")
        headers |= json.loads(path.read_bytes()[8 : 8 + length])
        path.unlink()
    weight_map: dict[str, Any] = {}
    for file, names in groups(sorted(tensors)).items():
        header, placed = build_header({n: (headers[n]["dtype"], tuple(headers[n]["shape"])) for n in names})
        (folder / file).write_bytes(header + b"".join(raw(tensors[name]) for name in placed))
        weight_map |= dict.fromkeys(names, file)
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.slow
def test_scales_in_a_file_of_their_own_give_the_same_ranks(small: Path, tmp_path: Path) -> None:
    apart = split_up(
        shutil.copytree(small, tmp_path / "apart"),
        lambda names: {
            "scales.safetensors": [name for name in names if name.endswith(".scale")],
            "weights.safetensors": [name for name in names if not name.endswith(".scale")],
        },
    )
    for expert_dtype in ("fp4", "fp8"):
        made = []
        for folder in (small, apart):
            reshard_folder(folder, tmp_path / f"{folder.name}-{expert_dtype}", 2, expert_dtype)
            files = contents(tmp_path / f"{folder.name}-{expert_dtype}")
            made.append({name: data for name, data in files.items() if name.endswith(".safetensors")})
        assert made[0] == made[1]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["inspect", "plan", "reshard", "verify"])
def test_many_files_need_few_descriptors(command: str, plain: Path, tmp_path: Path) -> None:
    """As many files as tensors. Headers are read one file at a time; what moves bytes may raise the soft limit."""
    many = split_up(
        shutil.copytree(plain, tmp_path / "many"),
        lambda names: {f"{number:04d}.safetensors": [name] for number, name in enumerate(names)},
    )
    assert len(list(many.glob("*.safetensors"))) > 40
    options = ("--tp", "2", "--engine", "reference")
    if command == "verify":
        reshard_folder(many, tmp_path / "out", 2)
    arguments = {
        "inspect": (many,),
        "plan": (many, *options),
        "reshard": (many, tmp_path / "out", *options),
        "verify": (tmp_path / "out", "--against", many),
    }[command]
    limits = "(20, 20)" if command in ("inspect", "plan") else "(20, 2000)"
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, {limits})"
    result = run(command, *arguments, before=limit)
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.slow
def test_a_source_of_terabytes_is_judged_by_its_headers(tmp_path: Path) -> None:
    """Eight terabytes that nobody wrote, in a tensor that no model has, beside a sound checkpoint."""
    folder = write_sparse(tmp_path / "model", small_config())
    nbytes = 1 << 43
    header, _ = build_header({"huge": ("U8", (nbytes,))})
    with (folder / "huge.safetensors").open("wb") as file:
        file.write(header)
        try:
            file.truncate(len(header) + nbytes)
        except OSError:
            pytest.skip("this file system has no files of that size")
    size = (folder / "model.safetensors").stat().st_size
    names = json.loads((folder / "model.safetensors").read_bytes()[8:size].split(b"}}")[0] + b"}}")
    weight_map = dict.fromkeys(names, "model.safetensors") | {"huge": "huge.safetensors"}
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    result = run("inspect", folder)
    assert result.returncode == ExitCode.CHECKPOINT
    assert b"1 tensors have no known role: huge" in result.stdout
    assert b"8.80 TB" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink(path, path)],
                         ids=["folder", "FIFO", "loop"])  # fmt: skip
@pytest.mark.parametrize("name", [CONFIG_FILE, INDEX_FILE])
def test_what_is_no_file_is_no_config_and_no_index(name: str, make: Callable[..., Any], folder: Path) -> None:
    """Neither read nor waited for."""
    (folder / name).unlink()
    make(folder / name)
    result = run("inspect", folder)
    assert result.returncode == ExitCode.CHECKPOINT
    assert name in result.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sglang", "vllm", "reference", "trtllm"])
def test_more_ranks_than_there_are_heads_or_groups_are_refused_with_the_arithmetic(engine: str, small: Path) -> None:
    """The small model has 8 heads and 8 output groups."""
    result = run("plan", small, "--tp", "16", "--engine", engine)
    assert result.returncode == ExitCode.NO
    assert re.search(r"= 0\.5\b", result.stdout.decode())


@pytest.mark.slow
@pytest.mark.parametrize("command", ["inspect", "plan", "reshard"])
def test_a_folder_whose_name_is_not_utf8_is_refused_before_anything_is_written(
    command: str, small: Path, tmp_path: Path
) -> None:
    name = os.fsdecode(bytes(tmp_path) + b"/model\xff")
    shutil.copytree(small, name)
    options = {"inspect": (), "plan": ("--tp", "2"), "reshard": (tmp_path / "out", "--tp", "2")}[command]
    result = run(command, name, *options)
    assert result.returncode == ExitCode.USAGE
    assert b"not UTF-8" in result.stderr
    assert b"model\\udcff" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_output_whose_name_is_not_utf8_can_be_written_and_verified(plain: Path, tmp_path: Path) -> None:
    out = os.fsdecode(bytes(tmp_path) + b"/out\xff")
    assert run("reshard", plain, out, "--tp", "2", "--engine", "reference").returncode == 0
    result = run("verify", out, "--json")
    assert (result.returncode, result.stderr) == (0, b"")
    assert json.loads(result.stdout)["folder"] == out


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("command", ["inspect", "plan"])
def test_a_terminal_of_any_encoding_gets_an_answer(command: str, encoding: str, small: Path) -> None:
    options = () if command == "inspect" else ("--tp", "2")
    result = run(command, small, *options, PYTHONIOENCODING=encoding)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode(encoding).count("\n") >= 10


@pytest.mark.slow
@pytest.mark.parametrize("locale", ["C", "no_SUCH.locale"])
def test_any_locale_will_do(locale: str, small: Path) -> None:
    result = run("inspect", small, LC_ALL=locale, LANG=locale)
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.slow
@pytest.mark.parametrize(("command", "said"), [
    ("inspect", "none; every layer, expert, scale and block is there and fits"),
    ("plan", "whole on every rank, all modules together"),
])  # fmt: skip
def test_a_narrow_terminal_gets_all_of_it_in_its_width(command: str, said: str, small: Path) -> None:
    """Only commands to be copied stand on one line."""
    result = run(command, small, *(() if command == "inspect" else ("--tp", "2", "--details")), COLUMNS="40")
    assert (result.returncode, result.stderr) == (0, b"")
    lines = result.stdout.decode().splitlines()
    assert [line for line in lines if len(line) > 40 and " --" not in line and "/" not in line] == []
    assert said in re.sub(r"\s+", " ", " ".join(lines))


@pytest.mark.slow
@pytest.mark.parametrize("columns", [1, 100_000])
def test_a_terminal_of_any_width_gets_an_answer(columns: int, small: Path) -> None:
    result = run("inspect", small, COLUMNS=str(columns))
    assert (result.returncode, result.stderr) == (0, b"")

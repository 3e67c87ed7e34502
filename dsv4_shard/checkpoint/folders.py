"""Says what a folder without a checkpoint holds: another tool's files, other folders, links that lead nowhere.

The answer comes from the names of files and folders; only adapter_config.json is read, for the name of its model. The
names are those that the tools write: PEFT 0.21.2 (`utils/constants.py`), SGLang 0.5.23 (`model_loader/loader.py`:
`ShardedStateLoader`, `PreshardedModelLoader`), msmodelslim (`quant_model_weights.safetensors.index.json`), Mistral and
Meta (`consolidated`), TensorRT-LLM (`rank0.engine`), PyTorch (`pytorch_model.bin`, `.distcp`), and the rest by ending.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from dsv4_shard.checkpoint.exports import NEXT
from dsv4_shard.checkpoint.findings import some
from dsv4_shard.errors import BadIndex, MissingFile, NotACheckpoint, OtherExport, ReadFailed, ShardError
from dsv4_shard.limits import CONFIG, INDEX
from dsv4_shard.sources.base import Source
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE, INDEX_FILE, SINGLE_FILE
from dsv4_shard.sources.hub_names import download_of, hub_id
from dsv4_shard.sources.local import LINKED_FOLDER
from dsv4_shard.storage import MANIFEST_NAME
from dsv4_shard.text.sanitize import short_name
from dsv4_shard.text.shell import shell_word
from dsv4_shard.text.strict_json import BadJson, parse_json

_LINKS = (
    "The folder was copied or mounted without the files that its links name: copy it with `cp -aL`, or mount the "
    "folder above; of a Hub cache, the one that holds `blobs` and `snapshots`."
)


@dataclass(frozen=True, slots=True)
class ForeignFiles:
    """Files of one tool.

    Attributes:
        files: Regular expression for their names.
        what: What they are.
        readers: A sentence: what reads them.
    """

    files: str
    what: str
    readers: str


_PICKLES = "Transformers loads them; they are pickles, which can run code, so they are not read here: convert them."

KINDS = (
    ForeignFiles(r".+\.gguf", "GGUF files",
         "llama.cpp and Ollama read them, and SGLang (`--load-format gguf`); vLLM 0.33.0 does not."),
    ForeignFiles(r".+\.llamafile", "llamafile programs", "They run by themselves."),
    ForeignFiles(r"model-\d{5}-(common|rank-[\d,]+)\.safetensor", "SGLang's presharded dump",
         "SGLang reads it with `--load-format presharded`, under the launch options that it was made with."),
    ForeignFiles(r"quant_model_weight.*\.safetensors(\.index\.json)?", "an export of ModelSlim, with its own index",
         "vLLM-Ascend, MindIE and SGLang read it, on Ascend NPUs."),
    ForeignFiles(r"consolidated.*\.safetensors(\.index\.json)?", "weights in Mistral's layout",
         "SGLang and vLLM read it with `--load-format mistral`."),
    ForeignFiles(r"rank\d+\.engine", "a TensorRT-LLM engine", "TensorRT-LLM of the version that built it reads it."),
    ForeignFiles(r"rank\d+\.safetensors", "a TensorRT-LLM checkpoint of ranks", "trtllm-build reads it."),
    ForeignFiles(r"mlc-chat-config\.json|params_shard_\d+\.bin", "an export of MLC-LLM", "MLC-LLM reads it."),
    ForeignFiles(r"openvino.*\.(xml|bin)", "an export to OpenVINO", "OpenVINO reads it."),
    ForeignFiles(r".+\.onnx", "ONNX files", "ONNX Runtime reads them."),
    ForeignFiles(r".+\.tensors", "files of Tensorizer", "vLLM reads them with `--load-format tensorizer`."),
    ForeignFiles(r".+\.distcp", "a checkpoint of torch.distributed.checkpoint",
         "The training framework that wrote it exports it to safetensors."),
    ForeignFiles(r"latest_checkpointed_iteration\.txt", "a checkpoint of Megatron",
         "Megatron Bridge or the training framework exports it to safetensors."),
    ForeignFiles(r"zero_to_fp32\.py|.*_optim_states\.pt", "a checkpoint of DeepSpeed",
         "zero_to_fp32.py, beside it, makes weights of it."),
    ForeignFiles(r".+\.nemo", "a checkpoint of NeMo", "NeMo exports it to safetensors."),
    ForeignFiles(r"(pytorch_)?model.*\.bin(\.index\.json)?|.+\.(pt|pth|ckpt)", "PyTorch files", _PICKLES),
    ForeignFiles(r"flax_model.*\.msgpack|tf_model.*\.h5", "weights for JAX or TensorFlow", "Transformers converts."),
    ForeignFiles(r".+\.npz", "NumPy files, as early MLX wrote them", "mlx-lm reads them."),
)  # fmt: skip

_RANK_FILE = re.compile(r"model-(?:dp-\d{1,5}-)?rank-(\d{1,5})-part-(\d{1,5})\.safetensors", re.ASCII)

_ADAPTER = "adapter_config.json"

_HUB_FOLDER = re.compile(r"models--([\w.-]+?)--([\w.-]+)", re.ASCII)


def refuse_other_folders(source: Source, sizes: Mapping[str, int]) -> None:
    """Return if a folder has weights in safetensors.

    Raises:
        MissingFile: The files are links that lead nowhere.
        OtherExport: The folder holds another tool's files.
        NotACheckpoint: It holds other folders, or nothing.
        BadIndex: It has a config and no weights.
    """
    has_weights = INDEX_FILE in sizes or SINGLE_FILE in sizes
    if has_weights and CONFIG_FILE in sizes:
        return
    dead = {CONFIG_FILE, INDEX_FILE, SINGLE_FILE}.intersection(source.dangling_links())
    if dead:
        raise MissingFile(f"{source.label}: {_target(source, min(dead))}", hint=_LINKS)
    if has_weights:
        return
    if _ADAPTER in sizes:
        base = _base(source, sizes[_ADAPTER])
        raise OtherExport(f"{source.label}: a LoRA adapter{f' for {base}' if base else ''}, and no checkpoint",
                          hint="PEFT, SGLang and vLLM load it beside its model: name the model"
                          f"{f', `dsv4-shard inspect {shell_word(base)}`' if base else ''}.")  # fmt: skip
    _refuse_rank_files(source.label, sizes)
    refuse_kinds(source.label, sizes)
    if not any(name.endswith(".safetensors") for name in sizes):
        _refuse_folders(source, sizes)


def no_index(label: str, sizes: Mapping[str, int]) -> BadIndex:
    """Return the error for a folder that has weights and no index."""
    weights = [name for name in sizes if name.endswith(".safetensors")]
    others = [name for name in sizes if name.endswith(".index.json")]
    called = f"; its index is called {some(others)}" if others else ""
    return BadIndex(f"{label}: {some(weights)}, but neither {INDEX_FILE} nor {SINGLE_FILE}{called}")


def drafts_in_folders(source: Source) -> dict[str, int]:
    """Return folder → number of tensors, for each folder inside whose index names a draft's tensors alone."""
    found = {}
    for name, nbytes in source.tree().items():
        folder, _, file = name.rpartition("/")
        if folder and file == INDEX_FILE and isinstance(nbytes, int) and nbytes <= INDEX.nbytes:
            with suppress(BadJson, ShardError), source.open(name) as opened:
                names = parse_json(opened.read(0, opened.nbytes), INDEX)["weight_map"]
                if names and all(name.startswith("mtp.") for name in names):
                    found[folder] = len(names)
    return found


def dead_link_hint(dead: Iterable[str]) -> str | None:
    """Return what to do about links that lead nowhere; None if there are none."""
    return _LINKS if list(dead) else None


def _target(source: Source, name: str) -> str:
    """Return where a dead link leads."""
    to = os.readlink(source.root / name) if source.root is not None else "a file"
    return f"{name} is a link to {short_name(to)}, which is not there"


def _base(source: Source, nbytes: int) -> str:
    """Return the model that an adapter is for; empty if it does not say so."""
    try:
        with source.open(_ADAPTER) as file:
            document = parse_json(file.read(0, min(nbytes, CONFIG.nbytes)), CONFIG)
    except (BadJson, ReadFailed):
        return ""
    base = document.get("base_model_name_or_path") if isinstance(document, dict) else None
    return short_name(base) if isinstance(base, str) else ""


def _refuse_rank_files(label: str, sizes: Mapping[str, int]) -> None:
    """Raise OtherExport for rank files that an engine's own saver wrote, which have no manifest."""
    ranks = {int(match[1]) for name in sizes if (match := _RANK_FILE.fullmatch(name))}
    if not ranks:
        return
    lacking = sorted(set(range(max(ranks) + 1)) - ranks)
    missing = f", of which {some([str(rank) for rank in lacking])} are missing" if lacking else ""
    raise OtherExport(
        f"{label}: rank files of {max(ranks) + 1} ranks{missing}, as the sharded_state savers of SGLang and vLLM write "
        "them; no manifest.json, which reshard writes",
        hint="The engine and version that wrote them read them with `--load-format sharded_state`, under the same TP. "
        f"{NEXT}",
    )


def refuse_kinds(label: str, names: Iterable[str]) -> None:
    """Raise OtherExport if one of the files, in whatever folder, is of a kind of the table."""
    plain = {name: name.rpartition("/")[2] for name in names}
    for kind in KINDS:
        found = [name for name, file in plain.items() if re.fullmatch(kind.files, file)]
        if found:
            raise OtherExport(f"{label}: {kind.what} ({some(found)})", hint=f"{kind.readers} {NEXT}")


def _refuse_folders(source: Source, sizes: Mapping[str, int]) -> None:
    """Raise the error for a folder without weights; name the checkpoints and results in its folders."""
    tree = source.tree()
    results = results_in(source)
    found = sorted(_folders_with(source, tree, (INDEX_FILE, SINGLE_FILE)) - {*results})
    inside = [name for name in found if not any(name.startswith(f"{result}/") for result in results)]
    own = source.root.resolve().parts[-3:] if source.root is not None else ()
    parts = dict.fromkeys((*own, *(part for name in tree for part in name.split("/"))))
    repos = [f"{match[1]}/{match[2]}" for part in parts if (match := _HUB_FOLDER.fullmatch(part))]
    if repos and (inside or not results):
        raise NotACheckpoint(f"{source.label}: a folder of the Hub's cache, with {some(repos)}",
                             hint=f"Name the repository: `dsv4-shard inspect {shell_word(repos[0])}`.")  # fmt: skip
    dead = [name for name in _named(tree, (INDEX_FILE, SINGLE_FILE)) if not isinstance(tree[name], int)]
    if dead and not inside:
        raise MissingFile(f"{source.label}: {_target(source, dead[0])}", hint=_LINKS)
    if CONFIG_FILE in sizes and not inside:
        refuse_kinds(source.label, tree)
        partial = source.unfinished_downloads()
        raise BadIndex(
            f"{source.label}: {CONFIG_FILE} and no weights: neither {INDEX_FILE} nor {SINGLE_FILE}",
            hint=MissingFile.hint if partial else "The download is incomplete, or the weights are elsewhere.",
        )
    if inside or results:
        what = "checkpoint" if inside else "result of reshard"
        first = f"{source.label.rstrip('/')}/{(inside or results)[0]}"
        raise NotACheckpoint(
            f"{source.label}: no checkpoint, but folders that hold a {what}: {some(inside or results)}",
            hint=_name_inside(source, first, "inspect" if inside else "verify"),
        )
    refuse_kinds(source.label, tree)
    if partial := source.unfinished_downloads():
        raise MissingFile(f"{source.label}: no checkpoint yet, but a download that did not finish: {some(partial)}")
    held = f"no checkpoint, but {some(sorted(tree))}" if tree else "no checkpoint: the folder is empty"
    raise NotACheckpoint(f"{source.label}: {held}")


def _name_inside(source: Source, path: str, command: str) -> str:
    """Return how to name a folder inside a source; one inside a repository on the Hub is downloaded first."""
    named = hub_id(source.label) if source.root is None else None
    if named is None:
        return f"Name one: `dsv4-shard {command} {shell_word(path)}`."
    folder = path.removeprefix(f"{source.label}/")
    here = f"{named.repo.rpartition('/')[2]}/{folder}"
    return f"Download one: {download_of(named, folder)}; then name {here}."


def results_in(source: Source) -> list[str]:
    """Return the folders inside that hold a result of reshard or merge."""
    return sorted(_folders_with(source, source.tree(), (MANIFEST_NAME,)))


def _named(tree: Mapping[str, int | str], files: Collection[str]) -> list[str]:
    return sorted(name for name in tree if name.rpartition("/")[2] in files)


def _folders_with(source: Source, tree: Mapping[str, int | str], files: Collection[str]) -> set[str]:
    """Return the folders inside, and links to folders, that hold one of `files`."""
    found = {name.rpartition("/")[0] for name in _named(tree, files) if isinstance(tree[name], int)}
    if source.root is not None:
        linked = [name for name, size in tree.items() if size == LINKED_FOLDER]
        found |= {name for name in linked if any((source.root / name / file).is_file() for file in files)}
    return found - {""}

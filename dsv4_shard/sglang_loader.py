"""The loader behind `--load-format dsv4_shard`: raw rank files into SGLang's parameters, strictly.

Everything that shapes cannot tell is checked before a byte is copied: the manifest, what the files were made for
(engine, GPU family, runner, parallelism, order of w13), whose rank a file is. Then names, shapes and dtypes must be the
model's, all of them. What follows is SGLang's own: `post_load_weights`, then the processing of each quantization
method, in the order of its default loader. Imported by SGLang only; needs nothing that SGLang does not bring.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sglang
import torch
from safetensors import safe_open
from sglang.srt.model_loader import loader as stock
from sglang.srt.runtime_context import get_parallel

from dsv4_shard.engines.raw_layout import DRAFT_FOLDER
from dsv4_shard.engines.sglang_layout import W13_ORDERS
from dsv4_shard.errors import NotAResult
from dsv4_shard.header import read_header
from dsv4_shard.manifest import Manifest, ManifestFile, digest_of, load_manifest
from dsv4_shard.sources import LocalFile
from dsv4_shard.verify import hash_tensor

logger = logging.getLogger(__name__)

_NAMED_AT_ONCE = 3

QUANT_METHODS = {
    "marlin": ("Mxfp4MarlinMoEMethod",),
    "flashinfer_mxfp4": ("Mxfp4FlashinferCutlassMoEMethod", "Mxfp4FlashinferTrtllmMoEMethod"),
    "triton": ("Fp8MoEMethod",),
    "deep_gemm": ("Fp8MoEMethod",),
    "auto": ("Fp8MoEMethod",),
}
"""The classes by which SGLang runs the routed experts, for each runner that a plan can name."""

_NEVER_LOADED = (".attn_mqa.k_scale", ".attn_mqa.v_scale")
"""Parameters that no checkpoint has: SGLang sets them itself."""

_SHARED_WITH_TARGET = frozenset({"model.embed_tokens.weight", "lm_head.weight"})
"""Parameters that a draft model takes over from its target after loading."""


class RankFileLoader(stock.BaseModelLoader):  # type: ignore[misc]
    """See the module. `--model-loader-extra-config '{"verify": true}'` also hashes every tensor."""

    def __init__(self, load_config: Any) -> None:
        super().__init__(load_config)
        options = dict(load_config.model_loader_extra_config or {})
        self._verify = options.pop("verify", False)
        if options:
            raise ValueError(f"dsv4_shard: unknown keys in --model-loader-extra-config: {sorted(options)}")

    def download_model(self, model_config: Any) -> None:
        """Nothing to download: the files are where reshard put them."""

    def load_model(self, *, model_config: Any, device_config: Any) -> torch.nn.Module:
        """Build the model, fill its parameters, and finish it as SGLang's default loader does."""
        folder = Path(model_config.model_path)
        manifest, inner = find_manifest(folder)
        device = torch.device(device_config.device)
        quant_config = stock._get_quantization_config(model_config, self.load_config)
        with stock.set_default_torch_dtype(model_config.dtype):
            with device:
                model = stock._initialize_model(model_config, self.load_config, quant_config)
            check_identity(manifest, model)
            self._fill(model, manifest, folder, inner)
            stock.post_load_weights(model)
            prewarm = None if inner else getattr(model, "_prewarm_mhc_kernels", None)
            if prewarm is not None:
                prewarm()
            stock.DefaultModelLoader.postprocess_weights(model, device)
        finished: torch.nn.Module = model.eval()
        return finished

    def _fill(self, model: torch.nn.Module, manifest: Manifest, folder: Path, inner: str) -> None:
        """Copy this rank's tensors; nothing is copied before everything is known to fit."""
        rank = get_parallel().tp_rank
        root = folder.parent if inner else folder
        entries = list(rank_files(manifest, inner, rank))
        where: dict[str, Path] = {}
        for path, entry in ((root / name, entry) for name, entry in entries):
            check_file(path, entry, rank, self._verify)
            where |= dict.fromkeys(entry.tensors, path)
        parameters = model.state_dict()
        _check_names(parameters, set(where), is_draft=bool(inner))
        for path in dict.fromkeys(where.values()):
            with safe_open(path, framework="pt", device="cpu") as file:
                _check_shapes(parameters, file, path.name)
        for path in dict.fromkeys(where.values()):
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118
                    parameters[name].data.copy_(file.get_tensor(name))
        logger.info("dsv4_shard: rank %d: %d parameters from %d files", rank, len(where), len(entries))


def find_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest of a result, and `draft/` if `folder` is its draft model. Raises NotAResult."""
    if not (folder / "manifest.json").exists() and folder.name == DRAFT_FOLDER.strip("/"):
        return load_manifest(folder.parent), DRAFT_FOLDER
    return load_manifest(folder), ""


def rank_files(manifest: Manifest, inner: str, rank: int) -> Iterator[tuple[str, ManifestFile]]:
    """The files that `rank` reads, under the names that are its own. Raises NotAResult where it has none."""
    if rank not in manifest.ranks:
        raise NotAResult(f"dsv4_shard: the folder holds ranks {list(manifest.ranks)}, not rank {rank}")
    for entry in manifest.files:
        if rank in entry.ranks and entry.name.startswith(inner) == bool(inner or "/" not in entry.name):
            number = entry.ranks.index(rank)
            yield entry.names[number], entry


def check_identity(manifest: Manifest, model: torch.nn.Module) -> None:
    """What the files were made for against what runs. Raises NotAResult with the first difference, by name."""
    wanted = manifest.identity
    parallel = get_parallel()
    major, _ = torch.cuda.get_device_capability()
    running = {
        "engine": f"sglang {sglang.__version__}",
        "gpu_family": "Hopper" if major == 9 else "Blackwell",
        "tp": str(parallel.tp_size),
        "ep": str(parallel.moe_ep_size),
        "attention_dp": str(parallel.attn_dp_size),
    }
    for key, found in running.items():
        if wanted.get(key) != found:
            raise NotAResult(f"dsv4_shard: the shards are for {key} {wanted.get(key)!r}, this is {found!r}")
    _check_runner(wanted, model)


def _check_runner(wanted: dict[str, str], model: torch.nn.Module) -> None:
    """The runner decides the order within w13 and the dtype of scales: shapes do not show the one."""
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if not hasattr(module, "w13_weight") or method is None:
            continue
        name = type(method).__name__
        if name not in QUANT_METHODS.get(wanted.get("moe_runner", ""), ()):
            raise NotAResult(
                f"dsv4_shard: the shards are for MoE runner {wanted.get('moe_runner')!r}, this one uses {name}"
            )
        order = W13_ORDERS[bool(getattr(method, "load_up_proj_weight_first", False))]
        if wanted.get("w13_order") != order:
            raise NotAResult(f"dsv4_shard: w13 holds {wanted.get('w13_order')!r}, the runner wants {order!r}")
        return


def check_file(path: Path, entry: ManifestFile, rank: int, verify: bool) -> None:
    """A file against its manifest entry: there, the right size, its own header, its own rank; and every byte on demand.

    Raises NotAResult by name.
    """
    try:
        file = LocalFile(path, path.name)
    except Exception as error:
        raise NotAResult(f"dsv4_shard: {error}") from None
    try:
        if file.nbytes != entry.nbytes:
            raise NotAResult(f"dsv4_shard: {path.name}: {file.nbytes:,} bytes, {entry.nbytes:,} were written")
        header = read_header(file, path.name)
        if header.metadata.get("rank") not in (str(rank), "all"):
            raise NotAResult(
                f"dsv4_shard: {path.name}: holds rank {header.metadata.get('rank')}, this is rank {rank}: swapped?"
            )
        if digest_of(file.read(0, header.data_start)) != entry.header_digest:
            raise NotAResult(f"dsv4_shard: {path.name}: its header is not the one that was written")
        for name, digest in entry.tensors.items() if verify else ():
            if hash_tensor(file, header, name, entry.pieces.get(name), lambda _: None) != digest:
                raise NotAResult(f"dsv4_shard: {path.name}: {name}: its bytes differ from what was written")
    finally:
        file.close()


def _check_names(parameters: dict[str, torch.Tensor], held: set[str], *, is_draft: bool) -> None:
    optional = {name for name in parameters if name.endswith(_NEVER_LOADED)}
    optional |= _SHARED_WITH_TARGET if is_draft else frozenset()
    missing = sorted(parameters.keys() - held - optional)
    unknown = sorted(held - parameters.keys())
    for what, names in (("are missing", missing), ("are unknown to the model", unknown)):
        if names:
            raise NotAResult(f"dsv4_shard: {len(names)} parameters {what}: {', '.join(names[:_NAMED_AT_ONCE])}")


def _check_shapes(parameters: dict[str, torch.Tensor], file: Any, where: str) -> None:
    for name in file.keys():  # noqa: SIM118
        found, wanted = file.get_tensor(name), parameters[name]
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            raise NotAResult(
                f"dsv4_shard: {where}: {name} is {found.dtype} {list(found.shape)}, "
                f"the model has {wanted.dtype} {list(wanted.shape)}"
            )

"""Collects every message of an engine on the way from its arguments to the first forward pass, and what explain says.

    python tools/engine_messages.py sglang-0.5.23-*.whl vllm-0.33.0-*.whl    # writes the table, prints the coverage
    python tools/engine_messages.py                                          # prints the coverage of the kept table

The wheels are read, not installed (pip download --no-deps). A message is the text of a `raise` or an `assert`, or of an
error in the log; a bare `assert` shows by its own source line. The way is the set of functions that can be reached from
`ENTRIES`: calls by name within the module, its imports and the classes that these functions make; a call on an unknown
object reaches the methods of that name of the classes that are made. Classes that an engine looks up by a name of the
model or its configuration are entries too. Modules of other models, platforms and servers are left out (`OFF_PATH`).

The table, dsv4_shard/diagnosis/engine_messages.json, holds for each message: file and line, function, exception, text
with {} for values, and stage. explain falls back on it.
"""

import argparse
import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import search_path  # noqa: F401 - first, for what is imported from the repository
from support.paths import ROOT

TABLE = ROOT / "dsv4_shard" / "diagnosis" / "engine_messages.json"

ENTRIES: dict[str, tuple[str, ...]] = {
    "sglang": (
        "srt.server_args:prepare_server_args", "srt.server_args:ServerArgs", "srt.arg_groups.*",
        "srt.entrypoints.engine:Engine._launch_subprocesses", "srt.entrypoints.engine:Engine.__init__",
        "srt.entrypoints.engine:_wait_for_scheduler_ready",
        "srt.managers.scheduler:run_scheduler_process", "srt.managers.scheduler:Scheduler.__init__",
        "srt.managers.tp_worker:TpModelWorker.__init__", "srt.model_executor.model_runner:ModelRunner.__init__",
        "srt.model_executor.model_runner:ModelRunner.initialize",
        "srt.model_executor.model_runner:ModelRunner.load_model",
        "srt.model_executor.model_runner:ModelRunner.forward", "srt.model_executor.pool_configurator.*",
        "srt.mem_cache.kv_cache_configurator:KVCacheConfigurator", "srt.mem_cache.deepseek_v4_memory_pool.*",
        "srt.model_loader.loader:get_model_loader", "srt.model_loader.loader:DefaultModelLoader",
        "srt.model_loader.loader:ShardedStateLoader", "srt.model_loader.loader:PreshardedModelLoader",
        "srt.model_loader.loader:RunaiModelStreamerLoader", "srt.model_loader.weight_utils.*",
        "srt.model_loader.utils.*",
        "srt.configs.model_config:ModelConfig", "srt.configs.load_config.*",
        "srt.models.deepseek_v4:DeepseekV4ForCausalLM", "srt.models.deepseek_v4_nextn:DeepseekV4ForCausalLMNextN",
        "srt.models.deepseek_v4_dspark.*", "srt.models.deepseek_v2:DeepseekV3ForCausalLM",
        "srt.models.deepseek_nextn:DeepseekV3ForCausalLMNextN", "srt.models.deepseek_common.deepseek_weight_loader.*",
        "srt.layers.quantization.fp8:Fp8Config", "srt.layers.quantization.fp8:Fp8LinearMethod",
        "srt.layers.quantization.fp8:Fp8MoEMethod", "srt.layers.quantization.fp8_utils.*",
        "srt.distributed.parallel_state.*", "srt.layers.dp_attention.*",
    ),
    "vllm": (
        "engine.arg_utils:EngineArgs", "engine.arg_utils:AsyncEngineArgs", "config.vllm:VllmConfig",
        "config.model:ModelConfig",
        "config.parallel:ParallelConfig", "config.cache:CacheConfig", "config.load:LoadConfig",
        "config.scheduler:SchedulerConfig", "config.speculative:SpeculativeConfig", "config.kernel:KernelConfig",
        "config.attention:AttentionConfig", "config.compilation:CompilationConfig", "config.engram:EngramConfig",
        "config.offload.*", "config.quantization.*", "v1.engine.core:EngineCore.__init__",
        "v1.engine.core:EngineCore._initialize_kv_caches", "v1.engine.core:EngineCoreProc.__init__",
        "v1.engine.utils.*", "v1.executor.abstract:Executor", "v1.executor.multiproc_executor:MultiprocExecutor",
        "v1.executor.multiproc_executor:WorkerProc", "v1.worker.gpu_worker:Worker.__init__",
        "v1.worker.gpu_worker:Worker.init_device", "v1.worker.gpu_worker:Worker.load_model",
        "v1.worker.gpu_worker:Worker.determine_available_memory", "v1.worker.gpu_worker:Worker.initialize_from_config",
        "v1.worker.gpu_worker:Worker.compile_or_warm_up_model", "v1.worker.gpu_model_runner:GPUModelRunner.__init__",
        "v1.worker.gpu_model_runner:GPUModelRunner.load_model", "v1.worker.gpu_model_runner:GPUModelRunner.profile_run",
        "v1.worker.gpu_model_runner:GPUModelRunner.initialize_kv_cache",
        "v1.worker.gpu_model_runner:GPUModelRunner.capture_model", "v1.worker.utils:request_memory",
        "v1.core.kv_cache_planning.*", "model_executor.model_loader:get_model_loader",
        "model_executor.model_loader.default_loader:DefaultModelLoader",
        "model_executor.model_loader.sharded_state_loader:ShardedStateLoader",
        "model_executor.model_loader.runai_streamer_loader:RunaiModelStreamerLoader",
        "model_executor.model_loader.weight_utils.*", "model_executor.model_loader.utils.*",
        "model_executor.models.utils:AutoWeightsLoader", "models.deepseek_v4.nvidia.model:DeepseekV4ForCausalLM",
        "models.deepseek_v4.nvidia.mtp.*", "models.deepseek_v4.nvidia.dspark.*", "models.deepseek_v4.quant_config.*",
        "models.deepseek_v4.attention.*", "models.deepseek_v4.compressor.*", "models.deepseek_v4.sparse_mla.*",
        "model_executor.models.deepseek_v2:DeepseekV3ForCausalLM", "model_executor.models.deepseek_mtp:DeepSeekMTP",
        "model_executor.layers.quantization.fp8:Fp8Config", "model_executor.layers.quantization.utils.fp8_utils.*",
        "model_executor.layers.fused_moe.oracle.*", "model_executor.layers.linear.*", "model_executor.parameter.*",
        "distributed.parallel_state:initialize_model_parallel", "distributed.utils:divide",
    ),
}  # fmt: skip
"""Where the way begins, and what is looked up by a name: `module:class`, `module:function`, or `module.*`."""

OFF_PATH = re.compile(
    r"(?:^|\.)(?:lora|multimodal|disaggregation|hardware_backend|benchmarks?|tool_parsers?|reasoning|function_call|"
    r"grammar|"
    r"constrained|openai|anthropic|pooling|scoring|speech_to_text|npu|amd|xpu|tpu|hpu|cpu|mlx|rocm|musa|third_party|"
    r"kv_transfer|ec_transfer|weight_transfer|elastic_ep|eplb|kernels|triton_utils|vllm_flash_attn|tokenizers?|parser|"
    r"metrics|tracing|profiler|observability|usage|beam_search|mamba|sampling|sampling_params|sampler|"
    r"logits_process\w*|"
    r"structured_output|kv_offload|cute_utils|ray|rust_server|session|multiplex|dllm|gguf\w*|awq\w*|gptq\w*|"
    r"bitsandbytes\w*|compressed_tensors|quark\w*|moe_wna16|torchao\w*|auto_round|ipc_loader|weight_cache|"
    r"expert_pack\w*|"
    r"connector\w*|remote_instance\w*|checkpoint_engine|watermark\w*|whisper|http_server\w*|grpc\w*|vision|vl_model|"
    r"vit|"
    r"unified_\w+|pool_host|storage|minimax\w*|qwen\w*|hybrid_linear\w*|attention\.linear|qsa|dflash\w*|domino\w*|"
    r"hicache\w*|"
    r"pd_disaggregation\w*|mamba\w*|extract_hidden_states|serial_utils|batch_overlap|pymscclpp|schedule_batch|"
    r"scheduler_components|modelopt\w*|moe_wna\w*|lora_hook|multimodal_hook|mm_\w+|diffusion\w*|encoder\w*|radix\w*|"
    r"request_receiver|session_\w*|io_processor\w*|hisparse\w*|swa_radix\w*|batch_invariant\w*|cuda_vmm\w*|ngram\w*|"
    r"w4a8\w*|w4a4\w*|int8\w*|wna16\w*|nvfp4\w*|petit\w*|late_interaction|pooler\w*|pool|weight_sync|reload|"
    r"rlhf\w*|dp_coordinator|zero_overhead\w*|hpu\w*|tboplan|medusa\w*|eagle_\w*|spec_decode|flashattn\w*|flex_attention|tree_attn|turboquant\w*|online|serving_hook|"
    r"input_processor|"
    r"async_llm|llm_engine|output_processor|coordinator|core_client|logprobs|pool_adapter|tensorcast\w*|flexkv|"
    r"page_interleave\w*|"
    r"mistral\w*|transformers_utils\.processors?|io_struct|tokenizer_manager\w*|detokenizer\w*|deep_gemm|_custom_ops)"
    r"(?:\.|$)"
)
"""Modules of other platforms, models, formats and of serving requests."""

MODELS = re.compile(
    r"(?:^|\.)model_overrides\.(?!deepseek|model_override)|(?:^|[._])(?:kimi|glm|inkling|step5|hy_v4|muse|llama|"
    r"gemma)\w*(?:\.|$)|"
    r"(?:^|\.)models\.(?!deepseek_v2|deepseek_v4|deepseek_mtp|deepseek_nextn|deepseek_common|utils)"
)

_COMMON = frozenset(
    [
        "get",
        "set",
        "pop",
        "add",
        "append",
        "extend",
        "items",
        "keys",
        "values",
        "update",
        "copy",
        "clear",
        "format",
        "join",
        "split",
        "strip",
        "replace",
        "startswith",
        "endswith",
        "read",
        "write",
        "close",
        "open",
        "encode",
        "decode",
        "lower",
        "upper",
        "sort",
        "index",
        "count",
        "insert",
        "remove",
        "item",
        "numel",
        "size",
        "dim",
        "view",
        "to",
        "cpu",
        "cuda",
        "contiguous",
        "reshape",
        "permute",
        "transpose",
        "float",
        "half",
        "long",
        "int",
        "bool",
        "type",
        "fill_",
        "zero_",
        "copy_",
        "clone",
        "detach",
        "narrow",
        "squeeze",
        "unsqueeze",
        "flatten",
        "expand",
        "sum",
        "mean",
        "max",
        "min",
        "all",
        "any",
        "wait",
        "result",
        "submit",
        "start",
        "run",
        "stop",
        "put",
        "send",
        "recv",
        "main",
        "debug",
        "info",
        "warning",
        "error",
        "exception",
        "critical",
        "log",
        "match",
        "search",
        "group",
        "groups",
        "findall",
        "sub",
        "register",
        "name",
        "parse_args",
        "add_argument",
    ]
)
"""Methods of Python's and torch's own objects: a call of one says nothing about classes of the engine."""


@dataclass
class Source:
    """A module: its tree, its names, and where its imports lead."""

    name: str
    path: str
    tree: ast.Module
    imports: dict[str, str] = field(default_factory=dict)
    tops: dict[str, ast.AST] = field(default_factory=dict)


@dataclass(frozen=True)
class Said:
    """A message: where it stands, and its text with {} for values."""

    file: str
    line: int
    function: str
    error: str
    text: str
    bare: bool = False


class Engine:
    """The modules of a wheel, and what can be reached in them."""

    def __init__(self, wheel: Path, package: str) -> None:
        self.package, self.zip = package, ZipFile(wheel)
        self.files = {name for name in self.zip.namelist() if name.endswith(".py") and name.startswith(f"{package}/")}
        self.sources: dict[str, Source | None] = {}
        self.reached: set[tuple[str, str]] = set()
        self.made: set[tuple[str, str]] = set()
        self.methods: dict[str, set[tuple[str, str]]] = {}
        self.wanted: set[str] = set()
        self.todo: list[tuple[str, str]] = []

    # --- modules -----------------------------------------------------------------------------------------------------

    def source(self, name: str) -> Source | None:
        """The module `name` (without the package); None if there is none or it is off the path."""
        if name not in self.sources:
            self.sources[name] = self._read(name)
        return self.sources[name]

    def _read(self, name: str) -> Source | None:
        if OFF_PATH.search(name) or MODELS.search(name):
            return None
        stem = f"{self.package}/{name.replace('.', '/')}" if name else self.package
        path = next((one for one in (f"{stem}.py", f"{stem}/__init__.py") if one in self.files), None)
        if path is None:
            return None
        source = Source(name, path, ast.parse(self.zip.read(path)))
        is_package = path.endswith("__init__.py")
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ImportFrom):
                base = self._base(node, name, is_package)
                if base is not None:
                    for alias in node.names:
                        source.imports[alias.asname or alias.name] = f"{base}:{alias.name}"
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.startswith(f"{self.package}.") and alias.asname:
                        source.imports[alias.asname] = f"{alias.name[len(self.package) + 1 :]}:"
        for top in source.tree.body:
            nested = top.body if isinstance(top, ast.If | ast.Try) else [top]
            for one in nested:
                if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    source.tops[one.name] = one
        return source

    def _base(self, node: ast.ImportFrom, name: str, is_package: bool) -> str | None:
        if not node.level:
            prefix = f"{self.package}."
            module = node.module or ""
            return module[len(prefix) :] if module.startswith(prefix) else ("" if module == self.package else None)
        parts = name.split(".") if is_package else name.split(".")[:-1]
        parts = parts[: len(parts) - (node.level - 1)]
        return ".".join([*parts, *([node.module] if node.module else [])])

    def resolve(self, source: Source, name: str, depth: int = 0) -> tuple[Source, ast.AST] | None:
        """The function, class or module that `name` means in a module."""
        if name in source.tops:
            return source, source.tops[name]
        target = source.imports.get(name)
        if target is None or depth > 6:
            return None
        module, _, attribute = target.partition(":")
        inner = self.source(f"{module}.{attribute}".strip(".")) if attribute else self.source(module)
        if inner is not None:
            return inner, inner.tree
        outer = self.source(module)
        return self.resolve(outer, attribute, depth + 1) if outer is not None else None

    # --- reaching ----------------------------------------------------------------------------------------------------

    def enter(self, entry: str) -> None:
        """Add an entry: `module:class`, `module:class.method`, `module:function` or `module.*`."""
        if entry.endswith(".*"):
            stem = entry[:-2]
            names = {
                path[len(self.package) + 1 : -3].replace("/", ".").removesuffix(".__init__") for path in self.files
            }
            sources = [self.source(name) for name in names if name == stem or name.startswith(f"{stem}.")]
            for one in filter(None, sources):
                for name, node in one.tops.items():
                    self._reach(one, node, name)
            return
        module, _, name = entry.partition(":")
        source = self.source(module)
        found = self.resolve(source, name.partition(".")[0]) if source else None
        if found is None:
            print(f"no {entry} in {self.package}: the entry is left out", file=sys.stderr)
            return
        where, node = found
        if "." in name:
            self._make(where, node)
            self._reach_method(where, node, name.partition(".")[2])
        else:
            self._reach(where, node, name)
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                        self._add(where, f"{node.name}.{inner.name}")

    def _reach(self, source: Source, node: ast.AST, name: str) -> None:
        if isinstance(node, ast.ClassDef):
            self._make(source, node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self._add(source, name)

    def _add(self, source: Source, name: str) -> None:
        if (source.name, name) not in self.reached:
            self.reached.add((source.name, name))
            self.todo.append((source.name, name))

    def _make(self, source: Source, node: ast.AST) -> None:
        """A class is made: its constructors and validators run, and its methods can be called."""
        if not isinstance(node, ast.ClassDef) or (source.name, node.name) in self.made:
            return
        self.made.add((source.name, node.name))
        for base in node.bases:
            found = self._of(source, base)
            if found is not None:
                self._make(*found)
        for inner in node.body:
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                own = source.name, f"{node.name}.{inner.name}"
                self.methods.setdefault(inner.name, set()).add(own)
                validates = any("validator" in ast.unparse(one) for one in inner.decorator_list)
                if inner.name in ("__init__", "__post_init__", "__new__") or validates or inner.name in self.wanted:
                    self._add(source, own[1])

    def _of(self, source: Source, node: ast.AST) -> tuple[Source, ast.AST] | None:
        if isinstance(node, ast.Name):
            return self.resolve(source, node.id)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            outer = self.resolve(source, node.value.id)
            if outer is not None and isinstance(outer[1], ast.Module):
                return self.resolve(outer[0], node.attr)
        return None

    def _reach_method(self, source: Source, node: ast.AST, name: str) -> bool:
        """A method of a class or of its bases."""
        if not isinstance(node, ast.ClassDef):
            return False
        if any(isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) and one.name == name for one in node.body):
            self._add(source, f"{node.name}.{name}")
            return True
        for base in node.bases:
            found = self._of(source, base)
            if found is not None and self._reach_method(*found, name):
                return True
        return False

    def run(self) -> None:
        """Follow calls until nothing new is reached."""
        while self.todo:
            module, name = self.todo.pop()
            source = self.source(module)
            node = self.function(module, name)
            if source is None or node is None:
                continue
            owner = source.tops.get(name.partition(".")[0]) if "." in name else None
            for inner in ast.walk(node):
                self._follow(source, owner, inner)

    def function(self, module: str, name: str) -> ast.AST | None:
        source = self.source(module)
        if source is None:
            return None
        top = source.tops.get(name.partition(".")[0])
        if "." not in name or not isinstance(top, ast.ClassDef):
            return top
        method = name.partition(".")[2]
        return next((one for one in top.body if getattr(one, "name", None) == method), None)

    def _follow(self, source: Source, owner: ast.AST | None, node: ast.AST) -> None:
        if isinstance(node, ast.Call):
            found = self._of(source, node.func)
            if found is not None:
                self._reach(*found, getattr(found[1], "name", ""))
                return
            if isinstance(node.func, ast.Attribute):
                self._call(source, owner, node.func)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            if owner is not None:
                self._reach_method(source, owner, node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            found = self.resolve(source, node.id)
            if found is not None and isinstance(found[1], ast.FunctionDef):
                self._reach(*found, found[1].name)

    def _call(self, source: Source, owner: ast.AST | None, call: ast.Attribute) -> None:
        receiver = call.value
        if isinstance(receiver, ast.Name):
            if receiver.id in ("self", "cls") and owner is not None and self._reach_method(source, owner, call.attr):
                return
            found = self.resolve(source, receiver.id)
            if found is not None and self._reach_method(*found, call.attr):
                return
        if (
            isinstance(receiver, ast.Call)
            and getattr(receiver.func, "id", "") == "super"
            and isinstance(owner, ast.ClassDef)
        ):
            for base in owner.bases:
                found = self._of(source, base)
                if found is not None and self._reach_method(*found, call.attr):
                    return
        if call.attr in _COMMON or call.attr.startswith("__"):
            return
        self.wanted.add(call.attr)
        for module, name in self.methods.get(call.attr, ()):
            made = self.source(module)
            if made is not None:
                self._add(made, name)

    # --- messages ----------------------------------------------------------------------------------------------------

    def said(self) -> Iterator[Said]:
        """Every message in the reached functions, each place once."""
        seen = set()
        for module, name in sorted(self.reached):
            source, node = self.source(module), self.function(module, name)
            if source is None or node is None or isinstance(node, ast.ClassDef):
                continue
            texts = _texts(node)
            for inner in ast.walk(node):
                one = _message(source.path, name, inner, texts)
                if one is not None and (one.file, one.line) not in seen:
                    seen.add((one.file, one.line))
                    yield one


_MOST = 120
"""Characters of an assertion that are kept: enough to find it again."""


def _text(node: ast.AST) -> str:
    """The text of an expression, with {} for values."""
    match node:
        case ast.Constant(value=str() as value):
            return value.replace("{", "{{").replace("}", "}}")
        case ast.JoinedStr(values=values):
            return "".join(_text(value) if isinstance(value, ast.Constant) else "{}" for value in values)
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return _text(left) + _text(right)
        case ast.BinOp(op=ast.Mod(), left=left):
            return re.sub(r"%[-#0-9.]*[sdrif]", "{}", _text(left))
        case ast.Call(func=ast.Attribute(attr="format", value=value)):
            return re.sub(r"\{\{[^{}]*\}\}", "{}", _text(value))
        case _:
            return "{}"


def _texts(function: ast.AST) -> dict[str, str]:
    """The texts that a function gives names to, as they are first."""
    found: dict[str, str] = {}
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                text = _text(value)
                if text != "{}":
                    found.setdefault(name, text)
    return found


def _said(node: ast.AST, texts: dict[str, str]) -> str:
    return texts.get(node.id, "{}") if isinstance(node, ast.Name) else _text(node)


def _message(path: str, function: str, node: ast.AST, texts: dict[str, str]) -> Said | None:
    match node:
        case ast.Raise(exc=ast.Call(func=func, args=args)):
            error = ast.unparse(func).rpartition(".")[2]
            if error in ("StopIteration", "KeyboardInterrupt", "SystemExit"):
                return None
            return Said(path, node.lineno, function, error, _said(args[0], texts) if args else "")
        case ast.Assert(msg=None, test=test):
            said = f"assert {ast.unparse(test)}"[:_MOST].replace("{", "{{").replace("}", "}}")
            return Said(path, node.lineno, function, "AssertionError", said, bare=True)
        case ast.Assert(msg=msg) if msg is not None:
            return Said(path, node.lineno, function, "AssertionError", _said(msg, texts))
        case ast.Call(func=ast.Attribute(attr="error" | "critical" | "exception", value=value), args=[first, *_]):
            if "log" in ast.unparse(value).lower():
                return Said(path, node.lineno, function, "log", re.sub(r"%[-#0-9.]*[sdrif]", "{}", _said(first, texts)))
    return None


def collect(wheel: Path) -> tuple[str, str, list[Said], set[str]]:
    """Name and version of a wheel's engine, its messages on the way, and the modules that were reached."""
    package, version = wheel.name.split("-")[:2]
    engine = Engine(wheel, package)
    for entry in ENTRIES[package]:
        engine.enter(entry)
    engine.run()
    return package, version, list(engine.said()), {module for module, _ in engine.reached}


def table_of(version: str, said: list[Said], modules: set[str]) -> dict[str, Any]:
    """The table of an engine: modules of the way, and by file [line, function, error, text] of each message."""
    files: dict[str, list[list[Any]]] = {}
    for one in sorted(said, key=lambda one: (one.file, one.line)):
        files.setdefault(one.file, []).append([one.line, one.function, one.error, one.text])
    return {"version": version, "modules": sorted(modules), "messages": files}


# --- coverage --------------------------------------------------------------------------------------------------------


def log_of(engine: str, file: str, entry: list[Any]) -> str:
    """A traceback as the engine prints it for a message of the table, with numbers for the values."""
    line, function, error, text = entry
    said = _filled(text).replace("{{", "{").replace("}}", "}")
    if error == "log":
        return f"{engine} ERROR 11-30 09:00:00 [{file.rpartition('/')[2]}:{line}] {said}"
    frame = f'  File "/usr/lib/python3/dist-packages/{file}", line {line}, in {function.rpartition(".")[2]}'
    bare = text.startswith("assert ")
    shown = [f"    {said}", error] if bare else ["    raise", f"{error}: {said}"]
    return "\n".join(["Traceback (most recent call last):", frame, *shown])


_VALUES = (
    (r"(?:keys|names?|weights|parameters?|checkpoint:|files?|missing:) ?$", "('model.layers.0.x', 'model.layers.1.x')"),
    (r"(?:load weight \(|shape[= ]|into parameter \(|of size |shape: )$", "torch.Size([512, 128])"),
    (r"(?:directory|path|from|folder|file|in|at):? ['`]?$", "/models/V4"),
    (r"['`]$", "some_name"),
    (r"dtype[= ]?(?:of )?$", "torch.bfloat16"),
)
"""What a value is like, by the text before it. All others are numbers."""


def _filled(text: str) -> str:
    """A text with values in place of {}."""
    said, *rest = text.split("{}")
    for number, piece in enumerate(rest):
        value = next((value for before, value in _VALUES if re.search(before, said)), str(3 + number))
        said += value + piece
    return said


def coverage(table: dict[str, Any]) -> Counter[tuple[str, str, str]]:
    """How `explain` answers the messages: (engine, stage, answer) → number.

    A rule, a row of the table or a kind names the cause and what to do. `place` only says where the engine raises it.
    """
    import dsv4_shard

    count: Counter[tuple[str, str, str]] = Counter()
    for engine, document in table.items():
        for file, entries in document["messages"].items():
            for entry in entries:
                answer = dsv4_shard.explain(log_of(engine, file, entry))
                how = "none" if not answer.recognised else str(answer.basis)
                count[engine, answer.log.stage or "not told", how] += 1
    return count


def show(table: dict[str, Any], count: Counter[tuple[str, str, str]]) -> None:
    """Print the coverage by engine and stage."""
    answers = ["rule", "table", "kind", "place", "none"]
    for engine, document in table.items():
        stages = sorted({stage for name, stage, _ in count if name == engine})
        print(f"{engine} {document['version']}: {len(document['modules'])} modules")
        print(f"  {'stage':16}" + "".join(f"{answer:>11}" for answer in answers) + f"{'all':>8}")
        for stage in [*stages, "all"]:
            row = [sum(number for (name, at, how), number in count.items()
                       if name == engine and how == answer and stage in (at, "all")) for answer in answers]  # fmt: skip
            print(f"  {stage:16}" + "".join(f"{number:11,}" for number in row) + f"{sum(row):8,}")


def main() -> None:
    """Collect the messages of the wheels, write the table, and print the coverage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("wheels", nargs="*", type=Path)
    parser.add_argument("--collect", action="store_true", help="write the table, and leave the coverage out")
    arguments = parser.parse_args()
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    for wheel in arguments.wheels:
        name, version, said, modules = collect(wheel)
        table[name] = table_of(version, said, modules)
        print(f"{name} {version}: {len(said):,} messages in {len(modules):,} modules")
    if arguments.wheels:
        TABLE.write_text(_dump(table))
    if not arguments.collect:
        show(table, coverage(table))


def _dump(table: dict[str, Any]) -> str:
    """JSON with one message a line."""
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":"))
    return re.sub(r"(\],|\{|\[)(?=(?:\[\d+,|\"[\w/]+\.py\"))", r"\1\n", text) + "\n"


if __name__ == "__main__":
    main()

"""Messages about the launch: parallel sizes and nodes, runners and drafts, and processes that end or wait."""

from collections.abc import Iterable, Iterator

from dsv4_shard.diagnosis.messages.message import INSPECT, Evidence, Message, say
from dsv4_shard.diagnosis.origin import CONFIGURATION, CONSTRUCTION, KV_PLANNING, LOADING
from dsv4_shard.engines import BOTH, SGLANG, VLLM
from dsv4_shard.text.units import quotient

_PLAN = "dsv4-shard plan REPO --tp N --engine ENGINE: a launch whose options go together"

_WHOLE_LOG = ("give the whole log, from the first traceback on, of every node",)

_RUNNER_OUT = (
    "leave --moe-runner-backend (SGLang) or --moe-backend (vLLM) out, so that the engine picks one for the experts",
    "dsv4-shard plan REPO --tp N --gpu GPU --runner NAME: which runners take these experts on this GPU",
)


def _sizes(evidence: Evidence) -> str:
    clues = evidence.clues
    told = (("TP", clues.tp), ("EP", clues.told_ep), ("DP", clues.attn_dp or clues.dp), ("PP", clues.pp))
    return ", ".join(f"{name} {value}" for name, value in told if value)


def _world(evidence: Evidence) -> Iterator[str]:
    world, gpus = evidence.number("world"), evidence.number("gpus")
    sizes = _sizes(evidence)
    yield f"the launch asks for {world} ranks on one node, which has {gpus} GPUs" + (f" ({sizes})" if sizes else "")


def _world_ways(evidence: Evidence) -> Iterator[str]:
    world, gpus = evidence.number("world"), max(1, evidence.number("gpus"))
    nodes = -(-world // gpus)
    yield f"--nnodes {nodes} --node-rank 0 --master-addr ADDRESS on the first node, --headless --node-rank 1 elsewhere"
    yield f"--tensor-parallel-size {gpus} with --data-parallel-size {quotient(world, gpus)}, or fewer ranks"


def _attention_dp(evidence: Evidence) -> Iterator[str]:
    tp, dp = evidence.clues.tp, evidence.clues.attn_dp or evidence.clues.dp
    if tp and dp:
        yield f"TP {tp} / attention DP {dp} = {quotient(tp, dp)}" + ("" if tp % dp == 0 else ": not whole")
    yield "attention DP and context parallelism divide the ranks of TP, so their product must divide TP"


def _expert_parallel(evidence: Evidence) -> Iterator[str]:
    sizes = f": {_sizes(evidence)}" if _sizes(evidence) else ""
    yield f"this runner takes experts that are all spread (EP = TP) or not at all (EP 1){sizes}"


def _expert_ways(evidence: Evidence) -> Iterator[str]:
    tp = evidence.clues.tp
    yield f"--ep-size {tp}, or leave it out" if tp else "--ep-size equal to --tp, or leave it out"
    yield from _RUNNER_OUT


def _vocabulary(evidence: Evidence) -> Iterator[str]:
    yield (f"config.json's vocab_size is {evidence.groups['mine']}, and the file's embedding has "
           f"{evidence.groups['theirs']} "
           "rows: config.json is of another release, or the embedding was cut or padded")  # fmt: skip


def _nextn(evidence: Evidence) -> Iterable[str]:
    model = evidence.model
    yield "SGLang's NextN draft is one classic MTP block"
    if model is not None and model.inventory.draft.dspark:
        yield f"{model.label} has {model.inventory.draft.blocks} DSpark stages"


_DRAFT_WAYS = ("--speculative-algorithm EAGLE for the classic MTP block, DSPARK for DSpark's stages", "or none")

_QUANTIZATION_CONFIG = (
    "quantization_config of the release's own config.json: quant_method fp8, weight_block_size [128, 128], "
    "activation_scheme dynamic",
    INSPECT,
)


LAUNCH = (
    Message(VLLM, r"World size \((?P<world>\d{1,6})\) is larger than the number of available GPUs "
                  r"\((?P<gpus>\d{1,4})\)",
            _world, _world_ways, CONFIGURATION),
    Message(VLLM, r"(?:DP adjusted local rank (?P<rank>\d{1,4}) is out of bounds for (?P<gpus>\d{1,4}) devices|"
            r"local_world_size \((?P<world>\d{1,4})\) exceeds assigned_physical_gpu_ids count \((?P<ids>\d{1,4})\))",
            say("this node has fewer GPUs than the ranks that it is given"),
            ("nvidia-smi and CUDA_VISIBLE_DEVICES in the container: are all GPUs seen",
             "--data-parallel-size-local: the replicas on this node, whose TP must fit its GPUs"), CONFIGURATION,
            anchors=("DP adjusted local rank", "local_world_size (")),
    Message(BOTH, r"(?:invalid device ordinal|CUDA_ERROR_INVALID_DEVICE)",
            say("a rank asks for a GPU that the process does not see: fewer GPUs than ranks on this node"),
            ("nvidia-smi and CUDA_VISIBLE_DEVICES in the container", "--nnodes and --node-rank on every node"),
            CONFIGURATION),
    Message(VLLM, r"`--nnodes (?P<nodes>\d{1,4})` must evenly divide the total world size \((?P<world>\d{1,6})\)",
            lambda evidence: [f"{evidence.groups['world']} ranks / {evidence.groups['nodes']} nodes = "
                              f"{quotient(evidence.number('world'), max(1, evidence.number('nodes')))}: not whole"],
            ("as many nodes as divide TP × PP × DP, with equally many GPUs on each", _PLAN), CONFIGURATION,
            anchors=("must evenly divide the total world size",)),
    Message(VLLM, r"`--node-rank` must be between 0 and (?P<most>\d{1,4}); got `--node-rank (?P<rank>\d{1,4})`",
            say("the nodes are numbered from 0 to {most}; this one was started as {rank}"),
            ("--node-rank: 0 on the first node, then 1 and so on",), CONFIGURATION, anchors=("`--node-rank` must be",)),
    Message(SGLANG, r"tp_size must be divisible by (?:attn_dp_size \* "
                    r"attn_cp_size|attn_cp_size|moe_dp_size)", _attention_dp,
            ("an --attn-dp-size (with --attn-cp-size) that divides --tp", _PLAN), CONFIGURATION),
    Message(SGLANG, r"ep_size \* moe_dp_size must be (?:less than or )?equal to tp_size", lambda evidence: [
            "EP × MoE DP must be TP" + (f": {_sizes(evidence)}" if _sizes(evidence) else "")],
            ("leave --ep-size or --moe-dp-size out, or choose them so that their product is --tp", _PLAN),
            CONFIGURATION),
    Message(SGLANG, r"--dp-size (?P<dp>\d{1,4}) with --attn-dp-size (?P<attn>\d{1,4})",
            say("--dp-size {dp} makes replicas of the whole model, --attn-dp-size {attn} divides the attention of one: "
                "SGLang takes one of them"),
            ("--attn-dp-size alone, on the GPUs of --tp", "or --dp-size alone, which needs the GPUs of --tp for each "
                                                          "replica"), CONFIGURATION),
    Message(SGLANG, r"The expert parallel size must be 1 or the same as the tensor parallel size", _expert_parallel,
            _expert_ways, CONFIGURATION),
    Message(SGLANG, r"FP8/MXFP8 Cutlass MoE is only supported with ep_size == 1",
            say("SGLang's own CUTLASS runner takes FP8 experts that are cut, not spread"),
            ("leave --ep-size out, or the runner", *_RUNNER_OUT), CONFIGURATION),
    Message(SGLANG, r"Invalid quantization '(?P<format>[^'\n]{1,40})'\.\s+FlashInfer (?P<name>[\w ]{2,30}) MOE",
            say("the runner of FlashInfer {name} does not take experts in {format}"), _RUNNER_OUT, CONFIGURATION),
    Message(VLLM, r"moe_backend='(?P<name>[^'\n]{1,60})' is not supported for (?P<format>FP8|MXFP4) MoE",
            say("MoE backend {name} does not take {format} experts"), _RUNNER_OUT, CONSTRUCTION),
    Message(VLLM, r"No (?P<format>FP8|MXFP4|NVFP4|NvFp4) MoE backend supports the deployment configuration",
            say("no MoE backend takes {format} experts on this GPU in this layout: their parts are no whole tiles, a "
                "package (FlashInfer, DeepGEMM) is missing, or the GPU is too old"),
            ("expert parallelism, which keeps experts whole: --enable-expert-parallel",
             "dsv4-shard plan REPO --tp N --engine vllm --gpu GPU: which layouts have a backend",
             "VLLM_LOGGING_LEVEL=DEBUG prints why each backend was left out"), CONSTRUCTION,
            anchors=(" MoE backend supports the deployment",)),
    Message(SGLANG, r"Current platform does not support NVFP4 quantization with the selected MoE backend",
            say("NVFP4 experts have kernels of their own on Blackwell alone; below it SGLang 0.5.23 computes with them "
                "in Marlin, and its default for DeepSeek-V4 is another runner"),
            ("--moe-runner-backend marlin, without an all-to-all backend", "a Blackwell GPU: B200, GB200, B300, GB300",
             "or the release with FP4 or FP8 experts"), CONSTRUCTION),
    Message(SGLANG, r"DeepSeek-V4\.1 does not support (?P<feature>[^;\n]{3,60}) yet; disable it",
            say("SGLang 0.5.23 serves V4.1 without {feature}, which an option or a variable of this launch asks for"),
            ("leave it out: --pp-size, --speculative-algorithm (DSPARK alone is taken), --enable-hisparse, "
             "--enable-two-batch-overlap", "TP, EP and attention DP in its place",
             "dsv4-shard plan REPO --tp N --gpu GPU: the bytes per GPU"), CONFIGURATION,
            anchors=("DeepSeek-V4.1 does not support",)),
    Message(SGLANG, r"FlashInfer MegaMOE is only supported with --attn-dp-size equal to --tp-size", _attention_dp,
            ("--attn-dp-size equal to --tp", "another --moe-a2a-backend: deepep"), CONFIGURATION),
    Message(SGLANG, r"(?:--moe-a2a-backend megamoe needs|FlashInfer MegaMOE currently requires) an? (?P<gpu>[\w "
                    r"-]{4,40})",
            say("the all-to-all backend needs a GPU that this is not: {gpu}"),
            ("another --moe-a2a-backend: deepep, or leave it out", _PLAN), CONFIGURATION),
    Message(SGLANG, r"(?:Only EAGLE and DSPARK speculative algorithms are|Only EAGLE speculative algorithm with topk "
                    r"== 1 is) "
            r"supported for (?P<model>\w{1,80})",
            say("SGLang drafts for {model} with its MTP block (EAGLE, --speculative-eagle-topk 1) or DSpark's stages "
                "(DSPARK)"),
            _DRAFT_WAYS, CONFIGURATION),
    Message(SGLANG, r"(?:Only 1 nextn layer is supported|num_nextn_predict_layers is not in the "
                    r"config)", _nextn, _DRAFT_WAYS,
            LOADING),
    Message(VLLM, r"num_redundant_experts is set to (?P<count>\d{1,5}) but EPLB is not enabled",
            say("redundant experts ({count}) are copies that EPLB places, and EPLB is off"),
            ("--enable-eplb, or leave num_redundant_experts out",), CONFIGURATION),
    Message(SGLANG, r"self\.org_vocab_size=(?P<mine>\d{1,9}).{0,80}"
            r"loaded_weight\.shape\[output_dim\]=(?P<theirs>\d{1,9})",
            _vocabulary, ("the config.json of the release, unchanged", INSPECT), LOADING),
    Message(SGLANG, r"SGLANG_OPT_FP8_WO_A_GEMM is enabled but (?P<name>\S{1,200}) has dtype (?P<dtype>[\w.]{1,40})",
            say("{name} is stored in {dtype}: the FP8 re-releases hold wo_a in BF16, and SGLang wants it in FP8 on "
                "this GPU"),
            ("SGLANG_OPT_FP8_WO_A_GEMM=0", "the release with FP8 wo_a: deepseek-ai's own"), LOADING),
    Message(SGLANG, r"duplicate shard (?P<shard>\S{1,40}) for (?P<name>\S{1,200})",
            say("two tensors of the checkpoint go into the same part ({shard}) of {name}: files of two exports are "
                "mixed, or a file is there twice"), (INSPECT,), LOADING),
    Message(BOTH, r"(?:compress_ratio: expected one of \([\d, ]{1,40}\), got|Invalid compress ratio:) "
                  r"(?P<ratio>-?\d{1,6})",
            say("config.json's compress_ratios has {ratio}, which this model class does not know: config.json is of "
                "another release (V4 has 0, 4 and 128, V4.1 has 0, 1 and 2), or was edited"),
            ("the config.json of the release, unchanged", "an engine version that knows the release"), CONSTRUCTION,
            anchors=("compress_ratio: expected one of", "Invalid compress ratio:")),
    Message(BOTH, r"rope_theta not found in config", say("config.json has no rope_theta where this engine version "
                                                         "looks for it: "
            "it was written by another Transformers, or for another engine"),
            ("the config.json of the release, unchanged", "an engine version that knows the release"), CONSTRUCTION),
    Message(BOTH, r"The block-wise quantization only supports (?P<wanted>fp8-serialized checkpoint|dynamic "
                  r"activation scheme)",
            say("quantization_config asks for something else than block FP8 has: it wants a "
                "{wanted}"), _QUANTIZATION_CONFIG,
            CONSTRUCTION),
    Message(BOTH, r"The quantization block size of weight must have 2 dimensions, but got (?P<count>\d{1,4})",
            say("weight_block_size in config.json has {count} numbers, and must have two: rows and columns"),
            _QUANTIZATION_CONFIG, CONSTRUCTION),
    Message(BOTH, r"Unsupported activation scheme (?P<scheme>\w{1,40})",
            say("activation_scheme in config.json is {scheme}; FP8 has dynamic and static"), _QUANTIZATION_CONFIG,
            CONSTRUCTION),
    Message(BOTH, r"Unsupported activation: (?P<name>\w{1,40})\. Only silu",
            say("config.json's hidden_act is {name}; DeepSeek's models have silu"), ("the config.json of the "
                                                                                     "release, unchanged",),
            CONSTRUCTION),
    Message(BOTH, r"(?:Cannot find the config file for|Found multiple config files for) (?P<method>\w{1,40})",
            say("the description of the quantization {method} is neither in config.json nor in one file beside it"),
            ("the whole release, with its quantization files", "leave --quantization out, so that config.json decides"),
            LOADING),
    Message(VLLM, r"Model quantization method is not specified in the config",
            say("config.json has no quantization_config"), _QUANTIZATION_CONFIG, LOADING),
    Message(VLLM, r"Pattern '(?P<pattern>[^'\n]{1,200})' (?P<why>uses unsupported|does not embed|requires pipeline)",
            say("the name pattern of rank files, {pattern}, does not fit vLLM's groups: it must have the TP rank, with "
                "pipeline parallelism the PP rank too"),
            ("leave `pattern` out of --model-loader-extra-config, or "
             "model-rank-{rank}-part-{part}.safetensors",), LOADING),
    Message(VLLM, r"fp8_ds_mla layout only supports fp8 kv-cache", say("DeepSeek-V4's cache layout is FP8, and "
                                                                       "--kv-cache-dtype "
            "says otherwise"), ("--kv-cache-dtype fp8",), CONSTRUCTION),
    Message(VLLM, r"(?P<name>\w{1,60}) is not a DeepSeek V4 attention backend",
            say("attention backend {name} does not compute DeepSeek-V4's sparse attention"),
            ("leave --attention-backend out",), CONSTRUCTION, anchors=("is not a DeepSeek V4 attention backend",)),
    Message(BOTH, r"Loaded dictionary has TP size (?P<theirs>\d{1,4}) but LLM engine is currently running with TP size "
            r"(?P<mine>\d{1,4})",
            say("the file of KV-cache scales was made at TP {theirs}, the engine runs with TP {mine}"),
            ("leave --quantization-param-path out, or a file for TP at hand",), LOADING),
    Message(VLLM, r"User-specified max_model_len \((?P<asked>\d{1,12})\) is greater than the derived max_model_len "
                  r"\((?P<most>"
            r"[^)]{1,40})\)", say("config.json says a context of {most}, and --max-model-len asks for {asked}"),
            ("--max-model-len of at most config.json's own, or leave it out",), CONFIGURATION),
    Message(VLLM, r"Cannot auto-fit max_model_len", say("the weights leave no room for the KV cache of a single token"),
            ("more GPUs, or a higher --gpu-memory-utilization", "dsv4-shard plan REPO --tp N --gpu GPU: what a rank "
                                                                "weighs"),
            KV_PLANNING),
    Message(VLLM, r"Configuration mismatch detected for engine (?P<engine>\S{1,20})\.",
            say("the replicas of data parallelism were not started with the same options: engine {engine} differs"),
            ("the same options and version on every node, but for the node's rank and address",), CONFIGURATION),
    Message(BOTH, r"(?:DistNetworkError|DistStoreError|The server socket has failed to listen|EADDRINUSE|Address "
                  r"already in use)",
            say("the ranks' meeting point cannot be opened or reached: a port in use by a former start, or a wrong "
                "address"),
            ("end the former start, or another port: --dist-init-addr (SGLang), --master-port (vLLM)",
             "an address of the first node that the others reach, and GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME of that "
             "network"),
            CONFIGURATION),
    Message(BOTH, r"(?:ncclUnhandledCudaError|ncclSystemError|ncclInternalError|ncclRemoteError|unhandled system error|"
            r"NCCL (?:error|timeout)|Watchdog caught collective operation timeout)",
            say("NCCL cannot join the ranks, or one rank has ended and the others wait for it"),
            ("the first traceback of any rank, on any node", "NCCL_DEBUG=INFO prints which network it tries",
             "NCCL_SOCKET_IFNAME and, without InfiniBand, NCCL_IB_DISABLE=1; a large enough /dev/shm"), CONFIGURATION,
            anchors=("nccl", "NCCL", "unhandled system error", "Watchdog caught")),
    Message(VLLM, r"(?:Engine core initialization failed\. See root cause|Engine core process \S{1,40} "
                  r"died|WorkerProc failed|"
            r"Worker proc \S{1,60} died unexpectedly|Executor failed|One or more workers failed|WorkerProc hit an "
            r"exception|"
            r"Worker failed with error|Frontend process failed during engine core)",
            say("a process of the engine has ended; its own traceback has the cause"), _WHOLE_LOG, grave=False,
            anchors=("Engine core ", "WorkerProc ", "Worker proc ", "Executor failed", "workers failed",
                     "Worker failed", "Frontend process failed")),
    Message(SGLANG, r"(?:Initialization failed\. Please see the error messages above|Received sigquit from a child "
                    r"process|"
            r"Scheduler or DataParallelController \d{1,9} terminated with|Scheduler hit an exception|"
            r"DataParallelController hit an exception)",
            say("a process of the engine has ended; its own traceback has the cause"), _WHOLE_LOG, grave=False,
            anchors=("Initialization failed. Please", "Received sigquit", "terminated with", "hit an exception")),
)  # fmt: skip

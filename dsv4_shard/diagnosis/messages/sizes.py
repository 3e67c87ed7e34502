"""Messages about sizes that layout or checkpoint decide: ranks, heads, blocks, drafts, engram tables, context."""

from collections.abc import Iterator

from dsv4_shard.diagnosis.arithmetic import divisors
from dsv4_shard.diagnosis.messages.message import INSPECT, OWN_FILES, Evidence, Message, say
from dsv4_shard.diagnosis.origin import CONFIGURATION, CONSTRUCTION, KV_PLANNING, LOADING
from dsv4_shard.engines import BOTH, SGLANG, VLLM
from dsv4_shard.text.units import quotient

_PLAN = "dsv4-shard plan REPO --tp N --engine ENGINE: which TP, EP and DP go together for this checkpoint"

_N = r"\d{1,9}"


def _world(evidence: Evidence) -> Iterator[str]:
    world, tp, pp = (evidence.number(name) for name in ("world", "tp", "pp"))
    yield f"{world} ranks were started, and TP {tp} × PP {pp} = {tp * pp} are what the options ask for"


def _parts(evidence: Evidence) -> Iterator[str]:
    size, parts = evidence.number("size"), evidence.number("parts")
    if parts and size % parts:
        whole = ", ".join(map(str, divisors(size)))
        yield f"{size} / {parts} = {quotient(size, parts)}: not whole; {size} divides by {whole}"
    yield "decode context parallelism (DCP) spreads the KV cache over parts of the TP group, so it must divide TP"


def _dcp_limit(evidence: Evidence) -> Iterator[str]:
    heads, tp, most = (evidence.number(name) for name in ("heads", "tp", "most"))
    yield f"TP {tp} over {heads} KV heads leaves DCP at most {most}: ranks with the same heads share their cache"


def _mxfp8(evidence: Evidence) -> Iterator[str]:
    rows, columns = evidence.number("n"), evidence.number("k")
    odd = [f"{rows} rows are {quotient(rows, 64)} × 64"] if rows % 64 else []
    odd += [f"{columns} columns are {quotient(columns, 128)} × 128"] if columns % 128 else []
    yield f"a rank's part of a weight is {rows} × {columns}: {', '.join(odd) or 'a multiple of neither 64 nor 128'}"


def _block(evidence: Evidence) -> Iterator[str]:
    block, columns = evidence.number("block"), evidence.number("k")
    if block != 32:
        yield f"the scales are of blocks of {block} columns, and MXFP8's are of 32: the checkpoint has another format"
    else:
        yield f"{columns} columns are {quotient(columns, 32)} blocks of 32: the cut goes through a block"


def _heads(evidence: Evidence) -> Iterator[str]:
    heads = evidence.number("heads")
    tp = evidence.clues.tp
    whole = f", {heads * tp} in all at TP {tp}" if tp else ""
    yield f"a rank has {heads} heads{whole}; this kernel takes {evidence.groups['takes']} on a rank"


_MOST_HEADS = 64
"""Most hash heads whose TP are listed; V4.1 has 24."""


def _engram(evidence: Evidence) -> Iterator[str]:
    heads, shards = evidence.number("heads"), evidence.number("shards")
    yield f"{heads} hash heads of the engram tables over {shards} ranks: some ranks get none"
    each = [tp for tp in range(1, min(heads, _MOST_HEADS) + 1) if -(-heads // tp) * (tp - 1) < heads]
    yield f"each rank gets some at TP {', '.join(map(str, each))}; TP must divide the attention heads too"


def _group(evidence: Evidence) -> Iterator[str]:
    got, wanted = evidence.number("got"), evidence.number("wanted")
    yield f"the process already has a group of {got} ranks, and the options ask for {wanted}"
    yield "the launcher (torchrun, Ray, a notebook) has made process groups for other sizes than the engine's options"


def _gamma(evidence: Evidence) -> Iterator[str]:
    gamma, got = evidence.number("gamma"), evidence.groups["got"]
    yield f"DSpark drafts a block of {gamma} tokens and verifies one more: {gamma + 1}, and {got} are asked for"


SIZES = (
    Message(SGLANG, rf"world_size \((?P<world>{_N})\) is not equal to tensor_model_parallel_size \((?P<tp>{_N})\) x "
                    rf"pipeline_model_parallel_size \((?P<pp>{_N})\)", _world,
            ("the same --tp, --pp, --nnodes on every node, and --node-rank from 0", _PLAN), CONFIGURATION),
    Message(BOTH, rf"(?:tensor_model_parallel_size \((?P<size>{_N})\) must be divisible by "
                  rf"decode_context_parallel_size "
                  rf"\((?P<parts>{_N})\))", _parts, ("--dcp-size of a divisor of --tp, or leave it out",),
            CONFIGURATION),
    Message(VLLM, rf"tp_size=(?P<size>{_N}) must be divisible by dcp_size=(?P<parts>{_N})", _parts,
            ("--decode-context-parallel-size of a divisor of --tensor-parallel-size, or leave it out",), CONFIGURATION),
    Message(VLLM, rf"`--decode-context-parallel-size` \((?P<dcp>{_N})\) exceeds the maximum supported value "
                  rf"\((?P<most>{_N})\) for `--tensor-parallel-size` \((?P<tp>{_N})\) and (?P<heads>{_N}) model "
                  rf"KV heads",
            _dcp_limit, ("a smaller --decode-context-parallel-size, or leave it out",), CONFIGURATION),
    Message(VLLM, r"EPLB requires tensor, prefill-context, or data parallelism, but got "
                  rf"TP=(?P<tp>{_N}), PCP=(?P<pcp>{_N}), DP=(?P<dp>{_N})",
            say("--enable-eplb moves experts between ranks, and TP {tp} × DP {dp} has one rank"),
            ("leave --enable-eplb out, or more ranks",), CONFIGURATION),
    Message(VLLM, r"enable_expert_parallel must be True to use EPLB",
            say("--enable-eplb moves whole experts between ranks, and without expert parallelism each rank has "
                "a part of "
                "every expert"), ("--enable-expert-parallel as well, or leave --enable-eplb out",), CONFIGURATION),
    Message(VLLM, rf"data_parallel_rank \((?P<rank>-?{_N})\) must be in the range \[0, (?P<size>{_N})\)",
            say("a node says that it is replica {rank} of {size}: they are counted from 0"),
            ("--data-parallel-start-rank of each node: the number of replicas on the nodes before it",), CONFIGURATION),
    Message(VLLM, r"(?:tensor|pipeline) parallel group already initialized, but of unexpected size\. got: "
                  rf"[\w().]{{1,60}}=(?P<got>{_N}) vs\. wanted: \w{{1,60}}=(?P<wanted>{_N})", _group,
            ("start the engine in processes of its own, or with the sizes of the launcher",), CONFIGURATION,
            anchors=("parallel group already initialized, but of unexpected size",)),
    Message(SGLANG, rf"cannot serve MXFP8 weight shape \((?P<n>{_N}), (?P<k>{_N})\) \(needs N % 64 == 0 and K % "
                    rf"128 == 0\)",
            _mxfp8, ("a TP at which the parts are whole: dsv4-shard plan REPO --tp N",
                     "leave --fp8-gemm-backend out: on a GPU that has another kernel, SGLang takes it"), LOADING,
            anchors=("cannot serve MXFP8 weight shape",)),
    Message(SGLANG, rf"MXFP8 needs a 32-wide K block and K % 32 == 0, got block_k=(?P<block>{_N}) k=(?P<k>{_N})",
            _block,
            (INSPECT, _PLAN), LOADING),
    Message(SGLANG, r"unexpected block scale shape (?P<scale>\([\d, ]{1,40}\)) for weight (?P<weight>\([\d, ]{1,40}\))",
            say("the scales {scale} are not one for each block of the weight {weight}: files of another cut, or "
                "a weight "
                "of another block size than config.json's weight_block_size"), (INSPECT,), LOADING),
    Message(SGLANG, r"block scales are not positive powers of two; cannot encode as e8m0",
            say("this kernel takes scales that are powers of two (UE8M0), and the checkpoint's are not, as those of a "
                "config.json without scale_fmt ue8m0"),
            ("leave --fp8-gemm-backend and the MXFP8 options out", INSPECT), LOADING),
    Message(SGLANG, r"DeepSeek-V4 FP4 experts require torch\.float4_e2m1fn_x2 support",
            say("this PyTorch has no dtype for packed FP4: it is older than 2.8"),
            ("the PyTorch that this SGLang requires, or its own image", "a release with FP8 experts, such as "
             "sgl-project/DeepSeek-V4-Flash-FP8"), CONSTRUCTION),
    Message(VLLM, rf"FlashInfer MLA Sparse does not support (?P<heads>{_N}) heads \(sparse MLA kernel requires h_q in "
                  r"(?P<takes>\{[\d, ]{1,60}\})", _heads,
            ("a TP at which a rank has one of these numbers of heads", "leave --attention-backend out", _PLAN),
            CONSTRUCTION, anchors=("FlashInfer MLA Sparse does not support",)),
    Message(VLLM, rf"FlashMLA does not support (?P<heads>{_N}) heads \(FP8 decode kernel requires h_q in "
                  r"(?P<takes>\{[\d, ]{1,60}\})", _heads,
            ("a larger TP, so that a rank has at most 128 heads", _PLAN), CONSTRUCTION,
            anchors=("FlashMLA does not support",)),
    Message(VLLM, r"DeepseekV4 packed KV layouts only support fp8 kv-cache, got (?P<dtype>[\w.]{1,40})",
            say("DeepSeek-V4's cache is packed FP8, and --kv-cache-dtype says {dtype}"),
            ("--kv-cache-dtype fp8, or leave it out",), CONSTRUCTION),
    Message(VLLM, r"PP splits inside a v4\.1 kv-sharing group are not supported",
            say("V4.1's layers share keys and values in groups, and a pipeline stage ends within one"),
            ("--pipeline-parallel-size 1, or VLLM_PP_LAYER_PARTITION with cuts between the groups",), CONSTRUCTION),
    Message(VLLM, rf"Engram sharding leaves ranks without hash heads: (?P<heads>{_N}) heads over "
                  rf"(?P<shards>{_N}) shards",
            _engram, ("fewer ranks that share the tables: a smaller TP, with DP for the rest",), CONSTRUCTION),
    Message(VLLM, rf"Compressed vocab size mismatch: built (?P<built>{_N}) from the tokenizer, config expects "
                  rf"(?P<wanted>{_N})",
            say("the tokenizer gives {built} compressed tokens, config.json says {wanted}: with another tokenizer the "
                "engram tables would be read at wrong rows"),
            ("the tokenizer files of the same release: hf download REPO --include 'tokenizer*'", INSPECT),
            CONSTRUCTION),
    Message(VLLM, r"EngramConfig requires a model with supported Engram embeddings",
            say("--engram-config is for V4.1: this model has no engram tables"), ("leave --engram-config out",),
            CONFIGURATION),
    Message(VLLM, r"(?:dp_shared_memory requires (?P<what>data_parallel_size > 1|cpu_offload=True)|use_thp requires "
                  r"(?P<thp>cpu_offload=True and dp_shared_memory=False))",
            say("an option of --engram-config lacks what it builds on: {what}{thp}"),
            ("leave --engram-config out: the tables then stand in the host's memory, once for each replica",),
            CONFIGURATION, anchors=("dp_shared_memory requires", "use_thp requires")),
    Message(VLLM, r"Engram CPU offload requires UVA support",
            say("the engram tables stay in the host's memory, which this GPU or container cannot map (UVA)"),
            ("--engram-config '{\"cpu_offload\": false}', if the GPUs hold the tables as well",), CONSTRUCTION),
    Message(VLLM, r"Engram shared-memory (?:creation|initialization) failed[^:\n]{0,30}: (?P<cause>[^\n]{1,200})",
            say("the engram tables that DP replicas share do not fit into /dev/shm, or it is not shared: {cause}"),
            ("a larger --shm-size, or dp_shared_memory false in --engram-config",
             "dsv4-shard plan REPO --engine vllm --tp N: the host memory that the tables take"), CONSTRUCTION,
            anchors=("Engram shared-memory ",)),
    Message(SGLANG, rf"DSpark speculative_num_draft_tokens must equal gamma \+ 1 \(= {_N} for "
                    rf"gamma=(?P<gamma>{_N})\), but "
                    rf"got speculative_num_draft_tokens=(?P<got>{_N})", _gamma,
            ("leave --speculative-num-draft-tokens out: it follows from the draft's block size",), CONFIGURATION),
    Message(SGLANG, r"DSpark (?:could not resolve (?:speculative_num_draft_tokens|gamma)|dense speculative decoding "
                    r"requires setting --speculative-draft-model-path)",
            say("SGLang finds no DSpark draft in this checkpoint: config.json has no dspark_block_size, or no "
                "mtp.* stages"),
            ("--speculative-algorithm EAGLE for a classic MTP block, or no draft", INSPECT), CONFIGURATION),
    Message(SGLANG, r"DSpark V4 confidence head is enabled but the checkpoint is missing (?P<names>[^\n]{1,160})",
            say("the draft lacks {names}: it is of another export, or its files are missing"),
            (INSPECT, "enable_confidence_head false in the draft's config.json"), LOADING),
    Message(SGLANG, r"DSpark with dp attention requires --enable-dp-lm-head",
            say("DSpark's draft reads the head of its own replica"), ("--enable-dp-lm-head as well",), CONFIGURATION),
    Message(SGLANG, r"Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static="
                    r"(?P<fraction>[\d.]{1,9})\. Raise --mem-fraction-static above (?P<least>[\d.]{1,9})",
            say("the weights take all that --mem-fraction-static {fraction} allows; above {least} the first "
                "token fits"),
            ("--mem-fraction-static above that number, if graphs and activations still fit",
             "experts spread or cut over more GPUs: --ep, --tp", "dsv4-shard plan REPO --tp N --gpu GPU: what a rank "
             "weighs"), KV_PLANNING, planned=True),
    Message(SGLANG, r"In paged swa mode, page_size must be 256",
            say("DeepSeek-V4's windows are kept in pages of 256 tokens"), ("leave --page-size out, or 256",),
            KV_PLANNING),
    Message(SGLANG, rf"(?:the draft|topk=1) requires speculative_num_draft_tokens == speculative_num_steps \+ 1, got "
                    rf"(?P<tokens>{_N}) and (?P<steps>{_N})",
            say("a draft of {steps} steps gives {steps} tokens to verify, and one more; {tokens} are asked for"),
            ("leave --speculative-num-draft-tokens out",), CONFIGURATION,
            anchors=("requires speculative_num_draft_tokens == speculative_num_steps",)),
    Message(BOTH, r"(?:InstantTensor only supports \.safetensors checkpoints; unsupported files: "
                  r"(?P<names>[^\n]{1,200}))",
            say("the checkpoint has files that this loader does not read: {names}"), ("--load-format auto",), LOADING),
    Message(SGLANG, r"No model weights found in: `(?P<folder>[^`\n]{1,300})`",
            say("{folder} holds no file of weights that SGLang reads"), ("the path names the folder with "
                "config.json and "
             "*.safetensors", INSPECT), LOADING),
    Message(SGLANG, r"Timed out waiting for checkpoint prefetching",
            say("the checkpoint is read ahead into the host's memory, and the disk or network is too slow for it"),
            (OWN_FILES, "leave --weight-loader-prefetch-checkpoints out"), LOADING),
    Message(SGLANG, rf"context_length \((?P<asked>{_N})\) is greater than the derived context_length "
                    rf"\((?P<most>{_N})\)",
            say("config.json gives a context of {most} tokens, and --context-length asks for {asked}"),
            ("--context-length of at most config.json's own, or leave it out",
             "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1, if the model is known to hold more"), CONFIGURATION,
            anchors=("is greater than the derived context_length",)),
)  # fmt: skip

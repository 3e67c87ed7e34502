"""Messages about the files of a checkpoint: those that are missing, damaged, or of another layout."""

import re
from collections.abc import Iterator

from dsv4_shard.diagnosis.messages.message import INSPECT, SHARDS, Evidence, Message, by_engine, say
from dsv4_shard.diagnosis.origin import CONFIGURATION, LOADING
from dsv4_shard.engines import BOTH, SGLANG, VLLM
from dsv4_shard.text.units import counted

_DOWNLOAD = (
    INSPECT,
    "hf download REPO again: it fetches what is missing, and nothing else",
    "a link whose target is not mounted (a Hub snapshot without its blobs): ls -lL FOLDER; copy with cp -aL, or mount "
    "the folder above snapshots/",
)

_OF_TP = re.compile(r"(?i)tp[-_]?(\d{1,4})(?!\d)")


def _no_rank_files(evidence: Evidence) -> Iterator[str]:
    pattern = evidence.groups["pattern"]
    found = re.search(r"(?:rank|tp)-(\d{1,4})-part", pattern)
    folder, _, _ = pattern.rpartition("/")
    rank = f"rank {found[1]}" if found else "this rank"
    yield f"sharded_state reads one set of files for each rank; {folder or 'the folder'} has none for {rank}"
    tp, of = evidence.clues.tp, _OF_TP.search(folder.rpartition("/")[2])
    if found and of and int(found[1]) >= int(of[1]):
        yield f"its name says TP {of[1]}, and {rank} is one too many for that: the engine runs with more ranks"
    elif found and tp is not None and of and int(of[1]) != tp:
        yield f"its name says TP {of[1]}, the log TP {tp}"
    else:
        yield ("either it is of fewer ranks than the engine runs with, or this node holds another node's share, or it "
               "holds a whole checkpoint, which --load-format auto reads")  # fmt: skip


_RANK_FILES = (
    "the folder's manifest.json names the TP and the ranks that it holds: launch with that TP",
    "dsv4-shard reshard REPO OUT --tp N for the TP at hand; of several nodes, each needs its own ranks: --ranks",
    *SHARDS[:1],
)


def _references(evidence: Evidence) -> Iterator[str]:
    count, folder = evidence.number("count"), evidence.groups["folder"]
    yield (f"the index names {counted(count, 'file')} that {'is' if count == 1 else 'are'} not in {folder}: "
           f"{evidence.groups['names']}")  # fmt: skip


_HEADERS = {
    "HeaderTooLarge": "the first eight bytes are no length of a header: most often the file is a Git-LFS pointer or an "
    "error page that was saved in place of the file",
    "HeaderTooSmall": "the file has fewer than eight bytes: an interrupted download or a Git-LFS pointer's rest",
    "InvalidHeaderLength": "the file is shorter than its own header says: it was cut off",
    "InvalidHeaderDeserialization": "the header is no JSON: the file is damaged, or no safetensors file",
    "InvalidHeader": "the header is no UTF-8 text: the file is damaged, or no safetensors file",
    "InvalidHeaderStart": "the header does not begin with a brace: no safetensors file, or damaged",
    "MetadataIncompleteBuffer": "the file is shorter (or longer) than its tensors: the download was cut off",
    "InvalidOffset": "the tensors' offsets leave a hole or overlap: the header is damaged",
    "TensorInvalidInfo": "a tensor's bytes do not fit its dtype and shape: the header is damaged",
    "InvalidTensorView": "a tensor's bytes do not fit its dtype and shape",
    "ValidationOverflow": "a shape in the header is larger than any memory: the header is damaged",
    "IoError": "the file could not be read",
}

_HEADER_NAMES = "|".join(_HEADERS)


def _header(evidence: Evidence) -> Iterator[str]:
    yield _HEADERS[evidence.groups["kind"]]
    yield "safetensors does not say which file it is; inspect reads every header and names it"


_OUR_LOADER = by_engine(
    sglang=("SGLang: --load-format dsv4_shard, which says what does not fit before it copies a byte",)
)


def _missing(evidence: Evidence) -> Iterator[str]:
    name = evidence.groups["names"]
    first = f", the first is {name[1:-1]}" if name.startswith("'") else ""
    yield f"the engine has parameters that none of the files holds{first}"
    if "attn_mqa" in name or "_scale'" in name:
        yield "k_scale and v_scale are made by the engine and are in no checkpoint; its own saver writes them"
    yield ("the files were written for another version, another layout or another way to cut it, or a rank's files are "
           "not all there")  # fmt: skip


def _missing_ways(evidence: Evidence) -> Iterator[str]:
    yield from _OUR_LOADER(evidence)
    yield from SHARDS


_NO_CONFIG = ("the path names the folder with config.json; a repository that is not downloaded needs the network or "
              "HF_HOME with it", "HF_HUB_OFFLINE=1 forbids what is not in the cache", INSPECT)  # fmt: skip

FILES = (
    Message(BOTH, r"Could not find checkpoint files '(?P<pattern>[^'\n]{1,400})', only pre-sharded checkpoints are "
          r"currently supported", _no_rank_files, _RANK_FILES, LOADING),
    Message(BOTH, r"Missing keys \((?P<names>'[^']{1,200}'|[^)]{0,200}\) in (?:loaded state|presharded))",
          _missing, _missing_ways, LOADING),
    Message(SGLANG, r"(?P<index>[\w./@+-]{1,300}\.index\.json) references (?P<count>\d{1,6}) shard file\(s\) missing "
                    r"from "
          r"(?P<folder>[^\s(]{1,300}) \(incomplete download\?\): (?P<names>\[[^\]]{0,300})", _references, _DOWNLOAD,
          LOADING,
          anchors=("shard file(s) missing from",)),
    Message(BOTH, r"Missing (?P<count>\d{1,6}) file\(s\) from index (?P<folder>[^\s:]{1,300}): "
                  r"(?P<names>\[[^\]]{0,300})",
          _references, _DOWNLOAD, LOADING),
    Message(VLLM, r"Weight files referenced in index but missing: (?P<names>.{1,200})",
          say("the index names files that are not in the folder: {names}"), _DOWNLOAD, LOADING),
    Message(BOTH, r"(?:FileNotFoundError: |\[Errno 2\] )No such file or directory: ['\"]?(?P<file>[^'\"\n]{1,300}"
          r"\.(?:safetensors|bin|json))", say("a file of the checkpoint is not there, or is a link that leads "
                                              "nowhere: {file}"),
          _DOWNLOAD, anchors=("No such file or directory",)),
    Message(BOTH, r"Cannot find any (?:safetensors )?model weights with [`'](?P<folder>[^`'\n]{1,300})",
          say("{folder} holds no file that this --load-format reads (*.safetensors, or *.bin where asked for)",
              "a wrong path, a folder above or below the one with the weights, or a download of config.json alone"),
          ("the path names the folder with config.json and *.safetensors", *_DOWNLOAD), LOADING),
    Message(BOTH, rf"(?:Error while deserializing header: |SafetensorError: )(?:[\w ]{{1,60}}: "
                  rf")?(?P<kind>{_HEADER_NAMES})",
          _header, (INSPECT, "hf download REPO FILE --force-download, or git lfs pull"), LOADING,
          anchors=tuple(_HEADERS)),
    Message(BOTH, r"Error while deserializing header: incomplete metadata, file not fully covered",
          say("the file is shorter (or longer) than its tensors: the download was cut off"),
          (INSPECT, "hf download REPO FILE --force-download"), LOADING),
    Message(BOTH, r"Error while deserializing header: (?P<said>[a-z][\w ]{3,80})",
          say("a file of the checkpoint has no valid safetensors header: {said}"),
          (INSPECT, "hf download REPO FILE --force-download, or git lfs pull"), LOADING),
    Message(BOTH, r"invalid load key, '(?P<key>.{1,4})'", say("a *.bin file is no PyTorch file; `v` is the first "
                                                              "letter "
          "of a Git-LFS pointer, `<` of an error page"), (INSPECT, "git lfs pull, or hf download REPO"), LOADING),
    Message(BOTH, r"(?P<path>\S{1,300}) does not appear to have a file named config\.json",
          say("there is no config.json at {path}"), _NO_CONFIG, CONFIGURATION, anchors=("does not appear to have a "
                                                                                        "file",)),
    Message(BOTH, r"(?:Can't load the configuration of|Invalid repository ID or local directory specified:) "
                  r"'(?P<path>[^'\n]{1,300})'",
          say("{path} is neither a folder with config.json here nor a repository that can be reached"), _NO_CONFIG,
          CONFIGURATION),
    Message(BOTH, r"(?:Repo id must be in the form|Repo id must use alphanumeric chars)[^:\n]{0,200}: "
                  r"'(?P<path>[^'\n]{1,300})'",
          say("{path} is not a folder on this machine, so it is taken for a repository's name, which it cannot be"),
          ("mount or copy the folder where the engine runs (in a container: the path inside it)",), CONFIGURATION,
          anchors=("Repo id must",)),
    Message(BOTH, r"(?:401 Client Error|403 Client Error|GatedRepoError|RepositoryNotFoundError|Cannot access gated "
                  r"repo)",
          say("the Hub refuses this account the repository: it is gated, private, or its name is wrong"),
          ("HF_TOKEN of an account with access, in the engine's own environment",), CONFIGURATION),
    Message(BOTH, r"(?:LocalEntryNotFoundError|We couldn't connect to 'https://huggingface\.co'|outgoing traffic has "
                  r"been disabled)",
          say("a file is not in the Hub's cache, and the Hub is not reached"),
          ("download first, where there is a network: hf download REPO; then name the folder",
           "HF_HUB_OFFLINE=0, or a proxy or mirror: HTTPS_PROXY, HF_ENDPOINT"), CONFIGURATION),
    Message(SGLANG, r"Presharded tensor shape mismatch for '(?P<name>[^'\n]{1,200})': dumped (?P<dumped>\([\d, "
                    r"]{0,80}\)) "
          r"vs parameter slice (?P<wanted>\([\d, ]{0,80}\))",
          say("the presharded dump holds {name} as {dumped}, the engine's parameter is {wanted}: it was dumped by "
              "another version, quantization or parallelism"),
          ("delete the folder presharded/ of that configuration: the next start dumps it again",), LOADING),
    Message(SGLANG, r"Rank-(?P<rank>\d{1,4}) checksum mismatch for presharded checkpoint at (?P<folder>\S{1,300}):",
          say("the presharded files of rank {rank} in {folder} are not those that were dumped: damaged, or half "
              "written"),
          ("delete that folder: the next start dumps it again",), LOADING),
    Message(SGLANG, r"Unsupported presharded plan version (?P<version>\S{1,20}) at (?P<folder>[^;\n]{1,300})",
          say("the dump in {folder} is of another SGLang (plan version {version})"),
          ("delete that folder: the next start dumps it again",), LOADING),
    Message(SGLANG, r"Presharded dump directory is not writable: (?P<folder>[^\n]{1,300}?)\. Set",
          say("SGLang's presharded format writes beside the model on the first start, and {folder} is read-only"),
          ("--model-loader-extra-config '{\"presharded_path\": \"FOLDER\"}' on storage that all ranks "
           "share",), LOADING),
    Message(SGLANG, r"Rank (?P<rank>\d{1,4}) did not write (?P<file>\S{1,300})\.",
          say("rank {rank} wrote its part to another disk: {file} is not seen here"),
          ("presharded_path on storage that all nodes share",), LOADING, anchors=("did not write",)),
    Message(BOTH, r"Unexpected extra config keys for load format (?P<format>\S{1,60}?): (?P<keys>.{1,200})",
          say("--model-loader-extra-config has keys that the loader {format} does not know: {keys}"),
          ("leave them out, or another --load-format",), CONFIGURATION),
    Message(BOTH, r"Unknown load_format: (?P<format>\S{1,60})",
          say("the engine has no loader {format}: a plugin is not installed beside the engine, or it is another "
              "engine's"),
          ("pip install dsv4-shard beside SGLang, for --load-format dsv4_shard", "--load-format auto for a whole "
                                                                                 "checkpoint"),
          CONFIGURATION),
)  # fmt: skip

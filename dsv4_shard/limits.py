"""The largest input of each kind that is read from outside: one table, each row enforced in one place.

Bytes count decoded, and before anything is made of them. The numbers are chosen so that no command needs more than
512 MiB, up to 194,000 tensors where weights are read or written, and leave at least a third above the largest that
releases need, which `largest` says.
"""

from dataclasses import dataclass

MAX_DEPTH = 64
"""Levels of nesting of JSON values that are passed on, or not looked at."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The largest input of one kind. 0 where a measure does not apply.

    Attributes:
        what: The input.
        error: Class in `errors` of the error for an input beyond the limit; several if it is read in several ways.
        nbytes: Bytes.
        count: Number of `counted`.
        counted: Plural of what is counted.
        seconds: Time to read it.
        depth: Levels of nested values, or of folders.
        largest: The largest that is known to be needed.
    """

    what: str
    error: str
    nbytes: int = 0
    count: int = 0
    counted: str = "values"
    seconds: float = 0
    depth: int = 0
    largest: str = ""


# --- checkpoints ---------------------------------------------------------------------------------------------------

HEADER = Limit(
    "header of a safetensors file", "HeaderTooLarge, HeaderNotJson, BadTensorEntry",
    nbytes=32 << 20, count=1_250_000, depth=MAX_DEPTH,
    largest="all of V4-Pro's tensors in one header: 27 MB, 1.2 million values",
)  # fmt: skip

HEADERS = Limit(
    "all headers of a checkpoint", "CheckpointTooLarge",
    nbytes=96 << 20, count=400_000, counted="tensors",
    largest="V4-Pro in NVFP4: 285,660 tensors",
)  # fmt: skip

RESULT = Limit(
    "tensors of all files of a result", "CheckpointTooLarge", count=1_000_000, counted="tensors",
    largest="the reference's 64 ranks of V4-Pro: 430,000",
)  # fmt: skip

ROWS = Limit(
    "rows that are held at once: one row, one row of blocks that are decoded, or one row of scales that are repeated",
    "CheckpointTooLarge", nbytes=4 << 20, largest="V4-Pro: 0.5 MB, 128 rows of `wo_a`",
)  # fmt: skip

WEIGHT_FILES = Limit("weight files that an index names", "BadIndex", count=10_000, counted="files")

INDEX = Limit(
    "model.safetensors.index.json", "BadIndex",
    nbytes=40 << 20, count=700_000, depth=MAX_DEPTH, largest="V4-Pro: 11 MB, 145,117 values",
)  # fmt: skip

CONFIG = Limit("config.json", "BadConfig", nbytes=4 << 20, count=50_000, depth=MAX_DEPTH, largest="9 kB, 334 values")

LOCATIONS = Limit(
    "map of experts for --expert-locations", "UsageError",
    nbytes=4 << 20, count=100_000, largest="V4-Pro with 16 redundant experts: 24,400 values",
)  # fmt: skip

CONFIGURATION = Limit(
    "configuration for --from", "UsageError, ReadFailed",
    nbytes=256 << 10, count=20_000, largest="a graph of Dynamo's recipes: 21 kB, 700 values",
)  # fmt: skip

CONFIGURED_ROLES = Limit(
    "roles of a configuration",
    "UsageError",
    count=64,
    counted="roles",
    largest="prefill and decode: 2",
)

CONFIGURED_OPTIONS = Limit(
    "options and variables of all roles of a configuration", "UsageError",
    count=1_000, counted="options", largest="two roles of a recipe of srt-slurm: 25",
)  # fmt: skip

CONFIGURED_VARIABLES = Limit(
    "variables that a script sets", "UsageError", count=1_000, counted="variables", largest="some tens"
)

COMPANION = Limit(
    "small file of a release",
    "none: stays behind",
    nbytes=64 << 20,
    depth=8,
    largest="a tokenizer: 35 MB",
)

COMPANIONS = Limit(
    "all small files of a release", "none: others stay behind", nbytes=64 << 20, count=1_000, counted="files",
    largest="V4-Pro: under 20 MB",
)  # fmt: skip

TREE = Limit(
    "files and folders in the folders of a checkpoint", "none: others stay behind", count=10_000, counted="entries",
    largest="some tens",
)  # fmt: skip

CARD = Limit("metadata of a README.md", "none: not read", nbytes=64 << 10, largest="1 kB")

FOLDER = Limit("entries of a folder", "ReadFailed", count=100_000, counted="entries")

# --- what this tool wrote ------------------------------------------------------------------------------------------

PLAN = Limit("plan", "BadPlan", nbytes=4 << 20, count=50_000, depth=MAX_DEPTH, largest="50 kB, 1,800 values")

MANIFEST = Limit(
    "manifest.json", "NotAResult",
    nbytes=40 << 20, count=600_000, largest="the reference's 16 ranks of V4-Pro: 16 MB, 200,000 values",
)  # fmt: skip

STATEMENT = Limit(
    "statement of provenance",
    "none: a problem that `verify` finds",
    nbytes=16 << 20,
    count=200_000,
    largest="4096 ranks: 1 MB",
)

JOURNAL = Limit(
    "journal of an unfinished run", "OtherRun",
    nbytes=48 << 20, count=300_000, counted="steps", largest="V4-Pro's 2.2 million pieces under MoE TP16: 39 MB",
)  # fmt: skip

JOURNAL_ENTRY = Limit("first entry of a journal", "OtherRun", nbytes=4 << 20, count=50_000, depth=MAX_DEPTH)

UPLOAD_JOURNAL = Limit(
    "journal of an unfinished upload", "OtherRun",
    nbytes=32 << 20, count=200_000, counted="entries",
)  # fmt: skip

ARCHIVE = Limit(
    "source.zip, packed", "BadSkeleton", nbytes=24 << 20, count=10_002, counted="entries", largest="V4-Pro: 2 MB"
)

UNPACKED = Limit("source.zip, unpacked", "BadSkeleton", nbytes=128 << 20, largest="V4-Pro: 27 MB")

CACHED = Limit(
    "cached listing and headers", "none: asked for again", nbytes=24 << 20, count=10_003, counted="entries",
    largest="V4-Pro: 2 MB",
)  # fmt: skip

NAME = Limit("file that holds one name, commit or process", "none: as if it were not there", nbytes=4096)

# --- signatures ----------------------------------------------------------------------------------------------------

SIGNATURE = Limit(
    "model.sig", "BadSignature", nbytes=16 << 20, count=200_000, largest="a result of 1,000 files: 250 kB"
)

KEY = Limit("key, certificate or token", "BadKey", nbytes=1 << 20, largest="a system's certificates: 250 kB")

TRUST = Limit("trust configuration of Sigstore", "BadKey", nbytes=16 << 20)

# --- servers -------------------------------------------------------------------------------------------------------

HUB_ANSWER = Limit(
    "answer of the Hub: listing, error, page", "BadAnswer, ServerFailed", nbytes=16 << 20, count=300_000, seconds=300,
)  # fmt: skip

HUB_HEADERS = Limit(
    "answer of the Hub with all headers", "none: read by ranges", nbytes=40 << 20, count=1_700_000, seconds=300,
    largest="V4-Pro: 27 MB, 1.2 million values",
)  # fmt: skip

HUB_RANGE = Limit(
    "range of a file from the Hub, its repetitions and waits included", "ServerFailed", seconds=3600,
    largest="8 MiB, or an index of 11 MB",
)  # fmt: skip

HUB_DOWNLOAD = Limit(
    "silence of a download into the Hub cache, its repetitions and waits included", "ServerFailed", seconds=1800,
    largest="10 MB for each of 8 files, which huggingface_hub writes at a time",
)  # fmt: skip

HUB_WAIT = Limit("wait that a server asks for", "Throttled", seconds=900)

HUB_REDIRECTS = Limit("redirects of one file", "BadAnswer", count=5, counted="redirects")

STORE_ANSWER = Limit(
    "answer of an object store to one request", "BadAnswer, ServerFailed", nbytes=9 << 20, seconds=30,
    largest="a block of 8 MiB",
)  # fmt: skip

STORE_CALL = Limit(
    "silence of a call to an object store, its repetitions included", "ServerFailed", seconds=240,
)  # fmt: skip

STORE_LISTING = Limit(
    "listing of an object store", "BadAnswer", count=100_000, counted="objects", seconds=240,
    largest="a result of 4096 ranks: 20,000",
)  # fmt: skip

GATE_HEAD = Limit("head of a request to a store", "BadAnswer", nbytes=64 << 10)

SIGSTORE = Limit("answers of Sigstore to one signature, the wait for a browser included", "Unreachable", seconds=600)

CLUSTER_CALL = Limit("answer of Ray to one call", "Unreachable", seconds=120)

CLUSTER_SHARE = Limit("silence of a share on a Ray cluster, waiting for CPUs included", "NodesLost", seconds=1800)

# --- logs ----------------------------------------------------------------------------------------------------------

LOG = Limit("log for `explain`", "ReadFailed", nbytes=4 << 30)

LOG_LINE = Limit("piece of a line of a log", "none: read in overlapping pieces", nbytes=16 << 10)


TABLE: tuple[Limit, ...] = tuple(value for value in globals().values() if isinstance(value, Limit))
"""Every limit, in the order above."""

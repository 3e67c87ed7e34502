"""The options of a deployment: one list for the verbs, the commands, plans and printed commands.

A new option is one more field here, plus its rule. The field has its range and choices; other conditions belong to
`planning.request` or to the rules of the engines. The help and printed commands follow the order of the fields.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from dsv4_shard.catalog.amount import bytes_of
from dsv4_shard.catalog.gpus import gpus_called
from dsv4_shard.catalog.option import Option, Options
from dsv4_shard.catalog.options import (
    A2A_BACKENDS,
    DEFAULT_ENGINE,
    DRAFTS,
    EXPERT_DTYPES,
    RANKINGS,
    RUNNERS,
    SGLANG_VERSIONS,
    SHARED_EXPERTS,
    VERSIONS,
    VLLM_VERSIONS,
)
from dsv4_shard.catalog.rank_ranges import MAX_RANKS
from dsv4_shard.errors import UsageError
from dsv4_shard.text.suggest import as_option

MAX_CONTEXT = 1 << 30

LEAST_PART = 10**6
"""Least bytes of a part of a rank's file: files are opened, hashed and listed one by one."""

LAYOUT, ENGINE, HARDWARE, WRITING, SIGNATURE = "Layout", "Engine", "Hardware", "Writing", "Signature"
"""Headings of the help. Options without one come last, under `Options`."""

ENGINES_THAT_WRITE = "sglang, vllm, reference (DeepSeek's generate.py) or node (a folder a node, for stock loaders)"

_VERSIONS_THAT_RUN = f"{' or '.join(SGLANG_VERSIONS)} (sglang); {' or '.join(VLLM_VERSIONS)} (vllm)"

# --- options that several lists share --------------------------------------------------------------------------------

TP = Option(help="Tensor parallelism: the number of ranks.", metavar="N", panel=LAYOUT, least=1, most=MAX_RANKS)

GPUS = Option(
    help="In place of --tp: search all layouts on exactly N GPUs.",
    metavar="N", panel=LAYOUT, least=1, most=MAX_RANKS,
)  # fmt: skip

PICK = Option(
    help="Plan row N of the list that --gpus, or no layout, gives.",
    metavar="N", panel=LAYOUT, least=1, most=100_000,
)  # fmt: skip

RANK_BY = Option(
    help="With --gpus, order the layouts by weights (fewest first), tokens (most) or sent (fewest bytes).",
    metavar="WHAT", panel=LAYOUT, shows="weights", choices=RANKINGS, unknown="must be weights, tokens or sent",
)  # fmt: skip

ENGINE_NAME = Option(
    help=f"{ENGINES_THAT_WRITE}; trtllm (TensorRT-LLM) is planned only. With --gpus also several, separated by "
    "commas; all but node where none is named.",
    metavar="NAME", panel=ENGINE, completion="engines",
)  # fmt: skip

EP = Option(help="Expert parallelism.", metavar="N", panel=LAYOUT, shows="the engine's", least=1, most=MAX_RANKS)

DP = Option(
    help="Data parallelism: of attention, inside TP (SGLang, TensorRT-LLM); replicas (vLLM).",
    metavar="N", panel=LAYOUT, least=1, most=MAX_RANKS,
)  # fmt: skip

RUNNER = Option(
    help="MoE runner (SGLang) or backend (vLLM): marlin, flashinfer_mxfp4, ...",
    metavar="NAME", panel=ENGINE, shows="the engine's, else its next that runs", of_engine=RUNNERS,
)  # fmt: skip

A2A = Option(
    help="SGLang's all-to-all backend: deepep, megamoe, ...",
    metavar="NAME", panel=ENGINE, shows="none", of_engine=A2A_BACKENDS,
)  # fmt: skip

SHARED = Option(
    help="whole: all on every rank; split: cut, where blocks allow; pad: cut, filled up to whole blocks "
    "(vLLM); auto: the engine's own way, else its next that runs.",
    metavar="WAY", panel=LAYOUT, choices=SHARED_EXPERTS, unknown="must be auto, whole, split or pad",
)  # fmt: skip

REFRESH = Option(help="Look up the branch again instead of using the answer cached for an hour.")

# --- the lists -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Parallelism(Options):
    """The engine, and how the model is spread. TP is in the lists that need it."""

    ep: Annotated[int | None, EP] = None
    dp: Annotated[int, DP] = 1
    engine: Annotated[str, ENGINE_NAME] = DEFAULT_ENGINE
    runner: Annotated[str | None, RUNNER] = None
    a2a: Annotated[str | None, A2A] = None


@dataclass(frozen=True, kw_only=True)
class Hardware(Options):
    """The GPU, given by its name or by its memory."""

    gpu: Annotated[
        str | None,
        Option(
            help="h20-96, h20-141, h100, h200, b200, b300, ...: `dsv4-shard gpus` lists all.",
            metavar="NAME", panel=HARDWARE, shows="Hopper, memory not compared", completion="gpus",
        ),
    ] = None  # fmt: skip
    gpu_memory: Annotated[
        str | None,
        Option(
            help="In place of --gpu: a Hopper GPU of 96GB, 95GiB or 97285MiB.",
            metavar="SIZE", panel=HARDWARE, expects="text such as '96GB', '95GiB' or '97285MiB'",
        ),
    ] = None  # fmt: skip

    def __post_init__(self) -> None:
        """Replace what users call a GPU by its name here. The plan refuses an unknown name."""
        if isinstance(self.gpu, str) and len(named := gpus_called(self.gpu)) == 1:
            object.__setattr__(self, "gpu", named[0].name)


@dataclass(frozen=True, kw_only=True)
class Target(Hardware):
    """The target of any layout: hardware, formats, versions and flags of the engine."""

    nodes: Annotated[
        int | None,
        Option(
            help="Number of hosts.",
            metavar="N", panel=HARDWARE, shows="as few as hold the GPUs", least=1, most=MAX_RANKS,
        ),
    ] = None  # fmt: skip
    expert_dtype: Annotated[
        str | None,
        Option(
            help="fp4 or fp8; fp8 casts FP4 experts as DeepSeek's converter does (reference only).",
            metavar="DTYPE", panel=ENGINE, shows="the checkpoint's", choices=EXPERT_DTYPES,
            unknown="must be fp4 or fp8",
        ),
    ] = None  # fmt: skip
    engine_version: Annotated[
        str | None,
        Option(
            help=f"The engine's version: {_VERSIONS_THAT_RUN}.",
            metavar="VERSION", panel=ENGINE, shows="the first", of_engine=VERSIONS,
        ),
    ] = None  # fmt: skip
    redundant_experts: Annotated[
        int,
        Option(
            help="SGLang's --ep-num-redundant-experts: further slots for experts that are held twice.",
            metavar="N", panel=LAYOUT, least=0, most=MAX_RANKS,
        ),
    ] = 0  # fmt: skip
    expert_locations: Annotated[
        str | None,
        Option(
            help="SGLang's --init-expert-location: a JSON file with the expert in each slot of each layer.",
            metavar="FILE", panel=LAYOUT, shows="in order", longest=4096,
        ),
    ] = None  # fmt: skip
    dp_lm_head: Annotated[
        bool,
        Option(help="SGLang's --enable-dp-lm-head: cut the head over attention TP, not over TP.", panel=LAYOUT),
    ] = False  # fmt: skip
    draft: Annotated[
        str | None,
        Option(
            help="The draft model to serve with: mtp or dspark, as the release has it, in command, memory and KV "
            "cache; none: not in the files either.",
            metavar="NAME", panel=ENGINE, shows="in the files alone", choices=DRAFTS,
            unknown="must be none, mtp or dspark",
        ),
    ] = None  # fmt: skip
    part_size: Annotated[
        str | None,
        Option(
            help="Most bytes of a rank's file (sglang, vllm): larger ones are written in several parts.",
            metavar="SIZE", panel=WRITING, expects="text such as '20GB' or '500MB'",
        ),
    ] = "20GB"  # fmt: skip


# The fields of the last base come first.
@dataclass(frozen=True, kw_only=True)
class LayoutOptions(Target, Parallelism):
    """All options of a layout except TP."""

    shared_experts: Annotated[str, SHARED] = "auto"
    pp: Annotated[
        int,
        Option(
            help="Pipeline parallelism: the number of stages, each of --tp ranks (sglang, vllm).",
            metavar="N", panel=LAYOUT, least=1, most=MAX_RANKS,
        ),
    ] = 1  # fmt: skip
    pp_partition: Annotated[
        str | None,
        Option(
            help="Layers of each pipeline stage, such as 31,30, in place of the engine's own division.",
            metavar="LAYERS", panel=LAYOUT, shows="the engine's", longest=1000,
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class _FirstTp(Options):
    tp: Annotated[int, TP]


@dataclass(frozen=True)
class Request(LayoutOptions, _FirstTp):
    """The parallelism and options that a user asks for; None leaves the choice to the engine."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    """Plans and journals hold requests: an option that this version does not know is an error."""

    @property
    def names_gpu(self) -> bool:
        """Whether the request states a GPU's memory, so that the plan checks it."""
        return self.gpu is not None or self.gpu_memory is not None

    @property
    def part_nbytes(self) -> int | None:
        """Most bytes of tensors in a part of a rank's file; 0 if `part_size` is no size, which is refused.

        None for plans of releases whose files had one part, and were not aligned.
        """
        return None if self.part_size is None else bytes_of(self.part_size) or 0

    @property
    def partition(self) -> tuple[int, ...]:
        """Layers of each pipeline stage in `pp_partition`, `31,30`; empty if it is no such list, which is refused.

        The engines take any integers; a stage without layers fails in them later.
        """
        words = (self.pp_partition or "").split(",")
        numbers = tuple(int(word) for word in words if word.isascii() and word.isdecimal())
        return numbers if len(numbers) == len(words) and all(numbers) else ()


@dataclass(frozen=True, kw_only=True)
class Sessions(Options):
    """The sessions that a deployment is for."""

    context: Annotated[
        int | None,
        Option(
            help="Tokens of a session: check that such a context fits, and how many sessions at once.",
            metavar="N", panel=HARDWARE, shows="the model's longest", least=1, most=MAX_CONTEXT,
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OutputOptions(Options):
    """Options of `plan` and `search` that do not affect the plan."""

    refresh: Annotated[bool, REFRESH] = False
    output: Annotated[
        str | Path | None,
        Option(
            help="Also write the plan to this file; into FOLDER/, run scripts and Kubernetes manifests too.",
            metavar="FILE|FOLDER/", short="-o", typed=str,
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Tp(Options):
    tp: Annotated[int, TP]


@dataclass(frozen=True, kw_only=True)
class PlanOptions(OutputOptions, Sessions, LayoutOptions, _Tp):
    """The options of `plan`."""


@dataclass(frozen=True, kw_only=True)
class _Configured(Options):
    tp: Annotated[int | None, TP] = None
    repo: Annotated[
        str | None,
        Option(help="The checkpoint.", metavar="REPO", shows="the one that the configuration names", longest=4096),
    ] = None
    role: Annotated[str | None, Option(help="Plan only the role of this name.", metavar="NAME", shows="all roles")] = (
        None
    )


@dataclass(frozen=True, kw_only=True)
class ConfigurationOptions(OutputOptions, Sessions, LayoutOptions, _Configured):
    """The options of `plan_from`. Those of a layout that are given count in place of the configuration's."""


@dataclass(frozen=True, kw_only=True)
class _Pair(Options):
    prefill: Annotated[str, Option(help="Options of the prefill role: '--tp 8'.", metavar="OPTIONS", longest=4096)]
    decode: Annotated[str, Option(help="Options of the decode role: '--tp 16'.", metavar="OPTIONS", longest=4096)]
    tp: Annotated[int | None, TP] = None


@dataclass(frozen=True, kw_only=True)
class PairOptions(OutputOptions, Sessions, LayoutOptions, _Pair):
    """The options of `plan_pair`. Those of a layout hold for both roles, unless a role has its own."""


@dataclass(frozen=True, kw_only=True)
class _Searched(Options):
    gpus: Annotated[int, GPUS]
    rank_by: Annotated[str, RANK_BY] = "weights"
    engine: Annotated[str | Iterable[str] | None, ENGINE_NAME] = None


@dataclass(frozen=True, kw_only=True)
class Narrowing(Options):
    """Parts of a layout that a search takes as given, instead of trying them all; None leaves them free."""

    ep: Annotated[int | None, EP] = None
    dp: Annotated[int | None, DP] = None
    runner: Annotated[str | None, RUNNER] = None
    a2a: Annotated[str | None, A2A] = None
    shared_experts: Annotated[str | None, SHARED] = None


@dataclass(frozen=True, kw_only=True)
class SearchOptions(OutputOptions, Sessions, Target, Narrowing, _Searched):
    """The options of `search`: those of a layout. Some of them narrow the search."""


@dataclass(frozen=True, kw_only=True)
class _Engines(Options):
    engine: Annotated[str | Iterable[str] | None, ENGINE_NAME] = None


@dataclass(frozen=True, kw_only=True)
class _Refreshed(Options):
    refresh: Annotated[bool, REFRESH] = False


@dataclass(frozen=True, kw_only=True)
class FewestOptions(_Refreshed, Sessions, Target, Narrowing, _Engines):
    """The options of `fewest`: those of `search`, without the number of GPUs."""


@dataclass(frozen=True, kw_only=True)
class _Size(Options):
    tp: Annotated[int | None, TP] = None
    gpus: Annotated[int | None, GPUS] = None
    rank_by: Annotated[str, RANK_BY] = "weights"


@dataclass(frozen=True, kw_only=True)
class LayoutOrSearch(Sessions, LayoutOptions, _Size):
    """The options of one layout, or of a search for layouts. Only a search accepts several engines."""


@dataclass(frozen=True, kw_only=True)
class _Picked(Options):
    pick: Annotated[int | None, PICK] = None


@dataclass(frozen=True, kw_only=True)
class PlanCommandOptions(OutputOptions, _Picked, LayoutOrSearch):
    """The options of the command `plan`, which is `plan`, `search` or `fewest`."""


# --- options that contradict each other ------------------------------------------------------------------------------


def refuse_beside_gpus(asked: Iterable[str]) -> None:
    """Refuse options that mean nothing next to `--gpus`, as TP does; `asked` has their names.

    Raises:
        UsageError: `asked` is not empty.
    """
    for name in asked:
        hint = f"Leave out {as_option(name)}, or --gpus."
        why = "a search plans no pipeline stages" if name in ("pp", "pp_partition") else "the search tries them all"
        raise UsageError(f"{{gpus}} and {{{name}}}: {why}", hint=hint,
                         parameters={"gpus": ..., name: ...})  # fmt: skip


def refuse_beside_no_layout(asked: Iterable[str]) -> None:
    """Refuse options that mean nothing without a layout, where the fewest GPUs are looked for.

    Raises:
        UsageError: `asked` has the name of one.
    """
    for name in asked:
        hint = f"Add --tp for a layout, or --gpus to search them; or leave out {as_option(name)}."
        raise UsageError(f"{{{name}}} without {{tp}} or {{gpus}}", hint=hint,
                         parameters={name: ..., "tp": ..., "gpus": ...})  # fmt: skip


def rank_by_alone() -> UsageError:
    """Return the error for `rank_by` without a search."""
    return UsageError("{rank_by} without {gpus}", hint="It orders what --gpus finds.",
                      parameters={"rank_by": ..., "gpus": ...})  # fmt: skip

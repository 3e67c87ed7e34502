"""Options and arguments of the commands, as typer takes them: name, limits, help, and what completes them."""

from pathlib import Path
from typing import Annotated

import typer

from dsv4_shard.terminal import completion

_LAYOUT, _ENGINE, _HARDWARE, _WRITING = "Layout", "Engine", "Hardware", "Writing"
"""Headings of the help below which an option stands; the others come last, below `Options`."""

# --- what is read, and how it is answered --------------------------------------------------------------------------

RepoArg = Annotated[
    str,
    typer.Argument(
        metavar="REPO",
        autocompletion=completion.repos,
        help="The checkpoint: a folder, org/name[@revision] on the Hub, or s3://, gs://, az://.",
    ),
]

DefaultRepoArg = Annotated[
    str | None,
    typer.Argument(
        metavar="REPO",
        autocompletion=completion.repos,
        show_default="the current folder, else the one last inspected",
        help="The checkpoint: a folder, org/name[@revision] on the Hub, or s3://, gs://, az://.",
    ),
]

SourceArg = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        autocompletion=completion.sources,
        help="A plan file (*.json), or a checkpoint as `inspect` takes it.",
    ),
]

RanksArg = Annotated[
    str, typer.Argument(metavar="RANKS", help="Folder of rank shards: reshard's, or DeepSeek's converter's.")
]

ResultsArg = Annotated[
    list[Path],
    typer.Argument(metavar="OUT", help="A folder that reshard made, or those of shares, as one result."),
]

TextArg = Annotated[
    str | None,
    typer.Argument(
        metavar="TEXT",
        show_default="what is piped in",
        help="What the engine printed, or its log: a file, or - for stdin.",
    ),
]

DemoArg = Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to put the demo's files.")]

ModelOpt = Annotated[
    str | None,
    typer.Option(
        "--repo",
        metavar="REPO",
        autocompletion=completion.repos,
        show_default="the releases' sizes",
        help="The checkpoint to hold it against.",
    ),
]

PlansRepoOpt = Annotated[
    str | None,
    typer.Option(
        "--repo",
        metavar="REPO",
        autocompletion=completion.repos,
        show_default="where the plan names it",
        help="Where the plan's checkpoint is.",
    ),
]

RefreshOpt = Annotated[
    bool, typer.Option("--refresh", help="Ask the Hub where the branch is, though it was asked within the hour.")
]

ConfigOpt = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        show_default="the folder's own",
        help="config.json for shards of DeepSeek's converter, which have none.",
    ),
]

JsonOpt = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]

# --- what is planned -----------------------------------------------------------------------------------------------

TpsOpt = Annotated[str, typer.Option("--tp", metavar="N,N,...", help="TP sizes to try.")]

TpOpt = Annotated[
    int | None, typer.Option("--tp", metavar="N", min=1, rich_help_panel=_LAYOUT, help="Tensor parallelism.")
]

UnplannedTpOpt = Annotated[
    int | None,
    typer.Option("--tp", metavar="N", min=1, rich_help_panel=_LAYOUT, help="Tensor parallelism, if there is no plan."),
]

GpusOpt = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        metavar="N",
        min=1,
        rich_help_panel=_LAYOUT,
        help="In place of --tp: search all layouts on exactly N GPUs.",
    ),
]

EpOpt = Annotated[
    int | None,
    typer.Option(
        "--ep", metavar="N", min=1, rich_help_panel=_LAYOUT, show_default="the engine's", help="Expert parallelism."
    ),
]

RankByOpt = Annotated[
    str | None,
    typer.Option(
        "--rank-by",
        metavar="WHAT",
        rich_help_panel=_LAYOUT,
        show_default="weights",
        autocompletion=completion.rankings,
        help="With --gpus, what puts a layout first: weights (few), tokens (many) or sent (few bytes).",
    ),
]

DpOpt = Annotated[
    int,
    typer.Option(
        "--dp",
        metavar="N",
        min=1,
        rich_help_panel=_LAYOUT,
        help="Data parallelism: of attention, inside TP (SGLang, TensorRT-LLM); replicas (vLLM).",
    ),
]

SharedOpt = Annotated[
    str,
    typer.Option(
        "--shared-experts",
        metavar="WAY",
        rich_help_panel=_LAYOUT,
        autocompletion=completion.shared_experts,
        help="whole: all on every rank; split: cut, where blocks allow; pad: cut, filled up to whole blocks (vLLM); "
        "auto: the engine's own way, else its next that runs.",
    ),
]

_ENGINES = "sglang, vllm, reference (DeepSeek's generate.py) or node (a folder a node, for stock loaders)"

EngineOpt = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="NAME",
        rich_help_panel=_ENGINE,
        autocompletion=completion.engines,
        help=f"{_ENGINES}; trtllm (TensorRT-LLM) is planned only. With --gpus also several, separated by commas; all "
        "but node where none is named.",
    ),
]

WriterOpt = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="NAME",
        rich_help_panel=_ENGINE,
        autocompletion=completion.engines,
        help=f"{_ENGINES}.",
    ),
]

VersionOpt = Annotated[
    str | None,
    typer.Option(
        "--engine-version",
        metavar="VERSION",
        rich_help_panel=_ENGINE,
        autocompletion=completion.versions,
        show_default="the newest that is known",
        help="The engine's version.",
    ),
]

RunnerOpt = Annotated[
    str | None,
    typer.Option(
        "--runner",
        metavar="NAME",
        rich_help_panel=_ENGINE,
        autocompletion=completion.runners,
        show_default="the engine's, else its next that runs",
        help="MoE runner (SGLang) or backend (vLLM): marlin, flashinfer_mxfp4, ...",
    ),
]

A2aOpt = Annotated[
    str | None,
    typer.Option(
        "--a2a",
        metavar="NAME",
        rich_help_panel=_ENGINE,
        autocompletion=completion.a2a,
        show_default="none",
        help="SGLang's all-to-all backend: deepep, megamoe, ...",
    ),
]

ExpertDtypeOpt = Annotated[
    str | None,
    typer.Option(
        "--expert-dtype",
        metavar="DTYPE",
        rich_help_panel=_ENGINE,
        autocompletion=completion.expert_dtypes,
        show_default="the checkpoint's",
        help="fp4 or fp8. fp8 casts FP4 experts as DeepSeek's converter does (reference only).",
    ),
]

GpuOpt = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="NAME",
        rich_help_panel=_HARDWARE,
        autocompletion=completion.gpus,
        show_default="Hopper, memory not looked at",
        help="h20-96, h20-141, h100, h200, b200, b300, gb200, gb300, ...",
    ),
]

GpuMemoryOpt = Annotated[
    str | None,
    typer.Option(
        "--gpu-memory",
        metavar="SIZE",
        rich_help_panel=_HARDWARE,
        help="In place of --gpu: a Hopper GPU of 96GB, 95GiB or 97285MiB.",
    ),
]

NodesOpt = Annotated[
    int | None,
    typer.Option(
        "--nodes",
        metavar="N",
        min=1,
        rich_help_panel=_HARDWARE,
        show_default="as few as hold the GPUs",
        help="Hosts.",
    ),
]

PlanOutputOpt = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write the plan to this file.")
]

PageOutputOpt = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")]

CompareOpt = Annotated[
    tuple[Path, Path] | None,
    typer.Option("--compare", metavar="FILE FILE", help="Plan nothing: say what differs between two plan files."),
]

# --- what is written, and where ------------------------------------------------------------------------------------

OutArg = Annotated[
    str,
    typer.Argument(metavar="OUT", help="Folder to make, or s3://, gs://, az://; a result only when it is complete."),
]

OutFolderArg = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make; appears only when it is complete.")]

PlanFileOpt = Annotated[
    Path | None,
    typer.Option(
        "--plan", metavar="FILE", rich_help_panel=_LAYOUT, help="Follow this plan (of `plan -o`), which says the rest."
    ),
]

RanksOpt = Annotated[
    str | None,
    typer.Option(
        "--ranks",
        metavar="RANKS",
        rich_help_panel=_WRITING,
        show_default="all",
        help="Write only these ranks (node: nodes): 0-7 or 0,2,4; auto: this process's share, under torchrun or srun.",
    ),
]

DryRunOpt = Annotated[
    bool, typer.Option("--dry-run", rich_help_panel=_WRITING, help="Say what would be written, and stop.")
]

OverwriteOpt = Annotated[bool, typer.Option("--overwrite", rich_help_panel=_WRITING, help="Replace an earlier result.")]

RestartOpt = Annotated[
    bool, typer.Option("--restart", rich_help_panel=_WRITING, help="Throw away what an unfinished run left.")
]

InexactOpt = Annotated[
    bool, typer.Option("--allow-inexact", rich_help_panel=_WRITING, help="Let the cast of experts to FP8 round.")
]

DownloadOpt = Annotated[
    bool,
    typer.Option(
        "--download",
        rich_help_panel=_WRITING,
        help="REPO is on the Hub: first download the files that are needed into the Hub cache.",
    ),
]

ScratchOpt = Annotated[
    Path | None,
    typer.Option(
        "--scratch",
        metavar="FOLDER",
        rich_help_panel=_WRITING,
        show_default="the current folder",
        help="OUT is a URL: where the files are made first.",
    ),
]

KeepScratchOpt = Annotated[
    bool, typer.Option("--keep-scratch", rich_help_panel=_WRITING, help="Keep them there after the upload.")
]

JobsOpt = Annotated[
    int | None,
    typer.Option("--jobs", metavar="N", min=1, show_default="the CPUs, at most 8", help="Worker threads."),
]

RayOpt = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        rich_help_panel=_WRITING,
        help="Share the ranks out over a Ray cluster; auto: this machine's.",
    ),
]

# --- what is proven ------------------------------------------------------------------------------------------------

AgainstOpt = Annotated[
    str | None,
    typer.Option(
        "--against",
        metavar="REPO",
        autocompletion=completion.repos,
        show_default="the manifest alone",
        help="The checkpoint that it was made from.",
    ),
]

NumericsOpt = Annotated[bool, typer.Option("--numerics", help="Also add up the experts of a layer (--against).")]

LayerOpt = Annotated[
    int | None, typer.Option("--layer", metavar="N", show_default="the last", help="The layer for --numerics.")
]

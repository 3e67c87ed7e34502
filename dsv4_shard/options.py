"""Options and arguments of the commands, as typer takes them: name, limits, help."""

from pathlib import Path
from typing import Annotated

import typer

# --- what is read, and how it is answered --------------------------------------------------------------------------

RepoArg = Annotated[
    str, typer.Argument(help="Checkpoint: a folder, org/name[@revision] on the Hub, or s3://, gs://, az://.")
]
DefaultRepoArg = Annotated[
    str | None, typer.Argument(help="Checkpoint; default: the current folder, else the one last inspected.")
]
SourceArg = Annotated[str, typer.Argument(help="A plan file (*.json), or a checkpoint as `inspect` takes it.")]
RanksArg = Annotated[str, typer.Argument(help="Folder of rank shards: reshard's, or DeepSeek's converter's.")]
ResultsArg = Annotated[
    list[Path], typer.Argument(help="A folder that reshard made, or those of shares, as one result.")
]
TextArg = Annotated[
    str | None, typer.Argument(help="What the engine printed, or its log: a file, or - for stdin (default: a pipe).")
]
ModelOpt = Annotated[
    str | None, typer.Option("--repo", help="Hold it against this checkpoint, not against the releases' sizes.")
]
PlansRepoOpt = Annotated[
    str | None, typer.Option("--repo", help="Where the plan's checkpoint is; default: where the plan names it.")
]
RefreshOpt = Annotated[
    bool, typer.Option("--refresh", help="Ask the Hub where the branch is, though it was asked within the hour.")
]
ConfigOpt = Annotated[
    Path | None, typer.Option("--config", help="config.json for shards of DeepSeek's converter, which have none.")
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]

# --- what is planned -----------------------------------------------------------------------------------------------

TpsOpt = Annotated[str, typer.Option("--tp", help="Candidate TP sizes, separated by commas.")]
TpOpt = Annotated[int | None, typer.Option("--tp", min=1, help="Tensor parallelism.")]
UnplannedTpOpt = Annotated[int | None, typer.Option("--tp", min=1, help="Tensor parallelism, if there is no plan.")]
GpusOpt = Annotated[
    int | None, typer.Option("--gpus", min=1, help="Instead of --tp: search all layouts on so many GPUs.")
]
RankByOpt = Annotated[str | None, typer.Option("--rank-by", help="With --gpus: weights (default), tokens or sent.")]
EpOpt = Annotated[int | None, typer.Option("--ep", min=1, help="Expert parallelism; default: the engine's.")]
DpOpt = Annotated[
    int, typer.Option("--dp", min=1, help="SGLang, TensorRT-LLM: attention DP inside TP. vLLM: replicas.")
]
EngineOpt = Annotated[
    str,
    typer.Option(
        "--engine", help="sglang, vllm, reference, node (a folder a node) or trtllm; with --gpus several, by commas."
    ),
]
RunnerOpt = Annotated[
    str | None,
    typer.Option("--runner", help="MoE runner or backend (marlin, flashinfer_mxfp4, ...); default: engine's."),
]
A2aOpt = Annotated[str | None, typer.Option("--a2a", help="SGLang's all-to-all backend (deepep, megamoe, ...).")]
SharedOpt = Annotated[str, typer.Option("--shared-experts", help="auto, whole, split or pad.")]
GpuOpt = Annotated[str | None, typer.Option("--gpu", help="h20-96, h20-141, h100, h200, b200, b300, gb200, gb300, ...")]
GpuMemoryOpt = Annotated[
    str | None, typer.Option("--gpu-memory", help="Instead of --gpu: a Hopper GPU of 96GB, 95GiB or 97285MiB.")
]
NodesOpt = Annotated[int | None, typer.Option("--nodes", min=1, help="Hosts; default: as few as hold the GPUs.")]
ExpertDtypeOpt = Annotated[
    str | None, typer.Option("--expert-dtype", help="fp8: cast FP4 experts as DeepSeek's converter does (reference).")
]
VersionOpt = Annotated[str | None, typer.Option("--engine-version", help="Default: the newest that is known.")]
PlanOutputOpt = Annotated[Path | None, typer.Option("--output", "-o", help="Also write the plan to this file.")]
PageOutputOpt = Annotated[Path, typer.Option("--output", "-o", help="The file to write.")]
CompareOpt = Annotated[
    tuple[Path, Path] | None, typer.Option("--compare", metavar="A B", help="What differs between two plan files.")
]

# --- what is written, and where ------------------------------------------------------------------------------------

OutArg = Annotated[str, typer.Argument(help="Folder to make, or s3://, gs://, az://; a result only when complete.")]
OutFolderArg = Annotated[Path, typer.Argument(help="Folder to make; appears only when it is complete.")]
PlanFileOpt = Annotated[Path | None, typer.Option("--plan", help="Follow this plan (made by `plan -o`).")]
RanksOpt = Annotated[
    str | None,
    typer.Option("--ranks", help="Write only these ranks (node: nodes): 0-7 or 0,2,4; auto: torchrun, srun."),
]
DryRunOpt = Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and stop.")]
OverwriteOpt = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")]
RestartOpt = Annotated[bool, typer.Option("--restart", help="Throw away what an unfinished run left.")]
InexactOpt = Annotated[bool, typer.Option("--allow-inexact", help="Let the FP8 cast round.")]
DownloadOpt = Annotated[
    bool, typer.Option("--download", help="Hub: first download the files that are needed into the Hub cache.")
]
ScratchOpt = Annotated[
    Path | None, typer.Option("--scratch", help="OUT is a URL: where the files are made first; default: here.")
]
KeepScratchOpt = Annotated[bool, typer.Option("--keep-scratch", help="Keep them after the upload.")]
JobsOpt = Annotated[int | None, typer.Option("--jobs", min=1, help="Worker threads; default: the CPUs, at most 8.")]
RayOpt = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", help="Share the ranks out over a Ray cluster; auto: this machine's."),
]

# --- what is proven ------------------------------------------------------------------------------------------------

AgainstOpt = Annotated[str | None, typer.Option("--against", help="The checkpoint it was made from.")]
NumericsOpt = Annotated[bool, typer.Option("--numerics", help="Also add up the experts of a layer (--against).")]
LayerOpt = Annotated[int | None, typer.Option("--layer", help="The layer for --numerics; default: the last.")]

"""Options of the verbs that write and verify: one class for each group of options, and the list of each verb.

The fields of the last base class come first. Like `catalog.request`, this module imports nothing slow; the verbs'
modules define the names of the quoted annotations.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dsv4_shard.catalog.option import Option, Options
from dsv4_shard.catalog.rank_ranges import MAX_RANKS
from dsv4_shard.catalog.request import (
    ENGINE_NAME,
    ENGINES_THAT_WRITE,
    LAYOUT,
    SIGNATURE,
    TP,
    WRITING,
    LayoutOptions,
)

if TYPE_CHECKING:
    from dsv4_shard.planning import document
    from dsv4_shard.sharding import progress as progressing

_LONGEST_RANKS = 1 << 16

RAY = Option(
    help="Write on the nodes of a Ray cluster; auto: this machine's.",
    metavar="ADDRESS",
    panel=WRITING,
    longest=1000,
)

# --- layout and ranks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PlanFile(Options):
    plan: Annotated[
        "str | Path | document.Plan | None",
        Option(
            help="Follow this plan, which `plan -o` wrote.",
            metavar="FILE",
            panel=LAYOUT,
            typed=Path,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class UnplannedTp(Options):
    tp: Annotated[int | None, replace(TP, help="Tensor parallelism, if there is no plan.")] = None


@dataclass(frozen=True, kw_only=True)
class PlanOrLayout(LayoutOptions, UnplannedTp, PlanFile):
    """The layout to write: that of a plan, or the one that the options name."""

    engine: Annotated[str, replace(ENGINE_NAME, help=f"{ENGINES_THAT_WRITE}.")] = "sglang"


@dataclass(frozen=True, kw_only=True)
class Ranks(Options):
    ranks: Annotated[
        str | Iterable[int] | None,
        Option(
            help="Write only these ranks (node: nodes): 0-7 or 0,2,4; auto: the missing ranks of this process's share, "
            "under torchrun, mpirun or srun.",
            metavar="RANKS", panel=WRITING, shows="all", least=0, most=MAX_RANKS - 1, longest=_LONGEST_RANKS,
            expects="numbers, or text such as '0-7' or 'auto'",
        ),
    ] = None  # fmt: skip


# --- how to write ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DryRunFlag(Options):
    dry_run: Annotated[bool, Option(help="List the files and the space needed; write nothing.", panel=WRITING)] = False


@dataclass(frozen=True, kw_only=True)
class Overwrite(Options):
    overwrite: Annotated[bool, Option(help="Replace an earlier result.", panel=WRITING)] = False


@dataclass(frozen=True, kw_only=True)
class Restart(Options):
    restart: Annotated[bool, Option(help="Discard an unfinished run and start over.", panel=WRITING)] = False


@dataclass(frozen=True, kw_only=True)
class Inexact(Options):
    allow_inexact: Annotated[bool, Option(help="Allow rounding when experts are cast to FP8.", panel=WRITING)] = False


@dataclass(frozen=True, kw_only=True)
class Download(Options):
    download: Annotated[
        bool,
        Option(help="First download the needed files from the Hub into its cache.", panel=WRITING),
    ] = False


@dataclass(frozen=True, kw_only=True)
class ScratchFolder(Options):
    scratch: Annotated[
        str | Path | None,
        Option(
            help="Where the files are made before the upload, if OUT is a URL.",
            metavar="FOLDER", panel=WRITING, shows="the current folder",
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class KeepScratch(Options):
    keep_scratch: Annotated[bool, Option(help="Keep the scratch files after the upload.", panel=WRITING)] = False


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    config: Annotated[
        str | Path | None,
        Option(
            help="config.json for shards of DeepSeek's converter, which have none.",
            metavar="FILE", shows="the folder's own",
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Jobs(Options):
    jobs: Annotated[
        int | None,
        Option(
            help="Number of workers: processes for folders, threads for the Hub and stores.",
            metavar="N",
            shows="the CPUs, at most 32",
            least=1,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Told(Options):
    """Python API only."""

    progress: Annotated["progressing.Progress | None", Option(help="Receives the progress of the run.")] = None


@dataclass(frozen=True, kw_only=True)
class Against(Options):
    against: Annotated[
        str | Path | None,
        Option(
            help="Compare with the checkpoint that the result was made from.",
            metavar="REPO", shows="the manifest alone", completion="repos", typed=str,
        ),
    ] = None  # fmt: skip
    numerics: Annotated[bool, Option(help="Also recompute one layer's experts from the shards and compare.")] = False
    layer: Annotated[int | None, Option(help="The layer for --numerics.", metavar="N", shows="the last")] = None


@dataclass(frozen=True, kw_only=True)
class Sample(Options):
    sample: Annotated[
        str | None,
        Option(
            help="Read only this part of the tensors, chosen at random: 5%.", metavar="PERCENT", shows="everything",
            expects="text such as '5%'", longest=20,
        ),
    ] = None  # fmt: skip


# --- signatures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TrustConfig(Options):
    trust_config: Annotated[
        str | Path | None,
        Option(
            help="The trust configuration of your own Sigstore instance.",
            metavar="FILE", panel=SIGNATURE, shows="the public one", typed=Path,
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SigningKey(Options):
    key: Annotated[
        str | Path | None,
        Option(help="The private key to sign with, PEM.", metavar="FILE", panel=SIGNATURE, typed=Path),
    ] = None
    certificate: Annotated[
        str | Path | None,
        Option(help="The certificate of the key, PEM.", metavar="FILE", panel=SIGNATURE, typed=Path),
    ] = None
    certificate_chain: Annotated[
        str | Path | None,
        Option(help="Certificates between it and the root, PEM.", metavar="FILE", panel=SIGNATURE, typed=Path),
    ] = None
    keyless: Annotated[
        bool,
        Option(help="Sign as this workload's identity or your own; Sigstore makes it public.",
               panel=SIGNATURE),
    ] = False  # fmt: skip
    identity_token: Annotated[
        str | Path | None,
        Option(
            help="The OpenID Connect token of the identity, for --keyless.",
            metavar="FILE", panel=SIGNATURE, shows="that of the workload", typed=Path,
        ),
    ] = None  # fmt: skip
    signature: Annotated[
        str | Path | None,
        Option(help="The signature to write.", metavar="FILE", panel=SIGNATURE, shows="model.sig in OUT", typed=Path),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ExpectedSigner(Options):
    signature: Annotated[
        str | Path | None,
        Option(
            help="Also verify this signature, of `sign` or of model_signing.", metavar="FILE", panel=SIGNATURE,
            typed=Path,
        ),
    ] = None  # fmt: skip
    public_key: Annotated[
        str | Path | None,
        Option(help="The signer's public key, PEM.", metavar="FILE", panel=SIGNATURE, typed=Path),
    ] = None
    certificate_chain: Annotated[
        str | Path | None,
        Option(help="The trusted certificates, PEM.", metavar="FILE", panel=SIGNATURE, typed=Path),
    ] = None
    identity: Annotated[
        str | None,
        Option(help="The signer of a keyless signature.", metavar="NAME", panel=SIGNATURE, longest=1000),
    ] = None
    identity_provider: Annotated[
        str | None,
        Option(help="The provider that vouches for the identity.", metavar="URL", panel=SIGNATURE, longest=1000),
    ] = None


@dataclass(frozen=True, kw_only=True)
class SignWith(TrustConfig, SigningKey):
    """How to sign."""


@dataclass(frozen=True, kw_only=True)
class SignatureToVerify(TrustConfig, ExpectedSigner):
    """The signature to verify, and whose it must be."""


# --- verbs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ReshardOptions(Told, Jobs, Config, Download, Inexact, Restart, Overwrite, Ranks, PlanOrLayout):
    """The options of `reshard`."""


@dataclass(frozen=True, kw_only=True)
class StoreOptions(
    Told, Jobs, Config, KeepScratch, ScratchFolder, Download, Inexact, Restart, Overwrite, Ranks, PlanOrLayout
):
    """The options of `reshard_to_store`."""


@dataclass(frozen=True, kw_only=True)
class DryRunOptions(Config, ScratchFolder, Restart, Overwrite, Ranks, PlanOrLayout):
    """The options of `reshard_dry_run`."""


@dataclass(frozen=True, kw_only=True)
class ClusterOptions(Told, Jobs, Config, Inexact, Restart, PlanOrLayout):
    """The options of `reshard_on_cluster`."""

    ray: Annotated[str, RAY] = "auto"


@dataclass(frozen=True, kw_only=True)
class ReshardCommand(
    Jobs, Config, KeepScratch, ScratchFolder, Download, Inexact, Restart, Overwrite, DryRunFlag, Ranks, PlanOrLayout
):
    """The options of the command `reshard`, which runs one of four verbs."""

    ray: Annotated[str | None, RAY] = None


@dataclass(frozen=True, kw_only=True)
class MergeOptions(Told, Jobs, Restart, Overwrite, Config):
    """The options of `merge`."""


@dataclass(frozen=True, kw_only=True)
class MergeDryRunOptions(Overwrite, Config):
    """The options of `merge_dry_run`."""


@dataclass(frozen=True, kw_only=True)
class MergeCommand(Jobs, Restart, Overwrite, DryRunFlag, Config):
    """The options of the command `merge`, which runs `merge` or `merge_dry_run`."""


@dataclass(frozen=True, kw_only=True)
class VerifyCommand(Jobs, SignatureToVerify, Sample, Against):
    """The options of the command `verify`, which runs `verify` or `verify_shares`."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(Told, VerifyCommand):
    """The options of `verify`."""


@dataclass(frozen=True, kw_only=True)
class VerifySharesOptions(Told, Jobs, Sample, Against):
    """The options of `verify_shares`."""


@dataclass(frozen=True, kw_only=True)
class SignCommand(Jobs, SignWith):
    """The options of the command `sign`."""


@dataclass(frozen=True, kw_only=True)
class SignOptions(Told, SignCommand):
    """The options of `sign`."""

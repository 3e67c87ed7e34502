"""Prints the result of `verify`: accounts, problems, and one verdict."""

from typing import TYPE_CHECKING

from rich.console import Console

from dsv4_shard.catalog.rank_ranges import say_ranks
from dsv4_shard.terminal.text import item, paragraph, title
from dsv4_shard.text.units import counted, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dsv4_shard.verification import Numerics, Problem, SharesVerification, Verification

_PROBLEMS_SHOWN = 20


def show_verification(console: Console, found: "Verification | SharesVerification") -> None:
    """Show the verification of one folder, or of several as one result, and what it cannot know."""
    from dsv4_shard.verification import Verification

    if isinstance(found, Verification):
        _show_folder(console, found)
        _show_unknown(console, [found])
    else:
        show_together(console, found)
        _show_unknown(console, found.folders)


def _show_folder(console: Console, verification: "Verification") -> None:
    """Show accounts, problems and verdict."""
    _show_verified(console, verification)
    if verification.missing:
        _show_missing(console, verification, "not in this folder")
    _show_verdict(console, verification)


def show_together(console: Console, together: "SharesVerification") -> None:
    """Show each folder's accounts and problems, those of all folders together, and one verdict."""
    for verification in together.folders:
        _show_verified(console, verification)
    held = f"{say_ranks(together.ranks)} of {together.world}"
    title(console, f"together: {held}, layout {together.layout}")
    if together.missing:
        _show_missing(console, together, "in none of these folders")
    _show_problems(console, together.problems)
    _show_verdict(console, together)


def _show_missing(console: Console, found: "Verification | SharesVerification", where: str) -> None:
    item(console, f"missing: {say_ranks(found.missing)} of {found.world}, {where}", "yellow")


def _show_verified(console: Console, verification: "Verification") -> None:
    tensors = f"{counted(verification.tensors, 'tensor')} of {size(verification.bytes)}"
    held = f"{counted(verification.files, 'file')}, {tensors}"
    against = f", against {verification.against or 'its manifest'}"
    if verification.sampled_bytes is not None:
        against += f", {size(verification.sampled_bytes)} of tensors chosen at random"
    title(console, f"{verification.folder}: {held}{against}")
    if len(verification.ranks) < verification.world:
        item(console, f"{say_ranks(verification.ranks)} of {verification.world}")
    for fate, count in verification.accounts.items():
        if fate != "left out":  # listed with their reasons
            item(console, f"{count:,} source tensors {fate}")
    for reason, count in verification.left_out.items():
        item(console, f"{count:,} source tensors left out: {reason}", "dim")
    if verification.signature is not None:
        signed = verification.signature
        item(console, f"signature of {counted(signed.files, 'file')}: by {signed.by}")
    for note in verification.notes:
        item(console, f"note: {note}", "dim")
    _show_problems(console, verification.problems)


def _show_problems(console: Console, problems: "tuple[Problem, ...]") -> None:
    for problem in problems[:_PROBLEMS_SHOWN]:
        place = ": ".join(part for part in (problem.file, problem.tensor) if part)
        item(console, f"{place}: {problem.message}", "red")
    hidden = len(problems) - _PROBLEMS_SHOWN
    if hidden > 0:
        item(console, f"and {hidden:,} more problems (--json lists them)", "red")


def _show_verdict(console: Console, found: "Verification | SharesVerification") -> None:
    numerics = found.numerics
    if numerics is not None:
        _show_numerics(console, numerics)
    if not found.ok or (numerics is not None and not numerics.ok):
        paragraph(console, "FAILED: the result differs from what was written", "bold red")
    elif found.missing:
        verb = "is" if len(found.ranks) == 1 else "are"
        paragraph(console, f"{say_ranks(found.ranks)} {verb} as written; {say_ranks(found.missing)} missing", "yellow")
    else:
        paragraph(console, "OK: no problems found", "bold green")


def _show_unknown(console: Console, folders: "Sequence[Verification]") -> None:
    """Show what a verification that found nothing cannot know."""
    if all(verification.ok for verification in folders):
        for sentence in dict.fromkeys(sentence for verification in folders for sentence in verification.unknown):
            item(console, f"not known: {sentence}", "dim")


def _show_numerics(console: Console, numerics: "Numerics") -> None:
    item(
        console,
        f"layer {numerics.layer}: {len(numerics.experts)} routed experts and the shared one ({numerics.shared_experts} "
        f"on each of {numerics.ranks} ranks) add up to the unsharded layer, relative error {numerics.error_once:.1e}",
        "" if numerics.ok else "red",
    )
    if numerics.ranks > 1 and numerics.shared_experts == "whole":
        item(console, f"(counted {numerics.ranks} times, the error would be {numerics.error_on_every_rank:.1e})", "dim")

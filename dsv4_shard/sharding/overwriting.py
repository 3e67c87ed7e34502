"""`--overwrite` deletes a result of this tool and nothing else: every name in the folder must be in its manifest."""

import os
import stat
from pathlib import Path

from dsv4_shard.errors import NewerSchema, NotAResult, OutputNotEmpty
from dsv4_shard.sharding.manifest import Manifest, load_manifest
from dsv4_shard.storage import MANIFEST_NAME, SIGNATURE_NAME, digest_of_file, refuse_strangers


def names_to_overwrite(out: Path) -> frozenset[str]:
    """Return the name of every file of the result in `out`, its manifest included; none if `out` is empty or missing.

    Raises:
        OutputNotEmpty: `out` holds something that reshard or merge did not write, or a small file that was changed
            since. Weight files may be damaged: they are what is to be written again.
    """
    if not out.is_dir() or not any(out.iterdir()):
        return frozenset()
    try:
        manifest = load_manifest(out)
    except (NotAResult, NewerSchema) as error:
        raise OutputNotEmpty(f"{error}: not overwritten", hint=_YOURSELF) from None
    names = frozenset({MANIFEST_NAME, *manifest.names})
    if os.path.lexists(out / SIGNATURE_NAME):
        raise OutputNotEmpty(
            f"{out}: signed; not overwritten, since {SIGNATURE_NAME} would be lost with the signed files",
            hint=f"Move {SIGNATURE_NAME} away, or choose another folder.",
        )
    refuse_strangers(out, names)
    _refuse_changed(out, manifest)
    return names


_YOURSELF = "Choose another folder, or empty this one."


def _refuse_changed(out: Path, manifest: Manifest) -> None:
    """Raise OutputNotEmpty for a small file that somebody put in the place of the result's own."""
    for entry in manifest.companions:
        try:
            found = (out / entry.name).lstat()
        except FileNotFoundError:
            continue
        is_own = stat.S_ISREG(found.st_mode) and found.st_size == entry.nbytes
        if not is_own or digest_of_file(out / entry.name) != entry.digest:
            raise OutputNotEmpty(
                f"{out / entry.name}: changed since the result was written, not overwritten",
                hint="Move it away, or remove it.",
            )

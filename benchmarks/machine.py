"""What the numbers come from."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from dsv4_shard.version import __version__


def describe(scratch: Path) -> dict[str, Any]:
    """CPUs, memory, kernel, the file system under `scratch`, and what ran."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(scratch)], check=True, capture_output=True, text=True)
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "file_system": kind.stdout.strip(),
        "python": platform.python_version(),
        "dsv4_shard": __version__,
    }

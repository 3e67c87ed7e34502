"""Commands, run in this process as a user types them."""

from pathlib import Path

from support.checkpoints.full_size import inventory_of
from typer.testing import CliRunner, Result

from dsv4_shard.cli import app


def run(*arguments: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def root_of(model: str) -> Path:
    """The folder of a real checkpoint's headers."""
    root = inventory_of(model)[0].source.root
    assert root is not None
    return root

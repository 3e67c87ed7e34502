"""`gpus`: the GPUs that `--gpu` names."""

from dsv4_shard.terminal import options
from dsv4_shard.terminal.output import show
from dsv4_shard.terminal.process import reported


@reported
def gpus(as_json: options.JsonOpt = False) -> None:
    """List the GPUs that --gpu names, with their memory."""
    from dsv4_shard.terminal.gpu_list import list_gpus
    from dsv4_shard.terminal.screens.gpus import show_gpus

    show(list_gpus(), as_json, show_gpus)

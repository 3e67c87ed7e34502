"""What a process runs with. Tests put it into `parallel` and `exec_`, as `publish` and the process groups do."""

from types import SimpleNamespace

parallel = SimpleNamespace()
exec_ = SimpleNamespace(moe=SimpleNamespace())


def get_parallel():
    return parallel


def get_exec():
    return exec_

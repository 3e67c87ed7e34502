"""Runs a command and, if it ends well, prints as a last line of JSON what the kernel counted for it.

It is a program of its own, and a small one (run it with `python -I -S`): the peak that the kernel reports for a process
is never less than the memory of the process that started it.
"""

import json
import os
import signal
import sys
import time


def main() -> None:
    """Start the command, wait for its end, read its counters before it is forgotten."""
    command = sys.argv[1:]
    started = time.monotonic()
    pid = os.posix_spawnp(command[0], command, os.environ)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the command as well
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    seconds = time.monotonic() - started
    with open(f"/proc/{pid}/io") as file:
        counters = dict(line.split(": ") for line in file)
    _, status, usage = os.wait4(pid, 0)
    figures = {
        "seconds": seconds,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak_memory": usage.ru_maxrss * 1024,
        "bytes_read": int(counters["rchar"]),
        "bytes_written": int(counters["wchar"]),
        "disk_read": int(counters["read_bytes"]),
        "disk_written": int(counters["write_bytes"]),
    }
    code = os.waitstatus_to_exitcode(status)
    if code:
        sys.exit(code if code > 0 else 128 - code)
    print("\n" + json.dumps(figures))


if __name__ == "__main__":
    main()

"""nginx on loopback: a server of files that costs little, so that the client is what is measured."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from support.servers.redirecting import write_certificate

from benchmarks.settings import NotMeasured

HOST = "127.0.0.2"

CONFIG = """
{user}daemon off; worker_processes 2; pid {folder}/pid; error_log {folder}/errors;
events {{ worker_connections 512; }}
http {{
  sendfile on; tcp_nopush on; keepalive_requests 1000000; types {{ }}
  log_format sent "$body_bytes_sent $uri"; access_log {folder}/sent sent;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  ssl_certificate {folder}/certificate.pem; ssl_certificate_key {folder}/certificate.pem; root {folder}/root;
  limit_rate {rate};
  server {{
    listen {host}:{port}; listen {host}:{tls} ssl;
    if ($http_authorization ~ "^Bearer") {{ return 400; }}
    location /{bucket}/ {{ }}
    location = /{bucket} {{ rewrite ^ /{bucket}.xml last; }}
  }}
}}
"""
BUCKET = "bucket"


@dataclass(frozen=True, slots=True)
class FileServer:
    """Serves the files below `root` over http and https, both on HOST."""

    folder: Path
    url: str
    tls_url: str

    @property
    def certificate(self) -> Path:
        """The one to trust."""
        return self.folder / "certificate.pem"

    def bytes_sent(self) -> int:
        """Bytes of all bodies since the last call."""
        log = self.folder / "sent"
        sent = sum(int(line.split()[0]) for line in log.read_text().splitlines())
        os.truncate(log, 0)
        return sent


def found() -> str | None:
    """Return the path of nginx, which is not on every user's PATH; None if there is none."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextmanager
def serving(folder: Path, files: Mapping[str, Path], rate: int = 0) -> Iterator[FileServer]:
    """Serve files by their names in URLs, until the block ends. `folder` is made, and removed.

    Each connection gives `rate` bytes per second; 0: as many as it can.

    Raises NotMeasured without nginx.
    """
    program = found()
    if program is None:
        raise NotMeasured("network: needs nginx on the PATH")
    (folder / "root").mkdir(parents=True)
    folder.chmod(0o755)
    for name, path in files.items():
        link = folder / "root" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    write_certificate(folder / "certificate.pem")
    user = "user root; " if os.geteuid() == 0 else ""
    port, tls = _free_port(), _free_port()
    config = CONFIG.format(user=user, folder=folder, host=HOST, port=port, tls=tls, bucket=BUCKET, rate=rate)
    (folder / "nginx.conf").write_text(config)
    process = subprocess.Popen([program, "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL)
    server = FileServer(folder, f"http://{HOST}:{port}", f"https://{HOST}:{tls}")
    try:
        _await(process, f"{server.url}/{next(iter(files))}", folder / "errors")
        yield server
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _await(process: "subprocess.Popen[bytes]", url: str, errors: Path) -> None:
    for _ in range(100):
        try:
            with urlopen(url):
                return
        except OSError:
            time.sleep(0.05)
        if process.poll() is not None:
            break
    raise NotMeasured(f"network: nginx does not serve {url}: {errors.read_text() if errors.exists() else ''}")

"""Environment variables that clients of servers read: certificates, proxies, files of credentials.

The clients' own errors do not name the variable, so it is looked for after a request failed.
"""

import importlib.util
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from dsv4_shard.errors import UsageError
from dsv4_shard.text.sanitize import short_name

PATH_VARIABLES = (
    "HF_TOKEN_PATH",
    "HF_HUB_CACHE",
    "HF_HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "SSLKEYLOGFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_SERVICE_ACCOUNT",
    "AZURE_FEDERATED_TOKEN_FILE",
    "XDG_CACHE_HOME",
)
"""Variables that name a file or a folder. A file in the folder of another stands before it."""

_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")

_HUB_PROXIES = ("http", "https", "socks5", "socks5h")
"""Kinds of proxies that huggingface_hub's client knows. It refuses others even if it would not ask them."""


def variable_of(path: str) -> str | None:
    """Return the variable that names `path` or a folder above it; None if none does."""
    for name in PATH_VARIABLES:
        value = os.environ.get(name, "").rstrip("/")
        if value and (path == value or path.startswith(f"{value}/")):
            return name
    return None


def variable_in(text: str) -> str | None:
    """Return the variable whose path stands in a library's error; None if there is none."""
    return next((name for name in PATH_VARIABLES if (path := os.environ.get(name)) and path in text), None)


def check_client_environment(*, hub: bool = False) -> None:
    """Raise UsageError for the first variable that names no usable certificates, or no proxy.

    `hub` also checks the kind of the proxy, as huggingface_hub's client does.
    """
    for name, value, problem in _problems(hub):
        raise UsageError(f"{name}={short_name(value)}: {problem}", hint=f"Correct or unset {name}.")


def _problems(hub: bool) -> Iterator[tuple[str, str, str]]:
    """Yield (variable, value, what is wrong with it)."""
    file, folders = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file and (problem := _trust_problem(file)):
        yield "SSL_CERT_FILE", file, problem
    if folders and not file and not any(map(os.path.isdir, folders.split(os.pathsep))):
        yield "SSL_CERT_DIR", folders, "no such folder"
    if (log := os.environ.get("SSLKEYLOGFILE")) and not Path(log).absolute().parent.is_dir():
        yield "SSLKEYLOGFILE", log, "no such folder"
    for name in (spelled for upper in _PROXIES for spelled in (upper.lower(), upper)):
        if (proxy := os.environ.get(name)) and (problem := _proxy_problem(proxy, hub)):
            yield name, proxy.rpartition("@")[2], problem  # without a password


def _trust_problem(file: str) -> str | None:
    """Return why a file of certificates cannot be used; None if it can."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except ssl.SSLError:
        return "no certificates in it"
    except OSError as error:
        return error.strerror
    return None


def _proxy_problem(proxy: str, hub: bool) -> str | None:
    """Return why a proxy's address cannot be used; None if it can."""
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        is_address = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_address = False
    if not is_address:
        return "not a proxy's address, such as http://HOST:PORT"
    if hub and parts.scheme not in _HUB_PROXIES:
        return f"a {short_name(parts.scheme)}:// proxy is not supported"
    if hub and parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        return "a SOCKS proxy needs a package: `pip install socksio`"
    return None

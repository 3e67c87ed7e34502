"""Variables of the environment that name a missing file, or no proxy: the error names the variable."""

import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from dsv4_shard.errors import ExitCode, UsageError
from dsv4_shard.sources import object_store_errors
from dsv4_shard.sources.client_environment import check_client_environment, variable_of

NAMES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, *map(str.lower, NAMES)):
        monkeypatch.delenv(name, raising=False)


def inspect(repo: str, tmp_path: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The command as a process, since clients read the environment once."""
    own = {"HF_ENDPOINT": "https://127.0.0.1:9", "HF_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "dsv4_shard", "inspect", repo]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | own | environment, check=False)


@pytest.mark.parametrize(("name", "value", "said"), [
    ("SSL_CERT_FILE", "/nowhere/ca.pem", "SSL_CERT_FILE=/nowhere/ca.pem: No such file or directory"),
    ("HF_TOKEN_PATH", "/usr", "HF_TOKEN_PATH: /usr: Is a directory"),
    ("HTTPS_PROXY", "socks4://127.0.0.1:9", "HTTPS_PROXY=socks4://127.0.0.1:9: a socks4:// proxy is not supported"),
])  # fmt: skip
def test_the_hubs_client_fails_with_the_variable_that_is_wrong(
    name: str, value: str, said: str, tmp_path: Path
) -> None:
    failed = inspect("org/name", tmp_path, **{name: value})
    assert (failed.returncode, failed.stderr.splitlines()[0]) == (ExitCode.USAGE, f"error: {said}")
    assert "the current folder" not in failed.stderr


def test_a_path_of_the_environment_that_is_no_folder_is_named_by_its_variable(tmp_path: Path) -> None:
    assert variable_of("/dev/null/x/token") is None
    failed = inspect("org/name", tmp_path, HF_HOME="/dev/null/x")
    assert failed.stderr.splitlines()[0] == "error: HF_HOME: /dev/null/x/token: Not a directory"


@pytest.mark.parametrize(("name", "value", "said"), [
    ("SSL_CERT_FILE", "{}", "no certificates in it"),
    ("SSL_CERT_FILE", "{}/..", "Is a directory|Not a directory"),
    ("SSL_CERT_DIR", "{}", "no such folder"),
    ("SSLKEYLOGFILE", "{}/log", "no such folder"),
    ("https_proxy", "http://[bad", "not a proxy's address"),
    ("ALL_PROXY", "http://host:99999", "not a proxy's address"),
    ("HTTP_PROXY", "ftp://user:secret@host", "a ftp:// proxy is not supported"),
])  # fmt: skip
def test_each_variable_is_named_with_its_problem(
    name: str, value: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text("no certificate")
    monkeypatch.setenv(name, value.format(tmp_path / "text"))
    with pytest.raises(UsageError, match=f"^{name}=.*: ({said})") as caught:
        check_client_environment(hub=True)
    assert "secret" not in str(caught.value)


def test_settings_that_clients_can_use_are_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trusted = ssl.get_default_verify_paths().cafile
    if trusted is not None:
        monkeypatch.setenv("SSL_CERT_FILE", trusted)
    monkeypatch.setenv("SSL_CERT_DIR", f"/nowhere:{tmp_path}")
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    monkeypatch.setenv("HTTPS_PROXY", "http://user:password@proxy:3128")
    monkeypatch.setenv("ALL_PROXY", "proxy:3128")
    check_client_environment(hub=True)


def test_a_file_that_a_stores_client_cannot_read_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/nowhere/token")
    text = "Generic S3 error: Failed to read token file '/nowhere/token': No such file or directory (os error 2)"
    error = object_store_errors.translate(ValueError(text), "s3://b/x", "s3://b", 0)
    assert error.hint == "AWS_WEB_IDENTITY_TOKEN_FILE names it: correct or unset it."

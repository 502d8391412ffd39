"""Publishing to SSH and S3 and pulling from them: real servers on this machine, which the tests start themselves.

OpenSSH's server is the installed one, or Debian's package unpacked into a temporary folder; the S3 server is
`moto[server]` in an environment of its own, because it pins botocore.
"""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.sharing import clone, dvc, git, project, pull, shared_files, snake, usbpo
from helpers.workflow import finished_workspace

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("remotes")]
BUCKET = "runs"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None, "the server ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail("the server does not answer")


def unpacked(folder: Path, *packages: str) -> Path:
    """Debian packages, got by apt and unpacked into a folder without installing them."""
    folder.mkdir()
    if shutil.which("apt-get") is None:
        pytest.skip("there is no sshd, and no apt to get one")
    got = subprocess.run(["apt-get", "download", *packages], cwd=folder, capture_output=True, text=True)
    if got.returncode:
        pytest.skip(f"apt does not bring {packages[0]}: {got.stderr.strip()}")
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, folder / "root"], check=True)
    return folder / "root"


@pytest.fixture(scope="module")
def ssh() -> Iterator[tuple[str, Path]]:
    """The URL of a folder behind a real sshd, and the private key that opens it."""
    folder = Path(tempfile.mkdtemp(prefix="usbpo-sshd-"))
    daemon, libraries = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin"), list[Path]()
    if daemon is None:
        root = unpacked(folder / "debian", "openssh-server", "libwrap0")
        daemon, libraries = str(root / "usr/sbin/sshd"), [*root.glob("usr/lib/*-linux-gnu"), *root.glob("lib/*-gnu")]
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    port, store = free_port(), folder / "store"
    store.mkdir()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        f"PidFile none\nStrictModes no\nPasswordAuthentication no\nSubsystem sftp internal-sftp\n"
    )
    user, words = getpass.getuser(), list[str]()
    if os.geteuid() == 0:
        # As root, sshd wants a user and a folder that only its installation makes; as anybody else it does not.
        # With PAM, since without it an account that has no password counts as locked.
        user, words = "nobody", ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]
        with open(folder / "sshd_config", "a") as file:
            file.write("UsePAM yes\n")
        for path in (folder, *folder.rglob("*")):
            shutil.chown(path, "nobody", "nogroup")
    server = subprocess.Popen(
        [*words, daemon, "-D", "-e", "-f", folder / "sshd_config"],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, libraries))},
    )
    try:
        wait_for_port(port, server)
        yield f"ssh://{user}@127.0.0.1:{port}{store}", folder / "user"
    finally:
        server.terminate()
        server.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 server with an empty bucket."""
    folder = tmp_path_factory.mktemp("s3")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    got = subprocess.run(
        [folder / "venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", "moto[server]"],
        capture_output=True,
        text=True,
    )
    if got.returncode:
        pytest.skip(f"pip does not bring moto: {got.stderr.strip()}")
    port = free_port()
    server = subprocess.Popen(
        [folder / "venv/bin/moto_server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_port(port, server)
        address = f"http://127.0.0.1:{port}"
        request = urllib.request.Request(f"{address}/{BUCKET}", method="PUT")
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200
        yield address
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture
def made(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """The project with the finished test experiment."""
    return project(tmp_path / "first", finished_workspace(tmp_path_factory))


def test_over_ssh_everything_comes_back_and_nothing_is_to_be_done(
    made: Path, ssh: tuple[str, Path], tmp_path: Path
) -> None:
    url, key = ssh
    dvc(made, "remote", "add", "--default", "store", url)
    dvc(made, "remote", "modify", "store", "keyfile", str(key))
    goes_and_comes(made, tmp_path)


def test_over_s3_everything_comes_back_and_nothing_is_to_be_done(
    made: Path, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    dvc(made, "remote", "add", "--default", "store", f"s3://{BUCKET}/usbpo")
    dvc(made, "remote", "modify", "store", "endpointurl", s3)
    goes_and_comes(made, tmp_path)


def goes_and_comes(made: Path, tmp_path: Path) -> None:
    snake(made)
    usbpo(made, "publish")
    git(made, "commit", "--all", "--quiet", "--message", "Publish")
    second = clone(made, tmp_path / "second")
    pull(second)
    assert shared_files(second) == shared_files(made)
    assert "Nothing to be done" in snake(second)

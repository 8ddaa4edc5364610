"""Two session_servers, Redis and nginx on loopback, to see how they work together.

    python docs/two_servers.py                    # with the built-in demo model, on a free port
    python docs/two_servers.py --port 8000 -base_url=http://localhost:11434/v1 -model=llama3.2

Flags but for `--port` go to both servers. It needs the Debian packages redis-server and nginx-light. Ctrl-C ends it
all, and what was stored is gone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parent
# What a system's own nginx.conf has around it.
AROUND = """
daemon off;
master_process off;
pid nginx.pid;
events {{ }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {site}
}}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Two servers, Redis and nginx on loopback.")
    parser.add_argument("--port", type=int, default=0, help="port of nginx (default: a free one)")
    given, flags = parser.parse_known_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: sys.exit(0))
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        redis_port, port = free_port(), given.port or free_port()
        stack.enter_context(redis(directory, redis_port))
        servers = []
        for number in (1, 2):
            log = directory / f"server-{number}.log"
            flags_of_one = [f"-redis_url=redis://127.0.0.1:{redis_port}/0", "-port=0", *(flags or ["-demo"])]
            servers.append(stack.enter_context(session_server(flags_of_one, log)))
        stack.enter_context(nginx(directory, port, [server_port for server_port, _ in servers]))
        print(f"redis:    redis://127.0.0.1:{redis_port}/0")
        for server_port, process in servers:
            print(f"server:   http://127.0.0.1:{server_port}, process {process}")
        print(f"balancer: http://127.0.0.1:{port}")
        print(f"try:      curl -X POST http://127.0.0.1:{port}/sessions", flush=True)
        signal.pause()
    return 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: list[str], log: Path, port: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process, listening on the port if one is given, until the end of the `with`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE if port is None else output, stderr=output, start_new_session=True
        )
    try:
        while port is not None and not listens(port):
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} does not start: {log.read_text()}")
            time.sleep(0.02)
        yield process
    finally:
        process.terminate()
        process.wait()
        if process.stdout:
            process.stdout.close()


def listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def program(name: str, package: str) -> str:
    found = where_is(name)
    if found is None:
        raise SystemExit(f"{name} is not installed: apt-get install {package}")
    return found


def where_is(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))


@contextlib.contextmanager
def redis(directory: Path, port: int) -> Iterator[None]:
    """A Redis that is durable: each change is on the disk before it is answered."""
    command = [program("redis-server", "redis-server"), "--port", str(port), "--bind", "127.0.0.1"]
    command += ["--dir", str(directory), "--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    with running(command, directory / "redis.log", port):
        yield


@contextlib.contextmanager
def session_server(flags: list[str], log: Path) -> Iterator[tuple[int, int]]:
    """A server; gives its port and its process id."""
    with running([sys.executable, str(DOCS.parent / "session_server.py"), *flags], log) as process:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        if not line:
            raise SystemExit(f"session_server does not start: {log.read_text()}")
        yield int(line.rpartition(":")[2]), process.pid


@contextlib.contextmanager
def nginx(directory: Path, port: int, backends: list[int]) -> Iterator[None]:
    """An nginx in front of these ports, with the configuration beside this file."""
    site = (DOCS / "two-servers.conf").read_text(encoding="utf-8")
    site = site.replace("listen 8000;", f"listen 127.0.0.1:{port};")
    for named, backend in zip((8081, 8082), backends, strict=True):
        site = site.replace(f"127.0.0.1:{named} ", f"127.0.0.1:{backend} ")
    with running(nginx_command(directory, site), directory / "nginx.log", port):
        yield


def nginx_command(directory: Path, site: str) -> list[str]:
    """What starts an nginx with this configuration of a site; its files, and `nginx.log`, are in the directory."""
    configuration = directory / "nginx.conf"
    configuration.write_text(AROUND.format(site=site), encoding="utf-8")
    log = directory / "nginx.log"
    return [program("nginx", "nginx-light"), "-p", str(directory), "-e", str(log), "-c", str(configuration)]


if __name__ == "__main__":
    sys.exit(main())

"""Two servers on one store behind nginx, by `docs/two-servers.conf`, each of which can be ended and started again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from two_servers import free_port, nginx

from tests.support.server import Server, ServerClient


class Pair:
    """`balancer` reaches any of the two. `servers` are as they run, or have run, in the order of their ports."""

    def __init__(self, directory: Path, port: int, flags: tuple[str, ...]) -> None:
        self.balancer = ServerClient(port)
        self._directory = directory
        self._flags = flags
        self.ports = [free_port(), free_port()]
        self.servers = [self._start(number) for number in (0, 1)]

    def restart(self, number: int) -> None:
        """Starts a server that has ended."""
        self.servers[number].close()
        self.servers[number] = self._start(number)

    def close(self) -> None:
        for server in self.servers:
            server.close()

    def _start(self, number: int) -> Server:
        log = self._directory / f"server-{number}.log"
        return Server(*self._flags, log=log, port=self.ports[number])


@contextlib.contextmanager
def pair(directory: Path, *flags: str) -> Iterator[Pair]:
    """Two servers with these flags, and nginx in front of them."""
    port = free_port()
    both = Pair(directory, port, flags)
    try:
        with nginx(directory, port, both.ports):
            yield both
    finally:
        both.close()

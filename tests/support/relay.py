"""A way to a server on another port."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Self


def _as_it_is(caller: socket.socket) -> socket.socket:
    return caller


class Relay:
    """A listener on loopback that passes the bytes of each connection on to a port, both ways, once `welcome` has
    made the connection what it should be. It can be cut as a network is."""

    def __init__(self, port: int, welcome: Callable[[socket.socket], socket.socket] = _as_it_is) -> None:
        self.connections = 0
        self.ended = threading.Event()  # the caller of a connection has closed it
        self._welcome = welcome
        self._target = port
        self._ends: list[socket.socket] = []
        self._lock = threading.Lock()
        self._up = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        """Ends all connections, and each new one, until `mend`."""
        with self._lock:
            self._up = False
            for end in self._ends:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._up = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                caller = self._listener.accept()[0]
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._pass_on, args=(caller,))
            self._threads.append(thread)
            thread.start()

    def _pass_on(self, caller: socket.socket) -> None:
        target = ("127.0.0.1", self._target)
        with (
            contextlib.suppress(OSError),
            caller,
            self._welcome(caller) as inner,
            socket.create_connection(target) as server,
        ):
            with self._lock:
                if not self._up:
                    return
                self._ends += [inner, server]
            back = threading.Thread(target=_copy, args=(server, inner))
            back.start()
            _copy(inner, server)
            self.ended.set()
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)

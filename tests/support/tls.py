"""TLS before the model server of the tests, and a proxy that makes tunnels to it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

NAME = "model.example"  # of the model server, in its certificate beside localhost


def certificate(directory: Path) -> Path:
    """A file with a new key and a certificate for NAME and localhost, which is its own authority."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl(1)")
    key, file = directory / "key.pem", directory / "certificate.pem"
    names = f"subjectAltName=DNS:localhost,DNS:{NAME}"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={NAME}", "-addext", names, "-keyout", str(key), "-out", str(file)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    file.write_bytes(file.read_bytes() + key.read_bytes())
    return file


class Relay:
    """A listener on loopback that passes the bytes of each connection on to a port, both ways, once `welcome` has
    made the connection what it should be."""

    def __init__(self, port: int, welcome: Callable[[socket.socket], socket.socket]) -> None:
        self.connections = 0
        self.ended = threading.Event()  # the caller of a connection has closed it
        self._welcome = welcome
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
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
            socket.create_connection(target) as model,
        ):
            back = threading.Thread(target=_copy, args=(model, inner))
            back.start()
            _copy(inner, model)
            self.ended.set()
            back.join()


def tls_front(port: int, certificate: Path) -> Relay:
    """TLS before the server at this port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return Relay(port, lambda caller: context.wrap_socket(caller, server_side=True))


def tunnel_proxy(port: int) -> Relay:
    """An HTTP proxy that makes a tunnel to this port, whatever name and port it is asked for."""

    def welcome(caller: socket.socket) -> socket.socket:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += caller.recv(1)
        assert head.startswith(f"CONNECT {NAME}:443 ".encode()), head
        caller.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return caller.dup()

    return Relay(port, welcome)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)

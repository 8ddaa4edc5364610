"""TLS before the model server of the tests, and a proxy that makes tunnels to it."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.support.relay import Relay

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

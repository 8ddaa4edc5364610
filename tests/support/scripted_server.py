"""The scripted model server of the program, which can be stopped, and tells when a client has left."""

import contextlib
import socket
import threading
from typing import Any, Self

from session_core.model import demo
from session_core.model.demo import Script


class Exchange(demo.Exchange):
    """One request, and the connection that it came on."""

    server: "ModelServer"

    def do_POST(self) -> None:
        try:
            super().do_POST()
        except ConnectionError:
            self.close_connection = True
            self.server.client_left(self)


class ModelServer(demo.ModelServer):
    """A model server that answers as a script says, until it is stopped."""

    def __init__(self, script: Script, exchange: type[Exchange] = Exchange) -> None:
        super().__init__(script, exchange)
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._thread = threading.Thread(target=self._serve, name="model server", daemon=True)
        self._stopped = False

    def start(self) -> Self:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ends all connections and threads."""
        self._stopped = True
        socket.create_connection(("127.0.0.1", self.server_port)).close()  # wakes the thread that accepts
        self._thread.join()
        self.server_close()
        for thread, connection in list(self._connections.items()):
            with contextlib.suppress(OSError):  # closed by now
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(10)

    def _serve(self) -> None:
        while not self._stopped:
            self.handle_request()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return not self._stopped

    def client_left(self, exchange: Exchange) -> None:
        """Called when a client has gone before its answer was complete."""

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self._connections[threading.current_thread()] = request
        try:
            if self._stopped:
                self.shutdown_request(request)
            else:
                super().process_request_thread(request, client_address)
        finally:
            del self._connections[threading.current_thread()]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *args: object) -> None:
        self.stop()

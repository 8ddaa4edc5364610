"""The life of the server process: its socket, its threads, its signals, its shutdown."""

import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from flask import Flask

from session_core.web.access import is_loopback
from session_core.web.flag_values import SettingsError
from session_core.web.hangups import handle_hangups
from session_core.web.hardened_waitress import BACKLOG, hardened_server, stop_listening
from session_core.web.settings import Settings
from session_core.web.users import Users

log = logging.getLogger(__name__)

_DEAD_CLIENT_MILLISECONDS = 60_000  # for which a client takes no bytes, after which its connection is closed
_M_MMAP_THRESHOLD = -3  # see mallopt(3)
_LAST_SECONDS = 0.2  # for requests that are on their way when the port is closed
_FLUSH_SECONDS, _STALLED_SECONDS = 5.0, 2.0  # for the last bytes to all clients; without progress


def listen(settings: Settings) -> socket.socket:
    """A socket that listens. Raises SettingsError where the address cannot be used, or is open to others without a
    token."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            settings.host or "0.0.0.0", settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        words = getattr(error, "strerror", None) or "it is no host name"
        raise SettingsError(f"-host {settings.host}: {words}; give an address of this machine") from None
    if not (settings.auth_token or settings.users) and not is_loopback(str(address[0])):
        raise SettingsError(
            f"-host {settings.host} lets others in: give -auth_token or -users too, or leave -host out"
        )
    listener = socket.socket(family, kind)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_CLIENT_MILLISECONDS)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror}; try another -port, or -port=0"
        ) from None
    return listener


def serve(app: Flask, listener: socket.socket, settings: Settings, banner: str) -> None:
    """Serves the app until SIGINT or SIGTERM, then ends its turns and sends their last events.

    Prints the banner when requests are answered. A second signal ends the process at once.
    """
    stay_on_one_cpu()
    server = hardened_server(app, listener, settings)
    tune_interpreter()
    _close_in_children(server)
    users: Users | None = app.extensions["users"]
    handle_hangups(users.reload if users else _nothing_to_reload, needed=bool(users))
    with _first_signal() as wait:
        threading.Thread(target=server.run, name="server", daemon=True).start()
        _print(banner)
        wait()
    log.info("shutting down: running turns get %g s", settings.grace)
    server.ending = True
    app.extensions["turns"].shut_down(settings.grace)
    stop_listening(server)
    time.sleep(_LAST_SECONDS)
    _flush(server)


def _close_in_children(server: Any) -> None:
    """Has processes that tools fork let go of the port and of the clients. Else a client does not see that its
    connection was closed, and after a crash the port stays taken, for as long as the child lives."""

    def close() -> None:
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            for file in server._map:
                os.dup2(null, file, inheritable=False)
            os.close(null)

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=close)


def _nothing_to_reload() -> None:
    log.info("there is no file of users to read again")


def _print(banner: str) -> None:
    try:
        print(banner, flush=True)
    except OSError as error:  # a full disk, or nobody reads: that is no reason not to serve
        log.warning("cannot write to standard output: %s", error.strerror)
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the exit flushes what is left


def tune_interpreter() -> None:
    """Sets the interpreter up for many threads that do little at a time.

    With 500 streams of ten chunks a second this saves a third to a half of the CPU time.
    """
    # A thread that waits for the interpreter lock wakes up once in this interval to ask for it. Our threads come to a
    # system call, which releases the lock, in far less time than this.
    sys.setswitchinterval(0.05)
    # What takes 256 KiB or more goes back to the system when it is freed. glibc alone would soon keep it for the next
    # use, for each thread, and a few readers of a long session would take hundreds of megabytes.
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 256 << 10)
    gc.freeze()  # what is loaded by now stays, and each collection need not look through it
    gc.set_threshold(20_000)


def stay_on_one_cpu() -> None:
    """Keeps this thread, and the threads that it starts, on the processor where it runs now.

    Threads that share one interpreter lock gain little from a second processor, and handing the lock to another one
    takes longer than most of what they do with it. With 500 streams of ten chunks a second this saves 40 % of the CPU
    time, and new turns start in half the time.
    """
    if not hasattr(os, "sched_setaffinity") or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return
    with contextlib.suppress(OSError):  # no /proc here
        with open("/proc/thread-self/stat") as file:
            processor = int(file.read().rpartition(")")[2].split()[36])  # field 39, see proc(5)
        os.sched_setaffinity(0, {processor})


@contextlib.contextmanager
def _first_signal() -> Iterator[Callable[[], None]]:
    """Yields a function that waits for SIGINT or SIGTERM. After the block, a signal ends the process at once.

    Each signal writes its number, which the function reads. A thread that is only about to wait would miss the signal
    itself, which happens on a busy machine.
    """
    ends = (signal.SIGINT, signal.SIGTERM)
    woken, waker = socket.socketpair()

    def wait() -> None:
        while woken.recv(1)[0] not in ends:  # SIGHUP ends nothing
            pass

    with woken, waker:
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno())
        for number in ends:
            signal.signal(number, lambda _number, _frame: None)
        yield wait
        for number in ends:
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)


def _flush(server: Any) -> None:
    """Waits until the last events have been sent, but not for clients that do not read."""
    started_at = moved_at = time.monotonic()
    before = 0
    while moved_at > time.monotonic() - _STALLED_SECONDS and started_at > time.monotonic() - _FLUSH_SECONDS:
        channels = list(server.active_channels.values())
        waiting = sum(len(channel.requests) + channel.total_outbufs_len for channel in channels)
        if not waiting:
            return
        if waiting != before:
            before, moved_at = waiting, time.monotonic()
        time.sleep(0.02)

"""Lists and searches of many sessions, a search beside ripgrep over the same files, both while turns write."""

import contextlib
import functools
import json
import os
import random
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import processes
from benchmarks.bench import OURS, Bench, quantile, said_of_failures
from benchmarks.kept import write_session
from benchmarks.load import run_streams
from benchmarks.processes import Server
from benchmarks.standin import asking

_TEXT = "a sentence of about the length that people write with words which they often use in their questions"
_MESSAGES = 4  # of a session, of so many words each:
_LENGTH = 40
_RARE = 500  # one session in so many has the rare word
_TURNS = 100  # beside a search, over so many seconds:
_SECONDS = 5.0
_QUERIES = {
    "a word of one session in 500": "needle",
    "a word of no session": "haystack",
    "a word that JSON names its fields by": "content",
    "a word of every session, the first 50": "sentence&limit=50",
}


def many(bench: Bench) -> None:
    """Lists and searches of 10,000 and 100,000 sessions in files, beside ripgrep, and while turns write."""
    for count in bench.scale.files:
        directory = bench.new_directory()
        for messages in _conversations(count):
            write_session(directory, messages)
        os.sync()
        with bench.ours(sessions=directory) as server:
            before = server.memory()
            _pages(bench, server, count)
            for what, query in _QUERIES.items():
                _search(bench, server, f"search for {what}, {count:,} files", query, directory)
            more = server.memory() - before
            bench.add("many", f"memory after these, more than before, {count:,} files", "MB", {OURS: [more]})
            _beside_turns(bench, server, f"{count:,} files, alone")
            _beside_turns(bench, server, f"{count:,} files, beside searches", "/sessions?q=haystack")
            _beside_turns(bench, server, f"{count:,} files, beside lists", "/sessions?details=true")


def _pages(bench: Bench, server: Server, count: int) -> None:
    ids = _ask(server, "/sessions")["sessions"]
    behind = f"&after={ids[len(ids) * 9 // 10]}"
    paths = {
        "all ids": "",
        "50 ids": "?limit=50",
        "50 ids, far behind": f"?limit=50{behind}",
        "50 with details": "?details=true&limit=50",
        "50 with details, far behind": f"?details=true&limit=50{behind}",
        "1,000 with details": "?details=true&limit=1000",
    }
    for what, query in paths.items():
        first, *others = [_timed(lambda query=query: _ask(server, f"/sessions{query}")) for _ in range(6)]
        bench.add("many", f"{what} of {count:,} files", "ms", {OURS: others}, note=f"the first time {first:.0f} ms")


def shared_many(bench: Bench) -> None:
    """The same lists and searches with sessions in Redis, and how long Redis lets others wait meanwhile."""
    if shutil.which("redis-server") is None:
        raise RuntimeError("redis-server is not installed")
    import redis

    from session_core.stores.redis import RedisStorage

    count = bench.scale.files[0]
    with contextlib.ExitStack() as stack:
        _, port = stack.enter_context(processes.redis(bench.new_directory()))
        client = stack.enter_context(contextlib.closing(redis.Redis(port=port)))
        url = f"redis://127.0.0.1:{port}/0"
        storage = RedisStorage(url)
        for number, messages in enumerate(_conversations(count)):
            storage.create(messages, title=f"Session {number}")
        server = stack.enter_context(processes.session_server(bench.model, bench.directory, f"-redis_url={url}"))
        server.wait()
        client.config_resetstat()
        for what, query in _QUERIES.items():
            _search(bench, server, f"search for {what}, {count:,} sessions in Redis", query)
        script = client.info("commandstats")["cmdstat_evalsha"]
        what = "time of one script, the mean of all that these searches ran"
        bench.add("shared_many", what, "ms", {OURS: [script["usec_per_call"] / 1e3]})
        for what, path in {"50": "&limit=50", "1,000": "&limit=1000"}.items():
            took = [_timed(lambda path=path: _ask(server, f"/sessions?details=true{path}")) for _ in range(5)]
            bench.add("shared_many", f"{what} with details of {count:,} sessions in Redis", "ms", {OURS: took})


def _conversations(count: int) -> Iterator[list[Any]]:
    chosen = random.Random(count)
    for number in range(count):
        texts = [" ".join(chosen.choices(_TEXT.split(), k=_LENGTH)) for _ in range(_MESSAGES)]
        texts[0] += " needle" if number % _RARE == 0 else ""
        yield [
            {
                "id": f"msg-{chosen.getrandbits(128):032x}",
                "role": "assistant" if place % 2 else "user",
                "content": text,
                "created_at": "2026-01-31T12:34:56Z",
            }
            for place, text in enumerate(texts)
        ]


def _ask(server: Server, path: str) -> Any:
    status, body = server.request("GET", path)
    if status != 200:
        raise RuntimeError(f"GET {path} gave {status}")
    return json.loads(body)


def _timed(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return (time.monotonic() - began) * 1e3


def _search(bench: Bench, server: Server, what: str, query: str, directory: Path | None = None) -> None:
    """The whole search, page by page; of one with a limit, the first page. In a directory, ripgrep's beside it."""
    figures: dict[str, list[float]] = {OURS: []}
    pages: list[float] = []
    for _ in range(bench.scale.rounds):
        took, found, after = [], 0, ""
        while after is not None:
            began = time.monotonic()
            page = _ask(server, f"/sessions?q={query}{after}")
            took.append((time.monotonic() - began) * 1e3)
            found += len(page["sessions"])
            after = None if page["next"] is None or "limit" in query else f"&after={page['next']}"
        figures[OURS].append(sum(took))
        pages += took
    note = f"{found:,} found on {len(took)} pages, the longest took {max(pages):.0f} ms"
    if directory and "limit" not in query:
        figures["ripgrep"] = _ripgrep(directory, query, bench.scale.rounds)
        beside = statistics.median(figures["ripgrep"]) if figures["ripgrep"] else None
        ratio = (
            f"{beside:.0f} ms, ratio {statistics.median(figures[OURS]) / beside:.1f}" if beside else "not installed"
        )
        note += f"; ripgrep: {ratio}"
    bench.add("many", what, "ms", figures, note=note)


def _ripgrep(directory: Path, word: str, rounds: int) -> list[float]:
    """The times that ripgrep takes, after one that fills the system's caches. None where it is not installed."""
    if shutil.which("rg") is None:
        return []
    command = ["rg", "--files-with-matches", "--ignore-case", "--fixed-strings", word, str(directory)]
    run = functools.partial(subprocess.run, command, stdout=subprocess.DEVNULL, check=False, timeout=120)
    return [_timed(run) for _ in range(1 + rounds)][1:]


def _beside_turns(bench: Bench, server: Server, what: str, path: str = "") -> None:
    """How long turns wait for their first chunk beside requests to this path, one after the other."""
    over = threading.Event()
    took: list[float] = []

    def ask() -> None:
        while path and not over.is_set():
            took.append(_timed(lambda: _ask(server, path)))

    requests = server.turns(_TURNS, asking(10, 0.1))
    thread = threading.Thread(target=ask)
    thread.start()
    try:
        streams = run_streams(server, requests, 10, spread=_SECONDS)
    finally:
        over.set()
        thread.join()
    first = quantile([stream.first_after for stream in streams], 0.99) * 1e3
    note = f"{len(took)} requests, the longest took {max(took):.0f} ms" if took else ""
    note = "; ".join(filter(None, (note, said_of_failures(OURS, streams))))
    bench.add(
        "search",
        f"p99 of the first chunk, {_TURNS} turns over {_SECONDS:g} s, {what}",
        "ms",
        {OURS: [first]},
        note=note,
    )


BENCHMARKS: dict[str, Callable[[Bench], None]] = {"many": many, "shared_many": shared_many}

"""What options cost: users, expiry, metrics, MCP, and the journal of partial answers."""

import importlib.util
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks import processes
from benchmarks.bench import OURS, Bench
from benchmarks.load import run_streams
from benchmarks.paced import PACE, measure_paced
from benchmarks.standin import asking

_TOKEN = "a-token-of-the-benchmark"


def options(bench: Bench) -> None:
    """The CPU of a turn of one chunk with an option, beside the same without, round by round in one run."""
    count = bench.scale.first_turns
    with ExitStack() as stack:
        servers = {}
        for what, flags in {"no option": [], **_flags(bench.new_directory())}.items():
            servers[what] = stack.enter_context(bench.ours(*flags))
            servers[what].token = _TOKEN if "-users" in what else ""
        used: dict[str, list[float]] = {what: [] for what in servers}
        for number in range(1 + bench.scale.rounds):
            for what, server in servers.items():
                requests = server.turns(count, asking(1))
                before = server.cpu()
                for request in requests:
                    run_streams(server, [request], 1)
                if number:  # the first round opens connections
                    used[what].append((server.cpu() - before) / count * 1e3)
    for what, figures in used.items():
        bench.add("options", f"CPU of a turn of one chunk, {what}", "ms", {OURS: figures})


def journal(bench: Bench) -> None:
    """The CPU of paced streams with files, where they are kept in journals meanwhile, and in memory, without one."""
    count, length = bench.scale.streams // 5, bench.scale.length
    with bench.ours() as files, processes.session_server(bench.model, bench.directory) as memory:
        memory.wait()
        for what, server in (("with a journal", files), ("without, in memory", memory)):
            run_streams(server, server.turns(count, asking(1)), 1)
            steady = measure_paced(bench.model, server, count, length).steady * 1000
            text = f"CPU for 1000 chunks, {count} streams at {1 / PACE:g} chunks/s, while all run, {what}"
            bench.add("journal", text, "s", {OURS: [steady]})


def _flags(directory: Path) -> dict[str, list[str]]:
    """The flags of each option that can be tried here."""
    users = directory / "users"
    users.write_text("".join(f"user-{number} {_TOKEN}-{number}\n" for number in range(99)) + f"me {_TOKEN}\n")
    users.chmod(0o600)
    found = {"-session_ttl=30d": ["-session_ttl=30d"], "-users with 100 of them": [f"-users={users}"]}
    if importlib.util.find_spec("prometheus_client"):
        found["-metrics"] = ["-metrics"]
    if importlib.util.find_spec("mcp") and importlib.util.find_spec("mcp_server_time"):
        config = directory / "mcp.json"
        server = {"command": sys.executable, "args": ["-m", "mcp_server_time"]}
        config.write_text(json.dumps({"mcpServers": {"time": server}}))
        found["-mcp_config with two tools"] = [f"-mcp_config={config}"]
    return found


BENCHMARKS: dict[str, Callable[[Bench], None]] = {"options": options, "journal": journal}

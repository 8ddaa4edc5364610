"""An MCP server in plain Python, over stdio, that can misbehave.

    python mcp_script.py LOG [MODE]

LOG gets each message that the server receives, a line each. The file LOG.tools, where it is there, holds the list of
tools in place of the usual one. MODE is how it starts:

    ok        answers the older handshake, and an error to the newer one
    old       ends at the newer handshake, as some servers do
    silent    never answers
    noisy     writes rubbish before each message
    exit      writes a line to standard error and ends
    many      lists 500 tools
    late      ends until the file LOG.ready is there
    slow      does not read before the file LOG.ready is there
    stubborn  ignores the end of its input and SIGTERM, and has a child that does so too
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

log = Path(sys.argv[1])
mode = sys.argv[2] if len(sys.argv) > 2 else "ok"
TOOLS = [
    "echo",
    "pid",
    "hang",
    "die",
    "big",
    "image",
    "structured",
    "fail",
    "refuse",
    "sample",
    "grow",
    "meta",
    "odd",
    "raw",
]
SLEEP = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def send(message: dict[str, Any]) -> None:
    if mode == "noisy":
        sys.stdout.buffer.write(b"rubbish \xff\xfe\n[1,2\n" + b"x" * (9 << 20) + b"\n\n")
    sys.stdout.buffer.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
    sys.stdout.buffer.flush()


def receive() -> dict[str, Any]:
    line = sys.stdin.readline()
    if not line:
        while mode == "stubborn":
            signal.pause()
        sys.exit()
    with log.open("a") as file:
        file.write(line)
    message: dict[str, Any] = json.loads(line)
    return message


def listed() -> Any:
    path = log.with_suffix(".tools")
    return json.loads(path.read_text()) if path.exists() else [described(name) for name in TOOLS]


def described(name: str) -> dict[str, Any]:
    return {"name": name, "description": f"Does {name}.", "inputSchema": {"type": "object"}}


def call(id: object, params: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a call, if the server gives one."""
    match params["name"]:
        case "hang":
            return None
        case "die":
            os._exit(3)
        case "big":
            return text("x" * (50 << 20))
        case "image":
            data = params.get("arguments", {}).get("data", "AAAA")
            image = {"type": "image", "mimeType": "image/png", "data": data}
            return {"content": [{"type": "text", "text": "Here:"}, image]}
        case "structured":
            return {"content": [], "structuredContent": {"degrees": 21.5, "where": "Zürich"}}
        case "fail":
            return {**text("the disk is full"), "isError": True}
        case "refuse":
            send({"id": id, "error": {"code": -32602, "message": "no such city"}})
            return None
        case "sample":
            messages = [{"role": "user", "content": {"type": "text", "text": "Hi"}}]
            params = {"messages": messages, "maxTokens": 9}
            send({"id": "mine", "method": "sampling/createMessage", "params": params})
            return text(json.dumps(receive()["error"]))
        case "grow":
            TOOLS.append(f"tool_{len(TOOLS)}")
            send({"method": "notifications/tools/list_changed"})
            return text("grown")
        case "meta":
            return text(json.dumps(params["_meta"]))
        case "pid":
            return text(str(os.getpid()))
        case "odd":
            return {"content": "no list"}
        case "raw":  # writes a line as it stands, but for the id
            line = params["arguments"]["line"].replace("$ID", json.dumps(id))
            sys.stdout.buffer.write(line.encode("utf-8", "surrogatepass") + b"\n")
            sys.stdout.buffer.flush()
            return None
        case _:
            return text(str(params["arguments"].get("text")))


def text(content: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": content}]}


def main() -> None:
    if mode == "exit" or (mode == "late" and not log.with_suffix(".ready").exists()):
        sys.exit("the database is away")
    while mode == "slow" and not log.with_suffix(".ready").exists():
        time.sleep(0.05)
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", SLEEP])
        log.with_suffix(".child").write_text(f"{child.pid}")
    if mode == "many":
        TOOLS.extend(f"many_{number}" for number in range(500))
    while True:
        message = receive()
        if mode == "silent" or "id" not in message:
            continue
        if mode == "old" and message["method"] != "initialize" and len(log.read_text().splitlines()) == 1:
            sys.exit("expected initialize")
        match message["method"]:
            case "initialize":
                version, capabilities = message["params"]["protocolVersion"], {"tools": {"listChanged": True}}
                info = {"name": "script", "version": "1"}
                result = {"protocolVersion": version, "capabilities": capabilities, "serverInfo": info}
                send({"id": message["id"], "result": result})
            case "tools/list":
                send({"id": message["id"], "result": {"tools": listed()}})
            case "tools/call":
                if (result_of_call := call(message["id"], message["params"])) is not None:
                    send({"id": message["id"], "result": result_of_call})
            case _:
                send({"id": message["id"], "error": {"code": -32601, "message": "Method not found"}})


if __name__ == "__main__":
    main()

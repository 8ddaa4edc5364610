"""The compliance tests of the Open Responses specification, where a copy of its repository is at hand.

    python -m tests.support.open_responses <directory of the repository>

They run as they are, by `npx tsx`, which needs `zod` among the modules of that directory. The tests over WebSocket
are left out: this server has none.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support.model_server import ModelServer, ReplyTo, answer, tool_call
from tests.support.server import Server

_TESTS = (
    *("basic-response", "assistant-phase", "response-output-phase-schema", "streaming-response", "system-prompt"),
    *("tool-calling", "image-input", "multi-turn", "compact-response", "compact-missing-model"),
)


def reply(request: dict[str, Any]) -> Any:
    """Calls the first function that is offered, and says hello where there is none."""
    names = [tool["function"]["name"] for tool in request.get("tools", ())]
    functions = [name for name in names if name != "calculator"]
    said: ReplyTo = tool_call(functions[0], {}) if functions else answer("Hello ", "there.")
    return said(request)


def main(directory: str) -> int:
    """Runs the tests, and returns the exit code of their command."""
    with (
        ModelServer(default=reply) as model,
        tempfile.TemporaryDirectory() as logs,
        Server(f"-base_url={model.base_url}", log=Path(logs) / "log", fresh=True) as server,
    ):
        command = ["npx", "tsx", "bin/compliance-test.ts", "-u", f"{server.url}/v1", "-k", "none", "--json"]
        command += ["-m", "gpt-3.5-turbo", "-f", ",".join(_TESTS)]
        run = subprocess.run(command, cwd=directory, stdout=subprocess.PIPE, text=True, check=False)
    for result in json.loads(run.stdout)["results"]:
        print(result["status"], result["id"], *result.get("errors", ()))
    return run.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

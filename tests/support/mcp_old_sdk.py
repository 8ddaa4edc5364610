"""The older line of the MCP SDK, 1.x, in a virtual environment of its own, which is made where it is not there."""

from __future__ import annotations

import fcntl
import subprocess
import sys

import pytest

from tests.support.server import ROOT

ENVIRONMENT = ROOT / ".ci" / "mcp1"


def old_sdk_python() -> str:
    """The interpreter that has the older SDK."""
    python = str(ENVIRONMENT / "bin" / "python")
    ENVIRONMENT.parent.mkdir(exist_ok=True)
    with open(f"{ENVIRONMENT}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other workers want it too
        commands = [
            [sys.executable, "-m", "venv", str(ENVIRONMENT)],
            [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "mcp>=1.26,<2"],
        ]
        done = ENVIRONMENT / "done"
        if not done.exists():
            if any(subprocess.run(command, check=False).returncode for command in commands):
                pytest.skip("needs the Python package mcp of 1.x, which cannot be installed")
            done.touch()
    return python

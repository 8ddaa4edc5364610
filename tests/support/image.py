"""The image of `deploy/Dockerfile`, built step by step in bare roots.

A root is a directory with this machine's system, read-only, in place of the base image, and what the steps put there.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.server import ROOT

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
_SYSTEM = ("bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "opt", "sbin", "usr")
_PATH = "/usr/local/bin:/usr/bin:/bin"
_STEP_SECONDS = 300


def _works() -> bool:
    """Whether this process may make roots, and the system's own Python virtual environments."""
    try:
        tried = ["unshare", "--mount", "/usr/bin/python3", "-c", "import ensurepip, venv"]
        return os.geteuid() == 0 and subprocess.run(tried, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


NEEDED = pytest.mark.skipif(
    not (sys.platform == "linux" and _works()),
    reason="needs root and the Debian packages python3-venv and util-linux",
)


class Step(NamedTuple):
    """An instruction of the Dockerfile."""

    word: str
    rest: str


def steps() -> Iterator[Step]:
    """The instructions of the Dockerfile, one line each."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and not line.startswith("#")]
    for line in re.sub(r"\\\n *", "", "\n".join(lines)).splitlines():
        yield Step(*line.split(maxsplit=1))


def context() -> tuple[set[str], set[str]]:
    """What `.dockerignore` lets into the build at the top of the checkout, and the names that it keeps out below."""
    everything, *lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] != "#"]
    assert everything == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    kept_out = {line.removeprefix("**/") for line in lines if line.startswith("**/")}
    assert len(let_in) + len(kept_out) == len(lines)
    return let_in, kept_out


class Stage:
    """A stage of the build, which at its end is an image."""

    def __init__(self, base: str, root: Path) -> None:
        self.base = base
        self.root = root
        self.directory = "/"
        self.user = "0:0"
        self.env: dict[str, str] = {}
        self.arguments: dict[str, str] = {}
        self.entrypoint: list[str] = []
        self.healthcheck: list[str] = []
        self.declared: dict[str, str] = {}  # what nothing here needs to be done for
        root.mkdir()
        self._mounts = []
        for name in _SYSTEM:
            ours = Path("/") / name
            if ours.is_symlink():
                (root / name).symlink_to(os.readlink(ours))
            elif ours.is_dir():
                (root / name).mkdir()
                self._mounts.append(name)
        (root / "proc").mkdir()
        (root / "tmp").mkdir()
        (root / "tmp").chmod(0o1777)

    def path(self, name: str) -> Path:
        """Where a path of the image is on this machine."""
        return self.root / os.path.join(self.directory, name).lstrip("/")

    def command(self, command: list[str], env: dict[str, str], user: str) -> list[str]:
        """What runs a command in this root, as process 1 of its own, with this environment and no other."""
        mount = "".join(
            f"mount --bind /{name} {self.root}/{name}; mount -o remount,bind,ro {self.root}/{name}; "
            for name in self._mounts
        )
        uid, gid = user.split(":")
        inside = ["unshare", "--fork", "--kill-child", "--pid", "--mount-proc", f"--root={self.root}"]
        inside += [f"--wd={self.directory}", f"--setgid={gid}", f"--setuid={uid}", "env", "-i"]
        inside += [f"{name}={value}" for name, value in ({"PATH": _PATH} | self.env | env).items()]
        return ["unshare", "--mount", "sh", "-ec", f'{mount}exec "$@"', "sh", *inside, *command]

    def run(self, command: list[str], env: dict[str, str], user: str = "") -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        whole = self.command(command, env, user or self.user)
        return subprocess.run(whole, capture_output=True, text=True, timeout=_STEP_SECONDS, check=False)

    def copy(self, origin: Path, target: Path, kept_out: set[str]) -> None:
        """What COPY does with one source."""
        if origin.is_dir():
            left_out = shutil.ignore_patterns(*kept_out)
            shutil.copytree(origin, target, symlinks=True, ignore=left_out, dirs_exist_ok=True)
        else:
            shutil.copy2(origin, target)


def build(folder: Path) -> Stage:
    """Takes all steps of the Dockerfile. Gives the last stage. A step that fails, or is not known here, is an
    AssertionError."""
    let_in, kept_out = context()
    pip = {name: value for name, value in os.environ.items() if re.match(r"PIP_|SSL_|.*_PROXY$", name, re.IGNORECASE)}
    stages: dict[str, Stage] = {}
    stage: Stage
    for word, rest in steps():
        match word:
            case "FROM":
                base, _, name = rest.partition(" AS ")
                stage = stages[name] = Stage(base, folder / f"stage-{len(stages)}")
            case "ARG":
                stage.arguments.update([rest.split("=", 1)])
            case "ENV":
                stage.env.update(pair.split("=", 1) for pair in shlex.split(rest))
            case "WORKDIR":
                stage.directory = rest
                stage.path(".").mkdir(parents=True)
            case "COPY" if rest.startswith("--from="):
                name, source, target = rest.removeprefix("--from=").split()
                stage.copy(stages[name].path(source), stage.path(target), set())
            case "COPY":
                *sources, target = rest.split()
                assert set(sources) <= let_in
                for source in sources:
                    stage.copy(ROOT / source, stage.path(target), kept_out)
            case "RUN":
                done = stage.run(["/bin/sh", "-c", rest], pip | stage.arguments)
                assert done.returncode == 0, f"{rest}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
            case "USER":
                stage.user = rest
            case "ENTRYPOINT":
                stage.entrypoint = json.loads(rest)
            case "HEALTHCHECK":
                stage.healthcheck = json.loads(rest.partition(" CMD ")[2])
            case "EXPOSE" | "STOPSIGNAL" | "VOLUME":
                stage.declared[word] = rest
            case _:
                raise AssertionError(f"no test tries {word}")
    return stage


def packaged() -> set[str]:
    """What `setup.cfg` needs to be there to make the package."""
    options = configparser.ConfigParser()
    options.read(ROOT / "setup.cfg")
    tops = {package.partition(".")[0] for package in options["options"]["packages"].split()}
    modules = {f"{name}.py" for name in options["options"]["py_modules"].split()}
    described = {options["metadata"]["long_description"].removeprefix("file: "), options["metadata"]["license_files"]}
    return {"setup.cfg", "setup.py", *modules, *described, *tops}


def requirements(extras: str) -> list[str]:
    """What the package needs beside itself, with these extras."""
    options = configparser.ConfigParser()
    options.read(ROOT / "setup.cfg")
    texts = [options["options"]["install_requires"]]
    texts += [options["options.extras_require"][extra] for extra in extras.split(",")]
    return "\n".join(texts).split()

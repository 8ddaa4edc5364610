"""The program as it is installed: the image of `deploy/Dockerfile`, and the unit in a real systemd."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from two_servers import free_port, listens

from session_core.web.settings import FLAGS
from tests.support.image import NEEDED, Stage, build, context, packaged, requirements, steps
from tests.support.model_server import STALL, ModelServer, answer
from tests.support.server import ROOT, Server, ServerClient, wait_until
from tests.support.systemd import SYSTEMD, Systemd

MEGABYTES = 150
BASE_MEGABYTES = 55  # of python:3.13-alpine, unpacked, and a little more
UNIT = ROOT / "deploy" / "session-server.service"
TOKEN = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("image")
    yield build(folder)
    shutil.rmtree(folder)


def test_what_the_package_needs_is_copied_and_nothing_else() -> None:
    copied = {name for word, rest in steps() if word == "COPY" and "--from" not in rest for name in rest.split()[:-1]}
    let_in, kept_out = context()
    assert copied == let_in == packaged()
    assert kept_out == {"__pycache__"}


def test_the_base_image_runs_the_program() -> None:
    bases = {rest.partition(" AS ")[0] for word, rest in steps() if word == "FROM"}
    assert len(bases) == 1
    [(name, version)] = [base.split(":") for base in bases]
    assert name == "python" and version.endswith("-alpine")
    assert tuple(map(int, version.removesuffix("-alpine").split("."))) >= (3, 11)


def test_all_libraries_have_wheels_for_its_base(tmp_path: Path) -> None:
    [base] = {rest.partition(" AS ")[0] for word, rest in steps() if word == "FROM"}
    [extras] = [rest.removeprefix("EXTRAS=") for word, rest in steps() if word == "ARG"]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--target", str(tmp_path), "--only-binary=:all:"]
    command += ["--platform=musllinux_1_2_x86_64", "--platform=musllinux_1_1_x86_64"]
    command += [f"--python-version={base.removeprefix('python:').removesuffix('-alpine')}", *requirements(extras)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def megabytes(path: Path) -> float:
    files = (os.path.join(place, name) for place, _, names in os.walk(path) for name in names)
    return sum(-(-os.lstat(file).st_size // 4096) * 4096 for file in files) / 1e6


@NEEDED
def test_it_is_small(image: Stage) -> None:
    assert BASE_MEGABYTES + megabytes(image.path("/venv")) + megabytes(image.path("/data")) < MEGABYTES


@NEEDED
def test_it_has_no_pip_and_its_user_can_write_nothing_but_the_data(image: Stage) -> None:
    assert not list(image.path("/venv/bin").glob("pip*"))
    find = ["find", "/venv", "/data", "-writable", "-not", "-type", "l"]
    assert image.run(find, {}).stdout.split() == [image.declared["VOLUME"]]
    assert image.user == "10001:10001"


class Container(Server):
    """A server of the image, as process 1 of a root of its own."""

    def __init__(self, image: Stage, env: dict[str, str], log: Path) -> None:
        port = free_port()
        self.image, self.env = image, {"SESSION_SERVER_PORT": str(port), **env}
        super().__init__(log=log, command=image.command(image.entrypoint, self.env, image.user), port=port)

    @property
    def pid(self) -> int:
        """Of the server, as this machine sees it."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(children.read_text())

    def healthy(self) -> bool:
        return self.image.run(self.image.healthcheck, self.env).returncode == 0


@contextmanager
def container(image: Stage, log: Path, **env: str) -> Iterator[Container]:
    with Container(image, {"SESSION_SERVER_TOKEN": "secret", **env}, log) as running:
        yield running


@NEEDED
def test_a_server_of_it_is_process_1_without_rights_and_serves_the_page(image: Stage, tmp_path: Path) -> None:
    with container(image, tmp_path / "log", SESSION_SERVER_DEMO="true") as server:
        status = dict(line.split(":\t") for line in Path(f"/proc/{server.pid}/status").read_text().splitlines())
        assert status["NSpid"].split()[-1] == "1"
        assert status["Uid"].split() == status["Gid"].split() == ["10001"] * 4
        assert int(status["CapEff"], 16) == 0
        for path in ("/", "/page.js", "/openapi.json", "/ready"):
            assert server.request("GET", path).status == 200
        assert server.request("GET", "/sessions").status == 401


@NEEDED
def test_its_health_check_tells_a_server_that_answers_from_one_that_does_not(image: Stage, tmp_path: Path) -> None:
    with container(image, tmp_path / "log", SESSION_SERVER_DEMO="true") as server:
        assert server.healthy()
        os.kill(server.pid, signal.SIGSTOP)
        assert not server.healthy()
    assert not server.healthy()


@NEEDED
def test_sigterm_ends_its_turns_as_promised_before_docker_kills_it(image: Stage, tmp_path: Path) -> None:
    with (
        ModelServer(answer("Hel", STALL)) as model,
        container(image, tmp_path / "log", OPENAI_BASE_URL=model.base_url) as server,
    ):
        session = server.request("POST", "/sessions", headers=TOKEN).json["id"]
        events = server.request("POST", f"/sessions/{session}/run_stream", {"message": "Hi"}, TOKEN).events()
        assert [next(events)["type"], next(events)["type"]] == ["stream_start", "stream_chunk"]
        began = time.monotonic()
        os.kill(server.pid, getattr(signal, image.declared["STOPSIGNAL"]))
        last = list(events)[-1]
        assert (last["type"], last["data"]["code"]) == ("error", "shutting_down")
        assert server.wait() == 0
        assert time.monotonic() - began < 10  # seconds, which `docker stop` gives
        assert '"content":"Hel"' in (image.path("/data") / f"{session}.json").read_text()


@NEEDED
def test_without_a_token_it_does_not_start_and_says_so(image: Stage) -> None:
    done = image.run(image.entrypoint, {"SESSION_SERVER_DEMO": "true", "SESSION_SERVER_PORT": "0"})
    assert done.returncode == 2
    assert "-auth_token" in done.stderr


@NEEDED
def test_it_sets_flags_that_there_are(image: Stage) -> None:
    assert {name.removeprefix("SESSION_SERVER_").lower() for name in image.env} <= set(FLAGS)


# --- the same program as a service of systemd ---


@NEEDED
@pytest.mark.skipif(not SYSTEMD.exists(), reason="needs the Debian package systemd")
def test_systemd_starts_the_unit_reloads_it_and_stops_it_as_promised(image: Stage, tmp_path: Path) -> None:
    port = free_port()
    with ModelServer(answer("Hel", STALL)) as model:
        variables = {"OPENAI_BASE_URL": model.base_url, "SESSION_SERVER_PORT": str(port), "SESSION_SERVER_GRACE": "1"}
        etc = {"session-server/environment": "".join(f"{name}={value}\n" for name, value in variables.items())}
        program = "/opt/session-server/bin/session-server"
        with Systemd(
            tmp_path, ROOT / "deploy" / "session-server.service", program, image.path("/venv"), etc
        ) as systemd:
            wait_until(lambda: listens(port))
            server = ServerClient(port)
            assert server.request("GET", "/health").status == 200
            systemd.control("reload")
            session = server.create()
            events = server.say(session, "Hi").events()
            assert [next(events)["type"], next(events)["type"]] == ["stream_start", "stream_chunk"]
            assert (systemd.show("ActiveState"), systemd.show("NRestarts")) == ("active", "0")
            systemd.control("stop")
            last = list(events)[-1]
            assert (last["type"], last["data"]["code"]) == ("error", "shutting_down")
            assert (systemd.show("Result"), systemd.show("ExecMainStatus")) == ("success", "0")
            [file] = systemd.root.glob("var/lib/private/session-server/*.json")
            assert '"content":"Hel"' in file.read_text()
            assert file.stat().st_mode & 0o777 == 0o600

"""The compose file and the systemd unit in `deploy/`, without an engine and a service manager."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from two_servers import AROUND, where_is

from session_core.web.settings import FLAGS, Settings, read_settings
from tests.support.image import steps
from tests.support.server import ROOT, TIMEOUT, environment

COMPOSE_FILE = ROOT / "deploy" / "compose.yaml"
COMPOSED = yaml.safe_load(COMPOSE_FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSED["services"]
SERVERS = [name for name in SERVICES if name.startswith("server")]
UNIT = ROOT / "deploy" / "session-server.service"
MARGIN = 2  # seconds that a shutdown may take beside -grace


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment(env), capture_output=True, text=True, timeout=TIMEOUT, check=False)


def image_variables() -> dict[str, str]:
    return dict(pair.split("=", 1) for word, rest in steps() if word == "ENV" for pair in rest.split())


# --- compose ---


def composed(service: str) -> Settings:
    """The settings of a server of the compose file, in its image."""
    given = {"OPENAI_API_KEY": "sk-key"}  # what the file passes on
    set_here = {name: value for name, value in SERVICES[service]["environment"].items() if value is not None}
    token = "SESSION_SERVER_TOKEN"
    assert re.fullmatch(r"\$\{SESSION_SERVER_TOKEN:\?.+\}", set_here[token])
    return read_settings([], image_variables() | given | set_here | {token: "secret"})


def compose() -> list[str] | None:
    """The command of Docker Compose."""
    plugin = shutil.which("docker") and run("docker", "compose", "version").returncode == 0
    return ["docker", "compose"] if plugin else ["docker-compose"] if shutil.which("docker-compose") else None


@pytest.mark.skipif(compose() is None, reason="needs the Debian package docker-compose")
def test_compose_takes_the_file_and_asks_for_a_token() -> None:
    command = [*(compose() or []), "-f", str(COMPOSE_FILE), "--profile", "two-servers", "config", "--services"]
    refused = run(*command)
    assert refused.returncode != 0
    assert "give the token" in refused.stderr
    taken = run(*command, SESSION_SERVER_TOKEN="secret")
    assert taken.returncode == 0, taken.stderr
    assert set(taken.stdout.split()) == set(SERVICES)


def test_without_the_profile_there_is_one_server() -> None:
    profiles = {name: service.get("profiles", []) for name, service in SERVICES.items()}
    two = {name: ["two-servers"] for name in ("server-1", "server-2", "valkey", "nginx")}
    assert profiles == {"server": [], **two}


@pytest.mark.parametrize("service", SERVERS)
def test_the_variables_of_a_composed_server_are_flags(service: str) -> None:
    known = {f"SESSION_SERVER_{name.upper()}" for name in FLAGS}
    known |= {variable for _, _, variables in FLAGS.values() for variable in variables}
    assert set(SERVICES[service]["environment"]) <= known


@pytest.mark.parametrize("service", SERVERS)
def test_a_composed_server_is_not_killed_before_its_turns_have_ended(service: str) -> None:
    seconds = float(SERVICES[service]["stop_grace_period"].removesuffix("s"))
    assert seconds > composed(service).grace + MARGIN


def test_the_server_has_its_sessions_in_a_volume() -> None:
    [(volume, place)] = [text.split(":") for text in SERVICES["server"]["volumes"]]
    assert volume in COMPOSED["volumes"]
    assert place == composed("server").session_dir


def test_two_servers_share_the_valkey_and_wait_for_it() -> None:
    for service in ("server-1", "server-2"):
        settings = composed(service)
        assert (settings.redis_url, settings.session_dir) == ("redis://valkey:6379/0", "")
        assert list(SERVICES[service]["depends_on"]) == ["valkey"]
    assert "--appendonly yes --appendfsync always" in SERVICES["valkey"]["command"]
    assert SERVICES["valkey"]["volumes"][0].split(":")[0] in COMPOSED["volumes"]


@pytest.mark.skipif(where_is("nginx") is None, reason="needs the Debian package nginx-light")
def test_nginx_takes_the_configuration_that_its_container_makes_of_ours(tmp_path: Path) -> None:
    [mounted] = SERVICES["nginx"]["volumes"]
    source, target, _ = mounted.split(":")
    shell, option, script = SERVICES["nginx"]["entrypoint"]
    script, start = script.split(" && exec ")
    assert start == 'nginx -g "daemon off;"'
    site = tmp_path / "site.conf"
    script = script.replace(target, str(COMPOSE_FILE.parent / source)).replace(
        "/etc/nginx/conf.d/default.conf", str(site)
    )
    assert run(shell, option, script).returncode == 0
    made = site.read_text()
    port = int(image_variables()["SESSION_SERVER_PORT"])
    assert re.findall(r"^ +server (\S+)(?: \S+)?;", made, re.MULTILINE) == [f"server-1:{port}", f"server-2:{port}"]
    assert re.findall(r"^ +listen (\d+);", made, re.MULTILINE) == [SERVICES["nginx"]["ports"][0].split(":")[-1]]
    made = made.replace("server-1", "127.0.0.1").replace("server-2", "127.0.0.2")
    (tmp_path / "nginx.conf").write_text(AROUND.format(site=made))
    log = tmp_path / "nginx.log"
    tried = run(str(where_is("nginx")), "-t", "-p", str(tmp_path), "-e", str(log), "-c", str(tmp_path / "nginx.conf"))
    assert tried.returncode == 0, tried.stderr


# --- systemd ---

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs the Debian package systemd")


def directives() -> dict[str, list[str]]:
    """The directives of the unit, each with its values."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if line and line[0] not in "#[":
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found


@needs_systemd
def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    [program] = directives()["ExecStart"]
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(program, "/bin/true"))
    verified = run("systemd-analyze", "verify", "--man=no", str(copy))
    assert (verified.returncode, verified.stderr) == (0, "")


@needs_systemd
def test_the_unit_is_exposed_little() -> None:
    analyzed = run("systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(UNIT))
    assert analyzed.returncode == 0, analyzed.stdout
    level = re.search(r"Overall exposure level for session-server.service: ([\d.]+)", analyzed.stdout)
    assert level and float(level[1]) < 2.0


def test_the_unit_sets_a_flag_and_keeps_the_sessions_in_its_state() -> None:
    unit = directives()
    [state] = unit["StateDirectory"]
    [(name, value)] = [text.split("=", 1) for text in unit["Environment"]]
    assert (name, value) == ("SESSION_SERVER_SESSION_DIR", f"%S/{state}")
    assert read_settings([], {name: "/var/lib/x", "OPENAI_API_KEY": "sk-key"}).session_dir == "/var/lib/x"


def test_the_unit_gives_turns_their_time_and_tells_the_server_alone() -> None:
    unit = directives()
    assert unit["KillSignal"] == ["SIGTERM"]
    assert unit["KillMode"] == ["mixed"]
    assert float(unit["TimeoutStopSec"][0]) > Settings.grace + MARGIN
    assert unit["ExecReload"] == ["/bin/kill -HUP $MAINPID"]

"""Starting the server: flags, the environment, errors that name the remedy, and every way to run it."""

from __future__ import annotations

import contextlib
import email
import http.client
import importlib.metadata
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import venv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from session_core.web.settings import FLAGS, read_settings
from session_server import Settings, SettingsError, build_app, main
from tests.support import model_server
from tests.support.model_server import ModelServer
from tests.support.server import ROOT, SERVER, TIMEOUT, Server, environment, events_of, wait_until

FRESH = True  # servers are started as their users start them
Serve = Callable[..., Server]

# For each flag, a text and what it sets.
VALUES: dict[str, tuple[str, Any]] = {
    "port": ("9000", 9000),
    "host": ("localhost", "localhost"),
    "api_key": ("sk-flag", "sk-flag"),
    "base_url": ("http://127.0.0.1:11434/v1", "http://127.0.0.1:11434/v1"),
    "model": ("llama3.2", "llama3.2"),
    "models": ("a,b", ("a", "b")),
    "model_options": ('{"temperature":0.2}', {"temperature": 0.2}),
    "stream": ("false", False),
    "show_reasoning": ("false", False),
    "session_dir": ("./sessions", "./sessions"),
    "redis_url": ("redis://:pass@localhost:6379/0", "redis://:pass@localhost:6379/0"),
    "session_ttl": ("12h", 43200.0),
    "tools": ("a.py,b.py", ("a.py", "b.py")),
    "mcp_config": ("mcp.json", "mcp.json"),
    "calculator": ("false", False),
    "tool_timeout": ("2.5", 2.5),
    "system_prompt": ("Be brief = short.", "Be brief = short."),
    "timeout": ("2.5", 2.5),
    "keep_alive": ("3", 3.0),
    "max_history": ("7", 7),
    "compact_at": ("8000", 8000),
    "max_file_bytes": ("1048576", 1048576),
    "auth_token": ("s3cret", "s3cret"),
    "users": ("users.txt", "users.txt"),
    "session_headers": ("X-Mine,X-Yours", ("X-Mine", "X-Yours")),
    "trusted_proxies": ("1", 1),
    "metrics": ("true", True),
    "cors_origin": ("https://chat.example.org", ("https://chat.example.org",)),
    "max_streams": ("5", 5),
    "grace": ("0", 0.0),
    "continue_interrupted": ("true", True),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
    "demo": ("true", True),
}
HAVE_KEY = {"OPENAI_API_KEY": "sk-environment"}
DEAD_PROXY = dict.fromkeys(
    ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9"
)
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs the Debian package curl")


# --- flags and the environment ---


def test_there_is_a_flag_for_every_setting() -> None:
    assert list(FLAGS) == [field.name for field in fields(Settings)] == list(VALUES)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("spelling", ["-{0} {1}", "-{0}={1}", "--{0} {1}", "--{0}={1}"])
def test_a_flag_is_taken_in_go_and_in_gnu_spelling(name: str, spelling: str) -> None:
    text, value = VALUES[name]
    arguments = [part.format(name, text) for part in spelling.split(" ")]
    assert getattr(read_settings(arguments, HAVE_KEY), name) == value


@pytest.mark.parametrize("name", [name for name in VALUES if "_" in name])
@pytest.mark.parametrize("dashes", ["-", "--"])
def test_a_flag_may_be_written_with_hyphens(name: str, dashes: str) -> None:
    text, value = VALUES[name]
    settings = read_settings([f"{dashes}{name.replace('_', '-')}={text}"], HAVE_KEY)
    assert getattr(settings, name) == value


@pytest.mark.parametrize("name", VALUES)
def test_a_flag_may_be_set_in_the_environment(name: str) -> None:
    text, value = VALUES[name]
    settings = read_settings([], {**HAVE_KEY, f"SESSION_SERVER_{name.upper()}": text})
    assert getattr(settings, name) == value


@pytest.mark.parametrize("name", VALUES)
def test_a_flag_wins_over_the_environment(name: str) -> None:
    text, value = VALUES[name]
    other = {"true": "false", "false": "true"}.get(text, "not even valid" if name == "port" else "1")
    settings = read_settings([f"-{name}={text}"], {**HAVE_KEY, f"SESSION_SERVER_{name.upper()}": other})
    assert getattr(settings, name) == value


@pytest.mark.parametrize(
    "name, variable",
    [("api_key", "OPENAI_API_KEY"), ("base_url", "OPENAI_BASE_URL"), ("auth_token", "SESSION_SERVER_TOKEN")],
)
def test_key_address_and_token_have_further_variables(name: str, variable: str) -> None:
    text, value = VALUES[name]
    assert getattr(read_settings([], {**HAVE_KEY, variable: text}), name) == value
    assert getattr(read_settings([f"-{name}={text}"], {**HAVE_KEY, variable: "http://other"}), name) == value


def test_our_own_variable_wins_over_the_general_one() -> None:
    settings = read_settings([], {"OPENAI_API_KEY": "sk-general", "SESSION_SERVER_API_KEY": "sk-own"})
    assert settings.api_key == "sk-own"


@pytest.mark.parametrize("name", [name for name in VALUES if name != "api_key"])
def test_an_empty_variable_sets_nothing(name: str) -> None:
    settings = read_settings([], {**HAVE_KEY, f"SESSION_SERVER_{name.upper()}": ""})
    assert getattr(settings, name) == getattr(read_settings([], HAVE_KEY), name)


@pytest.mark.parametrize("name", [name for name in VALUES if name != "session_dir"])
@pytest.mark.parametrize("form", ["-{0}=", "--{0}=", "-{0} "])
def test_an_empty_flag_is_an_error_whatever_the_environment_says(name: str, form: str) -> None:
    arguments = form.format(name).split(" ")
    with pytest.raises(SettingsError, match=f"^-{name} is empty: give it a value, or leave it out$"):
        read_settings(arguments, {**HAVE_KEY, f"SESSION_SERVER_{name.upper()}": VALUES[name][0]})


def test_an_empty_session_dir_means_memory() -> None:
    assert read_settings(["-session_dir="], {**HAVE_KEY, "SESSION_SERVER_SESSION_DIR": "x"}).session_dir == ""


@pytest.mark.parametrize("output", ["| true", "> /dev/full", ">&-"])
def test_a_server_whose_standard_output_cannot_be_written_runs_on(tmp_path: Path, output: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pid, log = tmp_path / "pid", tmp_path / "log"
    command = f"(echo $$ > {pid}.new; mv {pid}.new {pid}; exec {' '.join(SERVER)} -demo -port={port}) {output}"
    script = command.replace("echo $$", "sh -c 'echo $PPID'")
    with log.open("wb") as stderr:
        shell = subprocess.Popen(["bash", "-c", script], stderr=stderr, stdin=subprocess.DEVNULL, env=environment())
    try:
        wait_until(lambda: _answers(port))
    finally:
        os.kill(int(pid.read_text()), signal.SIGTERM)
        shell.wait(TIMEOUT)
    assert shell.returncode == 0
    assert "Traceback" not in log.read_text() and "Exception" not in log.read_text()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@pytest.mark.parametrize("text", ["true", "t", "1", "false", "f", "0"])
def test_a_boolean_takes_the_words_that_go_takes(text: str) -> None:
    assert read_settings([f"-stream={text}"], HAVE_KEY).stream is (text in ("true", "t", "1"))


@pytest.mark.parametrize("flag", ["-demo", "--demo"])
@pytest.mark.parametrize("after", [[], ["-port=1"], ["--port", "1"]])
def test_a_boolean_without_a_value_is_true(flag: str, after: list[str]) -> None:
    assert read_settings([flag, *after], {}).demo is True


def test_the_last_of_a_flag_given_twice_counts() -> None:
    assert read_settings(["-port=1", "-port=2"], HAVE_KEY).port == 2


def test_origins_add_up_in_flags_and_are_separated_by_commas_in_the_environment() -> None:
    both = ("https://a.example", "http://b.example:8000")
    assert read_settings([f"-cors_origin={origin}" for origin in both], HAVE_KEY).cors_origin == both
    assert read_settings([], {**HAVE_KEY, "SESSION_SERVER_CORS_ORIGIN": ", ".join(both)}).cors_origin == both


def test_the_defaults_are_the_promised_ones() -> None:
    settings = read_settings([], HAVE_KEY)
    assert (settings.port, settings.host, settings.model) == (8080, "127.0.0.1", "gpt-3.5-turbo")
    assert (settings.stream, settings.demo, settings.session_dir, settings.base_url) == (True, False, "", "")
    assert (settings.timeout, settings.keep_alive, settings.grace) == (120, 15, 10)
    assert (settings.max_history, settings.auth_token, settings.cors_origin) == (0, "", ())
    assert settings.log_level == "info"


def test_a_prompt_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Antworte in Versen: äöü\n", encoding="utf-8")
    assert read_settings([f"-system_prompt=@{tmp_path / 'prompt.txt'}"], HAVE_KEY).system_prompt == (
        "Antworte in Versen: äöü"
    )


def test_the_demo_ignores_key_and_address_in_the_environment() -> None:
    settings = read_settings(["-demo"], {"OPENAI_API_KEY": "sk-1", "OPENAI_BASE_URL": "http://elsewhere.example/v1"})
    assert (settings.api_key, settings.base_url) == ("", "")


def test_no_key_is_needed_for_another_address_than_openais() -> None:
    assert read_settings(["-base_url=http://127.0.0.1:11434/v1"], {}).api_key == ""


# --- errors at the start: one plain line that names the remedy ---


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def run_main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], taken_port: int
) -> Callable[..., str]:
    """Runs `main` with arguments that it cannot start with, and gives the line that it prints. Should it take them
    after all, then it fails at a port that is locked."""

    def run(*arguments: str, **variables: str) -> str:
        with monkeypatch.context() as patch:
            for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "SESSION_SERVER_TOKEN"):
                patch.delenv(name, raising=False)
            for name, value in {"SESSION_SERVER_PORT": str(taken_port), **variables}.items():
                patch.setenv(name, value)
            assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.endswith("\n")
        lines: list[str] = err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("session_server: ")
        return lines[0]

    return run


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["-prot=80"], ["-prot", "-h"]),
        (["-por=80"], ["-por", "-h"]),
        (["-demo", "-port=80", "extra"], ["extra", "-h"]),
        (["-model"], ["model", "-h"]),
        (["-demo=maybe"], ["-demo", "true or false"]),
        (["-port=eighty"], ["-port", "0 to 65535"]),
        (["-port=65536"], ["-port", "0 to 65535"]),
        (["-port=-1"], ["-port", "0 to 65535"]),
        (["-timeout=0"], ["-timeout", "above 0"]),
        (["-timeout=soon"], ["-timeout", "seconds"]),
        (["-keep_alive=nan"], ["-keep_alive", "seconds"]),
        (["-grace=-1"], ["-grace", "seconds"]),
        (["-max_history=-1"], ["-max_history", "0"]),
        (["-compact_at=-1"], ["-compact_at", "0"]),
        (["-max_streams=0"], ["-max_streams", "1"]),
        (["-max_streams=100000"], ["-max_streams", "ulimit -n"]),
        (["-log_level=loud"], ["-log_level", "debug, info, warning"]),
        (["-base_url=localhost:11434"], ["-base_url", "http://"]),
        (["-base_url=http://localhost:99999/v1"], ["-base_url", "http://"]),
        (["-base_url=http://[/v1"], ["-base_url", "http://"]),
        (["-redis_url=localhost:6379"], ["-redis_url", "redis://"]),
        (["-redis_url=http://localhost:6379"], ["-redis_url", "redis://"]),
        (["-redis_url=redis://localhost:99999"], ["-redis_url", "redis://"]),
        (["-demo", "-redis_url=redis://localhost", "-session_dir=x"], ["-redis_url", "-session_dir", "leave one"]),
        (["-cors_origin=*"], ["-cors_origin", "https://"]),
        (["-cors_origin=https://a.example/path"], ["-cors_origin", "https://"]),
        (["-auth_token=two words"], ["-auth_token", "without spaces"]),
        (["-system_prompt=@/nowhere/prompt.txt"], ["-system_prompt", "/nowhere/prompt.txt", "No such file"]),
        (["-demo", "-api_key=sk-1"], ["-demo", "-api_key"]),
        (["-demo", "-base_url=http://127.0.0.1:1/v1"], ["-demo", "-base_url"]),
        ([], ["-api_key", "OPENAI_API_KEY", "-demo"]),
        (["-base_url=https://api.openai.com/v1"], ["-api_key", "OPENAI_API_KEY", "-demo"]),
        (["-demo", "-host=0.0.0.0"], ["-host", "-auth_token"]),
        (["-demo", "-host=::"], ["-host", "-auth_token"]),
        (["-demo", "-users=x", "-auth_token=y"], ["-users", "-auth_token"]),
        (["-demo", "-port=0", "-users=/nowhere/users"], ["/nowhere/users", "No such file"]),
        (["-demo", "-session_ttl=soon"], ["-session_ttl", "90s"]),
        (["-demo", "-log_format=xml"], ["-log_format", "text or json"]),
        (["-demo", "-trusted_proxies=-1"], ["-trusted_proxies", "0 to 16"]),
        (["-demo", "-host=no-such-host.invalid"], ["-host", "address of this machine"]),
        (["-demo", "-host=192.0.2.1", "-auth_token=t"], ["192.0.2.1", "address"]),
    ],
)
def test_a_start_that_is_wrong_says_so_in_a_line_and_names_the_remedy(
    run_main: Callable[..., str], arguments: list[str], named: list[str]
) -> None:
    line = run_main(*arguments)
    assert [word for word in named if word not in line] == []


def test_an_error_names_the_variable_that_it_came_from(run_main: Callable[..., str]) -> None:
    assert "SESSION_SERVER_PORT must be" in run_main("-demo", SESSION_SERVER_PORT="eighty")


def test_a_key_is_never_in_the_line(run_main: Callable[..., str], taken_port: int) -> None:
    assert "sk-abc" not in run_main(f"-port={taken_port}", OPENAI_API_KEY="sk-abc")


def test_a_prompt_that_is_not_utf8_is_named(run_main: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_bytes(b"\xff\xfe")
    assert "UTF-8" in run_main(f"-system_prompt=@{tmp_path / 'prompt.txt'}")


def test_a_port_in_use_ends_the_process_with_one_line_and_2(taken_port: int) -> None:
    ended = start_in_vain("-demo", f"-port={taken_port}")
    assert ended.startswith(f"session_server: cannot listen on 127.0.0.1 port {taken_port}: ")
    assert "-port=0" in ended


def test_a_directory_that_cannot_be_made_ends_the_process_and_nothing_listens(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ended = start_in_vain("-demo", f"-port={port}", f"-session_dir={tmp_path / 'file' / 'sessions'}")
    assert ended.startswith("session_server: -session_dir: ") and "directory that can be written" in ended
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), TIMEOUT)


def test_no_key_ends_the_process_with_one_line_and_2() -> None:
    ended = start_in_vain()
    assert [word for word in ("-api_key", "OPENAI_API_KEY", "-demo") if word not in ended] == []


def start_in_vain(*arguments: str) -> str:
    """The line that a process prints that cannot start."""
    ended = subprocess.run(
        [*SERVER, *arguments], env=environment(), capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1), ended.stderr
    return ended.stderr


# --- a good start ---


def test_the_help_fits_a_terminal_and_has_every_flag() -> None:
    told = subprocess.run(
        [*SERVER, "-h"], env=environment(), capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    lines = told.stdout.splitlines()
    assert told.stderr == ""
    assert len(lines) <= 50 and max(map(len, lines)) <= 100
    assert [name for name in FLAGS if f" -{name} " not in told.stdout] == []


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo on a machine that reaches nothing, with sessions on disk and a token."""
    path = tmp_path_factory.mktemp("demo")
    env = {**DEAD_PROXY, "SESSION_SERVER_TOKEN": "s3cret"}
    with Server("-demo", "-session_dir=kept", env=env, log=path / "log", cwd=path) as server:
        yield server


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What a model server on loopback is sent of a first message, without a key and in spite of a dead proxy."""
    path = tmp_path_factory.mktemp("upstream")
    (path / "prompt.txt").write_text("Speak like a pirate.\n")
    flags = ("-model=llama3.2", "-system_prompt=@prompt.txt")
    with (
        ModelServer() as model,
        Server(f"-base_url={model.base_url}", *flags, env=DEAD_PROXY, log=path / "log", cwd=path) as server,
    ):
        reply = server.request("POST", f"/sessions/{server.create()}/run", {"message": "Hi"})
        assert reply.json["message"]["content"] == "OK"
        banner = server.banner.replace(model.base_url, "<address>")
        yield {**model.headers[0], **model.requests[0], "banner": banner.splitlines()}


def test_the_banner_says_where_what_and_how(demo: Server) -> None:
    lines = demo.banner.splitlines()
    assert lines[:2] == [
        f"session_server listens on http://127.0.0.1:{demo.port}",
        "model:    the built-in demo model",
    ]
    assert re.fullmatch(r"sessions: /.*/kept", lines[2])
    assert lines[3].startswith("try:      curl ") and len(lines) == 4


@needs_curl
def test_the_curl_line_works_as_it_stands(serve: Serve) -> None:
    assert re.fullmatch(r"session-[0-9a-z-]+", json.loads(in_shell(curl_line(serve("-demo"))))["id"])


def test_the_banner_and_the_log_hold_no_secret_of_the_address(serve: Serve) -> None:
    server = serve("-base_url=http://ann:hunter2@127.0.0.1:9/v1?api-key=k3y", "-model=m")
    assert server.banner.splitlines()[1] == "model:    m at http://127.0.0.1:9/v1"
    server.request("POST", f"/sessions/{server.create()}/run", {"message": "Hi"})
    assert not [secret for secret in ("hunter2", "k3y") if secret in server.banner + server.log.read_text()]


@needs_curl
def test_with_a_token_the_curl_line_reads_it_from_the_environment(demo: Server) -> None:
    assert "s3cret" not in demo.banner
    assert "$SESSION_SERVER_TOKEN" in curl_line(demo)
    assert "id" in json.loads(in_shell(curl_line(demo), SESSION_SERVER_TOKEN="s3cret"))
    assert json.loads(in_shell(curl_line(demo), SESSION_SERVER_TOKEN="wrong"))["code"] == "unauthorized"


def test_the_demo_calculates_without_key_and_network(demo: Server) -> None:
    assert calculates(demo.port, token="s3cret")


def test_the_banner_names_model_and_address(upstream: dict[str, Any]) -> None:
    assert upstream["banner"][1:3] == ["model:    llama3.2 at <address>", "sessions: in memory"]


def test_the_model_name_reaches_the_model_server(upstream: dict[str, Any]) -> None:
    assert upstream["model"] == "llama3.2"


def test_a_placeholder_is_sent_where_there_is_no_key(upstream: dict[str, Any]) -> None:
    assert re.fullmatch(r"Bearer \S+", upstream["authorization"])


def test_the_system_prompt_reaches_the_model(upstream: dict[str, Any]) -> None:
    assert upstream["messages"][0] == {"role": "system", "content": "Speak like a pirate."}


def curl_line(server: Server) -> str:
    line = server.banner.splitlines()[3]
    assert line.startswith("try:      curl ")
    return line.removeprefix("try:")


def in_shell(command: str, **variables: str) -> str:
    done = subprocess.run(
        ["sh", "-c", command],
        env=environment(variables),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    return done.stdout


# --- every way to run it ---


def calculates(port: int, token: str = "") -> bool:
    """Whether a server is there whose demo model calculates, streamed and whole."""
    session_id = ask(port, token, "/sessions")["id"]
    streamed = events_of(ask(port, token, f"/sessions/{session_id}/run_stream", "What is 15 * 23?"))
    whole = ask(port, token, f"/sessions/{session_id}/run", "And 2 ** 10?")
    return (
        [event["data"]["result"] for event in streamed if event["type"] == "stream_tool_result"] == ["345"]
        and streamed[-1]["type"] == "stream_end"
        and "1024" in whole["message"]["content"]
    )


def ask(port: int, token: str, path: str, message: str | None = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        connection.request("POST", path, json.dumps({} if message is None else {"message": message}), headers)
        response = connection.getresponse()
        data = response.read()
        assert response.status < 300, data
        return json.loads(data) if response.headers["Content-Type"] == "application/json" else data


@contextlib.contextmanager
def running(command: list[str], log: Path, cwd: Path = ROOT) -> Iterator[int]:
    """Runs a command that names the port which it listens on; gives that port."""
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment({"SESSION_SERVER_DEMO": "1"}), stdout=out, stderr=out
        )
    try:
        address = re.compile(r"http://127\.0\.0\.1:([1-9]\d*)")
        wait_until(lambda: address.search(log.read_text()) or process.poll() is not None)
        named = address.search(log.read_text())
        assert named, log.read_text()
        yield int(named[1])
    finally:
        process.kill()
        process.wait()


def test_flask_runs_the_app(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flask", "--app", "session_server:build_app", "run", "--port=0"]
    with running(command, tmp_path / "log") as port:
        assert calculates(port)


WSGIREF = """
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.validate import validator
import session_server

with make_server("127.0.0.1", 0, validator(session_server.build_app())) as server:
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
"""


def test_another_wsgi_server_runs_the_app_and_finds_no_fault_with_it(tmp_path: Path) -> None:
    with running([sys.executable, "-c", WSGIREF], tmp_path / "log") as port:
        assert calculates(port)
    assert "Error" not in (tmp_path / "log").read_text()


def test_the_app_is_not_built_from_a_wrong_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESSION_SERVER_TIMEOUT", "soon")
    with pytest.raises(SettingsError, match="SESSION_SERVER_TIMEOUT"):
        build_app()


def declared(requirements: Iterable[str]) -> set[str]:
    """The distributions that these requirements bring, all together."""
    found: set[str] = set()
    pending = list(requirements)
    while pending:
        requirement = Requirement(pending.pop())
        if requirement.name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(requirement.name)
        pending += importlib.metadata.requires(requirement.name) or []
    return found


def test_a_wheel_in_an_empty_environment_runs_as_well_as_a_checkout(tmp_path: Path) -> None:
    source, home = tmp_path / "source", tmp_path / "environment"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "tests", "build", "*.egg-info", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    alone = ["--no-index", "--no-deps"]
    subprocess.run([*pip, "wheel", *alone, "--no-build-isolation", "-w", tmp_path, source], check=True)
    shutil.rmtree(source)
    venv.create(home, symlinks=True)
    [site] = home.glob("lib/python*/site-packages")
    [wheel] = tmp_path.glob("*.whl")
    python = str(home / "bin" / "python")
    subprocess.run([*pip, "--python", python, "install", *alone, wheel], check=True)
    # What the wheel declares, and nothing else, comes from the environment of the tests; no network is needed.
    [metadata] = site.glob("session_server-*.dist-info/METADATA")
    requires = email.message_from_string(metadata.read_text(encoding="utf-8")).get_all("Requires-Dist") or []
    for name in declared(one for one in requires if "extra ==" not in one):
        for file in importlib.metadata.files(name) or ():
            if file.parts[0] != ".." and not (site / file.parts[0]).exists():
                (site / file.parts[0]).symlink_to(
                    Path(str(file.locate())).parents[len(file.parts) - 1] / file.parts[0]
                )
    command = [str(home / "bin" / "session-server")]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with (
        Server("-demo", command=command, cwd=elsewhere, log=tmp_path / "log") as server,
        Server("-demo", log=tmp_path / "other log") as checkout,
    ):
        assert calculates(server.port)
        for file_ in (ROOT / "session_core" / "web" / "page").iterdir():
            if file_.suffix in (".css", ".js", ".svg", ".json"):
                reply = server.request("GET", f"/{file_.name}")
                assert (reply.status, reply.text) == (200, file_.read_text(encoding="utf-8"))
        for path in ("/", "/all.css", "/all.js"):  # the extra that draws answers is not in the empty environment
            here, there = server.request("GET", path), checkout.request("GET", path)
            assert (here.status, here.text) == (200, there.text.replace("<html data-render ", "<html "))
    rooms = "agent, storage, session_core.model.demo, session_core.stores.files, session_core.turns.turns"
    origins = f"import {rooms}, session_core.web.sessions; print(session_core.web.sessions.__file__)"
    done = subprocess.run([python, "-P", "-c", origins], cwd=elsewhere, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(home))


def test_the_demo_minds_no_address_in_the_environment_whatever_it_is(serve: Callable[..., Server]) -> None:
    server = serve("-demo", env={"OPENAI_BASE_URL": "nonsense", "OPENAI_API_KEY": "ké"})
    assert server.request("GET", "/health").status == 200


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_all_threads_stay_on_one_of_the_processors_that_are_allowed(serve: Callable[..., Server]) -> None:
    server = serve("-base_url=http://127.0.0.1:9/v1")
    assert server.request("POST", "/sessions").status == 201
    threads = map(int, os.listdir(f"/proc/{server.process.pid}/task"))
    (processors,) = {frozenset(os.sched_getaffinity(thread)) for thread in threads}
    assert len(processors) == 1
    assert processors <= os.sched_getaffinity(0)


@pytest.mark.parametrize("flag", ["-host=.bad..x", f"-host={'x' * 64}.org", "-api_key=sk-é", "-api_key=sk a"])
def test_what_cannot_be_a_host_or_a_key_is_one_line(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-api_key=k", "-port=0", flag]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_key_is_taken_without_the_line_end_that_was_pasted_with_it() -> None:
    assert read_settings(["-api_key=sk-abc\n"], {}).api_key == "sk-abc"


def test_origins_are_taken_in_the_form_in_which_browsers_send_them() -> None:
    origins = "https://Chat.example.org,https://a.example:443,http://b.example:80,http://c.example:8080"
    locked = ("https://chat.example.org", "https://a.example", "http://b.example", "http://c.example:8080")
    assert read_settings(["-demo", f"-cors_origin={origins}"], {}).cors_origin == locked


# --- options of the model, and its address ---


@pytest.mark.parametrize("name", ["model", "messages", "stream", "stream_options", "tools", "n"])
def test_an_option_that_the_server_sets_itself_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-api_key=k", "-port=0", f'-model_options={{"{name}":1}}']) == 2
    assert capsys.readouterr().err == (
        f"session_server: -model_options cannot set {name}, which the server sets itself: leave it out\n"
    )


@pytest.mark.parametrize("text", ["x", "[1]", '{"a":NaN}', '{"a":"\\ud800"}', "@no/such/file"])
def test_options_that_are_no_object_are_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-api_key=k", "-port=0", f"-model_options={text}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_options_go_with_every_request(serve: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "options.json").write_text('{"temperature": 0.2, "reasoning_effort": "low"}')
    with model_server.ModelServer() as model:
        server = serve(
            f"-base_url={model.base_url}?api-version=2024-10-21", f"-model_options=@{tmp_path}/options.json"
        )
        assert server.request("POST", f"/sessions/{server.create()}/run", {"message": "Hi"}).status == 200
        assert (model.requests[0]["temperature"], model.requests[0]["reasoning_effort"]) == (0.2, "low")
        assert model.paths == ["/v1/chat/completions?api-version=2024-10-21"]


def test_what_the_model_server_refuses_of_the_options_is_named_in_the_log(serve: Callable[..., Server]) -> None:
    refused = model_server.status(400, {"error": {"message": "Unsupported value: temperature"}})
    with model_server.ModelServer(refused, refused) as model:
        server = serve(f"-base_url={model.base_url}", '-model_options={"temperature":9}')
        assert server.request("POST", f"/sessions/{server.create()}/run", {"message": "Hi"}).status == 502
        assert "(with -model_options temperature)" in server.log.read_text()


def test_an_address_that_ends_in_the_path_of_a_request_names_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-port=0", "-base_url=http://127.0.0.1:9/v1/chat/completions"]) == 2
    line = capsys.readouterr().err
    assert "-base_url" in line and "leave that out" in line and len(line.splitlines()) == 1

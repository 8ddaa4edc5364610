"""The chat page: what models write becomes nodes, safely and in time."""

from __future__ import annotations

import threading

import pytest
from selenium.webdriver.common.keys import Keys

from tests.support import browser, commonmark
from tests.support.browser import Page
from tests.support.model_server import ModelServer, answer, tool_call, wait
from tests.web.conftest import Script, Serve

pytestmark = browser.NEEDED


# Safety


HOSTILE = [
    '<img src=x onerror="window.pwned = 1">',
    "<script>window.pwned = 1</script>",
    "[click](javascript:window.pwned=1)",
    "[click](data:text/html,<script>window.pwned=1</script>)",
    '<a href="javascript:window.pwned=1">click</a>',
    "\u202etxet\u200b\ufeff\u2066",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_words_are_shown_as_they_are(here: Page, script: Script, text: str) -> None:
    script(tool_call("calculator", {"expression": text}, text=text), answer(text))
    here.ask(text)
    for state in ("live", "stored"):
        here.wait_until(lambda: len(here.answers) == 2, state)
        contents = here.driver.execute_script(
            "return [...document.querySelectorAll('.answer .text, .question .body')].map((node) => node.textContent)"
        )
        assert contents == [text] * 3
        assert not here.all("#conversation :is(a, img, script, iframe)")
        assert not here.driver.execute_script("return window.pwned")
        here.reload()


def test_links_lead_to_the_web_only_and_tell_it_nothing(here: Page, script: Script) -> None:
    script(answer("[docs](https://example.org/a?b=1) https://example.org/c. [mail](mailto:a@example.org)"))
    here.ask("Links")
    links = here.all("#conversation .text a")
    assert [link.get_attribute("href") for link in links] == [
        "https://example.org/a?b=1",
        "https://example.org/c",
        "mailto:a@example.org",
    ]
    assert {link.get_attribute("rel") for link in links} == {"noopener noreferrer"}
    assert {link.get_attribute("target") for link in links} == {"_blank"}


def test_an_image_is_a_link_and_is_not_loaded(here: Page, script: Script) -> None:
    script(answer("![a picture](https://example.org/x.png)"))
    here.ask("Show me")
    assert here.texts("#conversation .text a") == ["a picture"]
    assert not here.all("#conversation img")


def test_the_token_is_asked_for_and_kept_for_the_tab(
    page: Page, serve: Serve, model: ModelServer, script: Script
) -> None:
    server = serve(f"-base_url={model.base_url}", "-auth_token=correct-horse")
    page.open(server.url)
    page.type("#token-field", "wrong", Keys.ENTER)
    page.wait_until(lambda: "did not accept" in page.text("#token-hint"), "the words")
    page.type("#token-field", "correct-horse", Keys.ENTER)
    page.wait_until(lambda: not page.shows("#token-dialog"), "the end of the question")
    page.ask("Hello")
    assert page.answers == ["OK"]
    page.reload()
    page.wait_until(lambda: page.answers == ["OK"], "the session")
    assert not page.shows("#token-dialog")


# Text


MARKDOWN = """# Plan

1. **one**
   - _two_

> said

| a | b |
|---|---|
| 1 | `2` |

```py
x = 1 < 2
```
"""


@pytest.mark.parametrize(
    ("selector", "texts"),
    [
        ("h3", ["Plan"]),
        ("ol > li strong", ["one"]),
        ("li li em", ["two"]),
        ("blockquote", ["said"]),
        ("td", ["1", "2"]),
        ("td code", ["2"]),
        ("pre", ["x = 1 < 2"]),
    ],
)
def test_markdown_becomes_elements(here: Page, script: Script, selector: str, texts: list[str]) -> None:
    script(answer(MARKDOWN))
    here.ask("Show me")
    assert here.texts(f".text {selector}") == texts


def test_arithmetic_and_names_are_no_markdown(here: Page, script: Script) -> None:
    text = "2*3*4 is 24, 2**10 is 1024, a * b * c, and snake_case_name stays"
    script(answer(text))
    here.ask("Show me")
    assert here.answers == [text]


def test_entities_are_read_by_their_names_and_what_is_none_stays(here: Page, script: Script) -> None:
    script(answer("&hearts; &frac34; &NotEqualTilde; &semi; &amp;amp; &#9829; &nosuch; &notit; &lt;b&gt; x&Tab;y"))
    here.ask("Show me")
    assert here.answers == ["♥ ¾ ≂̸ ; &amp; ♥ &nosuch; &notit; <b> x\ty"]


def test_code_is_copied_as_it_was_write_numbered(here: Page, script: Script) -> None:
    script(answer("```py\nif a < b:\n\treturn 1\n```"))
    here.ask("Show me")
    here.click(".code button")
    here.wait_until(lambda: here.text(".code button") == "Copied", "the copy")
    here.type("#message", Keys.CONTROL + "v")
    assert here.written == "if a < b:\n\treturn 1"


LEFT = "const s = document.getElementById('scroller'); return s.scrollHeight - s.scrollTop - s.clientHeight"


def test_the_page_follows_the_answer_unless_the_reader_has_scrolled_up(here: Page, script: Script) -> None:
    first, second = threading.Event(), threading.Event()
    script(answer("line\n\n" * 50, wait(first), "line\n\n" * 50, wait(second), "line\n\n" * 50 + "last"))
    here.send("A long one")
    here.wait_until(lambda: len(here.text(".answer .text").split()) == 50, "the first part")
    here.wait_until(lambda: here.driver.execute_script(LEFT) < 1, "the end in view")
    first.set()
    here.wait_until(lambda: len(here.text(".answer .text").split()) == 100, "the second part")
    here.wait_until(lambda: here.driver.execute_script(LEFT) < 1, "the end in view")
    here.driver.execute_script("document.getElementById('scroller').scrollTop = 100")
    here.wait_until(lambda: here.shows("#latest"), "the way back to the end")
    second.set()
    here.settle()
    assert here.driver.execute_script("return document.getElementById('scroller').scrollTop") == 100
    here.click("#latest")
    here.wait_until(lambda: here.driver.execute_script(LEFT) < 1, "the end in view")


CHANGE = """
const growing = document.createElement("div");
document.getElementById("live").append(growing);
const frame = () => new Promise(requestAnimationFrame);
const resize = (height) => {
  growing.replaceChildren(document.createElement("p"));
  growing.firstChild.style.height = `${height}px`;
  return growing.offsetHeight; // lays the page out, as whatever measures it does
};
resize(600);
await frame();
await frame();
resize(100);
await null;
resize(400);
await frame();
await frame();
"""


@pytest.mark.parametrize("width", [390, 1200])
def test_the_end_stays_in_view_when_text_shrinks_and_grows_before_the_next_frame(
    here: Page, script: Script, width: int
) -> None:
    browser.resize(here.driver, width, 780)
    script(answer("line\n\n" * 60 + "last"))
    here.ask("A long one")
    here.run(CHANGE)
    here.wait_until(lambda: here.run(LEFT) < 1, "the end in view")
    assert not here.shows("#latest")


AT_ONCE = """
const shown = await (await fetch(given[0])).json();
const ask = window.fetch;
window.fetch = async (path, settings) => {
  if (!path.startsWith(given[0])) return ask(path, settings);
  return { ok: true, status: 200, headers: new Headers(), json: async () => shown };
};
"""


def test_a_session_that_comes_at_once_is_shown_at_its_end(here: Page, script: Script) -> None:
    script(answer("line\n\n" * 60 + "one"), answer("line\n\n" * 90 + "two"))
    here.ask("First")
    first = here.session
    here.click("#new")
    here.ask("Second")
    here.run(AT_ONCE, f"sessions/{first}")
    here.click(f"#list a[href='#{first}']")
    here.wait_until(lambda: here.questions == ["First"], "the session")
    here.wait_until(lambda: here.run(LEFT) < 1, "the end in view")
    assert not here.shows("#latest")


def test_text_that_comes_in_pieces_is_drawn_like_text_that_comes_whole(here: Page) -> None:
    differing = here.run(
        r"""
        const { markdown } = await import("/markdown.js");
        const { Answer } = await import("/answer.js");
        const parts = ["# T\n", "word ", "**b** ", "- a\n", "  - b\n", "1. x\n", "\n", "```\n", "~~~\n", "> q\n",
          "* ", "| a | b |\n", "|---|---|\n", "---\n", "`c`", "[l](https://e.org)", "   in\n", "*i*", "\tt\n", "3) "];
        let seed = 1;
        const random = (below) => (seed = (seed * 48271) % 2147483647) % below;
        const differing = [];
        for (let round = 0; round < 500; round += 1) {
          const text = Array.from({ length: random(25) + 1 }, () => parts[random(parts.length)]).join("");
          const whole = document.createElement("div");
          whole.append(...markdown(text).map(({ node }) => node));
          const answer = new Answer(document.createElement("div"));
          for (let at = 0; at < text.length; ) {
            const next = at + 1 + random(9);
            answer.write(text.slice(at, next));
            answer.text.draw();
            at = next;
          }
          if (answer.text.node.innerHTML !== whole.innerHTML) differing.push(text);
        }
        return differing;
        """
    )
    assert differing == []


def test_no_text_holds_up_the_page(here: Page) -> None:
    slow = here.run(
        r"""
        const { markdown } = await import("/markdown.js");
        const parts = ["*a ", "**a __b ", "`", "`a``b```c", "[", "[a](", "[a](http://x", "](http://x \"", "http://a.b/((",
          ">", "> > \n", "- ", "- a\n", " - a\n", "# ", " #", "|", "|-", "a|b\n-|-\n", "```\n", " ", "\n", "*[_`~~**",
          "http://" + ".".repeat(999)];
        const cost = (part, size) => {
          const text = part.repeat(size / part.length) + "x";
          const begun = performance.now();
          markdown(text);
          return performance.now() - begun;
        };
        const slow = [];
        for (const part of parts) {
          const took = cost(part, 100_000);
          // What is quadratic takes sixteen times as long for four times the size.
          if (took > 1000 && took > 9 * Math.max(cost(part, 25_000), cost(part, 25_000))) slow.push([part, took]);
        }
        return slow;
        """
    )
    assert slow == []


def test_a_text_of_very_many_blocks_is_drawn(here: Page) -> None:
    count = here.run(
        """
        const { Answer } = await import("/answer.js");
        const answer = new Answer(document.createElement("div"));
        answer.write("#\\n".repeat(given[0]) + "> #\\n".repeat(given[0]));
        answer.finish();
        return answer.body.querySelectorAll("h3").length;
        """,
        130_000,
    )
    assert count == 260_000


def test_an_answer_has_the_direction_of_its_first_letter(here: Page, script: Script) -> None:
    script(answer("1. **שלום**\n2. two"), answer("1. one\n2. שלום"), answer("```\nx\n```\n\n- مرحبا"))
    for text in ("Hebrew", "English", "Arabic"):
        here.ask(text)
    directions = here.run(
        "return [...document.querySelectorAll('.text :is(ul, ol)')].map((n) => getComputedStyle(n).direction)"
    )
    assert directions == ["rtl", "ltr", "rtl"]


def test_emphasis_needs_no_spaces_where_none_are_written(here: Page, script: Script) -> None:
    script(answer("**重点：**内容。これは**「強調」**です。**핵심:**입니다"))
    here.ask("Show me")
    assert here.texts(".text strong") == ["重点：", "「強調」", "핵심:"]


def test_a_definition_in_code_defines_nothing(here: Page, script: Script) -> None:
    script(answer('```\n[a]: https://example.org\n```\n\n[a] and [b]\n\n[b]: https://example.org "a \\"title\\""'))
    here.ask("Links")
    assert here.texts(".text a") == ["b"]


@pytest.mark.skipif(not commonmark.INSTALLED, reason=commonmark.NEEDS)
def test_most_examples_of_commonmark_give_their_text(here: Page) -> None:
    examples = commonmark.examples()
    found = here.run(
        """
        const { markdown } = await import("/markdown.js");
        return given[0].map((text) => {
          const whole = document.createElement("div");
          whole.append(...markdown(text).map(({ node }) => node));
          whole.querySelectorAll("button, .code-bar").forEach((node) => node.remove());
          return whole.textContent;
        });
        """,
        [markdown for markdown, _ in examples],
    )
    right = [
        "".join(text.split()) == commonmark.text_of_html(html).replace(" ", "")
        for text, (_, html) in zip(found, examples, strict=True)
    ]
    # The others have raw HTML, which stays as it was written, or forms that no model writes.
    assert sum(right) >= 562

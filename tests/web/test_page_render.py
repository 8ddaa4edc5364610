"""The chat page: colours and mathematics, which the server draws when an answer is complete."""

from __future__ import annotations

import threading

from selenium.webdriver.common.action_chains import ActionChains

from tests.support import browser
from tests.support.browser import Page
from tests.support.model_server import answer, wait
from tests.web.conftest import Script

pytestmark = browser.NEEDED

CODE = "Look:\n\n```python\ndef one():\n    return 1\n```\n\nSo $x^2$ it is."


def test_a_finished_answer_has_colours_and_mathematics(here: Page, script: Script) -> None:
    script(answer(CODE))
    here.ask("Show me")
    here.wait_until(lambda: here.all(".code .keyword") and here.all(".text math msup"), "the colours")
    assert here.texts(".code pre") == ["def one():\n    return 1"]
    here.click(".code button")
    here.wait_until(lambda: here.text(".code button") == "Copied", "the copy")


HOLD = """
const ask = window.fetch;
window.fetch = async (path, settings) => {
  const response = await ask(path, settings);
  if (path !== "render") return response;
  const drawn = await response.json();
  await new Promise((go) => (window.go = go));
  return { ok: true, status: 200, headers: new Headers(), json: async () => drawn };
};
"""


def test_a_button_that_is_pressed_is_not_replaced_under_the_press(here: Page, script: Script) -> None:
    here.run(HOLD)
    script(answer(CODE))
    here.ask("Show me")
    here.wait_until(lambda: here.run("return Boolean(window.go)"), "what the server draws")
    ActionChains(here.driver).click_and_hold(here.all(".code button")[0]).perform()
    here.run("go(); await new Promise((done) => setTimeout(done))")  # by then it would have been drawn
    ActionChains(here.driver).release().perform()
    here.wait_until(lambda: here.text(".code button") == "Copied", "the copy")
    assert not here.all(".code .keyword")
    here.click("#message")
    here.wait_until(lambda: here.all(".code .keyword"), "the colours")


def test_a_growing_answer_is_drawn_by_the_page(here: Page, script: Script) -> None:
    go = threading.Event()
    script(answer(CODE, wait(go), " Yes."))
    here.send("Show me")
    here.wait_until(lambda: "it is." in here.text(".answer .text"), "the text")
    assert here.texts(".code pre") == ["def one():\n    return 1"]
    assert not here.all(".code .keyword")
    assert "$x^2$" in here.text(".answer .text")
    go.set()
    here.settle()
    here.wait_until(lambda: here.all(".code .keyword"), "the colours")


def test_an_answer_that_changes_does_not_jump(here: Page, script: Script) -> None:
    script(answer("line\n\n" * 40 + CODE + "\n\n" + "line\n\n" * 40))
    here.ask("Show me")
    here.run("document.getElementById('scroller').scrollTop = 600")
    here.reload()
    here.wait_until(lambda: here.all(".code .keyword"), "the colours")
    left = "const s = document.getElementById('scroller'); return s.scrollHeight - s.scrollTop - s.clientHeight"
    here.wait_until(lambda: here.run(left) < 1, "the end in view")


def test_what_the_server_draws_is_like_what_the_page_draws(here: Page, script: Script) -> None:
    differing = here.run(
        r"""
        const { markdown } = await import("/markdown.js");
        const { build } = await import("/rendered.js");
        const texts = ["# One\n\ntwo *three* **four** `five` ~~six~~", "- a\n- b\n  - c\n\n1. d\n2. e",
          "> quote\n> more",
          "| a | b |\n|:-:|--:|\n| 1 | 2 |", "- [x] done\n- [ ] to do", "a\\\nb  \nc",
          "[a](https://e.org) <https://e.org> https://e.org.",
          "2*3*4 and 2**8 and snake_case_name", "---\n\n&amp; &copy; \\* x",
          "**重点：**内容、内**（注）**文、これは**「強調」**です。**핵심:**입니다, 2*3*4 と a * b",
          "![alt](https://e.org/x.png)", "a\n===\n\nb\n---"];
        const html = (nodes) => {
          const whole = document.createElement("div");
          whole.append(...nodes);
          const names = [...whole.querySelectorAll("*")].map(({ localName }) => localName);
          return whole.textContent.replace(/\s+/g, " ") + names.join();
        };
        const differing = [];
        for (const text of texts) {
          const body = JSON.stringify({ text });
          const headers = { "Content-Type": "application/json" };
          const answer = await fetch("/render", { method: "POST", body, headers });
          const { tree } = await answer.json();
          const [own, theirs] = [html(markdown(text).map(({ node }) => node)), html(tree.map(build))];
          if (own !== theirs) differing.push([own, theirs]);
        }
        return differing;
        """
    )
    assert differing == []

"""Markdown as a tree of a few elements: tables, code in colours, and mathematics as MathML.

A tree is a text, or a name with attributes and children. The elements, attributes and colours are those that stand
here by name; nothing of the text becomes another. So whoever makes nodes of it trusts no string.
"""

from __future__ import annotations

import functools
import html
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar
from xml.etree.ElementTree import Element

from flask import Response
from latex2mathml.converter import convert_to_element
from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token as Mark
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.footnote import footnote_plugin
from pygments.lexer import Lexer, RegexLexer, words
from pygments.lexers import get_lexer_by_name
from pygments.token import Token, _TokenType

from session_core.web.bodies import json_body
from session_core.web.errors import ApiError, json_response

Tree = str | tuple[str, dict[str, str], list["Tree"]]

MAX_TEXT_BYTES = 64 << 10
_MAX_DEPTH = 60  # elements in one another
_MAX_FORMULA_LENGTH = 2000  # characters
_MAX_FORMULA_DEPTH = 40
_MAX_CODE_LENGTH = 20_000  # characters in colours
_MAX_LINE_LENGTH = 1000  # characters of a line of code in colours, since patterns look through a line more than once

_ELEMENTS = {
    "paragraph": "p",
    "blockquote": "blockquote",
    "bullet_list": "ul",
    "ordered_list": "ol",
    "list_item": "li",
    "table": "table",
    "thead": "thead",
    "tbody": "tbody",
    "tr": "tr",
    "th": "th",
    "td": "td",
    "strong": "strong",
    "em": "em",
    "s": "del",
    "footnote_block": "section",
    "footnote": "div",
}
_MATH_ELEMENTS = (
    "math mi mn mo ms mtext mspace mrow mfrac msqrt mroot mstyle merror mpadded mphantom menclose msub msup "
    "msubsup munder mover munderover mmultiscripts mtable mtr mtd"
)
_MATH_ATTRIBUTES = (
    "display mathvariant stretchy fence form accent columnalign rowspacing width linethickness movablelimits"
)
_COLOURS: dict[_TokenType, str] = {
    Token.Comment: "comment",
    Token.Keyword: "keyword",
    Token.Operator.Word: "keyword",
    Token.Name.Tag: "keyword",
    Token.Literal.String: "string",
    Token.Literal.Number: "number",
    Token.Name.Function: "symbol",
    Token.Name.Class: "symbol",
    Token.Name.Decorator: "symbol",
    Token.Name.Builtin: "symbol",
    Token.Name.Attribute: "symbol",
    Token.Generic.Deleted: "removed",
    Token.Generic.Inserted: "added",
}
# Lexers whose patterns take time in proportion to the code. Those of languages in the manner of C do not.
_LEXERS = (
    "python py python3 javascript js typescript ts go golang rust rs ruby rb php bash sh shell zsh console sql "
    "html xml css scss json yaml yml toml ini diff docker dockerfile lua r tex latex"
)
_C_LIKE = "c cpp c++ csharp c# cs java kotlin swift scala jsx tsx perl dart groovy"
_C_KEYWORDS = (
    "abstract as async auto await bool boolean break case catch char class const continue data default def do "
    "double else enum export extends extern false final finally float for foreach from fun func function guard if "
    "implements import in include inline int interface internal is let long my namespace new null nil object "
    "operator override package private protected public readonly return self short signed sizeof static string "
    "struct sub super switch template this throw throws trait true try typedef typename union unsigned use using "
    "val var virtual void volatile when where while with yield"
)
_BARE_ADDRESS = re.compile(r"(?<!\w)(?:https?://|www\.)[^\s<>\"`*\[\]]{1,2000}|<br[ \t]{0,9}/?>", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def answer_render() -> Response:
    """The answer to `{"text": "…"}`: `{"tree": […]}`."""
    text = json_body().get("text")
    if not isinstance(text, str):
        raise ApiError("invalid_request", 'The body must be {"text": "text"}.')
    if len(text.encode()) > MAX_TEXT_BYTES:
        raise ApiError("request_too_large", "The text is larger than 64 KiB.")
    return json_response({"tree": render_tree(text)})


def render_tree(text: str) -> list[Tree]:
    """The blocks of a Markdown text (CommonMark 0.31 with tables, footnotes, task lists and formulas).

    Addresses lead to the web or to mail, or are left out. The work is in proportion to the text.
    """
    return _Builder().build(_reader().parse(text))


@functools.cache
def _reader() -> MarkdownIt:
    reader = MarkdownIt("commonmark", {"html": False, "maxNesting": 24}).enable(["table", "strikethrough"])
    reader.use(footnote_plugin, inline=False).use(dollarmath_plugin, allow_space=False, allow_digits=False)
    reader.validateLink = _may_stand  # type: ignore[method-assign, assignment]
    reader.normalizeLinkText = str  # type: ignore[method-assign, assignment]
    reader.inline.ruler.before("escape", "bracket_math", _read_bracket_math)
    reader.inline.ruler.before("emphasis", "arithmetic", _read_arithmetic)
    return reader


def _may_stand(address: str) -> bool:
    """Whether a link with this address is one: others stay as they were written."""
    return not _SCHEME.match(address.strip()) or _is_address(address)


def _is_address(address: str) -> bool:
    return bool(re.match(r"https?://|mailto:", address.strip(), re.IGNORECASE))


def _read_bracket_math(state: StateInline, silent: bool) -> bool:
    r"""Formulas between `\(` and `\)`, and between `\[` and `\]`."""
    begin = state.src[state.pos : state.pos + 2]
    if begin not in (r"\(", r"\["):
        return False
    end = state.src.find(r"\)" if begin == r"\(" else r"\]", state.pos + 2, state.pos + 2 + _MAX_FORMULA_LENGTH)
    formula = state.src[state.pos + 2 : end]
    if end < 0 or not any(map(str.isalnum, formula)):
        return False
    if not silent:
        state.push("math_block" if begin == r"\[" else "math_inline", "math", 0).content = formula
    state.pos = end + 2
    return True


def _read_arithmetic(state: StateInline, silent: bool) -> bool:
    """Stars and underscores beside a digit, inside of a word, are no emphasis: 2*3*4, 2**8."""
    begin = end = state.pos
    while end < state.posMax and state.src[end] in "*_" and state.src[end] == state.src[begin]:
        end += 1
    before, after = state.src[max(0, begin - 1) : begin], state.src[end : end + 1]
    if begin == end or not (before.isalnum() and after.isalnum() and (before.isdigit() or after.isdigit())):
        return False
    if not silent:
        state.pending += state.src[begin:end]
    state.pos = end
    return True


class _Builder:
    """Makes trees of the marks that the reader gives."""

    def build(self, marks: Sequence[Mark]) -> list[Tree]:
        root: list[Tree] = []
        open_elements = [root]
        links = 0  # that are open: no link stands in a link
        for mark in marks:
            links += mark.nesting if mark.tag == "a" else 0
            if mark.nesting > 0:
                element = self._open(mark)
                if len(open_elements) > _MAX_DEPTH:  # what is deeper stands in what is there
                    element[2][:] = []
                    open_elements.append(open_elements[-1])
                    continue
                open_elements[-1].append(element)
                open_elements.append(element[2])
            elif mark.nesting < 0:
                open_elements.pop()
                if mark.type == "list_item_close":
                    _mark_task(open_elements[-1][-1])
            else:
                open_elements[-1].extend([mark.content] if links and mark.type == "text" else self._leaf(mark))
        return root

    def _open(self, mark: Mark) -> tuple[str, dict[str, str], list[Tree]]:
        kind = mark.type.removesuffix("_open")
        if kind == "heading":
            return f"h{min(int(mark.tag[1]) + 2, 6)}", {}, []  # the page's own headings take two levels
        if kind == "link":
            href = str(mark.attrGet("href") or "")
            return ("a", {"href": href}, []) if _is_address(href) else ("span", {}, [])
        attributes: dict[str, str] = {}
        if kind in ("th", "td"):
            attributes = {"class": side} if (side := _side(str(mark.attrGet("style") or ""))) else {}
        if kind == "ordered_list":
            attributes = {"start": str(mark.attrGet("start") or 1)}
        if kind in ("footnote", "footnote_block"):
            attributes = {"class": "footnote" if kind == "footnote" else "footnotes"}
        label: list[Tree] = [("sup", {}, [_footnote_label(mark)]), " "] if kind == "footnote" else []
        return _ELEMENTS.get(kind, "span"), attributes, label

    def _leaf(self, mark: Mark) -> Iterable[Tree]:
        if mark.type == "inline":
            return self.build(mark.children or [])
        if mark.type == "text":
            return _with_addresses(mark.content)
        if mark.type in ("fence", "code_block"):
            return [
                _code(mark.content.removesuffix("\n"), mark.info.split(maxsplit=1)[0] if mark.info.strip() else "")
            ]
        if mark.type == "image":
            href = str(mark.attrGet("src") or "")
            alt = self.build(mark.children or [])
            return [("a", {"href": href}, alt) if _is_address(href) else ("span", {}, alt)]
        if mark.type.startswith("math"):
            return [_formula(mark.content, is_block="block" in mark.type or "double" in mark.type)]
        simple: dict[str, Callable[[], Tree]] = {
            "softbreak": lambda: "\n",
            "hardbreak": lambda: ("br", {}, []),
            "hr": lambda: ("hr", {}, []),
            "code_inline": lambda: ("code", {}, [mark.content]),
            "footnote_ref": lambda: ("sup", {}, [_footnote_label(mark)]),
        }
        return [simple[mark.type]()] if mark.type in simple else [mark.content] if mark.content else []


def _footnote_label(mark: Mark) -> str:
    return str(mark.meta.get("label") or mark.meta.get("id", 0) + 1)


def _side(style: str) -> str:
    return {"text-align:right": "end", "text-align:center": "center"}.get(style, "")


def _mark_task(item: Tree) -> None:
    """Puts a box in place of the `[x]` that an item of a list begins with."""
    children = item[2] if not isinstance(item, str) else []
    first = children[0] if children else ""
    if isinstance(first, str) or not first[2] or not isinstance(begin := first[2][0], str):
        return
    if found := re.match(r"\[([ xX])\][ \t]+(?=\S)", begin):
        assert not isinstance(item, str)
        item[1]["class"] = "task"
        first[2][0] = ("☐ " if found[1] == " " else "☑ ") + begin[found.end() :]


def _with_addresses(text: str) -> Iterator[Tree]:
    """A text in which bare addresses are links, and `<br>` ends a line."""
    done = 0
    for found in _BARE_ADDRESS.finditer(text):
        yield from filter(None, [text[done : found.start()]])
        word = found[0]
        if word[0] == "<":
            yield "br", {}, []
            done = found.end()
            continue
        address = word.rstrip(".,;:!?'\"]}_~" + ("" if "(" in word else ")"))
        yield "a", {"href": address if address[0] in "hH" else f"https://{address}"}, [address]
        done = found.start() + len(address)
    yield from filter(None, [text[done:]])


def _code(code: str, language: str) -> Tree:
    lexer = _lexer(language.lower())
    small = len(code) <= _MAX_CODE_LENGTH and max(map(len, code.split("\n"))) <= _MAX_LINE_LENGTH
    return "pre", {"language": language[:40]}, list(_coloured(code, lexer)) if lexer and small else [code]


class _CLikeLexer(RegexLexer):
    """The comments, texts, numbers and words that languages in the manner of C share."""

    tokens: ClassVar[dict[str, list[Any]]] = {
        "root": [
            (r"//[^\n]*", Token.Comment),
            (r"/\*", Token.Comment, "comment"),
            (r'"(?:[^"\\\n]|\\.)*"?', Token.Literal.String),
            (r"'(?:[^'\\\n]|\\.)*'?", Token.Literal.String),
            (r"\d[\w.]*", Token.Literal.Number),
            (words(_C_KEYWORDS.split(), suffix=r"\b"), Token.Keyword),
            (r"[^\W\d]\w*(?=\()", Token.Name.Function),
            (r"\w+|\s+|.", Token.Text),
        ],
        "comment": [(r"[^*]+", Token.Comment), (r"\*/", Token.Comment, "#pop"), (r"\*", Token.Comment)],
    }


@functools.cache
def _lexer(language: str) -> Lexer | None:
    options = {"stripnl": False, "ensurenl": False}
    if language in _C_LIKE.split():
        return _CLikeLexer(**options)
    return get_lexer_by_name(language, **options) if language in _LEXERS.split() else None


def _coloured(code: str, lexer: Lexer) -> Iterator[Tree]:
    for colour, tokens in itertools.groupby(lexer.get_tokens(code), lambda token: _colour(token[0])):
        text = "".join(part for _, part in tokens)
        yield ("span", {"class": colour}, [text]) if colour else text


def _colour(kind: _TokenType) -> str:
    kinds = reversed(kind.split())  # the kind itself, and what it is a kind of
    return next((_COLOURS[one] for one in kinds if one in _COLOURS), "")


def _formula(source: str, *, is_block: bool) -> Tree:
    """A formula as MathML, or as its source where that is not understood."""
    if len(source) > _MAX_FORMULA_LENGTH:
        return "code", {}, [source]
    try:
        return _math_tree(convert_to_element(source, display="block" if is_block else "inline"), 0)
    except Exception:  # noqa: BLE001  the converter tells what it does not understand in many ways, IndexError among them
        return "code", {}, [source]


def _math_tree(element: Element, depth: int) -> Tree:
    if depth > _MAX_FORMULA_DEPTH:
        raise ValueError("the formula is too deep")
    if element.tag not in _MATH_ELEMENTS.split():
        return "mtext", {}, [html.unescape("".join(element.itertext()))]
    attributes = {name: value for name, value in element.attrib.items() if name in _MATH_ATTRIBUTES.split()}
    children: list[Tree] = [html.unescape(element.text)] if element.text else []
    return element.tag, attributes, children + [_math_tree(child, depth + 1) for child in element]

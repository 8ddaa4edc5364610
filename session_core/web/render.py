"""Markdown as a tree of a few elements: tables, code in colours, and mathematics as MathML.

A tree is a text, or a name with attributes and children. The elements, attributes and colours are those that stand
here by name; nothing of the text becomes another. So whoever makes nodes of it trusts no string.
"""

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
from markdown_it.rules_inline import StateInline, emphasis
from markdown_it.token import Token as Mark
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.footnote import footnote_plugin
from pygments.lexer import Lexer, RegexLexer, words
from pygments.lexers import get_lexer_by_name
from pygments.token import Token, _TokenType

from session_core.web.bodies import json_body
from session_core.web.errors import ApiError, json_response

Tree = str | tuple[str, dict[str, str], list["Tree"]]
_Element = tuple[str, dict[str, str], list[Tree]]

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
_WRITTEN_WITHOUT_SPACES = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
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
    return _build(_reader().parse(text))


@functools.cache
def _reader() -> MarkdownIt:
    reader = MarkdownIt("commonmark", {"html": False, "maxNesting": 24}).enable(["table", "strikethrough"])
    reader.use(footnote_plugin, inline=False).use(dollarmath_plugin, allow_space=False, allow_digits=False)
    reader.validateLink = _may_stand  # type: ignore[method-assign, assignment]
    reader.normalizeLinkText = str  # type: ignore[method-assign, assignment]
    reader.inline.ruler.before("escape", "bracket_math", _read_bracket_math)
    reader.inline.ruler.before("emphasis", "arithmetic", _read_arithmetic)
    reader.inline.ruler.at("emphasis", _read_emphasis)
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


def _read_emphasis(state: StateInline, silent: bool) -> bool:
    """Emphasis, also where punctuation and a letter of Chinese, Japanese or Korean stand beside its stars."""
    begin, known = state.pos, len(state.delimiters)
    found = emphasis.tokenize(state, silent)
    before, after = state.src[max(0, begin - 1) : begin], state.src[state.pos : state.pos + 1]
    for delimiter in state.delimiters[known:] if state.src[begin] == "*" and before.strip() and after.strip() else ():
        delimiter.open |= bool(_WRITTEN_WITHOUT_SPACES.match(before))
        delimiter.close |= bool(_WRITTEN_WITHOUT_SPACES.match(after))
    return found


def _build(marks: Sequence[Mark]) -> list[Tree]:
    """The trees of the marks that the reader gives."""
    root: list[Tree] = []
    open_elements = [root]
    links = 0  # that are open: no link stands in a link
    for mark in marks:
        links += mark.nesting if mark.tag == "a" else 0
        if mark.nesting > 0:
            element = _open(mark)
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
            make = _plain if links and mark.type == "text" else _LEAVES.get(mark.type, _plain)
            open_elements[-1].extend(make(mark))
    return root


def _open(mark: Mark) -> _Element:
    kind = mark.type.removesuffix("_open")
    if kind == "heading":
        return f"h{min(int(mark.tag[1]) + 2, 6)}", {}, []  # the page's own headings take two levels
    if kind == "link":
        return _link(str(mark.attrGet("href")), [])
    attributes = {
        "ordered_list": {"start": str(mark.attrGet("start") or 1)},
        "footnote": {"class": "footnote"},
        "footnote_block": {"class": "footnotes"},
    }
    label: list[Tree] = [_footnote_label(mark), " "] if kind == "footnote" else []
    return _ELEMENTS.get(kind, "span"), attributes.get(kind, _side(mark)), label


def _side(mark: Mark) -> dict[str, str]:
    """On which side the text of a cell stands, where a table says so."""
    sides = {"text-align:right": "end", "text-align:center": "center"}
    return {"class": side} if (side := sides.get(str(mark.attrGet("style")))) else {}


def _link(address: str, children: list[Tree]) -> _Element:
    """A link, or its text alone where it leads elsewhere than to the web or to mail."""
    return ("a", {"href": address}, children) if _is_address(address) else ("span", {}, children)


def _footnote_label(mark: Mark) -> Tree:
    return "sup", {}, [str(mark.meta.get("label") or mark.meta.get("id", 0) + 1)]


def _plain(mark: Mark) -> list[Tree]:
    return [mark.content] if mark.content else []


def _mark_task(item: Tree) -> None:
    """Puts a box in place of the `[x]` that an item of a list begins with."""
    match item:
        case (_, attributes, [(_, _, [str(begin), *_] as texts), *_]):
            if found := re.match(r"\[([ xX])\][ \t]+(?=\S)", begin):
                attributes["class"] = "task"
                texts[0] = ("☐ " if found[1] == " " else "☑ ") + begin[found.end() :]


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


def _code(mark: Mark) -> list[Tree]:
    code = mark.content.removesuffix("\n")
    language = (mark.info.split() or [""])[0]
    lexer = _lexer(language.lower())
    small = len(code) <= _MAX_CODE_LENGTH and max(map(len, code.split("\n"))) <= _MAX_LINE_LENGTH
    return [("pre", {"language": language[:40]}, list(_coloured(code, lexer)) if lexer and small else [code])]


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


def _formula(mark: Mark) -> list[Tree]:
    """A formula as MathML, or as its source where that is not understood."""
    source: Tree = ("code", {}, [mark.content])
    if len(mark.content) > _MAX_FORMULA_LENGTH:
        return [source]
    display = "block" if "block" in mark.type or "double" in mark.type else "inline"
    try:
        return [_math_tree(convert_to_element(mark.content, display=display), 0)]
    except Exception:  # noqa: BLE001  the converter tells what it does not understand in many ways, IndexError among them
        return [source]


def _math_tree(element: Element, depth: int) -> Tree:
    if depth > _MAX_FORMULA_DEPTH:
        raise ValueError("the formula is too deep")
    if element.tag not in _MATH_ELEMENTS.split():
        return "mtext", {}, [html.unescape("".join(element.itertext()))]
    attributes = {name: value for name, value in element.attrib.items() if name in _MATH_ATTRIBUTES.split()}
    children: list[Tree] = [html.unescape(element.text)] if element.text else []
    return element.tag, attributes, children + [_math_tree(child, depth + 1) for child in element]


_LEAVES: dict[str, Callable[[Mark], Iterable[Tree]]] = {
    "inline": lambda mark: _build(mark.children or []),
    "text": lambda mark: _with_addresses(mark.content),
    "fence": _code,
    "code_block": _code,
    "code_inline": lambda mark: [("code", {}, [mark.content])],
    "image": lambda mark: [_link(str(mark.attrGet("src")), _build(mark.children or []))],
    "math_inline": _formula,
    "math_inline_double": _formula,
    "math_block": _formula,
    "math_block_label": _formula,
    "softbreak": lambda _mark: ["\n"],
    "hardbreak": lambda _mark: [("br", {}, [])],
    "hr": lambda _mark: [("hr", {}, [])],
    "footnote_ref": lambda mark: [_footnote_label(mark)],
}

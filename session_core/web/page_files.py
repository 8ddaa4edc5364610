"""The files of the chat page, and the description of the API: cached and compressed."""

import functools
import gzip
import hashlib
import importlib.resources
import importlib.util
import json
import re

from flask import Response, request
from werkzeug.wrappers import Response as BaseResponse

_PAGE = importlib.resources.files("session_core.web") / "page"
_MEDIA_TYPES = {  # the system's own table can be wrong
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "json": "application/json",
    "svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_FILES = sorted(file.name for file in _PAGE.iterdir() if file.name.endswith((".css", ".js", ".svg")))
_STYLES = re.compile(r'(?:<link rel="stylesheet" href="\w+\.css">\n)+')
_IMPORT = re.compile(r'^import \{([^}]*)\} from "\./(\w+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?:async )?(?:function\*?|class|const|let) ?([\w$]+)", re.MULTILINE)
_COMMENT = re.compile(r"^ *(?://.*|/\*(?:[^*]|\*(?!/))*\*/)\n|(?<=\S) +// [^\"'`\n]*$", re.MULTILINE)
_JOINED = {
    "all.css",
    "all.js",
}  # all styles, and all scripts: a round trip each, however many files they are, and without comments
PAGE_FILES = sorted({*_FILES, *_JOINED})
# One route with all names, since each route takes most of a millisecond of a start.
_NAME = f"<any({','.join(map(json.dumps, PAGE_FILES))}):name>"
PAGE_FILE_ROUTES = (f"/{_NAME}", f"/page-<version>/{_NAME}")


def is_page_file(path: str) -> bool:
    """Whether a file of the page stands at this path, with whatever version."""
    _, _, name = re.sub(r"^/page-[^/]*(?=/)", "", path).partition("/")
    return name in PAGE_FILES


def page_file(name: str, version: str = "") -> BaseResponse:
    """A file of the page, with a Content-Security-Policy under which it loads nothing from elsewhere.

    Browsers keep a file with a `version` of the page in its address for good, and ask whether any other has changed.
    """
    body, compressed, tag = _contents(name)
    encodings = request.accept_encodings
    response = Response(compressed if encodings["gzip"] else body, mimetype=_MEDIA_TYPES[name.rpartition(".")[2]])
    if encodings["gzip"]:
        response.headers["Content-Encoding"] = "gzip"
    response.headers["Vary"] = "Accept-Encoding"
    response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if version == _version() else "no-cache"
    response.headers["Content-Security-Policy"] = _POLICY
    response.set_etag(tag, weak=True)
    return response.make_conditional(request)


@functools.cache
def _contents(name: str) -> tuple[bytes, bytes, str]:
    """A file, the same compressed, and its digest."""
    text = _join_styles() if name == "all.css" else _join_scripts() if name == "all.js" else _text(name)
    text = _COMMENT.sub("", text) if name in _JOINED else text
    body = (_with_versions(text) if name == "index.html" else text).encode()
    return body, gzip.compress(body, mtime=0), hashlib.sha256(body).hexdigest()[:16]


@functools.cache
def _version() -> str:
    """The digest of all files of the page."""
    return hashlib.sha256(b"".join((_PAGE / name).read_bytes() for name in _FILES)).hexdigest()[:16]


def _text(name: str) -> str:
    return (_PAGE / name).read_text(encoding="utf-8")


def _with_versions(html: str) -> str:
    """The page with its files at addresses that change with them, so that a browser asks for none of them twice."""
    prefix = f"page-{_version()}/"
    html = _STYLES.sub('<link rel="stylesheet" href="all.css">\n', html).replace('"page.js"', '"all.js"')
    html = re.sub(r'(href|src)="([a-z_]+\.(?:css|js))"', rf'\1="{prefix}\2"', html)
    renders = all(importlib.util.find_spec(name) for name in ("markdown_it", "mdit_py_plugins", "pygments"))
    return html.replace("<html ", "<html data-render ", 1) if renders else html


def _join_styles() -> str:
    return "".join(map(_text, re.findall(r'rel="stylesheet" href="(\w+\.css)"', _text("index.html"))))


def _join_scripts() -> str:
    """The modules in one, each as a function that returns what it exports, behind those that it imports from."""
    joined: dict[str, str] = {}

    def add(name: str) -> None:
        if name in joined:
            return
        text = _text(f"{name}.js")
        for _, imported in _IMPORT.findall(text):
            add(imported)
        exported = ", ".join(_EXPORT.findall(text))
        body = _IMPORT.sub(r"const {\1} = \2_js;\n", text)
        body = re.sub(r"^export ", "", body, flags=re.MULTILINE)
        joined[name] = f"const {name}_js = (() => {{\n{body}return {{ {exported} }};\n}})();\n"

    add("page")
    return "".join(joined.values())

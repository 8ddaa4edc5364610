// The common part of Markdown, made of nodes and texts: no string ever becomes HTML. What is not understood stays as it was
// written. Depth is bounded, and every loop goes forward, so that no text can hold up the page.

import { copyWithButton } from "./copying.js";

export function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const DEEPEST = 8;
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:[ \t]+|$)/;
const beginsBlock = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);
const indent = (line) => line.length - line.trimStart().length;

/** The blocks of a text, each with its node and the line on which it begins. */
export function markdown(text, depth = 0) {
  const lines = text.split("\n");
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const reader = depth < DEEPEST && [codeBlock, heading, rule, quote, list, table].find((kind) => kind.begins(lines, at));
    const { node, end } = (reader || paragraph).read(lines, at, depth);
    blocks.push({ node, line: at });
    at = end;
  }
  return blocks;
}

const inside = (name, lines, depth) => element(name, {}, ...markdown(lines.join("\n"), depth + 1).map(({ node }) => node));

const codeBlock = {
  begins: (lines, at) => FENCE.test(lines[at]),
  read(lines, at) {
    const [, fence, info] = FENCE.exec(lines[at]);
    const closes = (line) => line.trim().length >= fence.length && line.trim() === fence[0].repeat(line.trim().length);
    let end = at + 1;
    while (end < lines.length && !closes(lines[end])) end += 1;
    const margin = indent(lines[at]);
    const code = lines.slice(at + 1, end).map((line) => line.slice(Math.min(margin, indent(line))));
    return { node: codeFigure(code.join("\n"), info.trim().split(/\s/)[0]), end: end + 1 };
  },
};

const heading = {
  begins: (lines, at) => HEADING.test(lines[at]),
  read(lines, at) {
    const [, marks, words] = HEADING.exec(lines[at]);
    // The page's own headings take the first two levels.
    const node = element(`h${Math.min(marks.length + 2, 6)}`);
    inline(words.trim().replace(/[ \t]#+$/, ""), node);
    return { node, end: at + 1 };
  },
};

const rule = {
  begins: (lines, at) => RULE.test(lines[at]),
  read: (lines, at) => ({ node: element("hr"), end: at + 1 }),
};

const quote = {
  begins: (lines, at) => QUOTE.test(lines[at]),
  read(lines, at, depth) {
    let end = at;
    while (end < lines.length && QUOTE.test(lines[end])) end += 1;
    return { node: inside("blockquote", lines.slice(at, end).map((line) => line.replace(QUOTE, "")), depth), end };
  },
};

const list = {
  begins: (lines, at) => ITEM.test(lines[at]),
  read(lines, at, depth) {
    const [, margin, marker] = ITEM.exec(lines[at]);
    const ordered = /\d/.test(marker);
    const isItem = (line) => {
      const item = !RULE.test(line) && ITEM.exec(line);
      return item && item[1].length < margin.length + 2 && /\d/.test(item[2]) === ordered;
    };
    const node = ordered ? element("ol", { start: String(parseInt(marker, 10)) }) : element("ul");
    let end = at;
    while (end < lines.length && isItem(lines[end])) {
      const first = lines[end].replace(ITEM, "");
      const width = ITEM.exec(lines[end])[0].length;
      const content = [first];
      for (end += 1; end < lines.length; end += 1) {
        const line = lines[end];
        const deeper = line.trim() && (line[0] === "\t" || indent(line) >= margin.length + 2);
        const lazy = line.trim() && lines[end - 1].trim() && !beginsBlock(line);
        if (line.trim() && !deeper && !lazy) break;
        content.push(deeper ? line.slice(line[0] === "\t" ? 1 : Math.min(width, indent(line))) : line);
      }
      node.append(inside("li", content, depth));
    }
    return { node, end };
  },
};

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/);

const table = {
  begins(lines, at) {
    if (!lines[at].includes("|") || !lines[at + 1]?.includes("-")) return false;
    const marks = cells(lines[at + 1]);
    return marks.length === cells(lines[at]).length && marks.every((mark) => /^:?-+:?$/.test(mark.trim()));
  },
  read(lines, at) {
    const row = (line, name) => {
      const node = element("tr");
      for (const words of cells(line)) inline(words.trim(), node.appendChild(element(name)));
      return node;
    };
    const body = element("tbody");
    let end = at + 2;
    for (; end < lines.length && lines[end].includes("|"); end += 1) body.append(row(lines[end], "td"));
    const node = element("table", {}, element("thead", {}, row(lines[at], "th")), body);
    return { node: element("div", { class: "wide", tabindex: "0" }, node), end };
  },
};

const paragraph = {
  read(lines, at, depth) {
    let end = at + 1;
    while (end < lines.length && lines[end].trim() && (depth >= DEEPEST || !beginsBlock(lines[end]))) end += 1;
    const node = element("p");
    inline(lines.slice(at, end).join("\n"), node);
    return { node, end };
  },
};

function codeFigure(code, language) {
  const text = element("code", {}, code);
  const copy = element("button", { type: "button", class: "quiet" }, "Copy");
  copy.onclick = () => copyWithButton(copy, code, text);
  const pre = element("pre", { tabindex: "0", "aria-label": `Code ${language}`, role: "region" }, text);
  return element("div", { class: "code", dir: "ltr" }, element("div", { class: "code-bar" }, element("span", {}, language), copy), pre);
}

const MARKS = { "**": ["strong"], "__": ["strong"], "*": ["em"], "_": ["em"], "***": ["strong", "em"], "~~": ["del"] };
const INLINE = /\\[*_`~#|]|`+|\*+|_+|~~|\[|\]\(<?(https?:\/\/[^\s<>()]{1,2000}(?:\([^\s<>()]{0,200}\)[^\s<>()]{0,200})?)>?(?: "[^"\n]{0,200}")?\)|\]|https?:\/\/[^\s<>"`*[\]]{1,2000}/gi;

/** Adds the words to the node, with emphasis, code and links. */
function inline(words, node) {
  let parent = node;
  for (const token of paired(inlineTokens(words))) {
    if (!token.pair) parent.append(token.link && !parent.closest("a") ? webLink(token.link, token.text) : (token.node ?? token.text));
    else if (token.closes) parent = token.pair.parent;
    else {
      token.parent = parent;
      const [outer, inner] = token.mark === "[" ? [] : MARKS[token.mark];
      const link = token.pair.link && !parent.closest("a") && webLink(token.pair.link);
      parent = parent.appendChild(link || element(outer ?? "span"));
      if (inner) parent = parent.appendChild(element(inner));
    }
  }
}

function inlineTokens(words) {
  const nextFence = new Map();
  const fences = [...words.matchAll(/`+/g)];
  const seen = new Map();
  for (const { 0: { length }, index } of fences.reverse()) {
    nextFence.set(index, seen.get(length));
    seen.set(length, index);
  }
  const tokens = [];
  let done = 0;
  INLINE.lastIndex = 0;
  for (let match; (match = INLINE.exec(words)); ) {
    const [text, href] = match;
    const { index } = match;
    let end = index + text.length;
    const before = words[index - 1] ?? " ";
    const after = words[end] ?? " ";
    let token = { text };
    if (text[0] === "\\") token = { text: text[1] };
    else if (text[0] === "`") {
      const close = nextFence.get(index);
      if (close !== undefined) {
        token = { node: element("code", {}, words.slice(end, close).replace(/^ (.*[^ ].*) $/s, "$1")) };
        end = close + text.length;
      }
    } else if (text[0] === "[") token = { text, mark: "[", opens: true };
    else if (text[0] === "]") token = { text, mark: "[", closes: true, link: webAddress(href) };
    else if (text[0] === "h" || text[0] === "H") {
      const ends = text.includes("(") ? ".,;:!?'\"]}" : ".,;:!?'\"])}";
      let address = text;
      while (ends.includes(address.at(-1))) address = address.slice(0, -1);
      end = index + address.length;
      token = { text: address, link: webAddress(address) };
    } else if (MARKS[text]) {
      // Between letters or digits they are no marks: 2*3*4, 2**8 and snake_case stay.
      const opens = !/\s/.test(after) && !/[A-Za-z0-9]/.test(before);
      const closes = !/\s/.test(before) && !/[A-Za-z0-9]/.test(after);
      token = { text, mark: text, opens, closes };
    }
    if (index > done) tokens.push({ text: words.slice(done, index) });
    tokens.push(token);
    done = INLINE.lastIndex = end;
  }
  if (done < words.length) tokens.push({ text: words.slice(done) });
  return tokens;
}

/** Tells each mark that opens and each that closes of one another, where the two belong together. */
function paired(tokens) {
  const open = [];
  for (const token of tokens) {
    const at = token.closes ? open.findLastIndex(({ mark }) => mark === token.mark) : -1;
    if (at >= 0) {
      const opener = open[at];
      open.length = at;
      if (token.mark !== "[" || token.link) Object.assign(token, { pair: opener }), (opener.pair = token);
    } else if (token.opens && open.length < DEEPEST) {
      token.closes = false;
      open.push(token);
    }
  }
  return tokens;
}

/** The address if it is one of the web, else null: no other may be followed from here. */
function webAddress(text) {
  const url = text && URL.canParse(text) ? new URL(text) : null;
  return url && ["http:", "https:"].includes(url.protocol) ? url.href : null;
}

function webLink(href, ...words) {
  return element("a", { href, title: href, target: "_blank", rel: "noopener noreferrer" }, ...words);
}

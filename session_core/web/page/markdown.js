// The Markdown that models write, made of nodes and texts: no string ever becomes HTML. What is not understood stays as it
// was written. Depth is bounded, and every loop goes forward, so that no text can hold up the page.

import { copyWithButton } from "./copying.js";
import { element, fill, textButton } from "./element.js";
import { inline, normalLabel, unescaped } from "./inline.js";

const DEEPEST = 12; // blocks in one another
const MOST_LINES = 60; // of a formula
const MOST_FILLED = 60; // cells of a row of a table that are made where it has fewer
const FENCE = /^ {0,3}(?:(`{3,})([^`]*)|(~{3,})(.*))$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:\*[ \t]*(?:\*[ \t]*){2,}|-[ \t]*(?:-[ \t]*){2,}|_[ \t]*(?:_[ \t]*){2,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?=[ \t]|$)/;
const UNDERLINE = /^ {0,3}(=+|-+)[ \t]*$/;
const DEFINITION = /^ {0,3}\[((?!\^)(?:[^[\]\\]|\\.){1,999})\]:[ \t]*(?:<([^<>]{0,2000})>|([^\s<]\S{0,1999}))(?:[ \t]+(?:"(?:[^"\\]|\\.){0,500}"|'(?:[^'\\]|\\.){0,500}'|\((?:[^()\\]|\\.){0,500}\)))?[ \t]*$/;
const FOOTNOTE = /^ {0,3}\[\^([^\s[\]]{1,60})\]:[ \t]*/;
const FORMULA = /^ {0,3}(\$\$|\\\[)/;

/** Texts whose end may change how their beginning is drawn. */
export const NEEDS_WHOLE = /^ {0,3}(?:\[[^\]\n]{1,999}\]:|\$\$|\\\[)/m;

/** The blocks of a text, each with its node and the line on which it begins. */
export function markdown(text) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  return readBlocks(lines, 0, readDefinitions(lines));
}

/** The addresses of reference links by their labels. What stands in code defines nothing. */
function readDefinitions(lines) {
  const definitions = new Map();
  let fence = "";
  for (const line of lines) {
    const words = line.trimStart();
    if (fence) fence = closes(words, fence) ? "" : fence;
    else if (words.startsWith("[")) {
      const [, label, angled, bare] = DEFINITION.exec(line) ?? [];
      if (label && !definitions.has(normalLabel(label))) definitions.set(normalLabel(label), angled ?? bare);
    } else fence = fenceOf(words);
  }
  return definitions;
}

/** The marks that begin a block of code, or nothing. */
const fenceOf = (line) => {
  const [, ticks, , tildes] = FENCE.exec(line) ?? [];
  return ticks ?? tildes ?? "";
};

/** The columns in front of a line, where a tab goes on to the next multiple of four; at most `most` of them are counted. */
function columns(line, most = Infinity, from = 0) {
  let count = from;
  let end = 0;
  for (; count < most && (line[end] === " " || line[end] === "\t"); end += 1) count += line[end] === " " ? 1 : 4 - (count % 4);
  return { count, end };
}

const indentOf = (line) => columns(line).count;

/** The line without so many columns in front; of a tab that reaches beyond them, the rest stays as spaces. */
function dedent(line, width) {
  const { count, end } = columns(line, width);
  return " ".repeat(Math.max(0, count - width)) + line.slice(end);
}

const isBlank = (line) => !line.trim();
const isItem = (line) => ITEM.test(line) && !RULE.test(line);

/** Whether a line ends the paragraph before it. An empty item, and a number other than 1, do not. */
const interrupts = (line) =>
  FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || FORMULA.test(line) || /^ {0,3}(?:[-*+]|1[.)])[ \t]+\S/.test(line);

function readBlocks(lines, depth, definitions) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (isBlank(lines[at])) {
      at += 1;
      continue;
    }
    const kind = (depth < DEEPEST && KINDS.find((one) => one.begins(lines, at))) || paragraph;
    const { node, end } = kind.read(lines, at, depth, definitions);
    if (node) blocks.push({ node, line: at });
    at = end;
  }
  return blocks;
}

const within = (node, lines, depth, definitions) => fill(node, readBlocks(lines, depth + 1, definitions).map((block) => block.node));

const indentedCode = {
  begins: (lines, at) => indentOf(lines[at]) >= 4,
  read(lines, at) {
    let end = at;
    for (let next = at; next < lines.length && (isBlank(lines[next]) || indentOf(lines[next]) >= 4); next += 1)
      if (!isBlank(lines[next])) end = next + 1;
    return { node: codeFigure(lines.slice(at, end).map((line) => dedent(line, 4)).join("\n")), end };
  },
};

const fencedCode = {
  begins: (lines, at) => FENCE.test(lines[at]),
  read(lines, at) {
    const [, , info, , other] = FENCE.exec(lines[at]);
    const end = closingLine(lines, at + 1, fenceOf(lines[at]));
    const margin = indentOf(lines[at]);
    const code = lines.slice(at + 1, end).map((line) => dedent(line, margin));
    return { node: codeFigure(code.join("\n"), unescaped((info ?? other).trim().split(/\s/)[0])), end: end + 1 };
  },
};

function closingLine(lines, at, fence) {
  let end = at;
  while (end < lines.length && !closes(lines[end], fence)) end += 1;
  return end;
}

function closes(line, fence) {
  const words = line.trim();
  return words.length >= fence.length && indentOf(line) < 4 && words === fence[0].repeat(words.length);
}

const formula = {
  begins: (lines, at) => FORMULA.test(lines[at]) && formula.end(lines, at) > 0,
  /** The line behind the formula, or 0 where it has no end before the next blank line, not far away. */
  end(lines, at) {
    const close = lines[at].trimStart().startsWith("$$") ? "$$" : "\\]";
    for (let end = at; end < Math.min(lines.length, at + MOST_LINES) && !isBlank(lines[end]); end += 1) {
      const from = end === at ? lines[at].search(/\S/) + 2 : 0;
      const place = lines[end].indexOf(close, from);
      if (place >= 0) return isBlank(lines[end].slice(place + 2).replace(/[.,;]/, "")) ? end + 1 : 0;
    }
    return 0;
  },
  read(lines, at) {
    const end = formula.end(lines, at);
    return { node: element("p", { class: "math" }, lines.slice(at, end).join("\n").trim()), end };
  },
};

const heading = {
  begins: (lines, at) => HEADING.test(lines[at]),
  read(lines, at, depth, definitions) {
    const [, marks, words = ""] = HEADING.exec(lines[at]);
    const text = words.trim();
    let tail = 0;
    while (text.at(-1 - tail) === "#") tail += 1;
    const closed = tail && (tail === text.length || /[ \t]/.test(text[text.length - tail - 1])) ? text.slice(0, text.length - tail) : text;
    return { node: headingNode(marks.length, closed.trim(), definitions), end: at + 1 };
  },
};

/** The page's own headings take the first two levels. */
function headingNode(level, words, definitions) {
  const node = element(`h${Math.min(level + 2, 6)}`);
  inline(words, node, definitions);
  return node;
}

const rule = {
  begins: (lines, at) => RULE.test(lines[at]),
  read: (lines, at) => ({ node: element("hr"), end: at + 1 }),
};

const definition = {
  begins: (lines, at) => DEFINITION.test(lines[at]),
  read: (lines, at) => ({ node: null, end: at + 1 }),
};

/** The lines of a container, which a paragraph in it may leave behind without its mark. `strip` gives the inside of a line that has the mark, else null. */
function containerLines(lines, at, strip) {
  const inside = [];
  let fence = "";
  let end = at;
  for (; end < lines.length; end += 1) {
    const inner = strip(lines[end], inside);
    const isLazy = inner === null && !fence && !isBlank(lines[end]) && endsInParagraph(inside) && !isItem(lines[end]) && !interrupts(lines[end]) && !UNDERLINE.test(lines[end]);
    if (inner === null && !isLazy) break;
    // Words that go on with a paragraph are no code, however deep they stand.
    inside.push(inner ?? lines[end].trimStart());
    if (inner !== null) fence = fence ? (closes(inner, fence) ? "" : fence) : fenceOf(inner);
  }
  return { inside, end };
}

function endsInParagraph(inside) {
  let line = inside.at(-1) ?? "";
  for (let depth = 0; depth < DEEPEST && (QUOTE.test(line) || isItem(line)); depth += 1) line = line.replace(QUOTE.test(line) ? QUOTE : ITEM, "");
  const wasBlank = inside.length < 2 || isBlank(inside.at(-2));
  return !isBlank(line) && !FENCE.test(line) && !HEADING.test(line) && !RULE.test(line) && !(wasBlank && indentOf(line) >= 5);
}

const quote = {
  begins: (lines, at) => QUOTE.test(lines[at]),
  read(lines, at, depth, definitions) {
    const { inside, end } = containerLines(lines, at, (line) => (QUOTE.test(line) ? line.replace(QUOTE, "") : null));
    return { node: within(element("blockquote"), inside, depth, definitions), end };
  },
};

const list = {
  begins: (lines, at) => isItem(lines[at]),
  read(lines, at, depth, definitions) {
    const [, , marker] = ITEM.exec(lines[at]);
    const kind = marker.at(-1);
    const node = kind === "." || kind === ")" ? element("ol", { start: String(parseInt(marker, 10)) }) : element("ul");
    let end = at;
    let isLoose = false;
    while (end < lines.length && isItem(lines[end]) && ITEM.exec(lines[end])[2].at(-1) === kind) {
      const item = readItem(lines, end);
      node.append(itemNode(item.inside, depth, definitions));
      end = item.end;
      let next = end;
      while (next < lines.length && isBlank(lines[next])) next += 1;
      const goesOn = next < lines.length && isItem(lines[next]) && ITEM.exec(lines[next])[2].at(-1) === kind;
      isLoose ||= item.hasGap || (goesOn && (next > end || item.endsBlank));
      if (goesOn) end = next;
    }
    if (isLoose) node.className = "loose";
    return { node, end };
  },
};

function readItem(lines, at) {
  const [mark] = ITEM.exec(lines[at]);
  const rest = lines[at].slice(mark.length);
  const spaces = columns(rest, Infinity, mark.length).count - mark.length;
  const width = isBlank(rest) || spaces > 4 ? mark.length + 1 : mark.length + spaces;
  const { inside } = containerLines(lines, at, (line, before) => {
    if (!before.length) return dedent(rest, width - mark.length);
    if (isBlank(line)) return before.length === 1 && isBlank(before[0]) ? null : "";
    return indentOf(line) >= width ? dedent(line, width) : null;
  });
  let length = inside.length;
  while (length > 1 && isBlank(inside[length - 1])) length -= 1;
  const content = inside.slice(0, length);
  return { inside: content, end: at + length, endsBlank: inside.length > length, hasGap: hasGap(content) };
}

/** Whether blank lines stand between blocks of an item, and not only within those that are deeper. */
const hasGap = (inside) => inside.some((line, index) => index && isBlank(inside[index - 1]) && !isBlank(line) && indentOf(line) < 2);

function itemNode(inside, depth, definitions) {
  const task = /^\[([ xX])\][ \t]+(?=\S)/.exec(inside[0]);
  const node = element("li", { class: task ? "task" : null });
  if (!task) return within(node, inside, depth, definitions);
  within(node, [inside[0].slice(task[0].length), ...inside.slice(1)], depth, definitions);
  (node.firstElementChild ?? node).prepend(task[1] === " " ? "☐ " : "☑ ");
  return node;
}

const footnote = {
  begins: (lines, at) => FOOTNOTE.test(lines[at]),
  read(lines, at, depth, definitions) {
    const [, name] = FOOTNOTE.exec(lines[at]);
    const { inside, end } = containerLines(lines, at, (line, before) => {
      if (!before.length) return line.replace(FOOTNOTE, "");
      if (isBlank(line)) return "";
      return indentOf(line) >= 2 ? dedent(line, 4) : null;
    });
    const node = within(element("div", { class: "footnote" }), inside, depth, definitions);
    (node.firstElementChild ?? node).prepend(element("sup", {}, name), " ");
    return { node, end };
  },
};

const PIPE = /(?<!\\)\|/;
const cells = (line) => line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "").split(PIPE).map((cell) => cell.trim().replaceAll("\\|", "|"));

const table = {
  begins(lines, at) {
    const marks = lines[at + 1];
    if (!lines[at].includes("|") || !marks || !/^[ \t:|-]+$/.test(marks) || !marks.includes("-")) return false;
    const columns = cells(marks);
    return columns.length === cells(lines[at]).length && columns.every((mark) => /^:?-+:?$/.test(mark));
  },
  read(lines, at, depth, definitions) {
    const sides = cells(lines[at + 1]).map((mark) => (mark.endsWith(":") ? (mark[0] === ":" ? "center" : "end") : null));
    const row = (line, name) => {
      const words = cells(line);
      const node = element("tr");
      const filled = sides.slice(0, Math.max(words.length, MOST_FILLED));
      filled.forEach((side, index) => inline(words[index] ?? "", node.appendChild(element(name, { class: side })), definitions));
      return node;
    };
    const body = element("tbody");
    let end = at + 2;
    for (; end < lines.length && !isBlank(lines[end]) && !interrupts(lines[end]); end += 1) body.append(row(lines[end], "td"));
    const node = element("table", {}, element("thead", {}, row(lines[at], "th")), body);
    return { node: element("div", { class: "wide", tabindex: "0" }, node), end };
  },
};

const KINDS = [indentedCode, fencedCode, heading, rule, quote, list, table, footnote, definition, formula];

const paragraph = {
  read(lines, at, depth, definitions) {
    let end = at + 1;
    for (; end < lines.length && !isBlank(lines[end]); end += 1) {
      if (depth >= DEEPEST) continue;
      const underline = UNDERLINE.exec(lines[end]);
      if (underline) return { node: headingNode(underline[1][0] === "=" ? 1 : 2, joined(lines, at, end), definitions), end: end + 1 };
      if (interrupts(lines[end]) || table.begins(lines, end)) break;
    }
    const node = element("p");
    inline(joined(lines, at, end), node, definitions);
    return { node, end };
  },
};

const joined = (lines, at, end) => lines.slice(at, end).map((line) => line.trimStart()).join("\n");

/** Code with its language and a button to copy it; `nodes` are the same words in colours. */
export function codeFigure(code, language = "", nodes = [code]) {
  const text = element("code", {}, ...nodes);
  const copy = textButton("Copy", "plain", () => copyWithButton(copy, code, text));
  const pre = element("pre", { tabindex: "0", "aria-label": `Code ${language}`, role: "region" }, text);
  return element("div", { class: "code", dir: "ltr" }, element("div", { class: "code-bar" }, element("span", {}, language), copy), pre);
}

// What was searched for: its words marked in the list, and where it stands in the conversation.

import { element } from "./element.js";

/** The words of a search, white space between them, and `"several words"` as they stand. */
export const wordsOf = (text) => [...text.matchAll(/"([^"]*)"?|[^\s"]+/g)].map(([whole, quoted]) => (quoted ?? whole).trim()).filter(Boolean);

/** What matches any of the words; null where there are none. */
export function patternOf(text) {
  const escaped = wordsOf(text).map((word) => word.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&").replace(/\s+/g, "\\s+"));
  return escaped.length ? new RegExp(escaped.sort((one, other) => other.length - one.length).join("|"), "giu") : null;
}

/** A text as nodes in which what matches is marked. */
export function marked(text, pattern) {
  const nodes = [];
  let done = 0;
  for (const { 0: { length }, index } of pattern ? text.matchAll(pattern) : []) {
    nodes.push(text.slice(done, index), element("mark", {}, text.slice(index, index + length)));
    done = index + length;
  }
  return [...nodes, text.slice(done)];
}

let shown = null; // the node and the pattern

/** Marks what matches in a node, without a change to it, and returns where it comes first. A node of null takes the marks away. */
export function markIn(node, pattern) {
  shown = node && pattern && { node, pattern };
  return markAgain();
}

/** Marks once more, when something has been drawn anew. */
export function markAgain() {
  const ranges = shown ? [...rangesOf(shown)] : [];
  globalThis.CSS?.highlights?.set("found", new Highlight(...ranges.slice(0, 1000)));
  return ranges[0] ?? null;
}

function* rangesOf({ node, pattern }) {
  const texts = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
  for (let text = texts.nextNode(); text; text = texts.nextNode()) {
    if (text.parentElement.closest(".message-actions, .label, .code-bar")) continue;
    for (const { 0: { length }, index } of text.data.matchAll(pattern)) {
      const range = new Range();
      range.setStart(text, index);
      range.setEnd(text, index + length);
      yield range;
    }
  }
}

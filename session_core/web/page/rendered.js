// Colours of code and mathematics, which the server draws where it can: a tree of elements, from which nodes are made.

import { element } from "./element.js";
import { pause } from "./follow.js";
import { markAgain } from "./found.js";
import { json } from "./http.js";
import { replaceInPlace, whenSeen } from "./layout.js";
import { webLink } from "./inline.js";
import { codeFigure } from "./markdown.js";

const GAINS = /^ {0,3}(?:`{3}|~{3})[ \t]*\w|\$|\\[([]/m; // what is drawn better there
const LONGEST = 64 << 10; // bytes
// A press on a button that is replaced does nothing, and the focus in what is replaced is lost.
const IN_USE = ":active, :focus-within";

const PLAIN = ["p", "h3", "h4", "h5", "h6", "blockquote", "ul", "hr", "strong", "em", "del", "br", "code", "sup", "thead", "tbody", "tr"];
const ATTRIBUTES = { ol: ["start"], th: ["class"], td: ["class"], span: ["class"], li: ["class"], section: ["class"], math: ["display"] };
const MATHML = "http://www.w3.org/1998/Math/MathML";
const MATH_ATTRIBUTES = ["display", "mathvariant", "stretchy", "fence", "form", "accent", "columnalign", "rowspacing", "width", "linethickness", "movablelimits"];
const CLASS = /^[a-z][a-z0-9 -]*$/;

let refused = !("render" in document.documentElement.dataset); // the server does not draw

/** Has the server draw a text when it comes near to what is seen. Until then, and without the server, it stays as it is. */
export function renderLater(node, text) {
  if (refused || !GAINS.test(text) || new Blob([text]).size > LONGEST) return;
  whenSeen(node, () => draw(node, text));
}

async function draw(node, text) {
  if (refused) return;
  try {
    const { tree } = await json("render", { method: "POST", body: { text }, quiet: true });
    while (node.matches(IN_USE)) await pause(100);
    replaceInPlace(node, () => node.replaceChildren(...tree.map(build)));
    markAgain();
  } catch (error) {
    refused ||= error.status === 404; // What else fails leaves the page's own drawing, which is all there.
  }
}

/** The node for one of the tree: a text, or a name with attributes and children. What is not known is shown as its text. */
export function build(tree) {
  if (typeof tree === "string") return document.createTextNode(tree);
  const [name, attributes, children] = tree;
  if (name === "pre") return codeFigure(textIn(children), attributes.language ?? "", children.map(build));
  const inside = children.map(build);
  if (name === "a") return webLink(attributes.href, ...inside) ?? element("span", {}, ...inside);
  if (name === "math") return buildMath(tree);
  if (name === "table") return element("div", { class: "wide", tabindex: "0" }, element("table", {}, ...inside));
  if (!PLAIN.includes(name) && !(name in ATTRIBUTES)) return element("span", {}, ...inside);
  return element(name, allowed(attributes, ATTRIBUTES[name] ?? []), ...inside);
}

function buildMath(tree) {
  if (typeof tree === "string") return document.createTextNode(tree);
  const [name, attributes, children] = tree;
  const isMath = name === "math" || /^m[a-z]{1,12}$|^semantics$|^annotation$/.test(name);
  const node = document.createElementNS(MATHML, isMath ? name : "mrow");
  for (const [key, value] of Object.entries(allowed(attributes, MATH_ATTRIBUTES))) node.setAttribute(key, value);
  node.append(...children.map(buildMath));
  return node;
}

const allowed = (attributes, names) =>
  Object.fromEntries(Object.entries(attributes).filter(([key, value]) => names.includes(key) && (key !== "class" || CLASS.test(value))));

const textIn = (children) => children.map((child) => (typeof child === "string" ? child : textIn(child[2]))).join("");

// Making nodes: elements, buttons and icons.

export const $ = (id) => document.getElementById(id);

export function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== undefined) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** Adds nodes to a parent at once, for each time costs, but one by one, for a call takes some ten thousand arguments only. */
export function fill(parent, nodes) {
  const all = document.createDocumentFragment();
  for (const node of nodes) all.append(node);
  parent.append(all);
  return parent;
}

const PATHS = {
  add: "M8 3v10M3 8h10",
  attach: "M12.5 7.5 7.7 12.3a2.8 2.8 0 0 1-4-4l5.2-5.2a1.9 1.9 0 0 1 2.7 2.7l-5.1 5.1a.9.9 0 0 1-1.3-1.3l4.6-4.6",
  branch: "M4 2.5v11M4 10c0-3 8-2 8-6M10 5.5l2-2 2 2",
  close: "M4 4l8 8M12 4l-8 8",
  copy: "M5.5 5.5v-3h8v8h-3M2.5 5.5h8v8h-8z",
  done: "M3 8.5l3.5 3.5L13 4.5",
  edit: "M3 13l.6-2.9L10.7 3l2.3 2.3-7.1 7.1zM9.3 4.4l2.3 2.3",
  list: "M2.5 3h11v10h-11zM6.5 3v10",
  more: "M3.5 8h.01M8 8h.01M12.5 8h.01",
  newer: "M6 3.5 10.5 8 6 12.5",
  older: "M10 3.5 5.5 8l4.5 4.5",
  again: "M12.8 6A5.2 5.2 0 1 0 13.2 9M13 2.5V6H9.5",
  send: "M8 13V3.5M3.8 7.5 8 3.3l4.2 4.2",
  stop: "M4.5 4.5h7v7h-7z",
};
const SVG = "http://www.w3.org/2000/svg";

/** A line drawing of 16 by 16. It is silent: what it stands in has a name. */
export function icon(name) {
  const drawing = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  for (const [key, value] of [["viewBox", "0 0 16 16"], ["class", "icon"], ["aria-hidden", "true"]]) drawing.setAttribute(key, value);
  path.setAttribute("d", PATHS[name]);
  drawing.append(path);
  return drawing;
}

/** Puts an icon into the buttons of the document that name one. Their words stay for screen readers and as a hint. */
export function drawIcons() {
  for (const button of document.querySelectorAll("button[data-icon]")) dress(button, button.dataset.icon);
}

/** A button of words. */
export function textButton(words, name, onclick) {
  const button = element("button", { type: "button", class: name }, words);
  button.onclick = onclick;
  return button;
}

/** A button of an icon. */
export function iconButton(iconName, words, name, onclick) {
  const button = textButton(words, `plain ${name}`, onclick);
  dress(button, iconName);
  return button;
}

function dress(button, iconName) {
  const words = button.textContent.trim();
  button.title = words;
  button.replaceChildren(icon(iconName), element("span", { class: "unseen" }, words));
}

/** Shows for two seconds that a button has done its work. */
export function confirmButton(button, words) {
  const before = [...button.childNodes];
  if (button.querySelector("svg")) button.replaceChildren(icon("done"), element("span", { class: "unseen" }, words));
  else button.textContent = words;
  setTimeout(() => button.replaceChildren(...before), 2000);
}

// The page as a frame: scrolling, the message box, the focus, the drawer on a phone, menus.

import { $, element, iconButton, textButton } from "./element.js";
import { keepChoice } from "./kept.js";
import { box, narrow, scroller, touch } from "./view.js";

let atBottom = true;
let lastTop = 0;
let lastHeight = 0;

export function toBottom() {
  atBottom = true;
  $("latest").hidden = true;
  scroller.scrollTop = scroller.scrollHeight;
  // Where the page itself has gone, nobody has moved to.
  noteTop();
}

/** Lets the newest text come without moving to it. */
export function stay() {
  atBottom = false;
}

/** Takes a move upwards for the reader's, who leaves the end, however small it is. Text that shrinks moves too, but leaves
 * nothing below. So does a message box that becomes smaller, below which something may have come by now. */
function look() {
  const { scrollTop: top, clientHeight: height } = scroller;
  const rest = scroller.scrollHeight - top - height;
  if (top < lastTop && rest >= 1 && height === lastHeight) atBottom = false;
  else if (top > lastTop && rest < 40) atBottom = true;
  noteTop();
  $("latest").hidden = atBottom;
}

function noteTop() {
  [lastTop, lastHeight] = [scroller.scrollTop, scroller.clientHeight];
}

scroller.addEventListener("scroll", look);

// The browser tells of a move with the next frame. What has shrunk may have grown again by then, so each change is looked at.
new MutationObserver(look).observe($("conversation"), { childList: true, subtree: true, characterData: true, attributeFilter: ["open", "hidden"] });

const resized = new ResizeObserver(() => atBottom && toBottom());
resized.observe($("conversation"));
resized.observe(scroller);

/** Changes what stands in a node, and keeps in its place what the reader looks at. */
export function replaceInPlace(node, change) {
  const isAbove = !atBottom && node.getBoundingClientRect().top < scroller.getBoundingClientRect().top;
  const height = node.offsetHeight;
  change();
  if (isAbove) scroller.scrollTop += node.offsetHeight - height;
}

/** Puts the focus into the message box. On a phone that would bring up the keyboard, so the title gets it there. */
export function focusBox() {
  (touch.matches ? $("title") : box).focus();
}

/** Makes a text area as high as its text. */
export function fit(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

export function fitBox() {
  fit(box);
  if (atBottom) toBottom(); // For a moment there was more room.
}

const acts = new WeakMap();
const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    acts.get(target)();
  }
}, { rootMargin: "50% 0px" });

/** Does something once, when a node comes near to what is seen. */
export function whenSeen(node, act) {
  acts.set(node, act);
  seen.observe(node);
}

export function setDrawer(open) {
  document.body.classList.toggle("drawer", open);
  $("open-list").setAttribute("aria-expanded", String(open));
  $("sessions").inert = narrow.matches ? !open : isFolded();
  $("main").inert = narrow.matches && open;
}

const isFolded = () => "folded" in document.documentElement.dataset;

/** Shows or hides the list: a drawer on a phone, a column elsewhere. */
export function toggleList() {
  if (narrow.matches) {
    setDrawer(true);
    $("new").focus();
    return;
  }
  const folded = !isFolded();
  if (folded) document.documentElement.dataset.folded = "";
  else delete document.documentElement.dataset.folded;
  keepChoice("folded", folded ? "yes" : null);
  setDrawer(false);
  (folded ? $("open-list") : $("new")).focus();
}

export function setTheme(name) {
  document.documentElement.dataset.theme = name;
  keepChoice("theme", name === "auto" ? null : name);
  for (const button of document.querySelectorAll("[data-theme-name]"))
    button.setAttribute("aria-checked", String(button.dataset.themeName === name));
}

// ---- Menus ----

let openMenu = null; // the button and the menu that it opened

/** Opens the menu of a button, or closes it. The first item gets the focus; arrow keys go through the items. */
export function toggleMenu(button, menu) {
  const open = openMenu?.button !== button;
  closeMenu();
  if (!open) return;
  openMenu = { button, menu };
  menu.hidden = false;
  button.setAttribute("aria-expanded", "true");
  itemsOf(menu)[0]?.focus();
}

/** A button of an icon with a menu. `items` gives the words, the class and the action of each when it opens. */
export function menuButton(iconName, words, name, items) {
  const menu = element("div", { class: "menu", role: "menu", hidden: "" });
  const button = iconButton(iconName, words, name, () => {
    menu.replaceChildren(...items().map(([label, kind, action]) => {
      const item = textButton(label, kind, () => (closeMenu(), action()));
      item.setAttribute("role", "menuitem");
      return item;
    }));
    toggleMenu(button, menu);
  });
  button.setAttribute("aria-haspopup", "menu");
  button.setAttribute("aria-expanded", "false");
  return element("div", { class: "menu-place" }, button, menu);
}

/** Closes the menu that is open, and says whether one was. */
export function closeMenu({ refocus = false } = {}) {
  if (!openMenu) return false;
  const { button, menu } = openMenu;
  openMenu = null;
  menu.hidden = true;
  button.setAttribute("aria-expanded", "false");
  if (refocus) button.focus();
  return true;
}

const itemsOf = (menu) => [...menu.querySelectorAll("button")].filter((item) => item.offsetParent);

const STEPS = { ArrowDown: 1, ArrowUp: -1 };

document.addEventListener("keydown", (event) => {
  if (!openMenu?.menu.contains(document.activeElement)) return;
  const items = itemsOf(openMenu.menu);
  const at = items.indexOf(document.activeElement);
  if (event.key in STEPS) items.at((at + STEPS[event.key] + items.length) % items.length).focus();
  else if (event.key === "Home") items[0].focus();
  else if (event.key === "End") items.at(-1).focus();
  else if (event.key === "Tab") return void closeMenu({ refocus: true });
  else return;
  event.preventDefault();
});

document.addEventListener("click", (event) => {
  if (openMenu && !openMenu.button.contains(event.target)) closeMenu({ refocus: openMenu.menu.contains(document.activeElement) });
});

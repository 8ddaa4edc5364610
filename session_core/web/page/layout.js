// The page as a frame: scrolling, the message box, the focus, the drawer on a phone.

import { $, box, narrow, scroller, touch } from "./state.js";

let atBottom = true;
let lastTop = 0;

export function toBottom() {
  atBottom = true;
  $("latest").hidden = true;
  scroller.scrollTop = scroller.scrollHeight;
}

/** Lets the newest text come without moving to it. */
export function stay() {
  atBottom = false;
}

scroller.addEventListener("scroll", () => {
  // Only a move upwards leaves the end: text that grows does not.
  const left = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
  if (left < 40) atBottom = true;
  else if (scroller.scrollTop < lastTop) atBottom = false;
  lastTop = scroller.scrollTop;
  $("latest").hidden = atBottom;
});

const resized = new ResizeObserver(() => atBottom && toBottom());
resized.observe($("conversation"));
resized.observe(scroller);

/** Puts the focus into the message box. On a phone that would bring up the keyboard, so the title gets it there. */
export function focusBox() {
  (touch.matches ? $("title") : box).focus();
}

export function fitBox() {
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

/** Opens or closes the menu in which the session's buttons stand on a phone. */
export function setMenu(open) {
  $("actions").classList.toggle("closed", !open);
  $("menu").setAttribute("aria-expanded", String(open));
}

export function setDrawer(open) {
  document.body.classList.toggle("drawer", open);
  $("open-list").setAttribute("aria-expanded", String(open));
  $("sessions").inert = narrow.matches && !open;
  $("main").inert = narrow.matches && open;
}

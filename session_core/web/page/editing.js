// A question that is edited in its place.

import { element } from "./markdown.js";
import { attempt } from "./notices.js";
import { touch } from "./state.js";

/** Puts a text box in the place of a question. `send` gets the new text; Escape and Cancel leave everything as it was. */
export function editQuestion(article, text, send) {
  const body = article.querySelector(".body");
  const row = article.querySelector(":scope > .message-actions");
  const field = element("textarea", { rows: "2", "aria-label": "Edit the question" });
  field.value = text;
  const cancel = element("button", { type: "button", class: "quiet cancel-edit" }, "Cancel");
  const buttons = element("div", { class: "actions" }, element("button", {}, "Send"), cancel);
  const form = element("form", { class: "edit-form" }, field, buttons);
  const close = () => {
    form.remove();
    body.hidden = row.hidden = false;
    row.querySelector(".edit").focus();
  };
  cancel.onclick = close;
  form.onsubmit = (event) => {
    event.preventDefault();
    const changed = field.value.trimEnd();
    if (changed.trim()) attempt(() => send(changed));
  };
  field.onkeydown = (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") {
      event.stopPropagation();
      close();
    } else if (event.key === "Enter" && !event.shiftKey && !touch.matches) {
      event.preventDefault();
      form.requestSubmit();
    }
  };
  const fit = () => {
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight + 2}px`;
  };
  field.oninput = fit;
  body.hidden = row.hidden = true;
  body.after(form);
  fit();
  field.focus();
}

// A question that is edited in its place.

import { element, textButton } from "./element.js";
import { fit } from "./layout.js";
import { attempt } from "./notices.js";
import { touch } from "./view.js";

/** Puts a text box in the place of a question. `send` gets the new text; Escape and Cancel leave everything as it was. */
export function editQuestion(article, text, send) {
  const body = article.querySelector(".body");
  const row = article.querySelector(":scope > .message-actions");
  const field = element("textarea", { rows: "2", "aria-label": "Edit the question" });
  field.value = text;
  const close = () => {
    form.remove();
    body.hidden = row.hidden = false;
    row.querySelector(".edit").focus();
  };
  const buttons = element("div", { class: "actions" }, textButton("Cancel", "plain cancel-edit", close), element("button", {}, "Send"));
  const form = element("form", { class: "edit-form" }, field, buttons);
  form.onsubmit = (event) => {
    event.preventDefault();
    const changed = field.value.trimEnd();
    if (changed.trim()) attempt(() => send(changed));
  };
  field.onkeydown = (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      close();
    } else if (event.key === "Enter" && !event.shiftKey && !touch.matches) {
      event.preventDefault();
      form.requestSubmit();
    }
  };
  field.oninput = () => fit(field);
  body.hidden = row.hidden = true;
  body.after(form);
  fit(field);
  field.focus();
}

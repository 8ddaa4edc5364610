// What can be done with a message: copy, edit, try again, go on from here in a new session.

import { contentOf } from "./attachments.js";
import { copyWithButton } from "./copying.js";
import { editQuestion } from "./editing.js";
import { element, iconButton } from "./element.js";
import { partsOf } from "./files.js";
import { json } from "./http.js";
import { focusBox, menuButton } from "./layout.js";
import { announce, attempt } from "./notices.js";
import { modelsFor, shortTime, textOf } from "./render.js";
import { drawSteps } from "./stepping.js";
import { askInPlace } from "./turn.js";
import { isQuestion, shownMessages, state } from "./view.js";

const LONG = 600; // seconds
const idsOf = (article) => article.dataset.ids.split(" ");

/** Gives each message that is shown its row of actions. */
export function drawActions(view) {
  for (const article of view.stored.querySelectorAll("article[data-ids]")) {
    if (article.querySelector(":scope > .message-actions")) continue;
    const row = element("div", { class: "message-actions", role: "group" });
    const add = (iconName, name, words, action) =>
      row.append(iconButton(iconName, words, name, (event) => attempt(() => action(event.currentTarget))));
    add("copy", "copy", "Copy", (button) => copyWithButton(button, source(view, article)));
    if (article.classList.contains("question")) {
      row.setAttribute("aria-label", "Actions of this question");
      add("edit", "edit", "Edit", () => editQuestion(article, source(view, article), (text) => askEdited(view, article, text)));
    } else {
      row.setAttribute("aria-label", "Actions of this answer");
      add("again", "again", "Try again", () => tryAgain(view, article));
      if (state.models?.models.length > 1) row.append(chooseModel(view, article));
    }
    add("branch", "branch", "Branch", () => branchOff(view, idsOf(article).at(-1)));
    row.append(facts(article));
    article.append(row);
  }
  attempt(() => drawSteps(view));
}

const messageOf = (view, article) => shownMessages(view).find(({ id }) => id === idsOf(article)[0]) ?? {};

/** Asks in the place of a question with another text, and with the pictures and files that it had. */
async function askEdited(view, article, text) {
  const { id, content } = messageOf(view, article);
  await askInPlace(view, id, contentOf(text, partsOf(content)));
}

/** The message as its author wrote it. */
function source(view, article) {
  const ids = idsOf(article);
  const said = shownMessages(view).filter(({ id, role }) => ids.includes(id) && role !== "tool");
  return said.map(({ content }) => content && textOf(content)).filter(Boolean).join("\n\n");
}

/** Which model wrote an answer, when, in how many seconds and tokens. What took very long waited for somebody. */
function facts({ dataset: { model, at, tokens, seconds = 0 } }) {
  const took = seconds > 0 && seconds < LONG && `${seconds} s`;
  const words = [model, at && shortTime(at), took, tokens && `${Number(tokens).toLocaleString()} tokens`];
  return element("span", { class: "facts" }, words.filter(Boolean).join(" · "));
}

async function tryAgain(view, article, model) {
  const shown = shownMessages(view);
  const answered = shown.findIndex(({ id }) => id === idsOf(article)[0]);
  const question = shown.slice(0, answered).findLast(isQuestion);
  if (!question) return;
  focusBox();
  await askInPlace(view, question.id, question.content, model);
}

/** A menu of the models that may write the answer anew. */
const chooseModel = (view, article) =>
  menuButton("more", "Try again with another model", "again-with", () =>
    modelsFor(view).map((name) => [name, "plain", () => attempt(() => tryAgain(view, article, name))]));

async function branchOff(view, until) {
  const { id } = await json("sessions", { method: "POST", body: { copy_of: view.id, until } });
  location.hash = id;
  announce("This is a copy of the session up to that message.");
}

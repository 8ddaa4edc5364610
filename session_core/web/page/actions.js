// What can be done with a message: copy, edit, try again, go on from here in a new session, step between versions.

import { askInPlace } from "./asking.js";
import { redraw } from "./conversation.js";
import { copyWithButton } from "./copying.js";
import { editQuestion } from "./editing.js";
import { focusBox } from "./layout.js";
import { element } from "./markdown.js";
import { announce, attempt } from "./notices.js";
import { json } from "./server.js";
import { state } from "./state.js";
import { branch, chain, readVersions } from "./versions.js";

const idsOf = (article) => article.dataset.ids.split(" ");
const shownMessages = (of) => of.older ?? of.messages;

/** Gives each message that is shown its row of actions, and each question that has several versions their number. */
export function drawActions(of) {
  for (const article of document.querySelectorAll("#stored article[data-ids]")) {
    if (article.querySelector(":scope > .message-actions")) continue;
    const row = element("div", { class: "message-actions", role: "group" });
    const isQuestion = article.classList.contains("question");
    row.setAttribute("aria-label", isQuestion ? "Actions of this question" : "Actions of this answer");
    const add = (name, words, action) => {
      const button = element("button", { type: "button", class: `quiet ${name}` }, words);
      button.onclick = () => attempt(() => action(button));
      row.append(button);
    };
    add("copy", "Copy", (button) => copyWithButton(button, source(of, article)));
    if (!of.older) {
      if (isQuestion) add("edit", "Edit", () => editQuestion(article, source(of, article), (text) => askInPlace(of, idsOf(article)[0], text)));
      else add("again", "Try again", () => tryAgain(of, questionBefore(of, article)));
      add("branch", "Branch", () => branchOff(of, idsOf(article).at(-1)));
    }
    article.append(row);
  }
  if (shownMessages(of).some(({ replaces }) => replaces)) attempt(() => drawSteps(of));
}

/** The message as its author wrote it. */
function source(of, article) {
  const ids = idsOf(article);
  const said = shownMessages(of).filter(({ id, role }) => ids.includes(id) && role !== "tool");
  return said.map(({ content }) => content).filter(Boolean).join("\n\n");
}

function questionBefore(of, article) {
  const answered = of.messages.findIndex(({ id }) => id === idsOf(article)[0]);
  return of.messages.slice(0, answered).findLast(({ role }) => role === "user");
}

async function tryAgain(of, question) {
  if (!question) return;
  focusBox();
  await askInPlace(of, question.id, question.content);
}

async function branchOff(of, until) {
  const { id } = await json("sessions", { method: "POST", body: { copy_of: of.id, until } });
  location.hash = id;
  announce("This is a copy of the session up to that message.");
}

/** Puts "2 / 3" and two buttons beside each question that has several versions. */
async function drawSteps(of) {
  const messages = await readVersions(of);
  if (of.closed) return;
  for (const article of document.querySelectorAll("#stored .question[data-ids]")) {
    const [id] = idsOf(article);
    const versions = chain(messages, id);
    const row = article.querySelector(":scope > .message-actions");
    if (versions.length < 2 || !row || row.querySelector(".steps")) continue;
    const here = versions.findIndex((one) => one.id === id);
    const step = (name, words, target) => {
      const button = element("button", { type: "button", class: `quiet ${name}`, "aria-label": words }, name === "older" ? "‹" : "›");
      button.disabled = !target;
      button.onclick = () => attempt(() => showVersion(of, id, target, name));
      return button;
    };
    const place = element("span", { class: "place" }, `${here + 1} / ${versions.length}`);
    place.setAttribute("aria-label", `Version ${here + 1} of ${versions.length}`);
    const steps = element("span", { class: "steps" }, step("older", "Older version", versions[here - 1]), place);
    steps.append(step("newer", "Newer version", versions[here + 1]));
    row.append(steps);
  }
}

/** Shows another version of a question and what followed it then. Nothing on the server changes. */
async function showVersion(of, id, target, direction) {
  const messages = await readVersions(of);
  if (of.closed || state.turn) return;
  const shown = shownMessages(of);
  const before = shown.slice(0, shown.findIndex((message) => message.id === id));
  const older = [...before, ...branch(messages, target)];
  const isNewest = older.at(-1)?.id === of.messages.at(-1)?.id;
  of.older = isNewest ? null : older;
  redraw(of);
  const article = document.querySelector(`#stored .question[data-ids="${target.id}"]`);
  article?.scrollIntoView({ block: "nearest" });
  await drawSteps(of);
  const button = article?.querySelector(`.${direction}`);
  (button?.disabled ? article.querySelector(".steps button:not(:disabled)") : button)?.focus();
  announce(article?.querySelector(".place")?.getAttribute("aria-label") ?? "");
}

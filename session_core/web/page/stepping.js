// Steps between the versions of a question, beside it: "2 / 3" and two buttons.

import { drawEnd, renderMessages } from "./conversation.js";
import { element, iconButton } from "./element.js";
import { announce, attempt } from "./notices.js";
import { branch, keepVersion, readVersions, versionsOf } from "./versions.js";
import { isShown, shownMessages } from "./view.js";

/** Puts the number of the version beside each question that has several. */
export async function drawSteps(view) {
  if (!view.session.replaced) return;
  const messages = await readVersions(view);
  for (const article of view.stored.querySelectorAll(".question[data-ids]")) {
    const [id] = article.dataset.ids.split(" ");
    const versions = versionsOf(messages, id);
    const row = article.querySelector(":scope > .message-actions");
    if (versions.length < 2 || !row || row.querySelector(".steps")) continue;
    const index = versions.findIndex((one) => one.id === id);
    const step = (name, words, target) => {
      const button = iconButton(name, words, name, () => attempt(() => stepTo(view, id, target, name)));
      button.disabled = !target;
      return button;
    };
    const place = element("span", { class: "place", role: "img" }, `${index + 1} / ${versions.length}`);
    place.setAttribute("aria-label", `Version ${index + 1} of ${versions.length}`);
    row.append(element("span", { class: "steps" }, step("older", "Older version", versions[index - 1]), place, step("newer", "Newer version", versions[index + 1])));
  }
}

/** Shows the version of the conversation that has this question. Nothing on the server changes. */
export async function showVersion(view, target, instead = null) {
  const messages = await readVersions(view);
  if (!isShown(view) || view.turn) return;
  const question = messages.find(({ id }) => id === target);
  const places = new Set(versionsOf(messages, target).map(({ id }) => id));
  const shown = shownMessages(view);
  const index = shown.findIndex(({ id }) => (instead ? id === instead : places.has(id)));
  const earlier = [...shown.slice(0, index < 0 ? undefined : index), ...branch(messages, question)];
  view.earlier = earlier.at(-1)?.id === view.messages.at(-1)?.id ? null : earlier;
  keepVersion(view);
  view.notice = null;
  renderMessages(view);
  if (!view.earlier) drawEnd(view);
  await drawSteps(view);
}

async function stepTo(view, id, target, direction) {
  await showVersion(view, target.id, id);
  const article = view.stored.querySelector(`.question[data-ids="${target.id}"]`);
  article?.scrollIntoView({ block: "nearest" });
  const button = article?.querySelector(`.${direction}`);
  (button?.disabled ? article.querySelector(".steps button:not(:disabled)") : button)?.focus();
  announce(article?.querySelector(".place")?.getAttribute("aria-label") ?? "");
}

export function leaveVersion(view) {
  view.earlier = null;
  keepVersion(view);
  renderMessages(view);
  drawEnd(view);
}

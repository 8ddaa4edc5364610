// The versions of a conversation: the questions that others have replaced, and what was said under each.

import { json } from "./http.js";
import { keepChoice, readChoice } from "./kept.js";

/**
 * All messages of a session, in order, those too that a later question has replaced. They are read when a question on
 * the page has replaced another, and kept until the conversation changes otherwise than by a further turn.
 */
export async function readVersions(view) {
  view.all ??= (await json(`sessions/${view.id}?replaced=true`)).messages;
  return view.all;
}

/** Adds the messages of a further turn to those that are known. */
export function addToVersions(view, fresh) {
  if (fresh.some(({ replaces }) => replaces)) view.all = null;
  const known = new Set(view.all?.map(({ id }) => id));
  view.all?.push(...fresh.filter(({ id }) => !known.has(id)));
}

/** The message behind which each one stands, by their ids: the one before it, unless it names another. */
function placesOf(messages) {
  const places = new Map();
  messages.forEach(({ id, role, replaces, after }, index) => {
    const replaced = role === "user" && places.has(replaces) ? places.get(replaces) : null;
    places.set(id, replaced ?? after ?? messages[index - 1]?.id ?? "beginning");
  });
  return places;
}

/** The questions that stand behind the same message as this one, itself among them, oldest first. */
export function versionsOf(messages, id) {
  const places = placesOf(messages);
  return messages.filter((message) => message.role === "user" && places.get(message.id) === places.get(id));
}

/** What was said from this question on, in its version of the conversation. */
export function branch(messages, question) {
  return messages.slice(messages.indexOf(question)).filter(({ replaced_by: by }) => by === question.replaced_by);
}

/** Keeps which version is shown, so that it is shown again after a reload. */
export const keepVersion = (view) =>
  keepChoice(`version.${view.id}`, view.earlier ? JSON.stringify(view.earlier.map(({ id }) => id)) : null);

/** The messages of the version that was shown last, or null where that is the newest. */
export async function keptVersion(view) {
  const ids = JSON.parse(readChoice(`version.${view.id}`));
  if (!ids) return null;
  const byId = new Map((await readVersions(view)).map((message) => [message.id, message]));
  const messages = ids.map((id) => byId.get(id));
  return messages.every(Boolean) && messages.at(-1)?.replaced_by ? messages : null;
}

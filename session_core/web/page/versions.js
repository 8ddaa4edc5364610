// The versions of a question: those that it has replaced, and what was said under each.

import { json } from "./server.js";

/**
 * All messages of a session, in order, those too that a later question has replaced. They are read when a question on
 * the page has replaced another, and kept until the conversation changes.
 */
export async function readVersions(of) {
  const newest = of.messages.at(-1)?.id;
  if (of.versions?.newest !== newest) {
    const { messages } = await json(`sessions/${of.id}?replaced=true`);
    of.versions = { newest, messages };
  }
  return of.versions.messages;
}

/** The questions that stood, one after the other, in the place of this one, oldest first. */
export function chain(messages, id) {
  const byId = new Map(messages.map((message) => [message.id, message]));
  const successors = new Map(messages.filter(({ replaces }) => replaces).map((message) => [message.replaces, message]));
  let first = byId.get(id);
  while (first && byId.has(first.replaces)) first = byId.get(first.replaces);
  const found = [];
  for (let one = first; one; one = successors.get(one.id)) found.push(one);
  return found;
}

/** What was said from this question on, in its version of the conversation. */
export function branch(messages, question) {
  const begin = messages.indexOf(question);
  return messages.slice(begin).filter(({ replaced_by: by }) => by === question.replaced_by);
}

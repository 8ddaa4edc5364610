// A session as a file: exported as Markdown or JSON, and imported from JSON.

import { $ } from "./element.js";
import { saveBytes, withData } from "./files.js";
import { json } from "./http.js";
import { announce, showNotice } from "./notices.js";
import { textOf } from "./render.js";
import { state } from "./view.js";

/** Saves the conversation as a Markdown document in which each answer is what the model wrote. */
export async function exportMarkdown() {
  const session = await json(`sessions/${state.view.id}`);
  save(asMarkdown(session, $("title").textContent), "md");
}

/** Saves the session with the bytes of its pictures and files, so that an import needs nothing else. */
export async function exportJson() {
  const { id } = state.view;
  const session = await json(`sessions/${id}`);
  for (const message of session.messages) {
    if (!Array.isArray(message.content)) continue;
    message.content = await Promise.all(message.content.map((part) => (part.sha256 ? withData(part, id) : part)));
  }
  save(JSON.stringify(session, null, 2), "json");
}

function asMarkdown({ messages }, title) {
  const parts = [`# ${title}`];
  let speaker = "";
  for (const { role, content, name, tool_calls: calls, created_at: at, status } of messages) {
    const heading = role === "user" ? "You" : "Answer";
    if (role === "user" || heading !== speaker) parts.push(`## ${heading}, ${at}`);
    speaker = heading;
    const text = textOf(content);
    if (role === "user") parts.push(text.replace(/^/gm, "> "));
    else if (role === "tool") parts.push(`*${name} gave:*`, fenced(text));
    else if (content) parts.push(text);
    for (const { function: called } of calls ?? []) parts.push(`*${called.name} was called:*`, fenced(called.arguments));
    if (status) parts.push(`*(${status})*`);
  }
  return `${parts.join("\n\n")}\n`;
}

/** A text as a block of code that it cannot end. */
function fenced(text) {
  const fence = "`".repeat(1 + Math.max(2, ...[...text.matchAll(/`{3,}/g)].map(({ 0: run }) => run.length)));
  return `${fence}\n${text}\n${fence}`;
}

function save(text, extension) {
  const name = $("title").textContent.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60);
  saveBytes(text, `${name || "session"}.${extension}`);
}

/** Makes a session of an exported one, and shows it. */
export async function importFile(file) {
  let session;
  try {
    session = JSON.parse(await file.text());
    if (!Array.isArray(session.messages)) throw new SyntaxError();
  } catch {
    return showNotice(state.view, `${file.name} is no session in JSON.`, { failure: true });
  }
  const { title, system_prompt, messages, compacted } = session;
  // What is undefined is not sent.
  const { id } = await json("sessions", { method: "POST", body: { title, system_prompt, compacted, messages: messages.map(importable) } });
  location.hash = id;
  announce("The session is here.");
}

/** A message as an import takes it. */
const importable = ({ id, role, content, tool_calls, tool_call_id, name }) => ({ id, role, content, tool_calls, tool_call_id, name });

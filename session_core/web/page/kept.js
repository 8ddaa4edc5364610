// What the browser keeps: the token in the tab, and messages, drafts and choices on the machine.

import { dropAllBytes, dropBytes, keepBytes, olderNames, readBytes } from "./kept_files.js";

const TOKEN = "session_server.token";
const LONGEST_DRAFT = 200_000; // characters

// Where a browser refuses storage, the page remembers until it is reloaded.
const unkept = new Map();

function keep(name, value, storage = "localStorage") {
  unkept.delete(name);
  try {
    if (value === null) window[storage].removeItem(name);
    else window[storage].setItem(name, value);
  } catch {
    unkept.set(name, value);
  }
}

function kept(name, storage = "localStorage") {
  try {
    return unkept.get(name) ?? window[storage].getItem(name);
  } catch {
    return unkept.get(name) ?? null;
  }
}

export const readToken = () => kept(TOKEN, "sessionStorage");
export const keepToken = (token) => keep(TOKEN, token, "sessionStorage");

// ---- Messages and drafts with their files ----
//
// What is kept as text says which bytes belong to it, so that a message has all of its files or is not there, whenever
// the page ends. Bytes that no text names any more are dropped.

/** Under which name it is kept, of which session. What is of none yet is of the new one. */
const nameOf = (kind, session) => `session_server.${kind}.${session ?? "new"}`;

const namesIn = (text) => [...(text ?? "").matchAll(/"kept":"([\d-]+)"/g)].map(([, name]) => name);

/** A value as text, without the bytes that are kept beside it. */
const written = (value) => JSON.stringify(value, (key, part) => (part?.kept ? { ...part, data: undefined } : part));

function keepWithFiles(name, value) {
  const before = namesIn(kept(name));
  keep(name, value && written(value));
  if (before.length) dropUnnamed(before);
}

async function dropUnnamed(names) {
  await null; // What is taken out of a draft is put into a message at once.
  try {
    const named = new Set([...unkept.values(), ...Object.values(localStorage)].flatMap(namesIn));
    await dropBytes(names.filter((name) => !named.has(name)));
  } catch {
    // They stay until a later page can drop them.
  }
}

/** Drops what an earlier page, which ended in the middle of something, has left behind. */
export const dropLeftFiles = () => olderNames().then(dropUnnamed, () => {});

/** Keeps the bytes of a part beside the text. Returns whether it could; if not, they are kept in the text, where they fit. */
export async function keepFile(part) {
  part.kept = await keepBytes(part.data).catch(() => undefined);
  return part.kept !== undefined;
}

/** The bytes of a part in base64, which are read if need be; undefined where they are gone. */
export async function dataOf(part) {
  part.data ??= await readBytes(part.kept).catch(() => undefined);
  return part.data;
}

/** Keeps the key and the content of a session's message from before it is sent until its turn has ended well, so that after a crash of the server or the browser the same turn can be asked for. */
export const remember = (session, asked) => keepWithFiles(nameOf("asked", session), asked);
export const recall = (session) => JSON.parse(kept(nameOf("asked", session)));

/**
 * Keeps the key of a message that is in the box and may have reached the server all the same, so that it is the same
 * message when it is sent unchanged. The content is a text inside the text: the files in it belong to the draft.
 */
export const keepReturned = (session, returned) =>
  keep(nameOf("returned", session), returned && JSON.stringify({ ...returned, content: written(returned.content) }));

/** What is kept of a message with this content, or null where another one is in the box. */
export function readReturned(session, content) {
  const returned = JSON.parse(kept(nameOf("returned", session)));
  return returned?.content === written(content) ? returned : null;
}

/** What was typed and not sent, by session; of no session, what a new one will get. */
export const keepDraft = (session, text) =>
  keep(nameOf("draft", session), text.trim() && text.length <= LONGEST_DRAFT ? text : null);
export const readDraft = (session) => kept(nameOf("draft", session)) ?? "";

/** The files that were given and not sent. */
export const keepDraftFiles = (session, parts) => keepWithFiles(nameOf("files", session), parts.length ? parts : null);
export const readDraftFiles = (session) => JSON.parse(kept(nameOf("files", session))) ?? [];

export const keepChoice = (name, value) => keep(`session_server.${name}`, value);
export const readChoice = (name) => kept(`session_server.${name}`);

const OF_SESSIONS = ["asked", "draft", "files", "returned", "version"]; // what is kept of each, under its id

/** Forgets all that is kept of a session that is no more. */
export function forgetSession(session) {
  for (const kind of OF_SESSIONS) keepWithFiles(nameOf(kind, session), null);
}

/** Forgets all that was written and seen, for whoever uses the browser next. What it looks like stays. */
export async function forgetAll() {
  try {
    for (const name of Object.keys(localStorage)) if (OF_SESSIONS.some((kind) => name.startsWith(nameOf(kind, "")))) keep(name, null);
  } catch {
    // A browser that refuses storage has kept nothing that outlives the page.
  }
  await dropAllBytes().catch(() => {}); // A browser without a database has none.
}

// What the browser keeps: the token in the tab, and messages, drafts and choices on the machine.

const TOKEN = "session_server.token";
const LONGEST_DRAFT = 200_000; // characters

// Where a browser refuses storage, the page remembers until it is reloaded.
const unkept = new Map();

function keep(storage, name, value) {
  unkept.delete(name);
  try {
    if (value === null) window[storage].removeItem(name);
    else window[storage].setItem(name, value);
  } catch {
    unkept.set(name, value);
  }
}

function kept(storage, name) {
  try {
    return unkept.get(name) ?? window[storage].getItem(name);
  } catch {
    return unkept.get(name) ?? null;
  }
}

export const readToken = () => kept("sessionStorage", TOKEN);
export const keepToken = (token) => keep("sessionStorage", TOKEN, token);

/** Keeps the key and the text of a session's message from before it is sent until its turn has ended well, so that after a crash of the server or the browser the same turn can be asked for. */
export const remember = (session, asked) => keep("localStorage", `session_server.asked.${session}`, asked && JSON.stringify(asked));
export const recall = (session) => JSON.parse(kept("localStorage", `session_server.asked.${session}`));

/** What was typed and not sent, by session; of no session, what a new one will get. */
export const keepDraft = (session, text) =>
  keep("localStorage", `session_server.draft.${session ?? "new"}`, text.trim() && text.length <= LONGEST_DRAFT ? text : null);
export const readDraft = (session) => kept("localStorage", `session_server.draft.${session ?? "new"}`) ?? "";

export const keepChoice = (name, value) => keep("localStorage", `session_server.${name}`, value);
export const readChoice = (name) => kept("localStorage", `session_server.${name}`);

/** Forgets all that is kept of a session that is no more. */
export function forgetSession(session) {
  remember(session, null);
  keepDraft(session, "");
  keepChoice(`version.${session}`, null);
}

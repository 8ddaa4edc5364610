// Asking the server: requests with the token that it wants, its refusals in words, its streams as events, and what the
// browser keeps for that.

const STATUSES = {
  413: "That is too long for the server.",
  429: "Too many requests for now.",
  502: "The server, or a proxy before it, is not available.",
  503: "The server, or a proxy before it, is not available.",
  504: "The server did not answer in time.",
};
const TOKEN = "session_server.token";

export class ConnectionLost extends Error {}

/** An answer other than 2xx. `words` is for people. */
export class Refused extends Error {
  constructor(response, body) {
    super(body.error ?? STATUSES[response.status] ?? `The server answered with status ${response.status}.`);
    this.status = response.status;
    this.code = body.code;
    this.retryAfter = Number(response.headers.get("Retry-After")) || 0;
  }

  get words() {
    return this.retryAfter > 1 ? `${this.message} Try again in ${this.retryAfter} seconds.` : this.message;
  }
}

/** Tells of each answer, whatever it says, with an event `reached`. */
export const connection = new EventTarget();

/** The answer to a request, if it is 2xx. Asks for the token where the server does, unless `quiet`. */
export async function request(path, { method = "GET", body, headers = {}, signal, quiet = false } = {}) {
  for (;;) {
    const token = kept("sessionStorage", TOKEN);
    const sent = { ...headers };
    if (token) sent.Authorization = `Bearer ${token}`;
    if (body) sent["Content-Type"] = "application/json";
    const settings = { method, headers: sent, signal, cache: "no-store", body: body && JSON.stringify(body) };
    const response = await fetch(path, settings).catch(() => {
      throw new ConnectionLost();
    });
    connection.dispatchEvent(new Event("reached"));
    if (response.ok) return response;
    const refused = new Refused(response, await response.json().catch(() => ({})));
    if (response.status !== 401 || quiet || !(await askToken(token))) throw refused;
  }
}

/** Sends a request that outlives the page. Nobody hears what came of it. */
export function sendAtOnce(path, method) {
  const token = kept("sessionStorage", TOKEN);
  fetch(path, { method, keepalive: true, headers: token ? { Authorization: `Bearer ${token}` } : {} }).catch(() => {});
}

export async function json(path, options = {}) {
  const response = await request(path, { signal: AbortSignal.timeout(30_000), ...options });
  return response.json().catch(() => {
    throw new ConnectionLost();
  });
}

/** The events of a stream as they come; `heard` is called for anything that comes. EventSource is not used because it can send no token. */
export async function* readEvents(response, heard) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = "";
  for (;;) {
    const { done, value } = await reader.read().catch(() => {
      throw new ConnectionLost();
    });
    if (done) return;
    heard();
    const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) data += line.slice(5);
      else if (!line.trim() && data) {
        yield JSON.parse(data);
        data = "";
      }
    }
  }
}

// ---- The token ----

let asking = null;

/** Whether there is another token now than the one that was refused. One dialog serves all who ask meanwhile. */
function askToken(refused) {
  if (kept("sessionStorage", TOKEN) !== refused) return true;
  asking ??= new Promise((resolve) => {
    const [dialog, form, field, hint, cancel] = ["dialog", "form", "field", "hint", "cancel"].map((part) =>
      document.getElementById(`token-${part}`),
    );
    field.value = "";
    if (refused) hint.textContent = "The server did not accept that token. Try once more.";
    form.onsubmit = (event) => {
      event.preventDefault();
      // Nothing else can stand in a header, and a token that was pasted often ends in a line feed.
      const token = field.value.replace(/[^\x21-\x7e]/g, "");
      if (!token) return;
      keep("sessionStorage", TOKEN, token);
      dialog.close("given");
    };
    cancel.onclick = () => dialog.close("");
    dialog.onclose = () => {
      asking = null;
      resolve(dialog.returnValue === "given");
    };
    dialog.returnValue = "";
    dialog.showModal();
  });
  return asking;
}

// ---- What the browser keeps ----

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
    return null;
  }
}

/** Keeps the key and the text of a session's message from before it is sent until its turn has ended well, so that after a crash of the server or the browser the same turn can be asked for. */
export function remember(session, asked) {
  keep("localStorage", `session_server.asked.${session}`, asked && JSON.stringify(asked));
}

export const recall = (session) => JSON.parse(kept("localStorage", `session_server.asked.${session}`));

export function newKey() {
  // crypto.randomUUID exists on secure origins only; the page may be served over plain HTTP.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

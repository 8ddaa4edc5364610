// Requests to the server: with the token that it wants, its refusals in words, its streams as events.

import { readToken } from "./kept.js";

const UNAVAILABLE = "The server, or a proxy before it, is not available.";
const STATUSES = {
  413: "That is too long for the server.",
  429: "Too many requests for now.",
  502: UNAVAILABLE,
  503: UNAVAILABLE,
  504: "The server did not answer in time.",
};

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

let callbacks = { askToken: async () => false, onAnswer() {} };

/** `askToken` is called with the token that was refused, and says whether there is another. `onAnswer` hears of each answer. */
export const setHttpCallbacks = (given) => (callbacks = given);

/** The answer to a request, if it is 2xx. Asks for the token where the server does, unless `quiet`. With `keepalive` it outlives the page. */
export async function request(path, { method = "GET", body, headers = {}, signal, cache = "no-store", keepalive = false, quiet = false } = {}) {
  for (;;) {
    const token = readToken();
    const sent = { ...headers };
    if (token) sent.Authorization = `Bearer ${token}`;
    if (body) sent["Content-Type"] = "application/json";
    const settings = { method, headers: sent, signal, cache, keepalive, body: body && JSON.stringify(body) };
    const response = await fetch(path, settings).catch(() => {
      throw new ConnectionLost();
    });
    callbacks.onAnswer(response);
    if (response.ok) return response;
    const refused = new Refused(response, await response.json().catch(() => ({})));
    if (response.status !== 401 || quiet || !(await callbacks.askToken(token))) throw refused;
  }
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

export function newKey() {
  // crypto.randomUUID exists on secure origins only; the page may be served over plain HTTP.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

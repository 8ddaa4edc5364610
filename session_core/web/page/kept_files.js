// The bytes of pictures and files that the server does not have yet, in the browser's database: what is kept as text has
// room for some megabytes only.

const STORE = "files";
const PATIENCE = 5_000; // milliseconds, after which a database that does not open counts as none
const YOUNG = 3600_000; // milliseconds, in which a tab has surely written down what it has kept bytes for

let database = null;

function open() {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open("session_server", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE);
    opening.onsuccess = () => {
      opening.result.onclose = () => (database = null);
      resolve(opening.result);
    };
    opening.onerror = () => reject(opening.error);
    setTimeout(() => reject(new Error("The database does not open.")), PATIENCE);
  });
}

/** What the store answers. It fails where the browser has no database, or no room in it. */
async function ask(mode, question) {
  database ??= open().catch((error) => {
    database = null;
    throw error;
  });
  const transaction = (await database).transaction(STORE, mode);
  const request = question(transaction.objectStore(STORE));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onabort = () => reject(transaction.error);
  });
}

/** Keeps bytes, and returns the name under which they are kept. */
export async function keepBytes(data) {
  const name = `${Date.now()}-${crypto.getRandomValues(new Uint32Array(3)).join("-")}`;
  await ask("readwrite", (store) => store.put(data, name));
  return name;
}

/** The bytes of that name, or undefined where they are gone. */
export const readBytes = (name) => ask("readonly", (store) => store.get(name));

export const dropAllBytes = () => ask("readwrite", (store) => store.clear());
export const dropBytes = (names) => ask("readwrite", (store) => names.forEach((name) => store.delete(name)));

/** The names of what has been kept for a while. */
export async function olderNames() {
  const names = await ask("readonly", (store) => store.getAllKeys());
  return names.filter((name) => parseInt(name, 10) < Date.now() - YOUNG);
}

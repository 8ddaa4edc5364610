// What the page shows, as data that its modules share: the session, the running turn, the list.

export const $ = (id) => document.getElementById(id);
export const box = $("message");
export const scroller = $("scroller");
export const touch = matchMedia("(hover: none) and (pointer: coarse)");
export const narrow = matchMedia("(max-width: 46rem)");

export const PAGE_SIZE = 50; // messages, or sessions, in one request

/** A session that is shown: its stored messages, the cursor for earlier ones, and the note under the last answer. */
export const newView = (id) => ({
  id,
  messages: [],
  next: null,
  note: null,
  again: null, // the turn that "Try again" asks for
  returned: null, // a message that the server does not have, back in the box
  details: null,
  older: null, // the messages of an older version, while one is shown
  versions: null, // what is known of the versions of its questions
  chosen: {}, // settings, until the session is made
  usage: null,
  loading: false,
  closed: false,
});

export const state = {
  view: newView(null),
  turn: null, // the turn that is drawn live
  sessions: [], // the list, newest first
  nextSessions: null, // the cursor for more of the list
  hidden: new Set(), // sessions that are deleted as soon as their time to be brought back is over
  filter: "", // words that a title in the list must have
};

/**
 * Conversations, in this browser and nowhere else. Each has an entry of its own in localStorage, so that two tabs spoil
 * nothing of each other's; what finds no room there is kept in memory, and whoever saves is told.
 *
 * A conversation: {id, title, changed, model, knobs, messages: [{role, content, …}]}.
 */

const PREFIX = "vllmd.conversation.";
const TITLE_CHARACTERS = 60;

export class Store extends EventTarget {
  #unsaved = new Map();

  constructor() {
    super();
    addEventListener("storage", (event) => {
      if (event.key === null || event.key.startsWith(PREFIX)) this.dispatchEvent(new Event("change"));
    });
  }

  /** All of them, the latest first. */
  list() {
    const found = new Map();
    for (const key of kept()) {
      const each = parse(read(key));
      if (each) found.set(each.id, each);
    }
    for (const each of this.#unsaved.values()) found.set(each.id, each);
    return [...found.values()].sort((a, b) => b.changed - a.changed);
  }

  load(id) {
    return this.#unsaved.get(id) ?? parse(read(PREFIX + id));
  }

  /** @returns {boolean} whether it will be there after a reload */
  save(conversation) {
    conversation.title = titleOf(conversation);
    try {
      localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
      this.#unsaved.delete(conversation.id);
    } catch {
      this.#unsaved.set(conversation.id, conversation);
    }
    this.dispatchEvent(new Event("change"));
    return !this.#unsaved.has(conversation.id);
  }

  remove(id) {
    this.#unsaved.delete(id);
    try {
      localStorage.removeItem(PREFIX + id);
    } catch {
      // a browser that keeps nothing has nothing to forget
    }
    this.dispatchEvent(new Event("change"));
  }
}

/** A new one, which is stored with its first message. */
export function begin(knobs, model = "") {
  return { id: crypto.randomUUID?.() ?? random(), title: "", changed: Date.now(), model, knobs, messages: [] };
}

function titleOf({ messages }) {
  const said = messages.find((each) => each.role === "user")?.content ?? "";
  const line = said.trim().split("\n")[0];
  return line.length > TITLE_CHARACTERS ? `${line.slice(0, TITLE_CHARACTERS - 1)}…` : line;
}

/** Outside of HTTPS and localhost browsers have no randomUUID. */
function random() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (each) => each.toString(16).padStart(2, "0")).join("");
}

function kept() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
  } catch {
    return [];
  }
}

function read(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

/** What an older page, or somebody's hand, has put there may be anything. */
function parse(text) {
  try {
    const table = JSON.parse(text);
    const isOne = typeof table?.id === "string" && Array.isArray(table.messages);
    return isOne ? { title: "", changed: 0, model: "", knobs: {}, ...table } : null;
  } catch {
    return null;
  }
}

/** Server-sent events as the WHATWG standard writes them, read from fetch: EventSource can send neither a key nor a body. */

const LINE_END = /\r\n|\n|\r(?!$)/;

/** Reads text as it comes, cut anywhere. */
export class Decoder {
  #rest = "";
  #event = fresh();

  /** @returns {{event: string, data: ?string, id: ?string, comment: ?string}[]} what is complete by now */
  feed(text) {
    this.#rest += text;
    const lines = this.#rest.split(LINE_END);
    this.#rest = lines.pop();
    const found = [];
    for (const line of lines) {
      if (line) this.#read(line);
      else if (this.#event.data !== null || this.#event.comment !== null) {
        found.push(this.#event);
        this.#event = fresh();
      } else this.#event = fresh();
    }
    return found;
  }

  #read(line) {
    const [name, value] = split(line);
    const event = this.#event;
    if (name === "") event.comment = event.comment === null ? value : `${event.comment}\n${value}`;
    else if (name === "data") event.data = event.data === null ? value : `${event.data}\n${value}`;
    else if (name === "event") event.event = value;
    else if (name === "id") event.id = value;
  }
}

function fresh() {
  return { event: "message", data: null, id: null, comment: null };
}

function split(line) {
  const colon = line.indexOf(":");
  if (colon < 0) return [line, ""];
  return [line.slice(0, colon), line.slice(colon + 1).replace(/^ /, "")];
}

/** The events of a response's body, comments included; ends as the body ends, and throws if that breaks. */
export async function* eventsOf(body) {
  const reader = body.getReader();
  const decoder = new Decoder();
  const text = new TextDecoder();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* decoder.feed(text.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => {}); // who stops listening ends the work at the other end
  }
}

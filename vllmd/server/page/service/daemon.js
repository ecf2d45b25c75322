/** What the view asks of the daemon, in the ways of the API: JSON, and events that go on. */

import { eventsOf } from "../sse.js";

export class Daemon {
  #api;

  /** @param {Api} api has the key. */
  constructor(api) {
    this.#api = api;
  }

  /** What is at that path. @throws {Failure} */
  async get(path, signal) {
    return (await this.#api.ask(path, { signal })).json();
  }

  /** Wants something done. @throws {Failure} */
  async order(method, path) {
    await this.#api.ask(path, { method });
  }

  /**
   * Calls `take` with each event; returns when the stream ends, and throws if it breaks.
   * @param {function({event: string, data: string, id: ?string})} take
   */
  async listen(path, take, signal) {
    const response = await this.#api.ask(path, { signal });
    for await (const event of eventsOf(response.body)) if (event.data !== null) take(event);
  }
}

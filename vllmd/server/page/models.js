/** What the models do now, as `/api/events` tells it: the one place that knows. Says `change` when it differs. */
import { Failure } from "./api.js";
import { eventsOf } from "./sse.js";

const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 30_000;
const SILENCE_MS = 90_000;

export class Models extends EventTarget {
  #api;
  #byName = new Map();
  #awake = null;
  #awaited = 0;
  failure = null;

  constructor(api) {
    super();
    this.#api = api;
    document.addEventListener("visibilitychange", () => document.hidden || this.hurry());
  }

  get all() {
    return [...this.#byName.values()];
  }

  get(name) {
    return this.#byName.get(name);
  }

  get default() {
    return this.all.find((each) => each.default) ?? this.all[0];
  }

  /** Follows for as long as the page lives; after a loss with more and more patience, and never all pages at once. */
  async follow() {
    for (let failures = 0; ; failures++) {
      try {
        await this.#listen(() => (failures = 0));
      } catch (error) {
        this.#tell(error instanceof Failure ? error : null);
      }
      const delay_ms = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** failures);
      // A browser has six connections to one host: a tab that nobody sees takes none of them.
      await this.#pause(this.#isAsleep ? Infinity : delay_ms * (0.5 + Math.random()));
    }
  }

  /** Looks again at once: the user came back, or the network did. */
  hurry() {
    this.#awake?.();
  }

  /** Resolves with the model's state once that is one that lasts: ready, asleep, stopped, failed. */
  settled(name, signal) {
    return new Promise((resolve, reject) => {
      const look = () => {
        const state = this.get(name)?.state;
        if (["ready", "asleep", "stopped", "failed"].includes(state)) done(() => resolve(state));
      };
      const stop = () => done(() => reject(signal.reason));
      this.#awaited++;
      const done = (then) => {
        this.#awaited--;
        this.removeEventListener("change", look);
        signal.removeEventListener("abort", stop);
        then();
      };
      this.addEventListener("change", look);
      signal.addEventListener("abort", stop);
      look();
    });
  }

  get #isAsleep() {
    return document.hidden && !this.#awaited;
  }

  async #listen(connected) {
    const ending = new AbortController();
    const sleep = () => this.#isAsleep && ending.abort();
    document.addEventListener("visibilitychange", sleep);
    let silence = setTimeout(() => ending.abort(), SILENCE_MS);
    try {
      const response = await this.#api.ask("/api/events", { signal: ending.signal });
      await this.#refresh(ending.signal);
      connected();
      for await (const event of eventsOf(response.body)) {
        clearTimeout(silence);
        silence = setTimeout(() => ending.abort(), SILENCE_MS);
        await this.#hear(event, ending.signal);
      }
    } finally {
      document.removeEventListener("visibilitychange", sleep);
      clearTimeout(silence);
      ending.abort();
    }
  }

  async #hear({ event, data }, signal) {
    if (event === "missed") await this.#refresh(signal);
    if (event !== "model" || data === null) return;
    const model = JSON.parse(data);
    this.#byName.set(model.name, model);
    this.#tell(null);
  }

  /** All of them, also for what events do not say: which there are no longer. */
  async #refresh(signal) {
    const status = await (await this.#api.ask("/api/status", { signal })).json();
    this.#byName = new Map(status.models.map((each) => [each.name, each]));
    this.#tell(null);
  }

  #tell(failure) {
    this.failure = failure;
    this.dispatchEvent(new Event("change"));
  }

  #pause(ms) {
    return new Promise((resolve) => {
      const timer = ms < Infinity ? setTimeout(resolve, ms) : 0;
      this.#awake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}

/** A model's state in a word or two. */
export function word({ state, on_demand }) {
  if (state === "dozing") return "falling asleep";
  return state === "stopped" && on_demand ? "not loaded" : state;
}

/** What a model does, in a few words. */
export function summary(model) {
  if (!model) return "";
  if (model.state !== "starting") return word(model);
  const percent = model.percent === null ? "" : ` ${model.percent} %`;
  return `${model.phase ?? "starting"}${percent}`;
}

/** What is left of a start, as one says a guess. */
export function left(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 5) return "a few seconds left";
  return seconds < 90 ? `about ${5 * Math.round(seconds / 5)} s left` : `about ${Math.round(seconds / 60)} min left`;
}

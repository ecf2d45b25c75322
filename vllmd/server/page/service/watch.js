/** What comes from the daemon: changes of state as they happen, and what has no events (load, requests) once a second.
 * While the page is out of sight nothing is asked and no stream is open. */

const LOOK_MS = 1000;
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 15000;

/** What only `/api/status` knows: an event, made where nobody counts, says nothing of it. */
const COUNTED = ["running", "held", "tokens_per_s", "places", "engine_running", "engine_waiting", "kv_cache_usage"];

/** A model after an event about it. */
export function merged(model, change) {
  return { ...change, ...Object.fromEntries(COUNTED.map((name) => [name, model?.[name] ?? change[name]])) };
}

/** Resolves after a time, or at once when `signal` says that it is all over. */
export function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    signal.addEventListener("abort", end);
  });
}

/**
 * Does something again and again until `signal`: after a failure with growing pauses, else with the pause it asks for.
 * @param {function} work returns the pause until the next time, in milliseconds, or throws.
 * @param {function} onTrouble is told what was thrown; null when all is well again.
 */
export async function again(work, signal, onTrouble = () => {}) {
  let patience = FIRST_PAUSE_MS;
  while (!signal.aborted) {
    const { next, error } = await attempt(work);
    if (signal.aborted) return;
    onTrouble(error);
    patience = error ? Math.min(2 * patience, LONGEST_PAUSE_MS) : FIRST_PAUSE_MS;
    await pause(error ? patience * (0.75 + Math.random() / 2) : next, signal);
  }
}

async function attempt(work) {
  try {
    return { next: await work(), error: null };
  } catch (error) {
    return { next: 0, error };
  }
}

/**
 * Lets work run while the page is in sight.
 * @param {function} begin is given a signal that ends what it begins.
 * @returns {function} ends it for good.
 */
export function whileSeen(begin) {
  let running = null;
  const look = () => {
    if (document.hidden) {
      running?.abort();
      running = null;
    } else if (!running) {
      running = new AbortController();
      begin(running.signal);
    }
  };
  document.addEventListener("visibilitychange", look);
  look();
  return () => {
    document.removeEventListener("visibilitychange", look);
    running?.abort();
  };
}

/**
 * Follows the service.
 * @param {Daemon} daemon
 * @param {object} on `status(status)`, `requests(list)`, `model(change)`: what is new; `trouble(error)`: null when over.
 * @param {AbortSignal} signal ends it.
 * @returns {function} looks at once instead of in a second.
 */
export function follow(daemon, on, signal) {
  let hurry = new AbortController();
  signal.addEventListener("abort", () => hurry.abort());
  const look = async () => {
    const [status, running] = await Promise.all([daemon.get("/api/status", signal), daemon.get("/api/requests", signal)]);
    on.status(status);
    on.requests(running.requests);
    await pause(LOOK_MS, hurry.signal);
    if (!signal.aborted) hurry = new AbortController();
    return 0;
  };
  const listen = async () => {
    const take = ({ event, data }) => event === "model" && on.model(JSON.parse(data));
    await daemon.listen("/api/events", take, signal);
    return FIRST_PAUSE_MS;
  };
  again(look, signal, on.trouble);
  again(listen, signal);
  return () => hurry.abort();
}

/** What comes from the daemon beside its events: looked at once a second, and only while somebody looks at the page. */

const PATHS = ["/api/status", "/api/requests"];
const LOOK_MS = 1000;
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 15000;

/** What only `/api/status` tells: events come from where nobody counts. */
const COUNTED = [
  ...["running", "held", "tokens_per_s", "places", "engine_running", "engine_waiting", "kv_cache_usage"],
  ...["used_at", "claim_bytes"],
];

/** A model after an event about it. */
export function merged(model, change) {
  return { ...change, ...Object.fromEntries(COUNTED.map((name) => [name, model[name]])) };
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
 * Does something again and again until `signal`: after failures with growing pauses, never all pages at once.
 * @param {function} work returns the pause until the next time, in milliseconds, or throws.
 * @param {function} onTrouble is told what was thrown.
 */
export async function again(work, signal, onTrouble = () => {}) {
  let patience = FIRST_PAUSE_MS;
  while (!signal.aborted) {
    try {
      const next = await work();
      patience = FIRST_PAUSE_MS;
      await pause(next, signal);
    } catch (failure) {
      if (signal.aborted) return;
      onTrouble(failure);
      patience = Math.min(2 * patience, LONGEST_PAUSE_MS);
      await pause(patience * (0.5 + Math.random() / 2), signal);
    }
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
 * Looks at the load and the requests, once a second until `signal`.
 * @param {Daemon} daemon
 * @param {object} on `status(status)`, `requests(list)`: what is so now; `trouble(failure)`: null when it is over.
 * @returns {function} looks at once instead of in a second.
 */
export function look(daemon, on, signal) {
  let hurry = new AbortController();
  signal.addEventListener("abort", () => hurry.abort());
  const once = async () => {
    const [status, list] = await Promise.all(PATHS.map((path) => daemon.get(path, signal)));
    on.status(status);
    on.requests(list.requests);
    on.trouble(null);
    await pause(LOOK_MS, hurry.signal);
    if (!signal.aborted) hurry = new AbortController();
    return 0;
  };
  again(once, signal, on.trouble);
  return () => hurry.abort();
}

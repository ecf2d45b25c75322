/** Speaks to vllmd: with the key, if one is asked for, and with errors in the service's own words. */

/** Why something did not happen: what the API says, or what became of the connection. */
export class Failure extends Error {
  /** @param {{message: string, hint?: string, source?: string, code?: string}} said */
  constructor({ message, hint = "", source = "page", code = "" }) {
    super(message);
    this.hint = hint;
    this.source = source;
    this.code = code;
  }

  /** Of an error body, as vllmd's and the engine's are. */
  static of(table, fallback) {
    const error = table?.error ?? {};
    const message = typeof error === "string" ? error : (error.message ?? fallback);
    return new Failure({
      message: String(message),
      hint: String(error.hint ?? ""),
      source: error.source ?? "engine",
      code: String(error.code ?? ""),
    });
  }
}

const UNREACHABLE = {
  message: "vllmd cannot be reached",
  hint: "It may be restarting. On its machine: systemctl status vllmd",
  code: "unreachable",
};
export const BROKEN_OFF = {
  message: "The connection broke off before the answer was complete",
  hint: "It may be the network, or vllmd itself: systemctl status vllmd",
  code: "broken",
};

export class Api {
  #key;

  /** @param key  keeps the key, and asks for one */
  constructor(key) {
    this.#key = key;
  }

  /**
   * Asks, by GET, or by POST where there is a body, unless `method` says otherwise; again with another key for as long as the answer is 401 and the user gives one.
   * @returns {Promise<Response>} an answer without an error
   * @throws {Failure} the service refuses, or is out of reach
   * @throws whatever `signal` gives as its reason
   */
  async ask(path, { method, body, headers = {}, signal } = {}) {
    for (;;) {
      const key = this.#key.text;
      const response = await reach(path, request(method, body, headers, signal, key));
      if (response.ok) return response;
      const failure = await refused(response);
      if (response.status !== 401 || !(await this.#key.another(key, failure.message))) throw failure;
    }
  }
}

function request(method, body, headers, signal, key) {
  const all = { ...headers };
  if (key) all.authorization = `Bearer ${key}`;
  if (body === undefined) return { method, headers: all, signal, cache: "no-store" };
  return { method: "POST", headers: { ...all, "content-type": "application/json" }, body: JSON.stringify(body), signal };
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    throw options.signal?.aborted ? error : new Failure(UNREACHABLE);
  }
}

async function refused(response) {
  const table = await response.json().catch(() => ({}));
  return Failure.of(table, `the service answered with status ${response.status}`);
}

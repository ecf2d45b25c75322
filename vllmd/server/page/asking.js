/** One question on its way: sent, perhaps held, streamed, ended; never silent about which. */
import { BROKEN_OFF, Failure } from "./api.js";
import { eventsOf } from "./sse.js";

const PATH = "/v1/chat/completions";
const ON_ITS_WAY = ["starting", "unhealthy", "stopping", "backoff", "dozing"];

/**
 * Asks, and tells what comes.
 * @param {Api} api
 * @param {Models} models
 * @param {Object} body  of the request
 * @param {AbortSignal} signal  ends it, in the engine too
 * @param {{comment: function, text: function, thought: function}} told  is called with each piece
 * @returns {Promise<{finish: string, usage: ?Object}>}
 * @throws {Failure} it did not come to its end
 */
export async function ask(api, models, body, signal, told) {
  for (;;) {
    try {
      return await once(api, body, signal, told);
    } catch (error) {
      // Held for as long as vllmd holds: the model is still coming, and so the question waits here.
      if (error.code !== "not_ready" || !ON_ITS_WAY.includes(models.get(body.model)?.state)) throw error;
      await models.settled(body.model, signal);
    }
  }
}

async function once(api, body, signal, told) {
  const response = await api.ask(PATH, { body, signal });
  const end = { finish: "", usage: null, done: false };
  try {
    for await (const event of eventsOf(response.body)) {
      if (event.comment !== null) told.comment(event.comment);
      if (event.data !== null) hear(event.data, end, told);
      if (end.done) break;
    }
  } catch (error) {
    if (error instanceof Failure || signal.aborted) throw error;
    throw new Failure(BROKEN_OFF);
  }
  if (!end.done && !end.finish) throw new Failure(BROKEN_OFF);
  return end;
}

function hear(data, end, told) {
  if (data === "[DONE]") {
    end.done = true;
    return;
  }
  const chunk = parsed(data);
  if (chunk.error) throw Failure.of(chunk, "the answer broke off");
  end.usage = chunk.usage ?? end.usage;
  for (const choice of chunk.choices ?? []) {
    const delta = choice.delta ?? {};
    const thought = delta.reasoning ?? delta.reasoning_content;
    if (thought) told.thought(String(thought));
    if (delta.content) told.text(String(delta.content));
    end.finish = choice.finish_reason ?? end.finish;
  }
}

function parsed(data) {
  try {
    return JSON.parse(data) ?? {};
  } catch {
    throw new Failure({ message: "The engine sent something that is no JSON", source: "engine", code: "engine_error" });
  }
}

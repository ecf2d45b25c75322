/** The requests that are under way: whose, how far they are, and a way to end them. */

import { element as el } from "../element.js";
import { matched, say, show } from "./dom.js";
import { count, duration, plural, rate } from "./words.js";

/** As many are shown; what else there is, is counted. */
const MOST = 100;

const COLUMNS = ["Who", "Model", "Age", "Tokens", "Rate"];

export class Requests {
  /**
   * @param {Daemon} daemon ends them.
   * @param {function} onCancelled is called after one was cancelled.
   */
  constructor(daemon, onCancelled) {
    this.daemon = daemon;
    this.onCancelled = onCancelled;
    this.rows = new Map();
    this.body = el("tbody");
    const heads = COLUMNS.map((name) => el("th", { scope: "col", "data-column": name.toLowerCase() }, name));
    const last = el("th", { scope: "col" }, el("span", { class: "hidden" }, "Cancel"));
    const table = el("table", { class: "requests" }, el("thead", {}, el("tr", {}, ...heads, last)), this.body);
    this.table = el("div", { class: "requests-frame", hidden: true }, table);
    this.none = el("p", { class: "nothing" }, "Nothing is running.");
    this.more = el("p", { class: "nothing", hidden: true });
    this.refused = el("p", { class: "refused", role: "status", hidden: true });
    this.count = el("span", { class: "count" });
    const title = el("h2", {}, "Requests ", this.count);
    this.element = el("section", { class: "panel", "aria-label": "Requests" }, title, this.none, this.table);
    this.element.append(this.more, this.refused);
  }

  /**
   * @param {Array} requests those that there are, as `/api/requests` has them.
   * @param {boolean} hasManyModels whether it is worth telling which.
   */
  draw(requests, hasManyModels) {
    this.element.dataset.models = hasManyModels ? "many" : "one";
    const shown = [...requests].sort((one, other) => isHeld(one) - isHeld(other)).slice(0, MOST);
    const parts = matched(this.body, this.rows, shown, keyOf, (request) => this.#row(request));
    parts.forEach((part, at) => part.draw(shown[at]));
    show(this.table, requests.length > 0);
    show(this.none, requests.length === 0);
    show(this.more, requests.length > MOST);
    say(this.more, `and ${plural(requests.length - MOST, "other")}`);
    say(this.count, requests.length ? count(requests.length) : "");
  }

  #row(request) {
    const cell = (name) => el("td", { "data-column": name.toLowerCase() });
    const [model, age, tokens, speed] = COLUMNS.slice(1).map(cell);
    const state = el("span", { class: "request-state" });
    const id = el("span", { class: "request-id", title: request.id }, request.id);
    const light = el("span", { class: "light", "aria-hidden": "true" });
    const who = el("th", { scope: "row", "data-column": "who" }, light, request.who, " ", id, " ", state);
    const cancel = () => this.#cancel(request, button);
    const label = { "aria-label": `Cancel request ${request.id}` };
    const button = el("button", { type: "button", ...label, onclick: cancel }, "Cancel");
    const element = el("tr", {}, who, model, age, tokens, speed, el("td", { "data-column": "cancel" }, button));
    const draw = (now) => {
      element.dataset.state = now.state;
      say(state, said(now));
      say(model, now.model);
      say(age, duration(now.age_s));
      say(tokens, now.tokens === null || isHeld(now) ? "" : count(now.tokens));
      say(speed, now.tokens_per_s === null ? "" : `${rate(now.tokens_per_s)}/s`);
    };
    return { element, draw };
  }

  async #cancel(request, button) {
    button.disabled = true;
    try {
      await this.daemon.order("DELETE", `/api/requests/${encodeURIComponent(request.id)}`);
      show(this.refused, false);
    } catch (error) {
      button.disabled = false;
      say(this.refused, error.message);
      show(this.refused, error.code !== "request_not_found"); // it has ended by itself meanwhile
    }
    this.onCancelled();
  }
}

function isHeld(request) {
  return request.state === "held";
}

/** Clients may choose their ids, and so may use one twice. */
function keyOf(request) {
  return `${Math.round(request.since)} ${request.who} ${request.id}`;
}

function said(request) {
  if (isHeld(request)) return "waiting";
  if (request.continuations) return "continued";
  return request.replays ? "sent again" : "";
}

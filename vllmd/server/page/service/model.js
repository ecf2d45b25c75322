/** One model: its state at a glance, what it is doing, and what may be done to it. */

import { element as el } from "../element.js";
import { word } from "../models.js";
import { say, show } from "./dom.js";
import { Meter } from "./meter.js";
import { Rate } from "./rate.js";
import { Timeline } from "./timeline.js";
import { ago, count, duration, memory, percent, plural } from "./words.js";

/** States in which an engine works for somebody, so that its load is worth a look. */
const AT_WORK = ["ready", "unhealthy", "stopping"];

/** States in which the last verdict is what matters. */
const IN_TROUBLE = ["failed", "backoff", "unhealthy"];

/** Of each order, the states in which it makes sense. */
const ORDERS = {
  load: ["stopped", "failed", "backoff", "asleep"],
  restart: ["starting", "ready", "unhealthy"],
  unload: ["starting", "ready", "unhealthy", "backoff", "failed", "asleep", "dozing"],
};

/** When a model comes into memory, where that is not when vllmd starts. */
const LOADS = { demand: "loaded on demand", manual: "loaded by hand" };

export class Model {
  /**
   * @param {string} name the model's.
   * @param {Daemon} daemon takes the orders.
   * @param {function} onOrdered is called after an order was given.
   */
  constructor(name, daemon, onOrdered) {
    this.name = name;
    this.daemon = daemon;
    this.onOrdered = onOrdered;
    this.state = el("span", { class: "state-word" });
    this.path = el("span", { class: "engine-path" });
    this.orders = el("div", { class: "orders", role: "group", "aria-label": `Orders to ${name}` });
    this.buttons = Object.keys(ORDERS).map((verb) => this.#button(verb));
    this.orders.append(...this.buttons);
    this.refused = el("p", { class: "refused", role: "status", hidden: true });
    this.reason = el("p", { class: "verdict-reason" });
    this.hint = el("p", { class: "verdict-hint" });
    this.verdict = el("div", { class: "verdict", hidden: true }, this.reason, this.hint);
    this.timeline = new Timeline();
    this.rate = new Rate();
    this.running = new Meter("Running", false);
    this.held = new Meter("Waiting", true);
    this.cache = new Meter("KV cache", true);
    const meters = [this.rate, this.running, this.held, this.cache].map((each) => each.element);
    this.figures = el("div", { class: "figures" }, ...meters);
    this.facts = el("p", { class: "facts" });
    const title = el("h2", {}, name);
    const light = el("span", { class: "light", "aria-hidden": "true" });
    const head = el("header", { class: "engine-head" }, light, title, this.state, this.path, this.orders);
    this.element = el("section", { class: "panel engine", "aria-label": `Model ${name}` });
    this.element.append(head, this.refused, this.verdict, this.figures, this.timeline.element, this.facts);
  }

  /**
   * Shows what is known now.
   * @param {object} model as `/api/status` has it.
   * @param {object} status all of it: the bounds of the queue, and whether orders are taken.
   * @param {number} now Unix seconds.
   */
  draw(model, status, now) {
    this.element.dataset.state = model.state;
    this.model = model;
    say(this.state, word(model));
    say(this.path, model.model === model.name ? "" : model.model);
    this.#drawVerdict(model);
    this.timeline.draw(model, now);
    this.#drawFigures(model, status);
    say(this.facts, facts(model, now));
    this.#drawOrders(model, status);
  }

  /** Notes how fast tokens come; once for each look. */
  sample(model, now) {
    this.rate.add(model.tokens_per_s ?? 0, now);
  }

  #drawVerdict(model) {
    show(this.verdict, IN_TROUBLE.includes(model.state) && model.reason !== "");
    say(this.reason, model.reason);
    say(this.hint, model.hint);
  }

  #drawFigures(model, status) {
    show(this.figures, AT_WORK.includes(model.state));
    this.running.draw(count(model.running), of(model.places), model.running / (model.places || Infinity));
    const inside = model.engine_waiting ? ` + ${count(model.engine_waiting)} in the engine` : "";
    this.held.draw(count(model.held), of(status.queue_limit) + inside, model.held / (status.queue_limit || Infinity));
    show(this.cache.element, model.kv_cache_usage !== null);
    this.cache.draw(percent(model.kv_cache_usage ?? 0), "", model.kv_cache_usage ?? 0);
  }

  #drawOrders(model, status) {
    show(this.orders, status.denied === "");
    for (const button of this.buttons) show(button, ORDERS[button.dataset.verb].includes(model.state));
  }

  #button(verb) {
    const name = verb[0].toUpperCase() + verb.slice(1);
    const calm = () => {
      button.removeAttribute("data-sure");
      say(button, name);
    };
    const press = () => {
      if (verb !== "load" && !button.hasAttribute("data-sure")) {
        button.setAttribute("data-sure", "");
        return say(button, `${name}: sure?`);
      }
      calm();
      this.#order(verb);
    };
    const listeners = { onclick: press, onblur: calm, onpointerleave: calm };
    const button = el("button", { type: "button", "data-verb": verb, ...listeners }, name);
    return button;
  }

  async #order(verb) {
    try {
      await this.daemon.order("POST", `/api/models/${encodeURIComponent(this.name)}/${verb}`);
      show(this.refused, false);
      this.onOrdered();
    } catch (error) {
      say(this.refused, error.message);
      show(this.refused, true);
    }
  }
}

function of(most) {
  return most ? `of ${count(most)}` : "";
}

/** What else is to be known, in one line. */
function facts(model, now) {
  const parts = [`${word(model)} for ${duration(Math.max(0, now - model.since))}`];
  if (model.held && !AT_WORK.includes(model.state)) parts.unshift(`${plural(model.held, "request")} waiting for it`);
  if (model.generation) parts.push(`generation ${count(model.generation)}`);
  if (model.restarts) parts.push(`${plural(model.restarts, "restart")} after failures`);
  if (model.pid) parts.push(`process ${model.pid}`);
  if (model.default) parts.push("default model");
  if (LOADS[model.load]) parts.push(LOADS[model.load]);
  if (model.used_at && !model.running) parts.push(`last request ${ago(now - model.used_at)}`);
  if (model.claim_bytes) parts.push(`takes ${memory(model.claim_bytes)}`);
  return parts.join(" · ");
}

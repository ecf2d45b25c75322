/** The view of the service: what the engines do, for whom, and what has happened to them. */

import { element as el } from "./element.js";
import { word } from "./models.js";
import { matched, say, show } from "./service/dom.js";
import { Daemon } from "./service/daemon.js";
import { Incidents } from "./service/incidents.js";
import { Log } from "./service/log.js";
import { Model } from "./service/model.js";
import { Requests } from "./service/requests.js";
import { look, merged, whileSeen } from "./service/watch.js";

class Service {
  /**
   * @param {Daemon} daemon
   * @param {Models} known follows the changes of state, for the whole page.
   */
  constructor(daemon, known) {
    this.daemon = daemon;
    this.known = known;
    this.status = null;
    this.hurry = () => {};
    this.cards = new Map();
    this.told = new Map();
    this.trouble = el("p", { class: "trouble", role: "alert", hidden: true });
    this.news = el("p", { class: "hidden", role: "status" });
    this.waiting = el("p", { class: "nothing" }, "Asking the daemon …");
    this.models = el("div", { class: "engines" });
    this.denied = el("p", { class: "denied", hidden: true });
    this.requests = new Requests(daemon, () => this.hurry());
    this.incidents = new Incidents(daemon);
    this.log = new Log(daemon);
    const panels = [this.requests, this.incidents, this.log].map((each) => each.element);
    this.rest = el("div", { class: "rest", hidden: true }, this.denied, ...panels);
    this.element = el("div", { class: "board" }, el("h1", { class: "hidden" }, "Service"));
    this.element.append(this.trouble, this.news, this.waiting, this.models, this.rest);
  }

  /** Begins to follow the daemon; `signal` ends it. */
  follow(signal) {
    this.signal = signal;
    const on = {
      status: (status) => this.#take(status),
      requests: (requests) => this.requests.draw(requests, this.cards.size > 1),
      trouble: (error) => this.#complain(error),
    };
    this.hurry = look(this.daemon, on, signal);
    this.known.addEventListener("change", () => this.#change(), { signal });
    this.log.follow(signal);
    this.incidents.look(signal);
  }

  /** Lets go of everything. */
  end() {
    this.incidents.end();
    this.log.end();
  }

  #take(status) {
    this.status = status;
    const now = Date.now() / 1000;
    show(this.waiting, false);
    show(this.rest, true);
    show(this.denied, status.denied !== "");
    say(this.denied, status.denied && `Only administrators may load and restart models. Here, ${status.denied}.`);
    this.#draw(now);
    for (const model of status.models) this.cards.get(model.name).sample(model, now);
    this.log.offer(status.models.map((model) => model.name));
  }

  #change() {
    if (!this.status || this.known.failure) return;
    const now = (model) => (this.known.get(model.name) ? merged(model, this.known.get(model.name)) : model);
    this.status = { ...this.status, models: this.status.models.map(now) };
    this.#draw(Date.now() / 1000);
  }

  #draw(now) {
    const { models } = this.status;
    const make = (model) => new Model(model.name, this.daemon, () => this.hurry());
    const cards = matched(this.models, this.cards, models, (model) => model.name, make);
    cards.forEach((card, at) => card.draw(models[at], this.status, now));
    models.forEach((model) => this.#notice(model));
  }

  /** A state that is new is said aloud, and may have left an incident. */
  #notice(model) {
    const before = this.told.get(model.name);
    this.told.set(model.name, model.state);
    if (before === undefined || before === model.state) return;
    say(this.news, `${model.name} is ${word(model)}`);
    this.incidents.look(this.signal);
  }

  #complain(error) {
    show(this.trouble, error !== null);
    if (error === null) return;
    say(this.trouble, error.code === "unreachable" ? "vllmd does not answer. Trying again …" : error.message);
  }
}

/**
 * Shows the service inside `element`.
 * @param {Element} element what it held is replaced.
 * @param {Api} api has the key.
 * @param {Models} known what the models do now.
 * @returns {function} takes it away again; afterwards nothing runs and nothing is asked.
 */
export function mount(element, api, known) {
  const service = new Service(new Daemon(api), known);
  element.replaceChildren(service.element);
  const leave = whileSeen((signal) => service.follow(signal));
  return () => {
    leave();
    service.end();
    service.element.remove();
  };
}

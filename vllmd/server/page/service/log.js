/** The live log of one model's engines. It follows its end; who scrolls up reads in peace, and new lines wait. */

import { element as el } from "../element.js";
import { say, show } from "./dom.js";
import { isAsGrave, parted } from "./lines.js";
import { again } from "./watch.js";
import { clock, plural } from "./words.js";

/** Lines that are kept, and those of them that are asked for at first. */
const KEPT = 1000;
const FIRST = 300;

/** Whoever is no further from the end than this follows it. */
const NEAR_PX = 24;

export class Log {
  /** @param {Daemon} daemon has the lines. */
  constructor(daemon) {
    this.daemon = daemon;
    this.number = 0;
    this.at = 0;
    this.level = "";
    this.waiting = [];
    this.drawing = 0;
    this.#build();
  }

  #build() {
    this.model = el("select", { "aria-label": "Model", onchange: () => this.#restart() });
    this.least = el("select", { "aria-label": "Level", onchange: () => this.#filter() });
    const levels = { all: "All lines", warning: "Warnings and errors", error: "Errors" };
    this.least.append(...Object.entries(levels).map(([value, name]) => el("option", { value }, name)));
    const search = { type: "search", placeholder: "Filter", "aria-label": "Filter the log" };
    this.wanted = el("input", { ...search, oninput: () => this.#filter() });
    const log = { class: "log-lines", tabindex: "0", role: "log", "aria-live": "off", "aria-label": "Engine's log" };
    this.lines = el("div", log);
    this.lines.addEventListener("scroll", () => this.isNearEnd() && this.#draw(), { passive: true });
    this.jump = el("button", { type: "button", class: "log-jump", hidden: true, onclick: () => this.#toEnd() });
    this.none = el("p", { class: "nothing" }, "The engine has printed nothing.");
    const tools = el("div", { class: "log-tools" }, this.model, this.least, this.wanted);
    const head = el("div", { class: "log-head" }, el("h2", {}, "Log"), tools);
    const frame = el("div", { class: "log-frame" }, this.lines, this.jump);
    this.element = el("section", { class: "panel log", "aria-label": "Log" }, head, this.none, frame);
  }

  /** Which models there are. */
  offer(names) {
    if (names.join("\n") === this.names) return;
    const chosen = names.includes(this.model.value) ? this.model.value : names[0];
    this.names = names.join("\n");
    this.model.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
    this.model.value = chosen;
    show(this.model, names.length > 1);
    this.#restart();
  }

  /** Follows the chosen model's lines until `signal`. */
  follow(signal) {
    this.signal = signal;
    if (this.names !== undefined) this.#listen();
  }

  /** Ends it. */
  end() {
    this.listening?.abort();
    cancelAnimationFrame(this.drawing);
  }

  #restart() {
    this.number = this.at = 0;
    this.waiting = [];
    this.lines.replaceChildren();
    show(this.none, true);
    if (this.signal && !this.signal.aborted) this.#listen();
  }

  #listen() {
    this.listening?.abort();
    this.listening = new AbortController();
    const signal = AbortSignal.any([this.listening.signal, this.signal]);
    const path = `/api/logs?follow=1&lines=${FIRST}&model=${encodeURIComponent(this.model.value)}`;
    const listen = async () => {
      await this.daemon.listen(path, (event) => signal.aborted || this.#take(event), signal);
      return 1000;
    };
    again(listen, signal);
  }

  #take({ event, data, id }) {
    const told = JSON.parse(data);
    if (event === "missed") return this.#add({ at: null, line: `… ${plural(told.missed, "line")} not shown` });
    if (event !== "line") return;
    // After a pause the last lines come once more. Another daemon counts anew, but its lines are later.
    if (Number(id) <= this.number && told.at <= this.at) return;
    this.number = Number(id);
    this.at = told.at;
    this.#add(told);
  }

  #add(line) {
    this.waiting.push(line);
    if (this.waiting.length > KEPT) this.waiting.shift();
    if (!this.drawing) this.drawing = requestAnimationFrame(() => this.#frame());
  }

  #frame() {
    this.drawing = 0;
    if (this.isNearEnd()) return this.#draw();
    say(this.jump, `${plural(this.waiting.length, "new line")} ↓`);
    show(this.jump, true);
  }

  isNearEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.lines;
    return scrollHeight - scrollTop - clientHeight <= NEAR_PX;
  }

  #toEnd() {
    this.#draw();
    this.lines.scrollTop = this.lines.scrollHeight;
    this.lines.focus();
  }

  #draw() {
    const fresh = this.waiting.splice(0).map((line) => this.#line(line));
    show(this.jump, false);
    if (!fresh.length) return;
    show(this.none, false);
    this.lines.append(...fresh);
    while (this.lines.childElementCount > KEPT) this.lines.firstChild.remove();
    this.lines.scrollTop = this.lines.scrollHeight;
  }

  #line({ at, line }) {
    const { level, prefix, message } = parted(line);
    this.level = level || this.level;
    const time = el("time", { class: "log-at" }, at === null ? "" : clock(at));
    const text = el("span", { class: "log-text" }, el("span", { class: "log-prefix" }, prefix), message);
    const element = el("div", { class: "log-line", "data-level": this.level }, time, text);
    element.hidden = !this.#isWanted(element);
    return element;
  }

  #isWanted(element) {
    const wanted = this.wanted.value.trim().toLowerCase();
    return isAsGrave(element.dataset.level, this.least.value) && element.textContent.toLowerCase().includes(wanted);
  }

  #filter() {
    for (const element of this.lines.children) element.hidden = !this.#isWanted(element);
    this.#draw();
    this.lines.scrollTop = this.lines.scrollHeight;
  }
}

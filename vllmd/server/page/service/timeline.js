/** A start as a picture: its phases in a row, each as wide as it lasted, and behind them what is still to come. */

import { element as el } from "../element.js";
import { left } from "../models.js";
import { matched, say, show } from "./dom.js";
import { duration } from "./words.js";

/** The part of the row that the shortest phase gets, so that it can be seen. */
const LEAST = 0.012;

/**
 * The phases of a model's present or last start, as they stand now.
 * @param {object} model as `/api/status` has it.
 * @param {number} now Unix seconds.
 * @returns {Array<{phase, seconds, isNow, part}>} in their order; of the one that lasts, `part` is what is done.
 */
export function segments(model, now) {
  const isStarting = model.state === "starting";
  return model.phases.map((each) => ({
    phase: each.phase,
    seconds: Math.max(0, each.took_s ?? now - model.since - each.begun_s),
    isNow: isStarting && each.took_s === null,
    part: isStarting && each.took_s === null && model.percent !== null ? model.percent / 100 : null,
  }));
}

export class Timeline {
  constructor() {
    this.title = el("p", { class: "start-title" });
    this.aside = el("p", { class: "start-aside" });
    this.bar = el("div", { class: "start-bar", "aria-hidden": "true" });
    this.names = el("ol", { class: "start-phases" });
    const head = el("div", { class: "start-head" }, this.title, this.aside);
    this.element = el("div", { class: "start" }, head, this.bar, this.names);
    this.ahead = el("span", { class: "start-ahead" });
    this.pieces = new Map();
    this.labels = new Map();
  }

  /** Shows a model's start. */
  draw(model, now) {
    const parts = segments(model, now);
    const isStarting = model.state === "starting";
    show(this.element, parts.length > 0);
    this.element.dataset.now = isStarting;
    this.#say(model, parts, isStarting, now);
    this.#drawBar(parts, isStarting ? model.eta_s : null);
    const labels = matched(this.names, this.labels, parts, (part) => part.phase, label);
    labels.forEach((each, at) => each.tell(parts[at]));
  }

  #say(model, parts, isStarting, now) {
    const whole = parts.reduce((sum, part) => sum + part.seconds, 0);
    const percent = model.percent === null ? "" : ` ${model.percent} %`;
    say(this.title, isStarting ? `${model.phase ?? "starting"}${percent}` : "Last start");
    const age = duration(Math.max(0, now - model.since));
    const soon = model.eta_s === null ? age : `${left(model.eta_s)} · ${age} so far`;
    say(this.aside, isStarting ? soon : duration(whole));
  }

  #drawBar(parts, ahead) {
    const whole = parts.reduce((sum, part) => sum + part.seconds, ahead ?? 0) || 1;
    this.ahead.remove();
    const pieces = matched(this.bar, this.pieces, parts, (part) => part.phase, piece);
    pieces.forEach((each, at) => each.draw(parts[at], whole));
    if (ahead) {
      this.ahead.style.flexGrow = ahead / whole;
      this.bar.append(this.ahead);
    }
  }
}

function piece({ phase }) {
  const done = el("span", { class: "start-done" });
  const element = el("span", { class: "start-piece", "data-phase": phase, title: phase }, done);
  const draw = (part, whole) => {
    element.style.flexGrow = Math.max(LEAST, part.seconds / whole);
    element.dataset.now = part.isNow;
    done.style.width = part.part === null ? "0" : `${part.part * 100}%`;
  };
  return { element, draw };
}

function label({ phase }) {
  const time = el("span", { class: "start-took" });
  const element = el("li", { "data-phase": phase }, el("span", { class: "start-name" }, phase), " ", time);
  const tell = (part) => {
    element.dataset.now = part.isNow;
    say(time, duration(part.seconds));
  };
  return { element, tell };
}

/** The engines that died or were replaced: why, and on request everything that is known of it. */

import { element as el } from "../element.js";
import { matched, say, show } from "./dom.js";
import { told } from "./report.js";
import { count, duration, moment } from "./words.js";

const SHOWN = 20;

/** The state tells of an end before its file is whole: evidence and slow disks take their time. */
const LATER_MS = [500, 3000];

export class Incidents {
  /** @param {Daemon} daemon keeps them. */
  constructor(daemon) {
    this.daemon = daemon;
    this.rows = new Map();
    this.timers = [];
    this.list = el("ol", { class: "incidents" });
    this.none = el("p", { class: "nothing" }, "No engine has failed.");
    this.count = el("span", { class: "count" });
    const title = el("h2", {}, "Incidents ", this.count);
    this.element = el("section", { class: "panel", "aria-label": "Incidents" }, title, this.none, this.list);
  }

  /** Looks for new ones: now, and a little later. */
  look(signal) {
    this.end();
    this.timers = LATER_MS.map((after) => setTimeout(() => this.#fetch(signal), after));
    this.#fetch(signal);
  }

  /** Lets go of what it waits for. */
  end() {
    this.timers.forEach(clearTimeout);
  }

  async #fetch(signal) {
    if (signal.aborted) return;
    try {
      this.#draw((await this.daemon.get(`/api/incidents?limit=${SHOWN}`, signal)).incidents);
    } catch (failure) {
      if (signal.aborted || failure.code === "unreachable") return; // the next look may do better
      say(this.none, failure.message);
      this.#draw([]);
    }
  }

  #draw(incidents) {
    const make = (incident) => row(incident, this.daemon);
    matched(this.list, this.rows, incidents, (each) => each.id, make).forEach((part) => part.draw());
    show(this.none, incidents.length === 0);
    say(this.count, incidents.length < SHOWN ? String(incidents.length || "") : `the newest ${SHOWN}`);
  }
}

function row(incident, daemon) {
  const at = el("time", { class: "incident-at", datetime: new Date(incident.at * 1000).toISOString() });
  const cause = el("span", { class: "incident-cause" }, incident.cause);
  const reason = el("span", { class: "incident-reason" }, incident.reason);
  const whose = el("span", { class: "incident-whose" }, `${incident.model} · ${life(incident)}`);
  const details = el("div", { class: "incident-details", hidden: true });
  let isKnown = false;
  const toggle = async () => {
    const isOpen = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", !isOpen);
    show(details, !isOpen);
    if (isOpen || isKnown) return;
    try {
      details.replaceChildren(...told(await daemon.get(`/api/incidents/${encodeURIComponent(incident.id)}`)));
      isKnown = true;
    } catch (failure) {
      details.replaceChildren(el("p", { class: "nothing" }, failure.message));
    }
    const last = details.querySelector("pre:last-of-type");
    if (last) last.scrollTop = last.scrollHeight;
  };
  const looks = { type: "button", class: "incident", "aria-expanded": "false" };
  const button = el("button", { ...looks, onclick: toggle }, at, cause, reason, whose);
  return { element: el("li", {}, button, details), draw: () => say(at, moment(incident.at)) };
}

function life(incident) {
  const lived = duration(incident.lived_s);
  const end = incident.was_ready ? `lived ${lived}` : `died in its start after ${lived}`;
  return `generation ${count(incident.generation)}, ${end}`;
}

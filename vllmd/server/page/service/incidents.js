/** The engines that died or were replaced: why, and on request everything that is known of it. */

import { element as el } from "../element.js";
import { matched, say, show } from "./dom.js";
import { count, duration, moment } from "./words.js";

const SHOWN = 20;

/** Refusals that stay: the code, and how it is told; empty for the daemon's own words. */
const IN_VAIN = { denied: "", invalid_api_key: "", route_not_found: "This daemon keeps no list of incidents." };

/** A verdict that was just published has its file, but a slow disk may need a moment. */
const LATER_MS = [200, 2500];

export class Incidents {
  /** @param {Daemon} daemon keeps them. */
  constructor(daemon) {
    this.daemon = daemon;
    this.rows = new Map();
    this.list = el("ol", { class: "incidents" });
    this.none = el("p", { class: "nothing" }, "No engine has failed.");
    this.count = el("span", { class: "count" });
    const title = el("h2", {}, "Incidents ", this.count);
    this.element = el("section", { class: "panel", "aria-label": "Incidents" }, title, this.none, this.list);
    this.timers = [];
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
    try {
      this.#draw((await this.daemon.get("/api/incidents", signal)).incidents);
    } catch (error) {
      if (signal.aborted || !(error.code in IN_VAIN)) return; // the next look may do better
      say(this.none, IN_VAIN[error.code] || error.message);
      this.#draw([]);
    }
  }

  #draw(incidents) {
    const newest = [...incidents].sort((one, other) => seconds(other.at) - seconds(one.at));
    const parts = matched(this.list, this.rows, newest.slice(0, SHOWN), (each) => each.id, (each) => row(each, this.daemon));
    parts.forEach((part) => part.draw());
    show(this.none, newest.length === 0);
    say(this.count, newest.length ? count(newest.length) : "");
  }
}

/** A moment in Unix seconds, also where it is written as 20261127T145413 (UTC). */
export function seconds(at) {
  const found = /^(\d{4})-?(\d\d)-?(\d\d)T(\d\d):?(\d\d):?(\d\d)/.exec(String(at));
  return found ? Date.UTC(found[1], found[2] - 1, found[3], found[4], found[5], found[6]) / 1000 : Number(at);
}

function row(incident, daemon) {
  const at = el("time", { class: "incident-at" });
  const cause = el("span", { class: "incident-cause" }, incident.cause);
  const what = el("span", { class: "incident-reason" }, incident.reason);
  const whose = el("span", { class: "incident-whose" }, `${incident.model} · ${life(incident)}`);
  const details = el("div", { class: "incident-details", hidden: true });
  const open = async () => {
    const isOpen = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", !isOpen);
    show(details, !isOpen);
    if (!isOpen && !details.hasChildNodes()) await fill(details, incident, daemon);
  };
  const looks = { type: "button", class: "incident", "aria-expanded": "false" };
  const button = el("button", { ...looks, onclick: open }, at, cause, what, whose);
  return { element: el("li", {}, button, details), draw: () => say(at, moment(seconds(incident.at))) };
}

function life(incident) {
  const lived = duration(incident.lived_s);
  const end = incident.was_ready ? `lived ${lived}` : `died in its start after ${lived}`;
  return `generation ${count(incident.generation)}, ${end}`;
}

/** Asks for the whole file and shows it. */
async function fill(details, incident, daemon) {
  try {
    const whole = await daemon.get(`/api/incidents/${encodeURIComponent(incident.id)}`);
    if (incident.hint) details.append(el("p", { class: "verdict-hint" }, incident.hint));
    details.append(...facts(whole));
    if (whole.lines?.length) details.append(el("h3", {}, "Last lines"), lines(whole.lines));
  } catch (error) {
    details.append(el("p", { class: "nothing" }, error.message));
  }
}

const TOLD = ["id", "at", "model", "generation", "verdict", "cause", "reason", "hint", "lived_s", "was_ready", "lines"];

/** Whatever else the file holds, as names and values. */
function facts(whole) {
  const isWorthIt = ([name, value]) => !TOLD.includes(name) && value !== null && value !== "";
  const others = Object.entries(whole).filter(isWorthIt);
  if (!others.length) return [];
  const pair = ([name, value]) => [el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, told(value))];
  const pairs = others.flatMap(pair);
  return [el("dl", { class: "incident-facts" }, ...pairs)];
}

function told(value) {
  if (typeof value !== "object") return String(value);
  return el("pre", { tabindex: "0" }, JSON.stringify(value, null, 1).replaceAll("\\n", "\n"));
}

function lines(all) {
  return el("pre", { class: "incident-lines", tabindex: "0" }, all.join("\n"));
}

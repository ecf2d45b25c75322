/** The whole report of an incident, as people read it: what to do, what was found, and the engine's last lines. */

import { element as el } from "../element.js";
import { count, duration } from "./words.js";

/**
 * @param {object} report as `/api/incidents/{id}` has it.
 * @returns {Array<Element>} nothing of what is unknown.
 */
export function told(report) {
  const advice = [report.hint, report.permanent ? "Trying again cannot help." : ""].filter(Boolean);
  return [
    ...advice.map((text) => el("p", { class: "verdict-hint" }, text)),
    ...facts(report),
    ...stacks(report.processes ?? []),
    ...block("Last lines", (report.lines ?? []).join("\n")),
  ];
}

function facts(report) {
  const versions = Object.entries(report.versions ?? {}).filter(([, version]) => version);
  const known = [
    ["Versions", versions.map((each) => each.join(" ")).join(" · ")],
    ["GPUs", (report.gpus ?? []).join("\n")],
    ["Processes", (report.processes ?? []).map(process).join("\n")],
    ["Configuration", report.config_digest],
  ].filter(([, text]) => text);
  const pairs = known.flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]);
  return known.length ? [el("dl", { class: "incident-facts" }, ...pairs)] : [];
}

function process({ pid, name, state, cpu_s, rss_mib, waits_in }) {
  const where = waits_in ? `, waits in ${waits_in}` : "";
  return `${name} (${pid}): ${state}, ${duration(cpu_s)} of CPU, ${count(rss_mib)} MiB${where}`;
}

function stacks(processes) {
  const known = processes.filter((each) => each.stack);
  return known.flatMap((each) => block(`Stack of ${each.name} (${each.pid})`, each.stack));
}

function block(title, text) {
  return text ? [el("h3", {}, title), el("pre", { class: "incident-text", tabindex: "0" }, text)] : [];
}

/** A line of an engine's log → its level, where it comes from, and what it says. */

const COLOUR = /\x1b\[[0-9;]*m/g;
const PROCESS = /^(\([^()]*\bpid=\d+[^()]*\)\s?)*/;
const LEVEL = /^(DEBUG|INFO|WARNING|ERROR|CRITICAL)(:\s*|\s+\d[\d-]*\s[\d:.,]+\s(\[[^\]\s]*\]\s?)?)/;

/** What is shown of a line; some are as long as a file. */
const CHARACTERS = 2000;

/**
 * @param {string} line as it was printed; vLLM's begin with process, level, time and place.
 * @returns {{level: string, prefix: string, message: string}} no level for a line that belongs to the one before.
 */
export function parted(line) {
  const plain = line.slice(0, CHARACTERS).replace(COLOUR, "");
  const process = PROCESS.exec(plain)[0];
  const found = LEVEL.exec(plain.slice(process.length));
  const prefix = process + (found ? found[0] : "");
  return { level: found ? found[1].toLowerCase() : "", prefix, message: plain.slice(prefix.length) };
}

/** Whether a line is as grave as is asked for: `all`, `warning` or `error`. */
export function isAsGrave(level, least) {
  if (least === "all") return true;
  return ["error", "critical"].includes(level) || (least === "warning" && level === "warning");
}

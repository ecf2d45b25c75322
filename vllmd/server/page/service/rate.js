/** Tokens a second over the last minutes, as a line. */

import { element as el } from "../element.js";
import { say, svg } from "./dom.js";
import { duration, rate } from "./words.js";

/** The line shows the last minute at first, and more as time goes by, up to this. */
const WINDOW_S = 300;
const FIRST_WINDOW_S = 60;

/** Samples further apart than this have a gap between them: nobody looked. */
const GAP_S = 6;

const WIDTH = 300;
const HEIGHT = 48;

/**
 * The line through samples, as SVG has it.
 * @param {Array<{at: number, value: number}>} samples in their order; `at` in seconds.
 * @param {number} now where the line ends, in seconds.
 * @param {number} window how long ago it begins, in seconds.
 * @param {number} most the value at the top.
 * @returns {Array<string>} a path for each stretch without a gap.
 */
export function paths(samples, now, window, most) {
  const stretches = [];
  samples.forEach((sample, at) => {
    if (at === 0 || sample.at - samples[at - 1].at > GAP_S) stretches.push([]);
    stretches.at(-1).push(sample);
  });
  const place = ({ at, value }) => {
    const x = WIDTH * (1 - (now - at) / window);
    return `${x.toFixed(1)} ${(HEIGHT - 1 - (HEIGHT - 4) * (value / most)).toFixed(1)}`;
  };
  return stretches.map((stretch) => `M${stretch.map(place).join("L")}`);
}

export class Rate {
  constructor() {
    this.samples = [];
    this.value = el("strong", { class: "figure-value" }, "0");
    this.most = el("span", { class: "rate-most" });
    this.line = svg("path", { class: "rate-line" });
    this.area = svg("path", { class: "rate-area" });
    const size = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none" };
    const picture = svg("svg", { ...size, "aria-hidden": "true" }, this.area, this.line);
    const unit = el("span", { class: "figure-unit" }, "tokens/s");
    const head = el("p", { class: "figure-head" }, this.value, " ", unit, this.most);
    this.element = el("div", { class: "figure rate" }, head, picture);
  }

  /** Notes what is generated now. */
  add(value, now) {
    this.samples.push({ at: now, value });
    while (this.samples[0].at < now - WINDOW_S) this.samples.shift();
    this.#draw(now);
  }

  #draw(now) {
    const highest = Math.max(...this.samples.map((sample) => sample.value));
    const window = Math.max(FIRST_WINDOW_S, now - this.samples[0].at);
    const lines = paths(this.samples, now, window, Math.max(highest, 1));
    this.line.setAttribute("d", lines.join(""));
    this.area.setAttribute("d", lines.map(closed).join(""));
    say(this.value, rate(this.samples.at(-1).value));
    say(this.most, highest > 0 ? `at most ${rate(highest)} in ${duration(60 * Math.ceil(window / 60))}` : "");
  }
}

/** A stretch of the line, closed along the bottom. */
function closed(path) {
  const points = path.slice(1).split("L");
  const [first, last] = [points[0], points.at(-1)].map((point) => point.split(" ")[0]);
  return `${path}L${last} ${HEIGHT}L${first} ${HEIGHT}Z`;
}

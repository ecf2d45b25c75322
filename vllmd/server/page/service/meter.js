/** A number with what it is part of, and a bar that says so at a glance. */

import { element as el } from "../element.js";
import { say } from "./dom.js";

export class Meter {
  /**
   * @param {string} name what is measured.
   * @param {boolean} isGrave whether it is bad when it is full.
   */
  constructor(name, isGrave) {
    this.isGrave = isGrave;
    this.value = el("strong", { class: "figure-value" });
    this.rest = el("span", { class: "figure-unit" });
    this.fill = el("span", { class: "meter-fill" });
    const head = el("p", { class: "figure-head" }, this.value, " ", this.rest);
    const bar = el("div", { class: "meter", "aria-hidden": "true" }, this.fill);
    this.element = el("div", { class: "figure" }, el("h3", { class: "figure-name" }, name), head, bar);
  }

  /**
   * @param {string} value the number.
   * @param {string} rest what stands behind it.
   * @param {number} part of the whole, 0 to 1.
   */
  draw(value, rest, part) {
    say(this.value, value);
    say(this.rest, rest);
    this.fill.style.width = `${100 * Math.min(1, part)}%`;
    this.element.dataset.level = this.isGrave && part >= 0.75 ? (part >= 0.95 ? "full" : "high") : "low";
  }
}

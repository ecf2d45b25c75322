/** What one sees while no word comes: the model loads, the engine is replaced, others are served, or it thinks. */
import { element } from "./element.js";
import { left, summary } from "./models.js";

const HELD = "The question is sent as soon as the model is ready";
const GOES_ON = "The answer goes on as soon as the model is back";
const QUIET_MS = 4000;

export class Waiting {
  #models;
  #model;
  #hasWords = false;
  #remark = "";
  #heard = Date.now();
  #clock = 0;
  #look = () => this.#show();
  element = element("div", { class: "waiting" });

  constructor(models, model) {
    this.#models = models;
    this.#model = model;
    models.addEventListener("change", this.#look);
    this.#clock = setInterval(this.#look, 1000);
    this.#show();
  }

  /** The service says why nothing comes yet. */
  remark(text) {
    this.#remark = text;
    this.#show();
  }

  /** A word came. */
  heard() {
    this.#hasWords = true;
    this.#remark = "";
    this.#heard = Date.now();
    this.element.hidden = true;
  }

  end() {
    clearInterval(this.#clock);
    this.#models.removeEventListener("change", this.#look);
    this.element.remove();
  }

  #show() {
    const model = this.#models.get(this.#model);
    const isAway = this.#models.failure !== null || (model && model.state !== "ready");
    const quiet_ms = Date.now() - this.#heard;
    this.element.hidden = this.#hasWords && !isAway && quiet_ms < QUIET_MS;
    if (this.element.hidden) return;
    if (this.#models.failure) this.#say("The connection to vllmd is lost, trying again", null, "");
    else if (isAway) this.#say(`${summary(model)}`, model, this.#hasWords ? GOES_ON : HELD);
    else this.#say(this.#inWords(quiet_ms), null, "");
  }

  #inWords(quiet_ms) {
    const seconds = quiet_ms < QUIET_MS ? "" : `, ${Math.round(quiet_ms / 1000)} s`;
    const remark = this.#remark.startsWith("ready") ? "" : this.#remark;
    return (remark || (this.#hasWords ? "Waiting for the next word" : "Thinking")) + seconds;
  }

  #say(what, model, promise) {
    const bar = model && model.percent !== null ? [element("progress", { max: 100, value: model.percent, "aria-label": model.phase ?? "Loading" })] : [];
    const rest = model ? left(model.eta_s) : "";
    const told = element("span", { class: "what" }, upper(what));
    const line = element("p", { class: "line" }, element("span", { class: "pulse", "aria-hidden": "true" }), told, element("span", { class: "gap" }), rest);
    const below = promise ? [element("p", { class: "small" }, `${promise}.`)] : [];
    this.element.replaceChildren(line, ...bar, ...below);
  }
}

const upper = (text) => text.slice(0, 1).toUpperCase() + text.slice(1);

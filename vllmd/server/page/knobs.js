/** How a conversation is asked: the system prompt and the sampling, with the ranges that the API has. */
import { by } from "./element.js";

export const DEFAULTS = { system: "", temperature: 0.7, top_p: 1, max_tokens: 512, seed: null, stop: [] };

const KEY = "vllmd.knobs";
const SLIDERS = ["temperature", "top_p"];
const NUMBERS = ["max_tokens", "seed"];

/** What of them goes into a request; what is left out is the model's to choose. */
export function sampling({ temperature, top_p, max_tokens, seed, stop }) {
  return {
    temperature,
    ...(top_p < 1 ? { top_p } : {}),
    ...(max_tokens === null ? {} : { max_tokens }),
    ...(seed === null ? {} : { seed }),
    ...(stop.length ? { stop } : {}),
  };
}

/** In a few words, for a button. */
export function brief({ system, temperature }) {
  return `Temperature ${temperature}${system ? ", system prompt" : ""}`;
}

/** Those of the last conversation: most people want the same again, but for the system prompt. */
export function usual() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(KEY)), system: "" };
  } catch {
    return { ...DEFAULTS };
  }
}

export class KnobsForm {
  #dialog = by("knobs");
  #form = by("knobs-form");
  #told;

  /** @param told  is called with the knobs when the form is done */
  constructor(told) {
    this.#told = told;
    this.#form.addEventListener("input", () => this.#showNumbers());
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#dialog.close();
    });
    by("knobs-reset").addEventListener("click", () => this.#fill(DEFAULTS));
    this.#dialog.addEventListener("close", () => this.#take());
  }

  open(knobs) {
    this.#fill({ ...DEFAULTS, ...knobs });
    this.#dialog.showModal();
  }

  #fill(knobs) {
    const field = this.#form.elements;
    for (const name of ["system", ...SLIDERS, ...NUMBERS]) field[name].value = knobs[name] ?? "";
    field.stop.value = knobs.stop.join("\n");
    this.#showNumbers();
  }

  #showNumbers() {
    for (const name of SLIDERS) by(`${name}-shown`).textContent = Number(this.#form.elements[name].value).toFixed(2);
  }

  /** What is out of range is not taken: the field shows what is in force the next time. */
  #take() {
    const field = this.#form.elements;
    const knobs = { system: field.system.value.trim(), stop: field.stop.value.split("\n").filter(Boolean) };
    for (const name of SLIDERS) knobs[name] = Number(field[name].value);
    for (const name of NUMBERS) if (field[name].validity.valid) knobs[name] = number(field[name].value);
    try {
      localStorage.setItem(KEY, JSON.stringify(knobs));
    } catch {
      // then they last as long as the conversation
    }
    this.#told(knobs);
  }
}

function number(text) {
  return text === "" ? null : Number(text);
}

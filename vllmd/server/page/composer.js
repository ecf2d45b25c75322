/** Where one writes: Enter sends, Shift and Enter begins a line, and an input method keeps its own Enter. */
import { by } from "./element.js";
import { isComposing } from "./turn.js";

export class Composer {
  #area = by("question");
  #send = by("send");
  #stop = by("stop");
  #grows = !CSS.supports("field-sizing", "content");

  /** @param {{send: function(string), stop: function, last: function}} told */
  constructor({ send, stop, last }) {
    const submit = () => {
      const text = this.#area.value.trim();
      if (text && this.#stop.hidden) send(text);
    };
    by("composer").addEventListener("submit", (event) => (event.preventDefault(), submit()));
    this.#stop.addEventListener("click", stop);
    this.#area.addEventListener("input", () => this.#fit());
    this.#area.addEventListener("keydown", (event) => {
      if (isComposing(event)) return;
      if (event.key === "Enter" && !event.shiftKey) (event.preventDefault(), submit());
      if (event.key === "ArrowUp" && !this.#area.value) (event.preventDefault(), last());
    });
    this.#fit();
  }

  get text() {
    return this.#area.value;
  }

  set text(text) {
    this.#area.value = text;
    this.#fit();
  }

  /** Where a keyboard would cover half of the screen, the user asks for it. */
  focus() {
    if (matchMedia("(hover: hover)").matches) this.#area.focus();
  }

  /** Whether an answer is under way, which can be stopped, and no other asked for. */
  set isBusy(busy) {
    const hadFocus = [this.#send, this.#stop].includes(document.activeElement);
    this.#send.hidden = busy;
    this.#stop.hidden = !busy;
    if (hadFocus) (busy ? this.#stop : this.#area).focus();
  }

  #fit() {
    this.#send.disabled = !this.#area.value.trim();
    if (!this.#grows) return;
    this.#area.style.height = "auto";
    this.#area.style.height = `${this.#area.scrollHeight}px`;
  }
}

/** How fast an answer came, by the page's own clock. */

export class Figures {
  #asked = performance.now();
  #first = null;
  #last = null;
  #pieces = 0;

  /** A piece came: mostly a token. */
  token() {
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.#pieces++;
  }

  /** @param {?{completion_tokens: number}} usage  as the engine counts; without it the pieces are counted */
  told(usage) {
    if (this.#first === null) return "";
    const tokens = usage?.completion_tokens ?? this.#pieces;
    const span_s = (this.#last - this.#first) / 1000;
    const rate = span_s > 0 && tokens > 1 ? [`${number((tokens - 1) / span_s)} tokens/s`] : [];
    const about = usage ? "" : "about ";
    const first = `first after ${number((this.#first - this.#asked) / 1000)} s`;
    return [`${about}${tokens} ${tokens === 1 ? "token" : "tokens"}`, ...rate, first].join(" · ");
  }
}

function number(value) {
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

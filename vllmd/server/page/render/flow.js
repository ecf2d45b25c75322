/**
 * A text that grows, as elements. Blocks that are complete are rendered once and left alone; only the last one, to which
 * words may still come, is rendered again, at most once a frame and never for more than a part of the time.
 */
import { blocksOf, rendered } from "./markdown.js";

const SHARE = 4; // of the time that a rendering took, as long a pause after it
const REFERENCES = /^ {0,3}\[[^\]\n]+\]:/m; // what a block means may be said in another one

export class Flow {
  #element;
  #painted;
  #settled = 0;
  #open = [];
  #timer = 0;
  #frame = 0;
  text = "";

  /**
   * @param {HTMLElement} element  is filled
   * @param {function} painted  is called after each change of it
   */
  constructor(element, painted = () => {}) {
    this.#element = element;
    this.#painted = painted;
  }

  add(piece) {
    this.text += piece.replace(/\r\n?/g, "\n");
    if (!this.#frame && !this.#timer) this.#frame = requestAnimationFrame(() => this.#paint());
  }

  /** The text is complete. */
  end() {
    cancelAnimationFrame(this.#frame);
    clearTimeout(this.#timer);
    if (REFERENCES.test(this.text)) this.#restart();
    this.#render();
    this.#frame = this.#timer = 0;
  }

  #restart() {
    this.#element.replaceChildren();
    this.#open = [];
    this.#settled = 0;
  }

  #paint() {
    this.#frame = 0;
    const began = performance.now();
    this.#render();
    const pause_ms = SHARE * (performance.now() - began);
    const shown = this.text.length;
    this.#timer = setTimeout(() => {
      this.#timer = 0;
      if (this.text.length > shown) this.add("");
    }, pause_ms);
  }

  #render() {
    const blocks = blocksOf(this.text.slice(this.#settled));
    const last = blocks.findLastIndex((each) => each.type !== "space");
    if (last < 0) return;
    for (const each of this.#open) each.remove();
    const complete = blocks.slice(0, last);
    if (complete.length) this.#element.append(rendered(complete));
    for (const each of complete) this.#settled += each.raw.length;
    const open = rendered(blocks.slice(last));
    this.#open = [...open.childNodes];
    this.#element.append(open);
    this.#painted();
  }
}

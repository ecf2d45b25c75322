/** Tells screen readers what came, sentence by sentence: words one by one would be noise. */
import { by, element } from "./element.js";

const SENTENCE = /[^]*?(?:[.!?…]["')\]]?\s+|[。！？]|\n+)/y;
const KEPT = 12;

export class Speech {
  #rest = "";

  /** More of an answer. */
  add(piece) {
    this.#rest += piece;
    let end = 0;
    SENTENCE.lastIndex = 0;
    for (let found; (found = SENTENCE.exec(this.#rest)); end = SENTENCE.lastIndex) say(found[0]);
    this.#rest = this.#rest.slice(end);
  }

  end() {
    say(this.#rest);
    this.#rest = "";
  }
}

/** Has something told as soon as the reader is silent. */
export function say(text) {
  const region = by("spoken");
  if (!text.trim()) return;
  region.append(element("p", { dir: "auto" }, text.trim()));
  while (region.childElementCount > KEPT) region.firstElementChild.remove();
}

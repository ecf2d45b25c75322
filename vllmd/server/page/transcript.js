/** All messages of the conversation that is shown, and where in them one is. */
import { by } from "./element.js";
import { AnswerTurn, question } from "./turn.js";

const NEAR_PX = 80;

export class Transcript {
  #scroll = by("scroll");
  #turns = by("turns");
  #toEnd = by("to-end");
  #follows = true;

  constructor() {
    this.#scroll.addEventListener("scroll", () => {
      this.#follows = this.#below() < NEAR_PX;
      this.#toEnd.hidden = this.#follows;
    }, { passive: true });
    this.#toEnd.addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this.moved()).observe(this.#turns);
  }

  /**
   * Shows a conversation from its beginning to its end.
   * @param {{edit: function(number, string), again: function(number)}} can  what may be done with a message
   */
  show(messages, can) {
    this.#turns.replaceChildren(...messages.map((each, index) => made(each, index, can)));
    by("empty").hidden = messages.length > 0;
    this.#turns.hidden = !messages.length;
    this.toEnd();
  }

  /** An answer that grows, at the end. */
  grow(message, waiting) {
    const turn = new AnswerTurn(message, () => this.moved());
    turn.stream(waiting);
    this.#turns.append(turn.element);
    this.toEnd();
    return turn;
  }

  /** Something grew: whoever was at the end stays there. */
  moved() {
    if (this.#follows) this.#scroll.scrollTop = this.#scroll.scrollHeight;
    else this.#toEnd.hidden = this.#below() < NEAR_PX;
  }

  toEnd() {
    this.#follows = true;
    this.#toEnd.hidden = true;
    this.moved();
  }

  #below() {
    return this.#scroll.scrollHeight - this.#scroll.scrollTop - this.#scroll.clientHeight;
  }
}

function made(message, index, can) {
  if (message.role === "user") return question(message, { edit: (text) => can.edit(index, text) });
  const turn = new AnswerTurn(message);
  turn.end(message, () => can.again(index));
  return turn.element;
}

/** One message as it is shown. A turn is made from what is stored, and an answer's can grow. */
import { copying } from "./clipboard.js";
import { element } from "./element.js";
import { Flow } from "./render/flow.js";

const WHOSE = { vllmd: "vllmd", engine: "the engine", page: "this page" };

/** What the user said. */
export function question(message, { edit }) {
  const words = element("div", { class: "words", dir: "auto" }, message.content);
  const change = tool("Edit", () => turn.replaceChildren(editor(message, edit, turn)));
  const tools = element("div", { class: "tools" }, copyButton(() => message.content), change);
  const turn = element("article", { class: "turn question", "aria-label": "You" }, words, element("div", { class: "under" }, tools));
  return turn;
}

function editor(message, edit, turn) {
  const before = [...turn.childNodes];
  const area = element("textarea", { "aria-label": "Edit your message", dir: "auto" });
  area.value = message.content;
  const cancel = () => turn.replaceChildren(...before);
  const form = element(
    "form",
    { onsubmit: (event) => (event.preventDefault(), area.value.trim() && edit(area.value.trim())) },
    area,
    element("div", { class: "row" }, element("button", { type: "button", class: "quiet", onclick: cancel }, "Cancel"), element("button", { class: "strong" }, "Send again")),
  );
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape") (event.stopPropagation(), cancel());
    if (event.key === "Enter" && !event.shiftKey && !isComposing(event)) (event.preventDefault(), form.requestSubmit());
  });
  queueMicrotask(() => area.focus());
  return form;
}

/** Whether a key belongs to an input method, as one types Chinese with. */
export function isComposing(event) {
  return event.isComposing || event.keyCode === 229;
}

/** What the model says. */
export class AnswerTurn {
  #words = element("div", { class: "words" });
  #thoughts = null;
  #under = element("div", { class: "under" });
  #flow;
  element;

  constructor(message, painted = () => {}) {
    this.element = element("article", { class: "turn answer", "aria-label": "Answer", "data-model": message.model }, this.#words);
    this.#flow = new Flow(this.#words, painted);
    if (message.thoughts) this.think(message.thoughts);
    if (message.content) this.add(message.content);
  }

  /** From now on it grows. */
  stream(waiting) {
    this.#words.classList.add("streaming");
    this.element.setAttribute("aria-busy", "true");
    this.element.append(waiting.element);
  }

  add(piece) {
    this.#flow.add(piece);
  }

  think(piece) {
    if (!this.#thoughts) {
      this.#thoughts = element("p", { dir: "auto" });
      this.#words.before(element("details", { class: "thoughts" }, element("summary", {}, "Thoughts"), this.#thoughts));
    }
    this.#thoughts.append(piece);
  }

  /**
   * It is complete, or will never be.
   * @param message  as it is stored: with `failure`, `note`, `figures` where there are any
   * @param {function} again  asks once more
   */
  end(message, again) {
    this.#flow.end();
    this.#words.classList.remove("streaming");
    this.element.removeAttribute("aria-busy");
    if (message.failure) this.element.append(failed(message.failure));
    const tools = element("div", { class: "tools" });
    if (message.content) tools.append(copyButton(() => message.content));
    tools.append(tool(message.failure || message.note ? "Try again" : "Regenerate", again));
    this.#under.replaceChildren(tools);
    for (const each of [message.note, message.figures]) if (each) this.#under.append(element("span", { class: "figures" }, each));
    this.element.append(this.#under);
  }
}

function failed({ message, hint, source }) {
  return element(
    "div",
    { class: "failure" },
    element("p", { class: "said", dir: "auto" }, message),
    ...(hint ? [element("p", { class: "hint", dir: "auto" }, hint)] : []),
    element("p", { class: "whose" }, `Says ${WHOSE[source] ?? source}.`),
  );
}

function copyButton(text) {
  const button = tool("Copy", () => copying(button, text()));
  return button;
}

function tool(label, act) {
  return element("button", { type: "button", onclick: act }, label);
}

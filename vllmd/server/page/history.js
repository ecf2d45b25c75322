/** The conversations that this browser keeps: a list beside the talk, a drawer on narrow screens. */
import { by, element } from "./element.js";

export class History {
  #store;
  #told;
  #current = "";
  #shown = "";
  #panel = by("history");
  #opener = by("open-history");

  /** @param {{open: function(string), remove: function(string), begin: function}} told */
  constructor(store, told) {
    this.#store = store;
    this.#told = told;
    store.addEventListener("change", () => this.#show());
    by("new").addEventListener("click", () => (this.close(), told.begin()));
    this.#opener.addEventListener("click", () => (this.#panel.hasAttribute("data-open") ? this.close() : this.#open()));
    by("shade").addEventListener("click", () => this.close());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.#panel.hasAttribute("data-open")) (event.stopPropagation(), this.close());
    });
  }

  set current(id) {
    this.#current = id;
    this.#show();
  }

  #open() {
    this.#panel.setAttribute("data-open", "");
    by("shade").hidden = false;
    this.#opener.setAttribute("aria-expanded", "true");
    by("new").focus();
  }

  close() {
    if (!this.#panel.hasAttribute("data-open")) return;
    this.#panel.removeAttribute("data-open");
    by("shade").hidden = true;
    this.#opener.setAttribute("aria-expanded", "false");
    this.#opener.focus();
  }

  /** Only what differs is made anew: whoever stands on a line of the list stays there while an answer grows. */
  #show() {
    const all = this.#store.list();
    const shown = JSON.stringify([this.#current, ...all.map(({ id, title }) => [id, title])]);
    if (shown === this.#shown) return;
    this.#shown = shown;
    by("conversations").replaceChildren(...all.map((each) => this.#item(each)));
  }

  #item({ id, title }) {
    const open = element(
      "button",
      { type: "button", class: "open", dir: "auto", "aria-current": id === this.#current ? "true" : null, onclick: () => (this.close(), this.#told.open(id)) },
      title || "New conversation",
    );
    const remove = element("button", { type: "button", class: "remove", "aria-label": `Delete: ${title}`, title: "Delete", onclick: () => this.#told.remove(id) }, "×");
    return element("li", {}, open, remove);
  }
}

/** The API key: typed in when the service asks for one, kept with the tab, or longer if the user says so. */
import { by } from "./element.js";

const NAME = "vllmd.key";

export class Key {
  #asking = null;
  #refused = null;

  constructor() {
    this.text = read(sessionStorage) || read(localStorage);
    by("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#take(by("key-text").value.trim(), by("key-keep").checked);
    });
    by("key-cancel").addEventListener("click", () => by("key").close());
  }

  /**
   * Whether there is another key by now than the one that was tried.
   * @param {string} tried
   * @param {string} reason  why it does not do
   */
  async another(tried, reason) {
    if (this.text !== tried) return true;
    if (this.#refused === tried) return false; // who has said no is not asked again until something is wanted of him
    this.#asking ??= this.#ask(tried ? reason : "");
    const given = await this.#asking;
    if (!given) this.#refused = tried;
    return given;
  }

  /** From now on the user may be asked again: it was he who wanted something. */
  relent() {
    this.#refused = null;
  }

  #ask(reason) {
    const dialog = by("key");
    by("key-reason").textContent = reason;
    by("key-text").value = "";
    dialog.showModal();
    by("key-text").focus();
    const before = this.text;
    return new Promise((resolve) => {
      dialog.addEventListener("close", () => {
        this.#asking = null;
        resolve(this.text !== before);
      }, { once: true });
    });
  }

  #take(text, keep) {
    if (!text) return;
    this.text = text;
    write(sessionStorage, keep ? "" : text);
    write(localStorage, keep ? text : "");
    by("key").close();
  }
}

function read(storage) {
  try {
    return storage.getItem(NAME) ?? "";
  } catch {
    return "";
  }
}

function write(storage, text) {
  try {
    if (text) storage.setItem(NAME, text);
    else storage.removeItem(NAME);
  } catch {
    // then the key is known until the page is left
  }
}

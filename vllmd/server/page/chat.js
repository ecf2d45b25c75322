/** The chat: owns the conversation that is shown and the answer that is under way. */
import { Failure } from "./api.js";
import { ask } from "./asking.js";
import { Composer } from "./composer.js";
import { by } from "./element.js";
import { asJson, asMarkdown, save } from "./exporting.js";
import { Figures } from "./figures.js";
import { History } from "./history.js";
import { KnobsForm, brief, sampling, usual } from "./knobs.js";
import { dismiss, notice } from "./notice.js";
import { Picker } from "./picker.js";
import { Speech, say } from "./speech.js";
import { Store, begin } from "./store.js";
import { Transcript } from "./transcript.js";
import { Waiting } from "./waiting.js";

const SAVE_MS = 1000;
const FULL = "This browser's room for conversations is full: this one is lost on reload. Save it, or delete others.";
const INTERRUPTED = "Interrupted";
const CURRENT = "vllmd.current";

export class Chat {
  #api;
  #models;
  #key;
  #store = new Store();
  #transcript = new Transcript();
  #composer;
  #history;
  #picker;
  #knobs;
  #conversation;
  #running = null;

  constructor(api, models, key) {
    [this.#api, this.#models, this.#key] = [api, models, key];
    this.#composer = new Composer({ send: (text) => this.#send(text), stop: () => this.stop(), last: () => this.#editLast() });
    this.#history = new History(this.#store, { open: (id) => this.#open(id), remove: (id) => this.#remove(id), begin: () => this.begin() });
    this.#picker = new Picker(models, (name) => (this.#conversation.model = name));
    this.#knobs = new KnobsForm((knobs) => this.#adjust(knobs));
    by("open-knobs").addEventListener("click", () => this.#knobs.open(this.#conversation.knobs));
    by("export-markdown").addEventListener("click", () => this.#export(asMarkdown, "text/markdown", "md"));
    by("export-json").addEventListener("click", () => this.#export(asJson, "application/json", "json"));
    by("delete").addEventListener("click", () => (closeMenu(), this.#remove(this.#conversation.id)));
    addEventListener("pagehide", () => this.#leave());
    this.#open(recalled());
  }

  begin() {
    this.#show(begin(usual(), this.#picker.name));
    this.#composer.focus();
  }

  /** Ends the answer that is under way; in the engine, too. */
  stop() {
    this.#running?.abort();
  }

  /** The page ends: its requests break off now, which is nobody's failure. */
  #leave() {
    if (!this.#running) return;
    this.#store.save(this.#conversation);
    this.#running.abort(INTERRUPTED);
  }

  get isAnswering() {
    return this.#running !== null;
  }

  #open(id) {
    const found = id && this.#store.load(id);
    if (found) this.#show(found);
    else this.begin();
  }

  #show(conversation) {
    if (conversation.id !== this.#conversation?.id) this.stop();
    this.#conversation = conversation;
    this.#picker.wanted = conversation.model;
    remember(conversation.id);
    this.#refresh();
  }

  #refresh() {
    const { id, title, messages, knobs } = this.#conversation;
    const can = { edit: (index, text) => this.#edit(index, text), again: (index) => this.#again(index) };
    this.#transcript.show(messages, can);
    this.#history.current = id;
    by("title").textContent = title || "New conversation";
    by("menu").hidden = !messages.length;
    by("open-knobs").title = brief({ ...usual(), ...knobs });
    document.title = title ? `${title} · vllmd` : "vllmd";
  }

  #send(text) {
    this.#composer.text = "";
    this.#conversation.messages.push({ role: "user", content: text });
    this.#answer();
  }

  /** Asks another question instead of a former one; what followed can be had back. */
  #edit(index, text) {
    this.#cut(index);
    this.#conversation.messages.push({ role: "user", content: text });
    this.#answer();
  }

  /** Asks for an answer once more. */
  #again(index) {
    this.#cut(index);
    this.#answer();
  }

  #cut(index) {
    const conversation = this.#conversation;
    const before = conversation.messages;
    conversation.messages = before.slice(0, index);
    if (before.length <= index + 2 && before.at(-1).failure) return; // nothing is lost
    notice("What stood here before was replaced.", "Undo", () => {
      this.stop();
      conversation.messages = before;
      this.#keep(conversation);
      if (conversation === this.#conversation) this.#refresh();
    });
  }

  #editLast() {
    const edits = document.querySelectorAll("#turns .question .tools button:last-child");
    if (!this.#running) [...edits].at(-1)?.click();
  }

  async #answer() {
    const conversation = this.#conversation;
    this.stop();
    this.#key.relent();
    const running = (this.#running = new AbortController());
    const message = { role: "assistant", content: "", model: this.#picker.name, note: INTERRUPTED };
    const body = request(conversation, message.model);
    conversation.model = message.model;
    this.#keep(conversation);
    this.#refresh();
    const waiting = new Waiting(this.#models, message.model);
    const turn = this.#transcript.grow(message, waiting);
    conversation.messages.push(message);
    this.#composer.isBusy = true;
    try {
      await this.#listen(body, running.signal, { conversation, message, turn, waiting });
    } finally {
      waiting.end();
      if (this.#running === running) this.#ended();
      if (conversation.messages.includes(message)) this.#keep(conversation);
      if (conversation === this.#conversation) turn.end(message, () => this.#again(conversation.messages.indexOf(message)));
    }
  }

  /** Fills in the message, whatever happens. */
  async #listen(body, signal, { conversation, message, turn, waiting }) {
    const speech = new Speech();
    const figures = new Figures();
    let saved = Date.now();
    const grown = () => {
      figures.token();
      waiting.heard();
      if (Date.now() - saved > SAVE_MS) (this.#keep(conversation), (saved = Date.now()));
    };
    const told = {
      comment: (text) => waiting.remark(text),
      thought: (piece) => (grown(), (message.thoughts = (message.thoughts ?? "") + piece), turn.think(piece)),
      text: (piece) => (grown(), (message.content += piece), turn.add(piece), speech.add(piece)),
    };
    try {
      const { finish, usage } = await ask(this.#api, this.#models, body, signal, told);
      message.note = finish === "length" ? "Cut off at its longest length" : "";
      message.figures = figures.told(usage);
    } catch (error) {
      this.#fail(error, message, signal);
      message.figures = figures.told(null);
    }
    speech.end();
    say(message.failure?.message ?? (message.note || "The answer is complete."));
  }

  #fail(error, message, signal) {
    message.note = "";
    if (signal.aborted) message.note = signal.reason === INTERRUPTED ? INTERRUPTED : "Stopped";
    else message.failure = inWords(error);
  }

  #ended() {
    this.#running = null;
    this.#composer.isBusy = false;
    if (this.#models.failure) this.#models.hurry();
  }

  #keep(conversation) {
    conversation.changed = Date.now();
    if (!this.#store.save(conversation)) notice(FULL);
    if (conversation === this.#conversation) by("title").textContent = conversation.title;
  }

  #adjust(knobs) {
    this.#conversation.knobs = { ...this.#conversation.knobs, ...knobs };
    by("open-knobs").title = brief(this.#conversation.knobs);
    if (this.#conversation.messages.length) this.#keep(this.#conversation);
  }

  #remove(id) {
    const removed = id === this.#conversation.id ? this.#conversation : this.#store.load(id);
    if (id === this.#conversation.id) this.stop();
    this.#store.remove(id);
    notice("Deleted.", "Undo", () => (this.#keep(removed), this.#show(removed)));
    if (id === this.#conversation.id) this.#show(begin(usual(), this.#picker.name));
  }

  #export(write, type, ending) {
    closeMenu();
    dismiss();
    save(write(this.#conversation), type, this.#conversation.title, ending);
  }
}

function request({ knobs, messages }, model) {
  const system = knobs.system ? [{ role: "system", content: knobs.system }] : [];
  const said = messages.filter((each) => each.content).map(({ role, content }) => ({ role, content }));
  const options = { stream: true, stream_options: { include_usage: true } };
  return { model, messages: [...system, ...said], ...options, ...sampling({ ...usual(), ...knobs }) };
}

/** What can be stored of a failure; one that nobody foresaw is told as well. */
function inWords(error) {
  if (error instanceof Failure) return { message: error.message, hint: error.hint, source: error.source };
  console.error(error);
  return { message: `This page made a mistake: ${error.message}`, hint: "Reload it and try again", source: "page" };
}

function closeMenu() {
  by("menu").open = false;
}

function recalled() {
  try {
    return sessionStorage.getItem(CURRENT);
  } catch {
    return null;
  }
}

function remember(id) {
  try {
    sessionStorage.setItem(CURRENT, id);
  } catch {
    // then a reload begins a new one
  }
}

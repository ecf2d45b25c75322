/** Which model is asked, and what it does. */
import { by, element } from "./element.js";
import { left, summary } from "./models.js";

export class Picker {
  #models;
  #select = by("model");
  #wanted = "";

  constructor(models, chosen) {
    this.#models = models;
    models.addEventListener("change", () => this.#show());
    this.#select.addEventListener("change", () => {
      this.#wanted = this.#select.value;
      this.#show();
      chosen(this.#wanted);
    });
    this.#show();
  }

  /** The model that is asked: the wanted one while there is such a one, else the default. */
  get name() {
    return (this.#models.get(this.#wanted) ?? this.#models.default)?.name ?? this.#wanted;
  }

  set wanted(name) {
    this.#wanted = name;
    this.#show();
  }

  #show() {
    const names = this.#models.all.map((each) => each.name);
    const shown = [...this.#select.options].map((each) => each.value);
    if (names.join("\n") !== shown.join("\n")) {
      this.#select.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
    }
    this.#select.hidden = !names.length;
    this.#select.value = this.name;
    this.#tell(this.#models.get(this.name));
  }

  #tell(model) {
    const lost = this.#models.failure;
    const state = lost ? "" : (model?.state ?? "");
    by("model-dot").dataset.state = state;
    const words = lost ? lost.message : summary(model);
    by("model-state").textContent = state === "ready" ? "" : words;
    by("empty-model").textContent = model?.name ?? "the model";
    by("empty-state").textContent = lost ? `${lost.message}. Trying again.` : emptyWords(model);
  }
}

function emptyWords(model) {
  if (!model) return "Connecting…";
  if (model.state === "ready") return "Ready.";
  if (model.state === "failed") return `It failed: ${model.reason || "see the service's view"}. ${model.hint}`;
  if (model.state === "stopped") return model.on_demand ? "It is not loaded: a question loads it." : "It is not loaded.";
  if (["asleep", "dozing"].includes(model.state)) return `It is ${summary(model)}: a question wakes it.`;
  const rest = left(model.eta_s);
  return `It is on its way: ${summary(model)}${rest ? `, ${rest}` : ""}. Ask already, it answers as soon as it can.`;
}

/** The page: wires its parts together, and shows one of its two views by what stands behind `#`. */
import { Api } from "./api.js";
import { Chat } from "./chat.js";
import { by } from "./element.js";
import { Key } from "./key.js";
import { Models } from "./models.js";

const VIEWS = ["chat", "service"];

const key = new Key();
const api = new Api(key);
const models = new Models(api);
const chat = new Chat(api, models, key);

let unmount = null;

async function route() {
  const shown = VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "chat";
  for (const each of VIEWS) {
    by(each).hidden = each !== shown;
    if (each === shown) by(`to-${each}`).setAttribute("aria-current", "page");
    else by(`to-${each}`).removeAttribute("aria-current");
  }
  by("open-history").hidden = shown !== "chat";
  unmount?.();
  unmount = null;
  if (shown !== "service") return;
  const { mount } = await import("./service.js");
  if (!by("service").hidden && !unmount) unmount = mount(by("service"), api, models);
}

function onKey(event) {
  if (event.defaultPrevented || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    by("menu").open = false;
    if (chat.isAnswering) chat.stop();
  }
  if (event.altKey && event.code === "KeyN") {
    event.preventDefault();
    chat.begin();
  }
}

addEventListener("hashchange", route);
addEventListener("keydown", onKey);
addEventListener("online", () => models.hurry());
document.addEventListener("click", (event) => by("menu").contains(event.target) || (by("menu").open = false));
route();
models.follow();

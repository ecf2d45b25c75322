/** One line above the composer: what the user should know now, with something to do about it, if there is. */
import { by, element } from "./element.js";

export function notice(text, label = "", action = null) {
  const line = by("notice");
  const parts = [element("span", {}, text)];
  if (action) parts.push(element("button", { type: "button", onclick: () => (dismiss(), action()) }, label));
  parts.push(element("span", { class: "gap" }), element("button", { type: "button", "aria-label": "Dismiss", onclick: dismiss }, "×"));
  line.replaceChildren(...parts);
  line.hidden = false;
}

export function dismiss() {
  by("notice").hidden = true;
}

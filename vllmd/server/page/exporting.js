/** A conversation as a file of the user's. */
import { element } from "./element.js";

const UNSAFE = /[^\p{L}\p{N}]+/gu;

export function asMarkdown({ title, model, knobs, messages }) {
  const system = knobs.system ? [`> ${knobs.system.replaceAll("\n", "\n> ")}`] : [];
  const said = messages.map((each) => `## ${each.role === "user" ? "You" : each.model || model || "Answer"}\n\n${each.content}`);
  return [`# ${title}`, ...system, ...said].join("\n\n") + "\n";
}

/** As OpenAI's API takes it, with what the page knows beside. */
export function asJson({ title, changed, model, knobs, messages }) {
  const { system, ...sampling } = knobs;
  const first = system ? [{ role: "system", content: system }] : [];
  const told = { title, changed: new Date(changed).toISOString(), model, ...sampling, messages: [...first, ...messages] };
  return JSON.stringify(told, null, 2) + "\n";
}

export function save(text, type, title, ending) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const name = title.replace(UNSAFE, "-").replace(/^-|-$/g, "").slice(0, 40) || "conversation";
  element("a", { href: url, download: `${name}.${ending}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

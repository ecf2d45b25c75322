/**
 * A model's Markdown as elements. Its words are nobody's page: HTML in them is shown as text, pictures become links (no
 * other host hears of an answer), only plain links lead anywhere, and what is left is cleaned by DOMPurify all the same.
 */
import DOMPurify from "../vendor/dompurify/purify.es.mjs";
import { Marked } from "../vendor/marked/marked.esm.js";
import { copying } from "../clipboard.js";
import { element } from "../element.js";

const TAGS = [
  "p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "strong", "em", "del", "code", "pre", "blockquote", "ul", "ol",
  "li", "table", "thead", "tbody", "tr", "th", "td", "a", "input",
];
const ATTRIBUTES = ["href", "start", "class", "type", "checked", "disabled"];
const SAFE_LINK = /^(?:https?:\/\/|mailto:)/i;
const LANGUAGE = /^[\w+#.-]{1,30}$/;
const WITH_DIRECTION = "p, h1, h2, h3, h4, h5, h6, ul, ol, li, blockquote, th, td, table";
const PLAIN_BREAK = /^<br\s*\/?>$/i;

const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escaped = (text) => text.replace(/[&<>"']/g, (each) => ESCAPES[each]);

const marked = new Marked({
  gfm: true,
  breaks: false,
  renderer: {
    html: ({ text }) => (PLAIN_BREAK.test(text.trim()) ? "<br>" : escaped(text)),
    image: ({ href, text }) => link(href, escaped(text || href)),
    link({ href, tokens }) {
      return link(href, this.parser.parseInline(tokens));
    },
    code: ({ text, lang }) => {
      const language = (lang ?? "").trim().split(/\s/)[0];
      const known = LANGUAGE.test(language) ? ` class="language-${escaped(language)}"` : "";
      return `<pre><code${known}>${escaped(text)}\n</code></pre>`;
    },
  },
});

function link(href, inside) {
  return SAFE_LINK.test(href) ? `<a href="${escaped(href)}">${inside}</a>` : inside;
}

/** The blocks of a text. Each has `raw`, and joined they are the text. */
export function blocksOf(text) {
  return marked.lexer(text);
}

/** @returns {DocumentFragment} blocks as elements, safe to be shown */
export function rendered(blocks) {
  const fragment = DOMPurify.sanitize(marked.parser(blocks), {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ATTRIBUTES,
    ALLOWED_URI_REGEXP: SAFE_LINK,
    ADD_URI_SAFE_ATTR: ["start", "type"],
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
  return dressed(fragment);
}

/** What the page itself adds: directions, safe links, frames around code and tables. */
function dressed(fragment) {
  for (const each of fragment.querySelectorAll(WITH_DIRECTION)) each.dir = "auto";
  for (const each of fragment.querySelectorAll(":not(pre) > code")) each.dir = "ltr";
  for (const each of fragment.querySelectorAll("a")) {
    each.target = "_blank";
    each.rel = "noopener noreferrer nofollow";
  }
  for (const each of fragment.querySelectorAll("input")) {
    each.disabled = true;
    each.setAttribute("aria-label", each.checked ? "done" : "to do");
  }
  for (const each of fragment.querySelectorAll("table")) within(element("div", { class: "sheet", tabindex: "0", role: "group", "aria-label": "Table" }), each);
  for (const each of fragment.querySelectorAll("pre")) framed(each);
  return fragment;
}

function within(frame, each) {
  each.replaceWith(frame);
  frame.append(each);
}

function framed(pre) {
  const language = pre.firstElementChild?.className.replace("language-", "") ?? "";
  const copy = element("button", { type: "button", "aria-label": "Copy code" }, "Copy");
  copy.addEventListener("click", () => copying(copy, pre.textContent.replace(/\n$/, "")));
  const frame = element("div", { class: "code", dir: "ltr" }, element("header", {}, element("span", {}, language), copy));
  within(frame, pre);
  pre.tabIndex = 0;
  pre.setAttribute("role", "group");
  pre.setAttribute("aria-label", language ? `Code, ${language}` : "Code");
}

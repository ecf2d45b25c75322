/** Elements that change, and change no more than they must: a reader may have selected a text, or stand on a button. */

const SVG = "http://www.w3.org/2000/svg";

/** An element of a picture. */
export function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Puts a text into an element, unless it says so already. Text only: engines print what they were asked. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Shows an element, or does not. */
export function show(element, isShown) {
  if (element.hidden === isShown) element.hidden = !isShown;
}

/**
 * Brings the children of an element in line with a list: what stays is kept, with its focus; the rest comes and goes.
 * @param {Element} parent holds nothing else.
 * @param {Map<string, {element: Element}>} known the parts of last time, by key; changed here.
 * @param {Array} items what there is now.
 * @param {function} keyOf of an item.
 * @param {function} make the part of an item that is new.
 * @returns {Array} the parts, in the order of the items.
 */
export function matched(parent, known, items, keyOf, make) {
  const wanted = new Map(items.map((item) => [keyOf(item), item]));
  for (const [key, part] of known) {
    if (!wanted.has(key)) {
      part.element.remove();
      part.end?.();
      known.delete(key);
    }
  }
  const parts = [...wanted].map(([key, item]) => {
    if (!known.has(key)) known.set(key, make(item));
    return known.get(key);
  });
  parts.forEach((part, at) => {
    if (parent.children[at] !== part.element) parent.insertBefore(part.element, parent.children[at] ?? null);
  });
  return parts;
}

/**
 * Makes an element. Text becomes text: nothing that is passed here is ever read as HTML.
 * @param {string} name
 * @param {Object} attributes  a function is a listener (`onclick`); undefined, null and false are left out
 * @param {...(Node|string)} children
 */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** The element of the page with that id. */
export const by = (id) => document.getElementById(id);

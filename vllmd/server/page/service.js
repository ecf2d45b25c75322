// A placeholder: the second view brings its own.
export function mount(element) {
  element.textContent = "The service's view is not here yet.";
  return () => element.replaceChildren();
}

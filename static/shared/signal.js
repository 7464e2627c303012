// What modules tell each other, whichever of them loads first.

/** The latest value of something. A listener gets each new value, and at once the current one if there is one. */
export class Signal {
  #listeners = new Set();
  #current = null; // {value}

  say(value) {
    this.#current = { value };
    for (const listener of this.#listeners) listener(value);
  }

  /** There is no current value any more: the next listener waits for one. */
  clear() {
    this.#current = null;
  }

  /** Returns a function that ends it. */
  listen(listener) {
    this.#listeners.add(listener);
    if (this.#current) listener(this.#current.value);
    return () => this.#listeners.delete(listener);
  }
}

// Drawing on a canvas with mouse, pen or finger, and undo: of the sketch pad, and of an image that is being edited.

const MOST_PAST = 30; // steps of undo

export class Ink {
  #canvas;
  #context;
  #segment;
  #onChange;
  #pointer = null; // the one in use
  #last = null;
  #past = [];

  /** segment(context, from, to): draws a part of a line; the points are in pixels of the canvas. */
  constructor(canvas, { segment, onChange = () => {} }) {
    this.#canvas = canvas;
    this.#context = canvas.getContext('2d', { willReadFrequently: true });
    this.#segment = segment;
    this.#onChange = onChange;
    canvas.addEventListener('pointerdown', (event) => this.#down(event));
    canvas.addEventListener('pointermove', (event) => this.#move(event));
    for (const type of ['pointerup', 'pointercancel']) {
      canvas.addEventListener(type, (event) => {
        if (event.pointerId === this.#pointer) this.#pointer = null;
      });
    }
  }

  /** Whether there is something to undo. */
  get drawn() {
    return this.#past.length > 0;
  }

  #at(event) {
    const { width, height } = this.#canvas;
    const box = this.#canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * width) / box.width, ((event.clientY - box.top) * height) / box.height];
  }

  #down(event) {
    if (this.#pointer !== null) return;
    this.#pointer = event.pointerId;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#last = this.#at(event);
    this.change((context) => this.#segment(context, this.#last, this.#last));
  }

  #move(event) {
    if (event.pointerId !== this.#pointer) return;
    const all = event.getCoalescedEvents?.() ?? [];
    for (const one of all.length ? all : [event]) {
      const next = this.#at(one);
      this.#segment(this.#context, this.#last, next);
      this.#last = next;
    }
  }

  /** Draws something that undo takes back at once. */
  change(draw) {
    this.#past.push(this.#context.getImageData(0, 0, this.#canvas.width, this.#canvas.height));
    if (this.#past.length > MOST_PAST) this.#past.shift();
    draw(this.#context);
    this.#onChange();
  }

  undo() {
    this.#back(this.#past.length - 1);
  }

  /** Undoes everything. */
  clear() {
    this.#back(0);
  }

  #back(k) {
    if (k < 0 || !this.#past.length) return;
    this.#context.putImageData(this.#past[k], 0, 0);
    this.#past.length = k;
    this.#onChange();
  }

  /** Forgets what could be undone: the canvas shows another image. */
  forget() {
    this.#past.length = 0;
    this.#onChange();
  }
}

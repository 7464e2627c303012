// Next to the answer: the reference, copies, the film, another try; below it: rating, tags, note and exports.

import { studioUrl } from '../shared/address.js';
import { api } from '../shared/api.js';
import { CurationBox } from '../curate/box.js';
import { copyButton, h, saveBlob, setText, show } from '../shared/dom.js';
import { repeated } from '../shared/request.js';
import { curlOf } from '../shared/words.js';
import { openReference } from './reference.js';
import { isLive, isTerminal } from './state.js';

export class Tools {
  #filming = false;

  /**
   * json(): text of the whole trace. say(text): to screen readers. onError(error). onAnother(state), optional: ask the
   * same again with another seed.
   */
  constructor({ json, say, onError, onAnother }) {
    const button = (label, onclick) => h('button', { type: 'button', class: 'or-link', onclick }, label);
    this.onError = onError;
    this.onAnother = onAnother;
    this.another = button('again with another seed', () => onAnother(this.state));
    this.reference = button('reference trace', () => openReference(this.state).catch(onError));
    this.curl = copyButton('copy curl', () => curlOf(studioUrl(), repeated(this.state)), say);
    this.film = button('save GIF', () => this.#film());
    this.box = new CurationBox();
    this.buttons = h(
      'div',
      { class: 'or-answer-buttons' },
      this.another,
      this.reference,
      copyButton('copy JSON', json, say),
      this.curl,
      this.film,
    );
    this.elements = [this.buttons, this.box.element];
  }

  async #film() {
    if (this.#filming) return;
    const { traceId } = this.state;
    this.#filming = true;
    this.#drawFilm();
    try {
      saveBlob(await api.film(traceId), `${traceId}.gif`);
    } catch (error) {
      this.onError(error);
    } finally {
      this.#filming = false;
      this.#drawFilm();
    }
  }

  // Stays in its place with its width, and keeps the focus.
  #drawFilm() {
    setText(this.film, this.#filming ? 'saving …' : 'save GIF');
    this.film.setAttribute('aria-disabled', String(this.#filming));
  }

  /** stored: the server has this trace; a sample of a job or a recording is not stored. */
  update(state, { stored }) {
    this.state = state;
    const ended = isTerminal(state);
    show(this.buttons, state.traceId !== null && state.status !== 'loading');
    show(this.another, Boolean(this.onAnother) && ended && stored);
    show(this.reference, Boolean(state.taskId) && ended);
    show(this.curl, stored);
    show(this.film, stored && !isLive(state));
    this.box.update(state, { stored });
  }
}

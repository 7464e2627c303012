// The lines below the buttons: the remaining context, whether the checkpoint knows such questions, a seed, an error.

import { api } from '../shared/api.js';
import { setAttr, setText, show } from '../shared/dom.js';
import { budgetError, budgetWords, familiarWords } from './budget.js';

const WAIT_MS = 150;

export class Line {
  #timer = 0;
  #turn = 0;

  /** asked(): the current {question, images, checkpoint}, with the number of images. */
  constructor(element, { asked }) {
    this.asked = asked;
    this.tooLong = false;
    this.budget = element.querySelector('.or-budget');
    this.outside = element.querySelector('.or-outside');
    this.error = element.querySelector('.or-error');
  }

  /** The question is another one; until it is counted, it may be sent. */
  changed() {
    this.tooLong = false;
  }

  /** Count soon. */
  count() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.ask(), WAIT_MS);
  }

  async ask() {
    const turn = ++this.#turn;
    const { question, images, checkpoint } = this.asked();
    let said = null;
    let outside = '';
    if (question.trim()) {
      try {
        const limits = await api.budget(question, images, checkpoint);
        said = budgetWords(limits);
        outside = said.tooLong ? '' : familiarWords(limits);
      } catch (error) {
        said = budgetError(error);
      }
    }
    if (turn !== this.#turn) return;
    this.tooLong = said?.tooLong ?? false;
    setText(this.budget, said?.text ?? '');
    setAttr(this.budget, 'data-over', said?.over ? 'true' : null);
    show(this.outside, Boolean(outside)); // before the text: then screen readers announce it
    setText(this.outside, outside);
  }

  fail(error) {
    setText(this.error, error ? (error.message ?? String(error)) : '');
    show(this.error, Boolean(error));
  }
}

// Try the grader: an answer, a reference, optional options, and the verdict as text.

import { api } from '../shared/api.js';
import { h, setAttr, setText, show } from '../shared/dom.js';
import { choicesOf, verdictOf } from './words.js';

export class GraderPanel {
  #turn = 0;

  constructor() {
    this.answer = h('textarea', {
      rows: 2,
      class: 'or-input',
      name: 'answer',
      maxlength: 8000,
      placeholder: 'The answer is 5 km.',
    });
    this.reference = h('input', {
      type: 'text',
      class: 'or-input',
      name: 'reference',
      maxlength: 8000,
      placeholder: '5000 m',
      autocomplete: 'off',
    });
    this.choices = h('textarea', {
      rows: 2,
      class: 'or-input',
      name: 'choices',
      'aria-describedby': 'or-grader-choices',
    });
    this.button = h('button', { type: 'submit', class: 'or-secondary' }, 'Grade');
    this.verdict = h('p', { class: 'or-grader-verdict' });
    this.facts = h('dl', { class: 'or-facts-grid' });
    this.error = h('p', { class: 'or-error', role: 'alert', hidden: true });
    this.result = h('div', { class: 'or-grader-result', role: 'status' }, this.verdict, this.facts);
    const field = (label, input, ...more) => h('label', { class: 'or-field' }, h('span', {}, label), input, ...more);
    this.form = h(
      'form',
      { class: 'or-grader-form', novalidate: true },
      field('answer', this.answer),
      field('reference', this.reference),
      field(
        'options (optional)',
        this.choices,
        h('small', { id: 'or-grader-choices', class: 'or-quiet' }, 'one per line, in order'),
      ),
      h('div', { class: 'or-row' }, this.button),
    );
    this.form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.#grade();
    });
    this.form.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) this.form.requestSubmit();
    });
    this.element = h(
      'section',
      { class: 'or-block or-grader', 'aria-label': 'Try the grader' },
      h('h2', {}, 'Try the grader'),
      h(
        'p',
        { class: 'or-quiet' },
        'Rewards and benchmarks on your own data use this grader. Check how it parses your answers before training on them.',
      ),
      h('div', { class: 'or-grader-main' }, this.form, h('div', {}, this.result, this.error)),
    );
  }

  async #grade() {
    const turn = ++this.#turn;
    try {
      const graded = await api.grade({
        answer: this.answer.value,
        reference: this.reference.value,
        choices: choicesOf(this.choices.value),
      });
      if (turn === this.#turn) this.#show(graded);
    } catch (error) {
      if (turn === this.#turn) this.#fail(error);
    }
  }

  #show(graded) {
    const { tone, text, facts } = verdictOf(graded);
    setAttr(this.verdict, 'data-tone', tone);
    setText(this.verdict, text);
    this.facts.replaceChildren(...facts.flatMap(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]));
    show(this.result, true);
    show(this.error, false);
  }

  #fail(error) {
    setText(this.error, error.message);
    show(this.error, true);
    show(this.result, false);
  }
}

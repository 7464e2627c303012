// "Train on this selection": which of the selected traces, then the Training page with a job on those.

import { h, openDialog, setAttr, setText } from '../shared/dom.js';
import { trainable, trainingAddress, worthTraining } from './choose.js';

const traces = (count) => (count === 1 ? '1 trace' : `${count} traces`);

export function openTraining(selected) {
  const all = trainable(selected);
  const best = worthTraining(selected);
  const left = selected.length - all.length;
  const link = h('a', { class: 'or-primary or-train-go' }, 'Set up the job');
  const word = h('p', { class: 'or-quiet' });
  const choose = (chosen) => {
    setAttr(link, 'href', trainingAddress(chosen.map(({ id }) => id)));
  };
  const option = (chosen, label, checked) => {
    const radio = h('input', { type: 'radio', name: 'or-train', checked, onchange: () => choose(chosen) });
    return h('label', { class: 'or-check' }, radio, h('span', {}, label));
  };
  setText(word, left ? `${traces(left)} without an answer cannot be trained on.` : '');
  const content = [h('h2', {}, 'Train on this selection')];
  if (!all.length) content.push(h('p', {}, 'None of the selected traces has an answer to train on.'));
  else {
    const some = best.length > 0 && best.length < all.length;
    choose(best.length ? best : all);
    if (some) {
      content.push(
        h(
          'fieldset',
          { class: 'or-train-which' },
          h('legend', {}, 'Train on'),
          option(best, `${traces(best.length)} with a right answer or rated good`, true),
          option(all, `all ${traces(all.length)} with an answer`, false),
        ),
      );
    } else {
      const which = best.length
        ? 'Every answer is right or rated good.'
        : 'No answer is known to be right or rated good.';
      content.push(h('p', {}, `${traces(all.length)} to train on. ${which}`));
    }
    content.push(word, h('p', {}, 'The Training page opens with these traces as the data of a PeSFT job.'), link);
  }
  const dialog = openDialog('Train on this selection', ...content);
  (dialog.querySelector('input:checked') ?? dialog.querySelector('.or-train-go'))?.focus();
}

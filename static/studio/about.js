// The About page: renders sections of names and values, read from the API by Python, as text.

import { h } from '../shared/dom.js';

function valueOf(value) {
  if (value && typeof value === 'object') return h('a', { href: value.href, class: 'or-link' }, value.text);
  return String(value);
}

export function mountAbout(element, props, watch) {
  const place = element.querySelector('[data-about]');
  const draw = () => {
    if (!props.value) return;
    const sections = JSON.parse(props.value);
    place.replaceChildren(
      ...sections.map((section) =>
        h(
          'section',
          { class: 'or-about-section' },
          h('h2', {}, section.title),
          section.text ? h('p', {}, section.text) : null,
          section.rows.length
            ? h(
                'dl',
                {},
                section.rows.map(([name, value]) => [h('dt', {}, name), h('dd', {}, valueOf(value))]),
              )
            : null,
        ),
      ),
    );
  };
  draw();
  watch('value', draw);
}

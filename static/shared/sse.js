// Parser for event streams (WHATWG "text/event-stream") that may be split at any byte.

/** `parser(push)` returns a function for decoded chunks; it calls `push({id, event, data})` per complete event. */
export function parser(push) {
  let rest = '';
  let fields = { id: '', event: '', data: [] };
  const line = (text) => {
    if (text === '') {
      if (fields.data.length) push({ id: fields.id, event: fields.event || 'message', data: fields.data.join('\n') });
      fields = { id: fields.id, event: '', data: [] };
      return;
    }
    if (text.startsWith(':')) return;
    const colon = text.indexOf(':');
    const name = colon < 0 ? text : text.slice(0, colon);
    const value = colon < 0 ? '' : text.slice(colon + 1).replace(/^ /, '');
    if (name === 'data') fields.data.push(value);
    else if (name === 'event') fields.event = value;
    else if (name === 'id' && !value.includes('\0')) fields.id = value;
  };
  let first = true;
  let afterCr = false;
  return (chunk) => {
    if (!chunk) return;
    // CR LF may be split: the CR has ended the line, the following LF ends none
    rest += afterCr ? chunk.replace(/^\n/, '') : chunk;
    if (first) rest = rest.replace(/^\uFEFF/, '');
    first = false;
    afterCr = chunk.endsWith('\r');
    const lines = rest.split(/\r\n|\n|\r/);
    rest = lines.pop();
    for (const text of lines) line(text);
  };
}

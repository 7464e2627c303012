// The browser's side of the bridge to Gradio, which app/ui/components.py describes.

const parts = {};
const early = []; // calls to parts that are not ready

function push(call) {
  const [name, action, ...given] = call;
  if (name in parts) parts[name][action](...given);
  else early.push(call);
}

/** From now on `part` gets the calls of Gradio's components to `name`; first those made before it was ready. */
export function serve(name, part) {
  parts[name] = part;
  for (const call of early.splice(0)) push(call);
}

const before = globalThis.omniR1 ?? []; // an array while this module was loading
globalThis.omniR1 = { parts, push };
before.forEach(push);

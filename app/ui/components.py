"""Page components implemented as ES modules inside Gradio, and the bridge between the two.

The bridge has three parts:

- **Mounting.** `module_html` makes a gr.HTML: a fixed template and one import. Gradio runs it whenever it creates the
  component, in any order and possibly again; the module then fills `element`. Python passes data as the component's
  value only (`props.value`, and `watch` for changes): in a template it would become markup.
- **Calls.** An event of a Gradio component runs `call(part, action, …)` in the browser, without Python. It pushes to
  `window.omniR1`, the only global: an array until `static/shared/bridge.js` has loaded, which takes over what was
  pushed. A part gets its calls from `serve(part, …)` on, including earlier ones, so that no click is lost. In a
  console, `omniR1.parts` holds the parts of the page.
- **Fields.** The Studio's module reads and writes the value of Gradio's fields by their `elem_id` and dispatches
  `input`, as a user would. It listens on the document, because Gradio may recreate a field.

Knows only the server's static paths.
"""

from __future__ import annotations

import gradio as gr

from app.common.build import build_version, static_path
from app.common.prefix import ROOT

# Runs in the browser. Retries a failed import a few times, then offers to reload the page. The address is absolute:
# Chromium keeps functions by their text, and a relative import in one would go to the server that a tab showed before.
_LOAD = """
const load = (waits) => import(new URL('%s', document.baseURI).href).catch((error) => {
  if (!waits.length) throw error;
  return new Promise((resolve) => setTimeout(resolve, waits[0])).then(() => load(waits.slice(1)));
});
load([200, 1000, 3000, 8000]).then((m) => m.%s).catch((error) => {
  console.error(error);
  const reload = document.createElement('button');
  reload.className = 'or-secondary';
  reload.textContent = 'Reload';
  reload.onclick = () => location.reload();
  const words = document.createElement('p');
  words.className = 'or-error';
  words.append('This part of the page could not be loaded. ', reload);
  element.replaceChildren(words);
});
"""

SITE = "Omni-R1 Studio"
NAVIGATION = (
    ("studio", "/", "Studio"),
    ("gallery", "/gallery", "Gallery"),
    ("training", "/training", "Training"),
    ("runs", "/runs", "Runs"),
    ("checkpoints", "/checkpoints", "Checkpoints"),
    ("about", "/about", "About"),
)


def module_html(module: str, mount: str, template: str, *, elem_id: str, value: str = "") -> gr.HTML:
    """A gr.HTML whose content is rendered by one of our ES modules; ``mount`` is a call on the imported module ``m``.

    ``mount`` may use Gradio's ``element``, ``props`` and ``watch``. The template is our own markup, never data. Gradio
    runs it whenever the component is created, in any order.
    Not a subclass of gr.HTML: Gradio writes a `.pyi` file next to the source of each subclass.
    """
    return gr.HTML(
        value=value,
        html_template=template,
        js_on_load=_LOAD % (ROOT + static_path(module), mount),
        apply_default_css=False,
        elem_id=elem_id,
    )


def call(part: str, action: str, *given: str, fields: str = "") -> str:
    """The `js=` of an event: calls `action` of a part with `given`, JavaScript in terms of the event's `fields`."""
    arguments = ", ".join((f"'{part}'", f"'{action}'", *given))
    return f"({fields}) => {{ (window.omniR1 ??= []).push([{arguments}]); }}"


def header(page: str) -> gr.HTML:
    """The page header: title, links to the other pages, checkpoint, theme switch."""
    links = "".join(
        f'<a href="{ROOT}{path}" data-link="{name}"{" aria-current=page" if name == page else ""}>{label}</a>'
        for name, path, label in NAVIGATION
    )
    title = "" if page == "studio" else next(label for name, _, label in NAVIGATION if name == page)
    template = (
        f'<div class="or-header" data-page="{page}" data-title="{title}" data-version="{build_version()}">'
        f'<a class="or-brand" href="{ROOT}/" data-link="studio">'
        f'<img src="{ROOT}{static_path("logo.svg")}" alt="" width="28" height="28">'
        f"<h1>{SITE}</h1></a>"
        '<span class="or-spring"></span>'
        '<label class="or-checkpoint" title="The active checkpoint and its weight version">'
        '<span class="or-sr">Checkpoint</span><select hidden></select></label>'
        f'<nav aria-label="Pages">{links}</nav>'
        '<button type="button" class="or-round or-theme" aria-label="Light or dark"></button>'
        "</div>"
    )
    return module_html("studio/header.js", "mountHeader(element)", template, elem_id=f"or-header-{page}")


def viewer(trace_id: str = "", *, elem_id: str = "or-viewer") -> gr.HTML:
    """The viewer of the trace whose id is its value."""
    template = '<div data-viewer class="or-viewer-place"></div>'
    return module_html(
        "viewer/viewer.js", "mountComponent(element, props, watch)", template, elem_id=elem_id, value=trace_id
    )


def studio_part(name: str, inner: str = "") -> gr.HTML:
    """A component of the Studio (`static/studio/studio.js`): well, examples, viewer, line, samples."""
    mount = f"studio.mount('{name}', element.querySelector('.or-part-{name}'))"
    return module_html("studio/studio.js", mount, f'<div class="or-part-{name}">{inner}</div>', elem_id=f"or-{name}")

"""Layout checks for every width: no overlapping texts or controls, nothing cut off."""

from __future__ import annotations

from typing import Any

from tests.e2e.browser import becomes, fits

# From 320 (a small phone) to 1920: a common phone, and the narrowest of each range between the breakpoints 640, 900 and
# 1180, where things are closest together.
WIDTHS = (320, 390, 641, 901, 1181, 1920)

SETTLED_MS = 60_000  # an upper bound for all transitions, even on a very busy machine

# Visible texts and controls that overlap by more than two pixels both ways, are cut off by a box with hidden overflow,
# or leave their button. Scrollable and ellipsised content may be cut; bars at the edge of the screen may cover others.
WRONG = """() => {
  const SLACK = 2;
  const CONTROLS = 'button, a[href], input:not([type=file]), select, textarea, summary';
  const find = (selector) => document.querySelector(selector);
  const root = find('dialog[open]') ?? find('.gradio-container') ?? document.body;
  const wrong = new Set();
  const words = (node) => node.textContent.trim().slice(0, 30);
  const name = (e) => `${e.tagName}.${String(e.className.baseVal ?? e.className).split(' ')[0]}`;
  const shown = (e) => e.checkVisibility({ visibilityProperty: true, opacityProperty: true }) && !e.closest('.or-sr');
  const styles = new Map();
  const style = (e) => styles.get(e) ?? styles.set(e, getComputedStyle(e)).get(e);
  const layer = (e) => {
    for (let one = e; one && one !== root; one = one.parentElement) {
      if (['fixed', 'sticky'].includes(style(one).position)) return one;
    }
    return root;
  };
  // What the boxes around it leave of a box; null when that is nothing.
  const left = (e, box, inner) => {
    const seen = { left: box.left, right: box.right, top: box.top, bottom: box.bottom };
    for (let one = inner ? e.parentElement : e; one && one !== root.parentElement; one = one.parentElement) {
      const { display, overflowX, overflowY, textOverflow, webkitLineClamp } = style(one);
      if (display === 'contents' || (overflowX === 'visible' && overflowY === 'visible')) continue;
      const clip = one.getBoundingClientRect();
      if (clip.width < 2 || clip.height < 2) return null; // for screen readers only
      const across = seen.left < clip.left - 1 || seen.right > clip.right + 1;
      const along = seen.top < clip.top - 1 || seen.bottom > clip.bottom + 1;
      const says = textOverflow === 'ellipsis' || webkitLineClamp !== 'none';
      const hides = (value) => value === 'hidden' || value === 'clip';
      if (!says && ((across && hides(overflowX)) || (along && hides(overflowY)))) {
        wrong.add(`cut: "${words(e)}" of ${name(e)} by ${name(one)}`);
      }
      seen.left = Math.max(seen.left, clip.left);
      seen.right = Math.min(seen.right, clip.right);
      seen.top = Math.max(seen.top, clip.top);
      seen.bottom = Math.min(seen.bottom, clip.bottom);
    }
    return seen.right - seen.left > 1 && seen.bottom - seen.top > 1 ? seen : null;
  };
  const items = [];
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const e = node.parentElement;
    if (!words(node) || ['SCRIPT', 'STYLE', 'OPTION', 'TEXTAREA'].includes(e.tagName) || !shown(e)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const control = e.closest('button, summary, nav a')?.getBoundingClientRect();
    for (const rect of range.getClientRects()) {
      const box = rect.width > 1 && left(e, rect, false);
      if (!box) continue;
      items.push({ e, node, box, text: true });
      if (control && (box.left < control.left - 1 || box.right > control.right + 1)) {
        wrong.add(`too wide for its control: "${words(node)}" of ${name(e)}`);
      }
    }
  }
  for (const e of root.querySelectorAll(CONTROLS)) {
    if (!shown(e)) continue;
    for (const rect of e.getClientRects()) { // a link within a text has one a line
      const box = rect.width > 1 && left(e, rect, true);
      if (box) items.push({ e, node: e, box, text: false });
    }
  }
  const related = (a, b) => (a.text && b.text ? a.e === b.e : a.node.contains(b.node) || b.node.contains(a.node));
  for (const item of items) item.layer = layer(item.e);
  items.sort((a, b) => a.box.top - b.box.top);
  items.forEach((a, k) => {
    for (let next = k + 1; next < items.length; next += 1) {
      const b = items[next];
      if (b.box.top >= a.box.bottom - SLACK) break; // so are all that follow
      const wide = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
      const high = Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top);
      if (wide > SLACK && high > SLACK && a.layer === b.layer && !related(a, b)) {
        wrong.add(`overlap: "${words(a.node)}" of ${name(a.e)} and "${words(b.node)}" of ${name(b.e)}`);
      }
    }
  });
  return [...wrong];
}"""


def stands_well(page: Any, widths: tuple[int, ...] = WIDTHS, *, settled_ms: float = SETTLED_MS) -> None:
    """Walks through the widths; fails at the first one with overflow, overlaps or cuts."""
    for width in widths:
        fits(page, width)
        becomes(page, WRONG, [], timeout_ms=settled_ms, what=f"{width} px")

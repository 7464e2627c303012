"""What must hold of a page's layout at every width: no two texts or controls lie on each other, nothing is cut off."""

from __future__ import annotations

from typing import Any

from tests.e2e.browser import becomes, fits

# 320 (a small phone) to 1920, closer together where the pages fold.
WIDTHS = (320, 360, 400, 480, 560, 620, *range(636, 781, 12), 840, 896, 904, 960, 1080, 1176, 1184, 1280, 1600, 1920)

# Every pair of visible texts and controls that share more than two pixels both ways, and every one that a box with
# hidden overflow cuts. What scrolls, what ends in an ellipsis, and bars that stay at the edge of the screen may cover.
WRONG = """() => {
  const root = document.querySelector('dialog[open]') ?? document.querySelector('.gradio-container, main') ?? document.body;
  const SLACK = 2;
  const name = (e) => `${e.tagName.toLowerCase()}.${String(e.className.baseVal ?? e.className).split(' ')[0]}#${e.closest('[id]')?.id ?? ''}`;
  const shown = (e) => e.checkVisibility({ visibilityProperty: true, opacityProperty: true })
    && !e.closest('.or-sr, [aria-hidden=true] > canvas');
  const styles = new Map();
  const style = (e) => styles.get(e) ?? styles.set(e, getComputedStyle(e)).get(e);
  const layer = (e) => {
    for (let one = e; one && one !== root; one = one.parentElement) {
      if (['fixed', 'sticky'].includes(style(one).position)) return one;
    }
    return root;
  };
  const wrong = [];
  // The part of a box that its clipping ancestors leave; says when one of them cuts it where nobody can scroll.
  const visible = (e, box, what) => {
    let { left, right, top, bottom } = box;
    for (let one = e; one && one !== root.parentElement; one = one.parentElement) {
      const s = style(one);
      if (s.display === 'contents' || (s.overflowX === 'visible' && s.overflowY === 'visible')) continue;
      if (one === e && what === 'control') continue;
      const clip = one.getBoundingClientRect();
      if (clip.width < 2 || clip.height < 2) return null; // for screen readers only
      const across = left < clip.left - 1 || right > clip.right + 1;
      const along = top < clip.top - 1 || bottom > clip.bottom + 1;
      const told = s.textOverflow === 'ellipsis' || s.webkitLineClamp !== 'none';
      const hides = (value) => value === 'hidden' || value === 'clip';
      if (!told && ((across && hides(s.overflowX)) || (along && hides(s.overflowY)))) wrong.push(`cut: ${what} "${e.textContent.trim().slice(0, 30)}" of ${name(e)} by ${name(one)}`);
      left = Math.max(left, clip.left); right = Math.min(right, clip.right);
      top = Math.max(top, clip.top); bottom = Math.min(bottom, clip.bottom);
    }
    return right - left > 1 && bottom - top > 1 ? { left, right, top, bottom } : null;
  };
  const items = [];
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const e = node.parentElement;
    if (!node.textContent.trim() || ['SCRIPT', 'STYLE', 'OPTION', 'TEXTAREA'].includes(e.tagName) || !shown(e)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const rect of range.getClientRects()) {
      const box = rect.width > 1 && visible(e, rect, 'text');
      if (!box) continue;
      items.push({ e, node, box, text: true });
      const control = e.closest('button, summary, nav a')?.getBoundingClientRect();
      if (control && (box.left < control.left - 1 || box.right > control.right + 1)) wrong.push(`too wide for its control: "${node.textContent.trim().slice(0, 30)}" of ${name(e)}`);
    }
  }
  for (const e of root.querySelectorAll('button, a[href], input:not([type=file]), select, textarea, summary')) {
    const rect = e.getBoundingClientRect();
    if (!shown(e) || rect.width < 2) continue;
    const box = visible(e, rect, 'control');
    if (box) items.push({ e, node: e, box, text: false });
  }
  for (let i = 0; i < items.length; i += 1) {
    for (let k = i + 1; k < items.length; k += 1) {
      const [a, b] = [items[i], items[k]];
      if (a.node === b.node || (!a.text && b.e !== a.e && a.e.contains(b.node)) || (!b.text && b.e.contains(a.node)) || (!a.text && a.e.contains(b.node))) continue;
      if (a.text && b.text && a.e === b.e) continue; // lines of one paragraph
      const wide = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
      const high = Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top);
      if (wide <= SLACK || high <= SLACK || layer(a.e) !== layer(b.e)) continue;
      const words = ({ e, node }) => `${name(e)} "${node.textContent.trim().slice(0, 30)}"`;
      wrong.push(`overlap ${Math.round(wide)}x${Math.round(high)}: ${words(a)} | ${words(b)}`);
    }
  }
  return [...new Set(wrong)];
}"""


def stands_well(page: Any, widths: tuple[int, ...] = WIDTHS) -> None:
    """Walks through the widths; fails with the first one at which something overlaps or is cut off."""
    for width in widths:
        fits(page, width)
        becomes(page, WRONG, [])

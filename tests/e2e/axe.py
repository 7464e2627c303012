"""axe-core on a page, with all its rules except those of level AAA and deprecated ones."""

from __future__ import annotations

from typing import Any

# Includes the experimental rules, such as label-content-name-mismatch.
RUN = """async (only) => {
  const rules = axe.getRules().filter(({ tags }) => !tags.includes('wcag2aaa') && !tags.includes('deprecated'));
  const runOnly = { type: 'rule', values: only ?? rules.map(({ ruleId }) => ruleId) };
  const { violations } = await axe.run(document, { resultTypes: ['violations'], runOnly });
  return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 120)).join(' | ')}`);
}"""

# The rules whose result depends on the colour scheme or the width.
LOOKS = ("color-contrast", "link-in-text-block", "target-size")

# After a change of scheme or width: until every transition has ended, axe would see colours that are neither's.
SETTLED = """async () => {
  for (let calm = 0; calm < 2; ) {
    await new Promise((seen) => requestAnimationFrame(() => requestAnimationFrame(seen)));
    const moving = document.getAnimations().filter((one) => one instanceof CSSTransition);
    await Promise.allSettled(moving.map(({ finished }) => finished));
    calm = moving.length ? 0 : calm + 1;
  }
}"""


def violations(page: Any, rules: tuple[str, ...] | None = None) -> list[str]:
    """axe's findings as `rule: markup | markup`, of these rules or all, once the page's colours have settled."""
    from axe_playwright_python.base import AXE_SCRIPT

    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    page.evaluate(SETTLED)
    return list(page.evaluate(RUN, rules))

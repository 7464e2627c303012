"""axe-core on a page, with all its rules but those of level AAA (and those that axe has given up)."""

from __future__ import annotations

from typing import Any

# The experimental rules too: label-content-name-mismatch is one of them.
RUN = """async () => {
  const rules = axe.getRules().filter(({ tags }) => !tags.includes('wcag2aaa') && !tags.includes('deprecated'));
  const runOnly = { type: 'rule', values: rules.map(({ ruleId }) => ruleId) };
  const { violations } = await axe.run(document, { resultTypes: ['violations'], runOnly });
  return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 120)).join(' | ')}`);
}"""


def violations(page: Any) -> list[str]:
    """What axe finds, as `rule: markup | markup`."""
    from axe_playwright_python.base import AXE_SCRIPT

    page.evaluate(AXE_SCRIPT)
    return list(page.evaluate(RUN))

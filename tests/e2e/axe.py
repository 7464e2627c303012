"""axe-core on a page, with all its rules except those of level AAA and deprecated ones."""

from __future__ import annotations

from typing import Any

# Includes the experimental rules, such as label-content-name-mismatch.
RUN = """async () => {
  const rules = axe.getRules().filter(({ tags }) => !tags.includes('wcag2aaa') && !tags.includes('deprecated'));
  const runOnly = { type: 'rule', values: rules.map(({ ruleId }) => ruleId) };
  const { violations } = await axe.run(document, { resultTypes: ['violations'], runOnly });
  return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 120)).join(' | ')}`);
}"""


def violations(page: Any) -> list[str]:
    """axe's findings as `rule: markup | markup`."""
    from axe_playwright_python.base import AXE_SCRIPT

    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    return list(page.evaluate(RUN))

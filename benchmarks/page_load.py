r"""Time until a page of `patchindex explain --html` can be used, in headless Chromium.

    patchindex explain samples -o explained --html explained/sample.html
    python benchmarks/page_load.py explained/sample.html --loads 11 --slower 4

A page is ready when it is drawn and answers, and complete when it also shows the training images. Times are
medians over loads, from the start of the navigation; each load has a browser context of its own. `--slower`
slows the processor down by a factor, to that of a phone for example. Needs playwright and Chromium.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from statistics import median

from common import arguments, report, write_json
from playwright.sync_api import Browser, sync_playwright

MARKS = ("ready", "complete")  # attributes that the page sets on its root
OBSERVE = """
window.marks = {};
new MutationObserver(() => {
  for (const name in document.documentElement?.dataset ?? {}) window.marks[name] ??= performance.now();
}).observe(document, { attributes: true, subtree: true, childList: true });
"""


def main() -> None:
    parser = arguments(__doc__, source=False)
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE")
    parser.add_argument("--loads", type=int, default=11)
    parser.add_argument("--slower", type=float, default=1.0, metavar="FACTOR")
    args = parser.parse_args()
    with sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        rows = []
        for page in args.pages:
            loads = [load(browser, page, args.slower) for _ in range(args.loads)]
            times = {f"{name}, ms": median(each[name] for each in loads) for name in MARKS}
            rows.append({"page": page.name, "bytes": page.stat().st_size, **times})
        browser.close()
    formats = {"page": "s", "bytes": ",d"} | {f"{name}, ms": ".0f" for name in MARKS}
    report(rows, formats, f"{args.loads} loads, processor slowed {args.slower:g} times")
    write_json(args.json, rows=rows)


def load(browser: Browser, path: Path, slower: float) -> dict[str, float]:
    """Return the milliseconds until each mark of one load."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": slower})
    page.add_init_script(OBSERVE)
    page.goto(path.resolve().as_uri())
    page.wait_for_selector("html[data-complete=true]", timeout=60_000)
    found: dict[str, float] = page.evaluate("window.marks")
    context.close()
    return found


if __name__ == "__main__":
    main()

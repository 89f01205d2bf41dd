"""Takes the picture of the page in docs/demo.md, by a browser without a window.

    PYTHONPATH=. python benchmarks/demo_screenshot.py RUN docs/demo.png [--label 0]

Needs gradio and playwright (requirements-dev.txt), and Chromium: $CHROMIUM, or `chromium` on PATH.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("picture")
    parser.add_argument("--label", default="0")
    parser.add_argument("--steps", default="50")
    parser.add_argument("--scale", default="3", help="of guidance")
    parser.add_argument("--seconds", type=int, default=600, help="to wait for an answer")
    options = parser.parse_args()
    words = [sys.executable, "-m", "repae_jax", "demo", "--workdir", options.run, "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = re.search(r"http://[\d.:]+", server.stdout.readline())[0]
            take(address, options)
        finally:
            server.terminate()


def take(address, options):
    from playwright.sync_api import sync_playwright

    program = (
        os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1100, "height": 1150})
        page.set_default_timeout(1000 * options.seconds)
        page.goto(address)
        page.get_by_text("ready", exact=True).wait_for()
        fields = {"what": options.label, "steps": options.steps, "scale": options.scale}
        for name, value in fields.items():
            field = page.locator(f"#{name} input:not([type=range])").first
            field.fill(value)
            field.press("Enter" if name == "what" else "Tab")
        page.locator("#sample").click()
        page.locator("#message").get_by_text(" images of class ").wait_for()
        page.wait_for_function("document.querySelectorAll('#colors img').length > 0")
        page.wait_for_timeout(2000)
        page.screenshot(path=options.picture)
        print(page.locator("#message").inner_text())
        browser.close()


if __name__ == "__main__":
    main()

"""The page as Gradio's blocks. Importing this module imports Gradio."""

import html
import time
import traceback
from collections.abc import Callable
from typing import Any

import gradio as gr

from repae_jax.demo import actions
from repae_jax.errors import UserError, describe_error
from repae_jax.runs.pipeline import Pipeline
from repae_jax.sampling import chain
from repae_jax.sampling.sampler import METHODS

TITLE = "repae_jax"
_KINDS = {
    "euler": "ODE, Euler",
    "heun": "ODE, Heun",
    "euler-maruyama": "SDE, Euler-Maruyama",
    "ddpm": "DDPM, with noise (SDE)",
    "ddim": "DDIM, without noise (ODE)",
}
_CSS = """
#message .error { color: #b42318; font-weight: 600 }
#images img, #strip img, #colors img, #pair img, #pair_colors img { image-rendering: pixelated }
"""
_DEVICE = "device"  # requests wait for each other under this name


def build_page(pipeline: Pipeline, name: str) -> gr.Blocks:
    """Make the page of a generator.

    Args:
      pipeline: the generator, shared by all users; a request leaves nothing in it that another
        request could see.
      name: the run's name for the title.
    """
    title = f"{TITLE}: {name}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 600)) as page:
        gr.Markdown(f"## {TITLE}")
        gr.HTML(html.escape(f"{name}, step {pipeline.step}: {pipeline.describe()}"))
        message = gr.HTML(_line("ready"), elem_id="message")
        with gr.Tab("Sample"):
            _sampling(pipeline, message)
        with gr.Tab("Reconstruct"):
            _reconstruction(pipeline, message)
    page.queue(default_concurrency_limit=1, max_size=64, api_open=False)
    return page


def page_options() -> dict[str, Any]:
    """The arguments of `gr.mount_gradio_app`: looks, limits, and nothing from outside."""
    return dict(
        theme=gr.themes.Default(),  # its fonts are in the package
        css=_CSS,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        show_error=True,
        max_file_size=10 * actions.MOST_BYTES,  # beyond this Gradio refuses without a word
    )


def _sampling(pipeline, message):
    sampling = pipeline.config.sampling
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            what, negative = _condition(pipeline)
            count = gr.Number(8, label="images", precision=0, elem_id="count")
            steps = gr.Number(sampling.steps, label="steps", precision=0, elem_id="steps")
            method = gr.Dropdown(
                [(_KINDS[name], name) for name in _methods(pipeline)],
                value=sampling.method,
                label="sampler",
                elem_id="method",
            )
            with gr.Group(visible=pipeline.is_guidable):
                scale = gr.Slider(
                    0, 10, _guidance(pipeline), step=0.1, label="guidance scale (1: none)",
                    elem_id="scale",
                )  # fmt: skip
                low = gr.Slider(
                    0, 1, sampling.guidance_low, step=0.01, label="guided from time (0: data)",
                    elem_id="low",
                )  # fmt: skip
                high = gr.Slider(
                    0, 1, sampling.guidance_high, step=0.01, label="to time (1: noise)",
                    elem_id="high",
                )  # fmt: skip
            seed = gr.Number(0, label="seed", precision=0, elem_id="seed")
            button = gr.Button("Sample", variant="primary", elem_id="sample")
        with gr.Column(scale=3):
            images = _picture("Images", "images")
            strip = _picture("Intermediate steps", "strip")
            colors = _picture("Latents: their principal components as colors", "colors")

    def run(what, count, steps, method, scale, low, high, seed, negative=""):
        return actions.sample(
            pipeline, what=what, count=count, steps=steps, method=method, scale=scale, low=low,
            high=high, seed=seed, negative=negative,
        )  # fmt: skip

    inputs = [what, count, steps, method, scale, low, high, seed]
    inputs += [] if negative is None else [negative]
    outputs = [images, strip, colors, message]
    gr.on(
        [button.click, seed.submit, steps.submit, count.submit],
        _answer(run, len(outputs)),
        inputs,
        outputs,
        concurrency_id=_DEVICE,
        api_name="sample",
    )


def _reconstruction(pipeline, message):
    side = pipeline.config.data.resolution
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            file = gr.File(label="a picture", elem_id="file")
            most = actions.MOST_BYTES >> 20
            gr.HTML(f"At most {most} MiB. Its middle is cut out and resized to {side} x {side}.")
            button = gr.Button("Reconstruct", variant="primary", elem_id="reconstruct")
        with gr.Column(scale=3):
            pair = _picture("Cropped picture, reconstruction", "pair")
            colors = _picture("Latents: their principal components as colors", "pair_colors")
    outputs = [pair, colors, message]
    gr.on(
        [button.click],
        _answer(lambda path: actions.reconstruct(pipeline, path), len(outputs)),
        [file],
        outputs,
        concurrency_id=_DEVICE,
        api_name="reconstruct",
    )


def _condition(pipeline):
    """The field of the class or prompt, and that of the negative prompt or None."""
    if pipeline.takes_prompts:
        what = gr.Textbox(label="prompt", lines=2, elem_id="what")
        visible = pipeline.is_guidable
        return what, gr.Textbox(label="negative prompt", visible=visible, elem_id="negative")
    names = pipeline.class_names or [""] * pipeline.config.data.num_classes
    choices = [(f"{number} {name}".strip(), str(number)) for number, name in enumerate(names)]
    choices += [("none", actions.NO_CLASS)] if pipeline.is_guidable else []
    what = gr.Dropdown(
        choices, value=choices[0][1], label="class (number or name)", allow_custom_value=True,
        elem_id="what",
    )  # fmt: skip
    return what, None


def _methods(pipeline):
    return chain.METHODS if pipeline.config.sampling.method in chain.METHODS else METHODS


def _guidance(pipeline):
    """The configuration's scale, or one that shows what guidance does; 1 without a null class."""
    given = pipeline.config.sampling.guidance_scale
    return 1.5 if given == 1.0 and pipeline.is_guidable else given


def _picture(title, name):
    """A picture below its title; Gradio's own label would cover a corner of it."""
    gr.Markdown(title)
    return gr.Image(
        label=title,
        show_label=False,
        type="numpy",
        format="png",
        interactive=False,
        elem_id=name,
        buttons=["download"],
    )


def _answer(action: Callable, count: int) -> Callable:
    """An event's function: the pictures and the message of `action`, or the line of its error.

    After an error the pictures stay as they are.
    """

    def answer(*values):
        try:
            *pictures, line = action(*values)
        except Exception as error:  # one user's request must not end the server
            if not isinstance(error, UserError):
                traceback.print_exception(error)
            line = describe_error(error)[1].removeprefix("error: ")
            return [*[gr.skip()] * (count - 1), _line(line, "error")]
        return [*pictures, _line(line)]

    return answer


def _line(text, kind="done"):
    """A line as HTML; its time tells two answers with the same text apart."""
    now = time.monotonic_ns()
    return f'<p class="{kind}" role="status" data-time="{now}">{html.escape(text)}</p>'

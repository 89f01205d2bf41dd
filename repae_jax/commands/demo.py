"""The `demo` command."""

import argparse

from repae_jax.commands.options import DEFAULT, add_step

_CLOSING = 2.0  # seconds that a computation has to end
SUMMARY = "open a page in the browser that samples from a run"
EPILOG = """\
The page samples images of a class or prompt, with steps, guidance and its interval, seed and
sampler (ODE or SDE) to choose; it shows intermediate steps and the latents as colors, and
reconstructs a picture of your own. It needs gradio: pip install gradio

Only this machine reaches it, unless --host names another address; there is no password. It sends
nothing to anybody. The run is only read, and may be training meanwhile. The first sample with
another number of images or steps, another sampler or guidance compiles a program; then it is fast.

examples:
  demo --workdir runs/digits                        then open http://127.0.0.1:7860
  demo --workdir runs/x --step 20000 --port 0       another checkpoint, any free port
  demo --workdir DiT-XL-2-256                       diffusers' DiTPipeline, without a run"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="SOURCE",
        help="a trained run, or what `convert` makes one of: a file, a folder, hf://owner/name",
    )
    add_step(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at " + DEFAULT)
    parser.add_argument("--port", type=int, default=7860, help="port; 0: any free one " + DEFAULT)


def run(options: argparse.Namespace) -> int:
    """Serve the page until a signal ends the command; returns 0.

    Raises:
      UserError: gradio is missing, the port is taken, or the source cannot be opened.
    """
    from repae_jax.demo.server import check_gradio, is_local, open_socket, serve, warn_of_host
    from repae_jax.utils import signals

    check_gradio()
    opened = open_socket(options.host, options.port)
    with opened:
        if not is_local(options.host):
            warn_of_host(options.host)
        from repae_jax.demo.actions import wait_until_idle
        from repae_jax.runs.pipeline import Pipeline

        pipeline = Pipeline.from_pretrained(options.workdir, step=options.step)

        def make_page():
            from repae_jax.demo.page import build_page

            return build_page(pipeline, options.workdir)

        try:
            serve(make_page, opened)
        finally:
            if not wait_until_idle(_CLOSING):
                signals.leave()
    return 0

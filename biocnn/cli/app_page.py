"""The page of `biocnn app`: an image goes in; pictures, measures and files come out. It needs gradio.

The page asks for nothing outside the computer that serves it: gradio's statistics are off, fonts are those of the
reader, and a content policy forbids the browser what is left. What is uploaded and what is made of it lies in one
temporary folder, is deleted after an hour, and at the end.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from biocnn.errors import BiocnnError
from biocnn.inference.counting import Counter
from biocnn.inference.segmentation import Segmenter
from biocnn.inference.sources import SUFFIXES, Reading, channel_names
from biocnn.report.predictions import Model, Settings
from biocnn.report.trial import Trial, try_image

_FIRST_PORT = 7860  # where gradio begins to look for a free one
_KEPT, _LOOKED_FOR = 3600, 600  # seconds that uploads and results stay, and between two looks for what to delete
_WAITING = 20  # images; more are turned away
_POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
_MONO = ["ui-monospace", "Consolas", "monospace"]
_CSS = """
footer { display: none !important; }
.gradio-container { max-width: 1200px !important; margin: auto; }
.grid-wrap { max-height: none !important; overflow-y: visible !important; }
"""


@dataclass(frozen=True)
class Limits:
    """What the page takes.

    Attributes:
        pixels: of an image, also after it was brought to the pixel size of the training.
        upload_bytes: of a file.
    """

    pixels: int = 16_000_000
    upload_bytes: int = 100_000_000


class OwnFilesOnly:
    """Tells the browser, with every answer, to load nothing from elsewhere."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve a request, as ASGI has it."""

        async def send_with_policy(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"content-security-policy", _POLICY)]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


@contextmanager
def served(
    model: Model, checkpoint: str | Path, limits: Limits = Limits(), host: str = "127.0.0.1", port: int | None = None
) -> Iterator[str]:
    """The page of a model, served as long as the block runs.

    Args:
        model: as of :func:`biocnn.load`.
        checkpoint: that it was loaded from.
        limits: of images.
        host: address to listen at; only this computer can reach the default one.
        port: None for the first that is free from 7860.

    Yields:
        The address of the page.

    Raises:
        BiocnnError: if gradio is not installed, or the port is taken.
    """
    with TemporaryDirectory(prefix="biocnn_app_") as folder:
        kept, work = Path(folder) / "kept", Path(folder) / "work"
        work.mkdir()
        os.environ |= {
            "GRADIO_TEMP_DIR": str(kept),
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        try:
            gradio = import_module("gradio")
        except ImportError as error:
            raise BiocnnError("The page needs the package gradio: pip install 'biocnn[app]'.") from error
        page = _page(gradio, model, Path(checkpoint), limits, work)
        page.queue(max_size=_WAITING, default_concurrency_limit=1)  # one image at a time is in memory
        policy = import_module("starlette.middleware").Middleware(OwnFilesOnly)
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                share=False,
                quiet=True,
                show_error=True,
                max_file_size=limits.upload_bytes,
                ssr_mode=False,
                pwa=False,
                footer_links=[],
                theme=gradio.themes.Default(font=_FONTS, font_mono=_MONO),
                css=_CSS,
                app_kwargs={"middleware": [policy]},
            )
        except OSError as error:
            raise BiocnnError(f"{host}, port {port or _FIRST_PORT}: {error} Choose another by --port.") from error
        try:
            yield address
        finally:
            page.close(verbose=False)


def _page(gradio: Any, model: Model, checkpoint: Path, limits: Limits, work: Path) -> Any:
    """The page, a `gradio.Blocks`, whose predictions are made in a folder `work`."""
    with gradio.Blocks(
        title=f"biocnn: {checkpoint.name}", analytics_enabled=False, delete_cache=(_LOOKED_FOR, _KEPT)
    ) as page:
        gradio.Markdown(_about(model, checkpoint))
        with gradio.Row():
            with gradio.Column(scale=1):
                upload = gradio.File(
                    label=f"Image, up to {limits.upload_bytes / 1e6:,.0f} MB and {limits.pixels / 1e6:,.0f} million px",
                    file_types=[suffix for suffix in SUFFIXES if suffix != ".zarr"],  # a folder cannot be dropped
                    height=160,
                )
                with gradio.Accordion("How it is read", open=False):
                    channels = gradio.Textbox(
                        label="Channels", value="", info="names or numbers, with commas; empty: all"
                    )
                    plane = gradio.Number(label="Plane of a stack", info="from 0; empty: the first", value=None)
                    size = gradio.Number(label="Pixel size in um", info="empty: what the file says", value=None)
                    graph = gradio.Dropdown(
                        ["skeleton", "bridged", "global", "none"],
                        value="skeleton",
                        label="Graph",
                        visible=isinstance(model, Segmenter),
                    )
                again = gradio.Button("Predict again")
            with gradio.Column(scale=3):
                headline = gradio.Markdown("Drop an image on the left.")
                pictures = gradio.Gallery(label="Pictures", columns=2, height="auto", object_fit="contain")
                measures = gradio.Dataframe(
                    headers=["measure", "value"], label="Measures, named as in the table", interactive=False
                )
                with gradio.Row():
                    table = gradio.DownloadButton("Table (CSV)", interactive=False)
                    archive = gradio.DownloadButton("All files (ZIP)", interactive=False)

        def predict(
            path: str | None, channel_text: str | None, page_number: float | None, um: float | None, method: str
        ) -> Iterator[list[Any]]:
            if path is None:
                raise gradio.Error("Drop an image first.", print_exception=False)
            # Files that are yielded are copied to those that are kept, before the function goes on and deletes its own.
            with TemporaryDirectory(dir=work) as folder:
                try:
                    settings = _settings(channel_text, page_number, um, method, limits)
                    yield _shown(gradio, try_image(model, checkpoint, path, Path(folder), settings))
                except BiocnnError as error:
                    yield [f"## Not predicted\n\n{error}", None, None, *[gradio.DownloadButton(interactive=False)] * 2]
                    raise gradio.Error(str(error), print_exception=False) from error

        gradio.on(
            [upload.upload, again.click],
            predict,
            [upload, channels, plane, size, graph],
            [headline, pictures, measures, table, archive],
            show_progress_on=pictures,
            api_name="predict",
        )
    return page


def _shown(gradio: Any, trial: Trial) -> list[Any]:
    """Values of headline, pictures, measures, and both buttons."""
    return [
        "\n\n".join([f"## {trial.headline}", *trial.notes]),
        [(str(file), caption) for file, caption in trial.pictures],
        [[name, _number(value)] for name, value in trial.measures.items()],
        gradio.DownloadButton(value=str(trial.table), interactive=True),
        gradio.DownloadButton(value=str(trial.archive), interactive=True),
    ]


def _number(value: float) -> str:
    """For people: whole numbers as they are, of others as much as is worth reading."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def _settings(channels: str | None, plane: float | None, size_um: float | None, graph: Any, limits: Limits) -> Settings:
    """Settings of a prediction from what was written into the page."""
    if plane is not None and (plane < 0 or plane != int(plane)):
        raise BiocnnError(f"Plane of a stack: expected a whole number from 0, received {plane:g}.")
    if size_um is not None and not 0 < size_um < float("inf"):
        raise BiocnnError(f"Pixel size: expected micrometres above 0, received {size_um:g}.")
    named = [word.strip() for word in (channels or "").split(",") if word.strip()]
    reading = Reading(
        page=None if plane is None else int(plane),
        channels=tuple(int(word) if word.isdecimal() else word for word in named) or None,
        pixel_size_um=None if size_um is None else (size_um, size_um),
        max_pixels=limits.pixels,
    )
    return Settings(reading, None if graph == "none" else graph)


def _about(model: Model, checkpoint: Path) -> str:
    """What stands above, Markdown."""
    if isinstance(model, Segmenter):
        job = "Tubular structures"
    else:
        job = "Cell counting" if isinstance(model, Counter) else "Patch classification"
    trained = f"trained on {model.task.data_description.get('manifest') or 'unknown data'}"
    size = model.pixel_size_um
    pixels = "" if size is None else f", {size[0]:g} x {size[1]:g} um per pixel"
    name = Path(*checkpoint.parts[-3:])
    return (
        f"# {job}\n`{name}`, {trained}, channel(s) {', '.join(channel_names(model.task))}{pixels}. "
        "Images unlike those of the training give results without meaning. For research; not a medical device."
    )

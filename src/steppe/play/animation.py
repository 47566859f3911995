"""Write descents as an animation: a GIF, or an MP4 where ffmpeg is installed.

``steppe play`` writes it beside its pictures.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from steppe._shared.files import write_whole
from steppe._shared.progress import progress
from steppe.play.options import ANIMATION_FORMATS
from steppe.play.panels import Track, draw_panels
from steppe.play.results import SweepResult

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_FRAMES = 72
# The last frame is shown this many times.
_HOLD = 15
_PER_SECOND = 15
_DPI = 80
_PALETTE = 96
_HEAD = "#E69F00"
_INKS = (_HEAD, "#D55E00", "#0072B2", "#FFFFFF", "#000000")

Frame = np.ndarray


def check_format(name: str) -> None:
    """Check that an animation of this format, "gif", "mp4" or "none", can be made.

    Raises
    ------
    ValueError
        There is no such format, or it is "mp4" and ffmpeg is not installed.
    """
    if name not in ANIMATION_FORMATS:
        raise ValueError(f"animation must be one of {', '.join(ANIMATION_FORMATS)}, got {name!r}")
    if name == "mp4" and shutil.which("ffmpeg") is None:
        raise ValueError(
            "animation mp4 needs the program ffmpeg, which is not installed: install it (such as "
            "apt-get install ffmpeg), or take --animation gif"
        )


def animate(result: SweepResult, path: Path) -> None:
    """Write the descents as a GIF or MP4, by the file's suffix.

    At most 72 steps are shown, closer together at the beginning, where the paths move most. If it
    fails, a file that was there before stays as it was.

    Raises
    ------
    OSError
        The file cannot be written.
    ValueError
        ffmpeg failed.
    """
    write = _write_mp4 if path.suffix == ".mp4" else _write_gif
    with progress("Animation", None):
        frames = list(_frames(result))
    write_whole(path, lambda file: write(frames, file))


def _frames(result: SweepResult) -> Iterator[Frame]:
    """Draw the loss surface once, and over a copy of it the paths up to each frame's step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure, tracks = draw_panels(result)
    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    clock = figure.text(0.995, 0.995, "", ha="right", va="top", fontsize=11)
    moving: list[tuple[Artist, Axes | Figure]] = [(clock, figure)]
    trails, heads = [], []
    for track in tracks:
        trails.append([_trail(track) for _ in track.x] if track.has_line else [])
        (head,) = track.axes.plot([], [], "o", ms=5, color=_HEAD, mec="black", mew=0.6, zorder=5)
        heads.append(head)
        moving += [(artist, track.axes) for artist in (*trails[-1], head)]
    for artist, _ in moving:
        artist.set_animated(True)
    canvas.draw()
    background = canvas.copy_from_bbox(figure.bbox)
    for step in _frame_steps(result.steps):
        canvas.restore_region(background)
        clock.set_text(f"step {step}")
        for track, lines, head in zip(tracks, trails, heads, strict=True):
            for line, x, y in zip(lines, track.x, track.y, strict=False):
                line.set_data(x[: step + 1], y[: step + 1])
            head.set_data(track.x[:, step], track.y[:, step])
        for artist, owner in moving:
            owner.draw_artist(artist)
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _trail(track: Track) -> "Line2D":
    (line,) = track.axes.plot([], [], color=track.colour, lw=1.0, alpha=0.85)
    return line


def _frame_steps(steps: int) -> list[int]:
    shares = np.linspace(0, 1, min(_FRAMES, steps + 1))
    power = 1.0 if steps < _FRAMES else 1.5
    return sorted({round(steps * share**power) for share in shares})


def _write_gif(frames: list[Frame], file: IO[bytes]) -> None:
    from PIL import Image, ImageColor

    # One palette for all frames, or the surface would flicker. Quantizing by area would drop the
    # colours of small marks, so these are added.
    palette = Image.fromarray(frames[-1]).quantize(_PALETTE)
    counted = (palette.getpalette() or [])[: 3 * _PALETTE]
    palette.putpalette([*counted, *(part for ink in _INKS for part in ImageColor.getrgb(ink))])
    first, *others = (
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    )
    durations = [1000 // _PER_SECOND] * len(others) + [1000 * _HOLD // _PER_SECOND]
    first.save(
        file, "GIF", save_all=True, append_images=others, duration=durations, loop=0, optimize=True
    )


def _write_mp4(frames: list[Frame], file: IO[bytes]) -> None:
    height, width = frames[0].shape[:2]
    raw = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {_PER_SECOND} -i -"
    # Many video players need 4:2:0 colours and even sides, and browsers an index in front.
    coded = (
        "-vf crop=trunc(iw/2)*2:trunc(ih/2)*2 -pix_fmt yuv420p -movflags frag_keyframe+empty_moov"
    )
    command = ["ffmpeg", "-loglevel", "error", *raw.split(), *coded.split(), "-f", "mp4", "-"]
    shown = b"".join(frame.tobytes() for frame in [*frames, *[frames[-1]] * _HOLD])
    done = subprocess.run(command, input=shown, capture_output=True, check=False)
    if done.returncode:
        raise ValueError(f"ffmpeg failed: {done.stderr.decode(errors='replace').strip()}")
    file.write(done.stdout)

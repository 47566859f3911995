"""Run optimizers on test functions whose minima are known, and draw where they go.

``steppe play`` and the figures are made with it. Other rooms and scripts import from here. A name
is imported when it is first used, as drawing needs packages that ``import steppe`` does not.

- One optimizer: :func:`find_recipe`, :func:`descend`, :class:`Descent`, :func:`classify_ends`,
  :class:`EndPoint`, :data:`GLOBAL`, :func:`median_final_loss`.
- Several optimizers and learning rates: :func:`plan_sweep`, :class:`Sweep`, :func:`draw_starts`,
  :class:`SweepResult`, :class:`OptimizerResult`.
- Pictures: :func:`sample_surface`, :class:`SurfaceGrid`, :func:`draw_contour_panel`,
  :func:`draw_track`, :func:`draw_losses`, :func:`legend_handles`.
- The command of ``steppe``: :func:`play_command`.
"""

from typing import TYPE_CHECKING

from steppe._shared.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from steppe._shared.recipes import find_recipe as find_recipe
    from steppe.play.command import play as play_command
    from steppe.play.descent import Descent as Descent
    from steppe.play.descent import descend as descend
    from steppe.play.end_points import GLOBAL as GLOBAL
    from steppe.play.end_points import EndPoint as EndPoint
    from steppe.play.end_points import classify_ends as classify_ends
    from steppe.play.panels import draw_contour_panel as draw_contour_panel
    from steppe.play.pictures import draw_losses as draw_losses
    from steppe.play.pictures import draw_track as draw_track
    from steppe.play.pictures import legend_handles as legend_handles
    from steppe.play.results import OptimizerResult as OptimizerResult
    from steppe.play.results import SweepResult as SweepResult
    from steppe.play.surface_grid import SurfaceGrid as SurfaceGrid
    from steppe.play.surface_grid import sample_surface as sample_surface
    from steppe.play.sweep import Sweep as Sweep
    from steppe.play.sweep import draw_starts as draw_starts
    from steppe.play.sweep import median_final_loss as median_final_loss
    from steppe.play.sweep import plan_sweep as plan_sweep

__all__ = [
    "GLOBAL",
    "Descent",
    "EndPoint",
    "OptimizerResult",
    "SurfaceGrid",
    "Sweep",
    "SweepResult",
    "classify_ends",
    "descend",
    "draw_contour_panel",
    "draw_losses",
    "draw_starts",
    "draw_track",
    "find_recipe",
    "legend_handles",
    "median_final_loss",
    "plan_sweep",
    "play_command",
    "sample_surface",
]
__getattr__, __dir__ = lazy_imports(__name__)

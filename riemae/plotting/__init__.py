"""Pictures of a latent space and of what its geometry says, one kind of picture a file.

Every function draws into ``ax`` and returns it; without one it makes a figure of its own, which is
``ax.figure``. Nothing is shown, and no setting of matplotlib is changed. Colours can be told apart
by people with any common kind of colour blindness. Points, images and matrices are tensors of any
floating dtype on any device, or what numpy makes an array of. ``docs/figures.md`` shows them.
"""

from riemae.plotting.balls import balls
from riemae.plotting.colours import plane_colours
from riemae.plotting.comparison import error_against_time, time_bars
from riemae.plotting.curves import curves, geodesics
from riemae.plotting.distances import distance_field
from riemae.plotting.ellipses import indicatrices, spread_points
from riemae.plotting.images import decoded, strip, strips
from riemae.plotting.maps import condition_number, curvature, distortion, field, magnification
from riemae.plotting.matrices import matrix
from riemae.plotting.movies import gif
from riemae.plotting.overview import latent
from riemae.plotting.scatter import codes, region
from riemae.plotting.spectra import distance_spectrum, metric_spectrum
from riemae.plotting.training import history

__all__ = [
    "balls",
    "codes",
    "condition_number",
    "curvature",
    "curves",
    "decoded",
    "distance_field",
    "distance_spectrum",
    "distortion",
    "error_against_time",
    "field",
    "geodesics",
    "gif",
    "history",
    "indicatrices",
    "latent",
    "magnification",
    "matrix",
    "metric_spectrum",
    "plane_colours",
    "region",
    "spread_points",
    "strip",
    "strips",
    "time_bars",
]

"""The pictures, on Matplotlib axes (`pip install ctld-optax[plot]`).

:func:`dashboard` draws all there is to see of a run, :func:`bias_filling` a film, :func:`explorer` puts many runs behind
sliders. Every other function draws on `ax` (the current axes if None), returns it, and leaves titles, legends and saving to the
caller; what it draws has labels, so that `ax.legend()` is enough. Colours are Okabe and Ito's and Matplotlib's
cividis, which colour-blind readers can tell apart and which stay apart in grey.
"""

from ctld_optax.plotting._dashboard import dashboard as dashboard
from ctld_optax.plotting._explorer import Explorer as Explorer
from ctld_optax.plotting._explorer import explorer as explorer
from ctld_optax.plotting._filling import bias_filling as bias_filling
from ctld_optax.plotting._pictures import BLUE as BLUE
from ctld_optax.plotting._pictures import GREEN as GREEN
from ctld_optax.plotting._pictures import ORANGE as ORANGE
from ctld_optax.plotting._pictures import PALETTE as PALETTE
from ctld_optax.plotting._pictures import PURPLE as PURPLE
from ctld_optax.plotting._pictures import SKY as SKY
from ctld_optax.plotting._pictures import STYLE as STYLE
from ctld_optax.plotting._pictures import VERMILLION as VERMILLION
from ctld_optax.plotting._pictures import YELLOW as YELLOW
from ctld_optax.plotting._pictures import alpha_occupation as alpha_occupation
from ctld_optax.plotting._pictures import bias_potential as bias_potential
from ctld_optax.plotting._pictures import kinetic_temperature as kinetic_temperature
from ctld_optax.plotting._pictures import mark_switch as mark_switch
from ctld_optax.plotting._pictures import phase_portrait as phase_portrait
from ctld_optax.plotting._pictures import sample_cloud as sample_cloud
from ctld_optax.plotting._pictures import temperature_ramp as temperature_ramp
from ctld_optax.plotting._pictures import temperature_trajectory as temperature_trajectory

__all__ = [
    "Explorer",
    "alpha_occupation",
    "bias_filling",
    "bias_potential",
    "dashboard",
    "explorer",
    "kinetic_temperature",
    "mark_switch",
    "phase_portrait",
    "sample_cloud",
    "temperature_ramp",
    "temperature_trajectory",
]

"""Continuously tempered Langevin dynamics for JAX, as an Optax gradient transformation."""

from ctld_optax import baselines as baselines
from ctld_optax import checkpoint as checkpoint
from ctld_optax import diagnostics as diagnostics
from ctld_optax import posterior as posterior
from ctld_optax import recorder as recorder
from ctld_optax import writers as writers
from ctld_optax._accumulate import AccumulateState as AccumulateState
from ctld_optax._accumulate import accumulate as accumulate
from ctld_optax._ctld import ctld as ctld
from ctld_optax._dynamics.adaptive_force import AdaptiveBiasingForce as AdaptiveBiasingForce
from ctld_optax._dynamics.coupling import Hamiltonian as Hamiltonian
from ctld_optax._dynamics.coupling import Kinetic as Kinetic
from ctld_optax._dynamics.coupling import Potential as Potential
from ctld_optax._dynamics.coupling import Standardized as Standardized
from ctld_optax._dynamics.langevin import CTLDState as CTLDState
from ctld_optax._dynamics.langevin import LangevinTransformation as LangevinTransformation
from ctld_optax._dynamics.layers import PerLayer as PerLayer
from ctld_optax._dynamics.metadynamics import Metadynamics as Metadynamics
from ctld_optax._dynamics.minibatch import KnownNoise as KnownNoise
from ctld_optax._dynamics.minibatch import RunningNoise as RunningNoise
from ctld_optax._dynamics.preconditioner import FixedMetric as FixedMetric
from ctld_optax._dynamics.preconditioner import metric_from_hessian as metric_from_hessian
from ctld_optax._dynamics.prior import Prior as Prior
from ctld_optax._dynamics.second_moment import LayerScale as LayerScale
from ctld_optax._dynamics.second_moment import SecondMoment as SecondMoment
from ctld_optax._dynamics.tempering import GeometricTempering as GeometricTempering
from ctld_optax._dynamics.tempering import PolynomialTempering as PolynomialTempering
from ctld_optax._handover import hand_over_momentum as hand_over_momentum
from ctld_optax._phase_switch import PhaseSwitchState as PhaseSwitchState
from ctld_optax._phase_switch import phase_switch as phase_switch
from ctld_optax._presets import algorithm1 as algorithm1
from ctld_optax._presets import posterior_sampler as posterior_sampler
from ctld_optax._temperature_ramp import temperature_ramp as temperature_ramp

__version__ = "0.1.0"

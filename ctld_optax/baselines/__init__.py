"""The methods that the paper compares with, as Optax transformations: what `optax` itself does not have.

SGD with momentum, RMSprop and Adam are `optax.sgd`, `optax.rmsprop` and `optax.adam`.
"""

from ctld_optax.baselines._anneal_sgd import anneal_sgd as anneal_sgd
from ctld_optax.baselines._santa import SantaState as SantaState
from ctld_optax.baselines._santa import santa as santa
from ctld_optax.baselines._sghmc import sghmc as sghmc
from ctld_optax.baselines._sgld import sgld as sgld

"""What `asenpp` offers, for type checkers: __init__.py loads it when it is first used."""

from . import amp as amp, checkpoint as checkpoint, config as config, cuda as cuda, data as data, engine as engine
from . import metrics as metrics, models as models, nn as nn, optim as optim, random as random
from . import inference as inference, plots as plots, transforms as transforms
from ._asen import Tensor as Tensor, from_dlpack as from_dlpack, from_numpy as from_numpy
from .basics import arange as arange, cat as cat, full as full, full_like as full_like
from .basics import get_num_threads as get_num_threads, manual_seed as manual_seed, maximum as maximum
from .basics import memory_stats as memory_stats, minimum as minimum, no_grad as no_grad, ones as ones
from .basics import ones_like as ones_like, randn as randn, set_num_threads as set_num_threads, stack as stack
from .basics import tensor as tensor, where as where, zeros as zeros, zeros_like as zeros_like
from .checkpoint import load as load, save as save
from .config import Config as Config, ConfigError as ConfigError, load_config as load_config
from .models import build_model as build_model

__version__: str

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
from .basics import enable_grad as enable_grad, set_grad_enabled as set_grad_enabled
from .basics import is_grad_enabled as is_grad_enabled
from .dtypes import float16 as float16, half as half, bfloat16 as bfloat16, float32 as float32, float as float
from .dtypes import float64 as float64, double as double, uint8 as uint8, int32 as int32, int as int
from .dtypes import int64 as int64, long as long, bool as bool
from .functions import abs as abs, add as add, all as all, amax as amax, amin as amin, any as any
from .functions import argmax as argmax, argmin as argmin, argsort as argsort, chunk as chunk, clamp as clamp
from .functions import clone as clone, div as div, eq as eq, exp as exp, flatten as flatten, gather as gather
from .functions import ge as ge, gt as gt, isfinite as isfinite, isinf as isinf, isnan as isnan, le as le
from .functions import log as log, log_softmax as log_softmax, logical_not as logical_not, lt as lt
from .functions import masked_fill as masked_fill, matmul as matmul, max as max, mean as mean, min as min
from .functions import mul as mul, narrow as narrow, ne as ne, neg as neg, nonzero as nonzero, norm as norm
from .functions import numel as numel, permute as permute, pow as pow, relu as relu, reshape as reshape
from .functions import sigmoid as sigmoid, sign as sign, softmax as softmax, sort as sort, split as split
from .functions import sqrt as sqrt, squeeze as squeeze, std as std, sub as sub, sum as sum, tanh as tanh
from .functions import topk as topk, transpose as transpose, unbind as unbind, unsqueeze as unsqueeze
from .functions import var as var
from .checkpoint import load as load, save as save
from .config import Config as Config, ConfigError as ConfigError, load_config as load_config
from .models import build_model as build_model

__version__: str

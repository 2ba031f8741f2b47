"""Methods of Tensor as functions, under PyTorch's names: asenpp.exp(x) is x.exp(), asenpp.sum(x, dim=0) is x.sum(dim=0).

All under asenpp itself. Their arguments, errors and sources are those of the methods.
"""

from __future__ import annotations

from ._asen import Tensor

__all__ = ["abs", "add", "all", "amax", "amin", "any", "argmax", "argmin", "argsort", "chunk", "clamp", "clone", "div", "eq", "exp",
           "flatten", "gather", "ge", "gt", "isfinite", "isinf", "isnan", "le", "log", "log_softmax", "logical_not", "lt", "masked_fill",
           "matmul", "max", "mean", "min", "mul", "narrow", "ne", "neg", "nonzero", "norm", "numel", "permute", "pow", "relu", "reshape",
           "sigmoid", "sign", "softmax", "sort", "split", "sqrt", "squeeze", "std", "sub", "sum", "tanh", "topk", "transpose", "unbind",
           "unsqueeze", "var"]

abs = Tensor.abs
add = Tensor.add
all = Tensor.all
amax = Tensor.amax
amin = Tensor.amin
any = Tensor.any
argmax = Tensor.argmax
argmin = Tensor.argmin
argsort = Tensor.argsort
chunk = Tensor.chunk
clamp = Tensor.clamp
clone = Tensor.clone
div = Tensor.div
eq = Tensor.eq
exp = Tensor.exp
flatten = Tensor.flatten
gather = Tensor.gather
ge = Tensor.ge
gt = Tensor.gt
isfinite = Tensor.isfinite
isinf = Tensor.isinf
isnan = Tensor.isnan
le = Tensor.le
log = Tensor.log
log_softmax = Tensor.log_softmax
logical_not = Tensor.logical_not
lt = Tensor.lt
masked_fill = Tensor.masked_fill
matmul = Tensor.matmul
max = Tensor.max
mean = Tensor.mean
min = Tensor.min
mul = Tensor.mul
narrow = Tensor.narrow
ne = Tensor.ne
neg = Tensor.neg
nonzero = Tensor.nonzero
norm = Tensor.norm
numel = Tensor.numel
permute = Tensor.permute
pow = Tensor.pow
relu = Tensor.relu
reshape = Tensor.reshape
sigmoid = Tensor.sigmoid
sign = Tensor.sign
softmax = Tensor.softmax
sort = Tensor.sort
split = Tensor.split
sqrt = Tensor.sqrt
squeeze = Tensor.squeeze
std = Tensor.std
sub = Tensor.sub
sum = Tensor.sum
tanh = Tensor.tanh
topk = Tensor.topk
transpose = Tensor.transpose
unbind = Tensor.unbind
unsqueeze = Tensor.unsqueeze
var = Tensor.var

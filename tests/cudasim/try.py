"""Runs ops on the simulated device, on the samples of their rows, and compares with the CPU.

    python tests/cudasim/try.py OUT.so relu add softmax      (no names: every row)

Prints a line an op: the largest difference of outputs and gradients from the CPU's in float64, in each
dtype, or the error; and what the simulator complained about.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from asenpp import _asen  # noqa: E402
from cudasim.sim import Simulator  # noqa: E402
from op_samples import Sample, samples_of  # noqa: E402
from test_ops import SPECS, apply, as_tensor, cotangents, start_backward, to_array  # noqa: E402


def run(sample: Sample, dtype: str, device: str) -> list[np.ndarray]:
    """Outputs, inputs after the call (running statistics move), gradients."""
    tensors = [t if t is None else as_tensor(t, dtype).to(device) for t in sample.arrays]
    differentiable = SPECS[sample.name]["differentiable"]
    for i in sample.gradient_inputs() if differentiable else []:
        tensors[i].requires_grad_()
    out = apply(sample.name, tensors, sample.attrs)
    found = [to_array(t) for t in (*out, *tensors) if t is not None]
    if differentiable and sample.gradient_inputs():
        dys = cotangents(sample, [y.shape for y in out])
        start_backward(out, {k: as_tensor(dy, found[k].dtype).to(device) for k, dy in dys.items()})
        found += [to_array(tensors[i].grad) for i in sample.gradient_inputs()]
    return [a.astype(np.float64) for a in found]


def difference(name: str, dtype: str) -> float:
    worst = 0.0
    for sample in samples_of(SPECS[name]):
        want = run(sample, "float64", "cpu")
        for got, true in zip(run(sample, dtype, "cuda"), want, strict=True):
            assert got.shape == true.shape, f"{sample.text}: {got.shape}"
            if true.size:
                error = np.abs(got - true).max() / max(1.0, float(np.abs(true).max()))
                worst = max(worst, np.inf if np.isnan(error) else error)
    return worst


def main() -> None:
    simulator = Simulator(sys.argv[1])
    for name in sys.argv[2:] or sorted(n for n in SPECS if samples_of(SPECS[n])):
        words = []
        for dtype in ("float32", "float64"):
            try:
                words.append(f"{dtype} {difference(name, dtype):.1e}")
            except Exception as error:  # a tool for people: whatever it was, say it and go on
                words.append(f"{dtype} {type(error).__name__}: {error}")
        print(f"{name:24} " + "   ".join(words), flush=True)
        if simulator.violations():
            print(f"    {simulator.last_violation()}")
            simulator.reset()
    print(f"{simulator.launches()} launches, {simulator.live()} objects alive")


if __name__ == "__main__":
    main()

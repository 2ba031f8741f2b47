"""The moving average of weights on the GPU: the CPU's values, with weights that go there and back in the same bits."""

import numpy as np
import pytest

import asenpp
from asenpp import nn
from asenpp.optim import EMA


def host(tensor):
    return np.array(tensor.to(device="cpu").tolist())


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("float64", 1e-13), ("float16", 2e-6)])
def test_averages_are_the_cpus(dtype, tolerance):
    """Seven updates of parameters and running statistics, float32 averages of 16-bit ones; the model evaluates with
    them inside applied(), and has its own again afterwards."""
    averages = []
    for device in ("cpu", "cuda"):
        asenpp.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(7, 9)).to(dtype).to(device=device)
        ema = EMA(model, 0.9)
        for step in range(7):
            rng = np.random.default_rng(step)
            for tensor in model.state_dict().values():
                tensor.copy_(asenpp.from_numpy(rng.uniform(0.5, 1.5, tensor.shape)).to(dtype=tensor.dtype))
            ema.update()
        state = {name: host(tensor) for name, tensor in ema.state_dict()["model"].items()}
        averages.append(state)
        assert ema.state_dict()["model"]["0.weight"].dtype == ("float64" if dtype == "float64" else "float32")
        assert ema.state_dict()["model"]["0.weight"].device == device
        own = {name: host(tensor) for name, tensor in model.state_dict().items()}
        with ema.applied():
            for name, tensor in model.state_dict().items():
                np.testing.assert_allclose(host(tensor), state[name], rtol=1e-3 if dtype == "float16" else 0)
        for name, tensor in model.state_dict().items():
            np.testing.assert_array_equal(host(tensor), own[name])
    for name in averages[0]:
        np.testing.assert_allclose(averages[1][name], averages[0][name], rtol=tolerance, err_msg=name)

#!/usr/bin/env python3
"""Writes tests/fixtures/: what PyTorch computes, small, so that tests/test_parity_fixtures.py holds ours to it
where PyTorch is absent.

    python scripts/make_parity_fixtures.py        from the checkout, with PyTorch installed

Everything is PyTorch's in float64, from weights and inputs that a seed gives on both sides
(tests/parity_kit.py); only the inputs of ops are stored, in float32. Of each gradient two numbers are kept,
its norm and its product with a random vector. parity.npz is the same, byte for byte, whenever the same
PyTorch writes it on the same machine. Files that PyTorch wrote as checkpoints are kept as they are.
"""

import io
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402 - the paths come first
import torch  # noqa: E402

import checkpoint_kit  # noqa: E402
import parity_fixtures as fixtures  # noqa: E402
import parity_kit as kit  # noqa: E402
import parity_torch  # noqa: E402
from asenpp import models  # noqa: E402
from test_op_parity import pytorchs  # noqa: E402
from op_samples import Sample  # noqa: E402
from test_ops import SPECS, cotangents, rounded  # noqa: E402


def ops():
    """Inputs, attributes (as the sample's text), cotangents and results of a few ops."""
    found = {}
    for name, text in fixtures.OPS:
        sample = rounded(Sample(SPECS[name], text))
        for i, array in enumerate(sample.arrays):
            if array is not None:
                found[f"op {name}/input {i}"] = array.astype(np.float32) if array.dtype == np.float64 else array
        results = pytorchs(sample, None)
        if SPECS[name]["differentiable"]:
            shapes = {int(what.split()[1]): value.shape for what, value in results.items() if what.startswith("output")}
            found |= {f"op {name}/cotangent {k}": dy.astype(np.float32) for k, dy in cotangents(sample, shapes).items()}
        found |= {f"op {name}/{what}": value for what, value in results.items() if not what.endswith("after the call")}
        found |= {f"op {name}/{what}": value for what, value in results.items() if what.startswith("input running_")}
    return found


def steps():
    """A training step and one in inference mode of each model: losses, statistics, gradients, some outputs."""
    found = {}
    for kind in kit.MODELS:
        for training in (True, False):
            cfg, given = fixtures.step_config(kind)
            case = f"{kind} {fixtures.mode(training)}"
            state = kit.seeded_state(models.build_model(cfg), fixtures.SEED)
            if case == fixtures.SETTLED:
                found[f"{case}/shifts"] = fixtures.packed_shifts(state, parity_torch.settled_model(cfg, given, training, fixtures.SEED))
                # What the tests start from, the packing's rounding included.
                state = fixtures.with_shifts(state, found[f"{case}/shifts"])
            results = parity_torch.torch_results(cfg, state, given, "float64", training)
            found |= {f"{case}/{what}": value for what, value in fixtures.summary(results, training).items()}
    return found


def optimizers():
    return {f"optimizer {case}": np.concatenate([p.detach().numpy().reshape(-1) for p in fixtures.optimized(
        torch.optim, torch.optim.lr_scheduler, case, lambda a: torch.nn.Parameter(torch.tensor(a)), torch.tensor)])
        for case in fixtures.OPTIMIZERS}


def trainings():
    found = {}
    for stage, count in fixtures.TRAININGS.items():
        cfg = kit.training_config(stage)
        state = kit.seeded_state(models.build_model(cfg), fixtures.SEED)
        exact = parity_torch.torch_training(cfg, state, count, "float64", fixtures.SEED)[0]
        found[f"training {stage}/losses"] = exact
        found[f"training {stage}/distance"] = np.max([
            np.abs(parity_torch.torch_training(cfg, state, count, "float32", fixtures.SEED, layout)[0] - exact).max()
            for layout in (torch.contiguous_format, torch.channels_last)])
    return found


def write_npz(path, arrays):
    """numpy.savez_compressed with a fixed date, so that the same arrays are the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, value in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asarray(value))
            info = zipfile.ZipInfo(name + ".npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, buffer.getvalue())


def checkpoints(folder):
    content = {name: torch.tensor(value) for name, value in fixtures.checkpoint_arrays().items()}
    content["view"] = content["weight"].permute(0, 2, 3, 1)[:, ::2]      # shares its storage
    content["bfloat16"] = content["weight"].bfloat16()
    for name, zipped in (("zip", True), ("stream", False)):
        torch.save({"epoch": 3, "model": content, "mAP": 0.25}, folder / f"checkpoint_{name}.pth.tar",
                   _use_new_zipfile_serialization=zipped)
    # The old tar knows tensors alone, here all of float32.
    whole = {n: checkpoint_kit.tensor(t.numpy(), "cuda:0") for n, t in content.items() if t.dtype == torch.float32 and n != "view"}
    (folder / "checkpoint_tar.pth.tar").write_bytes(checkpoint_kit.tar_file(whole))


def main():
    torch.set_num_threads(1)
    folder = ROOT / "tests" / "fixtures"
    folder.mkdir(exist_ok=True)
    write_npz(folder / "parity.npz", {"made by": np.array(f"PyTorch {torch.__version__}"), **ops(), **steps(),
                                      **optimizers(), **trainings()})
    checkpoints(folder)
    for path in sorted(folder.iterdir()):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()

"""The real cuDNN has a plan for every convolution of every shipped configuration, on each GPU described.

No GPU is needed: graphs are planned against descriptions of devices (tests/cudnn_plans). These tests
prove that float32 is computed as float32, that every plan repeats its bits, that none is compiled at
run time, that workspaces are bounded, and that the check fails where it must: with the filter off,
TF32 and nondeterministic plans would be chosen, and bfloat16 on a T4 has none.

Skipped where cuDNN, its headers or the folder of descriptions is not there (ASENPP_CUDNN_DEVICES, or
shared/cudnn-devices beside the checkout).
"""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "cudnn_plans"))
import graphs  # noqa: E402
import plans  # noqa: E402

DEVICES = Path(os.environ.get("ASENPP_CUDNN_DEVICES") or ROOT.parent / "shared" / "cudnn-devices")


@pytest.fixture(scope="module")
def devices():
    if not DEVICES.is_dir():
        pytest.skip(f"no descriptions of GPUs in {DEVICES.name}/ beside the checkout (or ASENPP_CUDNN_DEVICES)")
    return plans.devices(DEVICES)


@pytest.fixture(scope="module")
def planner(devices):
    try:
        return plans.build(ROOT / "build" / "cudnn_plans")
    except plans.PlannerError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def shipped():
    return graphs.shipped()


def test_the_graphs_of_the_configurations_are_found(shipped):
    """Both branches of all data sets, training and inference, gradients, and what is fused."""
    where = {name.split()[0] for name in shipped.values()}
    assert len(shipped) > 500 and {"DARN", "Fashion14k", "FashionMNIST", "Garments"} <= where
    assert {graph.kind for graph in shipped} == {graphs.FORWARD, graphs.GRAD_INPUT, graphs.GRAD_WEIGHT}
    fused = {(graph.bias, graph.residual, graph.relu) for graph in shipped}
    assert fused == {(False, False, False), (True, False, False), (True, False, True), (True, True, True)}
    assert any(graph.h == 224 and graph.kh == 7 for graph in shipped)          # the global branch's stem
    assert any(graph.h == 112 and graph.c == 3 for graph in shipped)           # the local branch's
    assert any(graph.o == 2048 for graph in shipped)                           # layer4 of the style models
    stem = [graph for graph in shipped if graph.c == 3]
    assert not any(graph.kind == graphs.GRAD_INPUT for graph in stem), "images want no gradient"


@pytest.mark.parametrize("dtype", plans.DEFAULT)
def test_every_shipped_graph_has_a_plan_that_keeps_its_promises(planner, devices, shipped, dtype):
    rows = [plans.check(planner, device, dtype, list(shipped)) for device in devices]
    print(plans.table(rows))
    wrong = [f"{row.device.name}: {graph} ({shipped[graph]}): {fault}" for row in rows for graph, fault in row.faults]
    assert not wrong, "\n".join(wrong[:50])
    for row in rows:
        assert row.planned == (row.graphs if row.device.runs(dtype) else 0), row


GENERIC = 0     # cuDNN's engine that can do everything: on an H200 a hundredth of the others' rate


def test_no_large_convolution_is_left_to_the_generic_engine(planner, devices, shipped):
    """In float32, where most engines are refused, and filters beyond 1 x 1 (those are products: conv_product.c).
    The workspace that a plan is granted decides this."""
    large = [g for g in shipped if g.kh * g.kw > 1
             and 2.0 * g.n * g.o * g.p * g.q * g.c // g.groups * g.kh * g.kw > 10e9]
    assert len(large) > 100
    for device in devices:
        for graph, answer in zip(large, plans.ask(planner, device, large, "float32")):
            assert answer.plans[0].engine != GENERIC, f"{device.name}: {graph} ({shipped[graph]})"


@pytest.mark.parametrize("dtype", [*plans.DEFAULT, "float64"])
def test_samples_and_odd_shapes_have_plans(planner, devices, dtype):
    cases = {**graphs.samples(), **graphs.odd()}
    rows = [plans.check(planner, device, dtype, list(cases)) for device in devices]
    wrong = [f"{row.device.name}: {graph}: {fault}" for row in rows for graph, fault in row.faults]
    assert not wrong, "\n".join(wrong[:50])


def test_bfloat16_on_a_t4_is_unsupported(planner, devices, shipped):
    old = [device for device in devices if device.sm < 80]
    if not old:
        pytest.skip("no description of a GPU before sm_80")
    for device in old:
        row = plans.check(planner, device, "bfloat16", list(shipped)[::8])
        assert row.planned == 0 and not row.faults
        pretends = device._replace(sm=80)        # a GPU that ought to have them: then it is a fault
        assert len(plans.check(planner, pretends, "bfloat16", list(shipped)[:1]).faults) == 1


def test_the_filter_is_what_refuses_tf32(planner, devices, shipped):
    """Without it a TF32 plan would be run where float32 was asked, and the check says so."""
    some = list(shipped)[::4]
    for device in [device for device in devices if device.sm >= 80]:
        unfiltered = plans.ask(planner, device, some, "float32", wanted=0)
        tf32 = [graph for graph, answer in zip(some, unfiltered) if answer.plans[0].notes & plans.TENSOR_CORE]
        assert len(tf32) > len(some) // 2, device.name
        found = [plans.faults(graph, "float32", device, answer) for graph, answer in zip(some, unfiltered)]
        assert sum(any("TF32" in fault for fault in faults) for faults in found) == len(tf32)
        for answer in plans.ask(planner, device, tf32, "float32"):
            assert answer.refused_notes & plans.TENSOR_CORE and not answer.plans[0].notes & plans.TENSOR_CORE


def test_the_filter_is_what_refuses_nondeterminism(planner, devices, shipped):
    """Some first choice on some GPU adds up in any order; none that is run does."""
    weights = [graph for graph in shipped if graph.kind == graphs.GRAD_WEIGHT]
    seen = 0
    for device in devices:
        for graph, answer in zip(weights, plans.ask(planner, device, weights, "float32", wanted=0)):
            if answer.plans[0].notes & plans.NONDETERMINISTIC:
                seen += 1
                assert any("nondeterministic" in fault for fault in plans.faults(graph, "float32", device, answer))
    assert seen > 0


def test_tf32_is_used_where_it_is_allowed(planner, devices, shipped):
    for device in devices:
        row = plans.check(planner, device, "tf32", list(shipped)[::4])
        assert (row.tensor_core > 0) == (device.sm >= 80), row


def test_a_worse_device_description_is_an_error(planner, devices):
    broken = devices[0]._replace(properties={"deviceName": "nothing"})
    with pytest.raises(plans.PlannerError, match="cannot use it as a device"):
        plans.ask(planner, broken, list(graphs.samples())[:1], "float32")

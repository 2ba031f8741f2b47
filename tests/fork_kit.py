"""What the tests and the campaign of forks share: a training step with a known result, and children that are watched.

Run as a program, it is the campaign: threads compute without end, the main thread forks, and every child
repeats what the parent did. It prints JSON, and fails where a child hung or computed something else:

    python tests/fork_kit.py [--forks 1000] [--threads 2] [--out FILE]
"""

import argparse
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 60  # seconds after which a child counts as hanging: it has work for milliseconds


def network(seed=0):
    """Images, labels and the parameters of convolution, batch norm and a linear layer."""
    from asenpp import _asen

    rng = np.random.default_rng(seed)

    def tensor(*shape, leaf=True):
        t = _asen.from_numpy((rng.standard_normal(shape) * 0.1).astype(np.float32)).clone()
        return t.requires_grad_() if leaf else t

    return {"x": tensor(8, 16, 24, 24), "labels": _asen.from_numpy(np.arange(8) % 5), "filter": tensor(32, 16, 3, 3),
            "gamma": tensor(32), "beta": tensor(32), "point": tensor(32, 32, 1, 1), "weight": tensor(5, 32),
            "mean": tensor(32, leaf=False), "variance": tensor(32, leaf=False) * 0 + 1}


def step(net):
    """Forward and backward, the parameters' gradients and an inference as bytes. Changes nothing of `net` but
    gradients: running statistics are copies."""
    from asenpp import _asen

    leaves = [net[name] for name in ("x", "filter", "gamma", "beta", "point", "weight")]
    for leaf in leaves:
        leaf.grad = None
    y = _asen.conv2d(net["x"], net["filter"], padding=1)
    y = _asen.batch_norm(y, net["gamma"], net["beta"], net["mean"].clone(), net["variance"].clone(), relu=True)[0]
    y = _asen.conv2d(y, net["point"])  # its filter gradient is a matrix product inside a parallel region
    logits = _asen.linear(y.mean(dim=(2, 3)), net["weight"])
    loss = _asen.cross_entropy(logits, net["labels"])[0]
    loss.backward()
    fused = _asen.conv2d_fused(net["x"], net["filter"].detach(), net["beta"].detach(), padding=1, relu=True)
    return b"".join(t.numpy().tobytes() for t in [loss.detach(), fused, *(leaf.grad for leaf in leaves)])


def watched(function, patience=PATIENCE):
    """Runs function() in a forked child: "ok", "failed", or "hung" (then it is killed)."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException:  # noqa: B902: whatever it was, the child must not go on in the parent's code
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return outcome(pid, patience)


def outcome(pid, patience=PATIENCE):
    """How a child ends: "ok", "failed" or "hung"."""
    end = os.pidfd_open(pid)
    try:
        hung = not select.select([end], [], [], patience)[0]
        if hung:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(end)
    return "hung" if hung else "ok" if status == 0 else "failed"


class Busy:
    """Threads that run `work(number)` again and again, until the block ends; their errors are raised there."""

    def __init__(self, count, work):
        self.work, self.stop, self.errors, self.rounds = work, threading.Event(), [], [0] * count
        self.threads = [threading.Thread(target=self._run, args=(n,)) for n in range(count)]

    def _run(self, number):
        try:
            while not self.stop.is_set():
                self.work(number)
                self.rounds[number] += 1
        except BaseException as error:  # noqa: B902: raised by __exit__
            self.errors.append(error)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exception):
        self.stop.set()
        for thread in self.threads:
            thread.join()
        if self.errors:
            raise self.errors[0]


def fork_while_threads_compute(forks, threads, patience=PATIENCE):
    """Counts of outcomes. Each child repeats the parent's step, to its bits, and a step of a busy thread's network."""
    net = network()
    others = [network(seed) for seed in range(1, threads + 1)]
    expected = [step(n) for n in (net, *others)]

    def child():
        assert step(net) == expected[0], "the child computes something else than the parent"
        # What a busy thread had at hand at that moment; only its gradients are being written.
        assert step(others[0]) == expected[1], "the child computes something else on a busy thread's network"

    def work(number):
        assert step(others[number]) == expected[number + 1]

    counts = {"ok": 0, "failed": 0, "hung": 0}
    with Busy(threads, work) as busy:
        for _ in range(forks):
            counts[watched(child, patience)] += 1
            if counts["hung"] > 2:
                break
    assert step(net) == expected[0], "the parent computes something else than before"
    return {**counts, "rounds_of_threads": sum(busy.rounds)}


def main():
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser()
    parser.add_argument("--forks", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", help="a JSON file for the result")
    args = parser.parse_args()
    import asenpp
    from benchmarks import record

    asenpp.set_num_threads(2)
    start = time.monotonic()
    counts = fork_while_threads_compute(args.forks, args.threads)
    record.report(args.out, {**record.campaign(), "forks": args.forks, "threads": args.threads, **counts,
                             "seconds": round(time.monotonic() - start, 1)})
    return 0 if counts["ok"] == args.forks else 1


if __name__ == "__main__":
    sys.exit(main())

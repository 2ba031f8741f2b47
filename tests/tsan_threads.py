"""Threads that train, infer, load, save and switch at once: what docs/api.md allows, for tests/tsan.sh.

Every thread's results are checked too. Prints how often each thread came round.
"""

import argparse
import os
import tempfile
import threading
import time

import numpy as np

import asenpp
from asenpp import _asen, nn, optim


def network(seed):
    asenpp.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2),
                         nn.BatchNorm2d(8), nn.ReLU())


def images(seed):
    return asenpp.from_numpy(np.random.default_rng(seed).standard_normal((4, 3, 10, 9)).astype(np.float32))


class Threads:
    def __init__(self):
        self.shared = network(0)                                     # read by all, written by none
        self.shared.eval()
        self.frozen = images(100)
        with asenpp.no_grad():
            self.expected = self.shared(self.frozen).numpy().copy()
        self.leaf = asenpp.ones(40, requires_grad=True)              # its gradient is added to by several
        self.switched = asenpp.ones(40)                              # requires_grad is switched
        self.folder = tempfile.TemporaryDirectory()
        self.file = os.path.join(self.folder.name, "shared.pt")
        asenpp.save(self.shared.state_dict(), self.file)
        self.rounds, self.errors, self.stop = {}, [], threading.Event()

    # -- a thread each

    def train(self):
        """A model of its own, with a leaf that others use, too."""
        model = network(1)
        optimizer = optim.Adam(model.parameters(), lr=1e-3)
        x = images(1)

        def round():
            model.train()
            optimizer.zero_grad()
            loss = (model(x) * model(x)).mean() + (self.leaf * 2.0).sum() * 1e-6
            loss.backward()
            optimizer.step()
            model.eval()                        # folds
            with asenpp.no_grad():
                assert np.isfinite(model(x).numpy()).all()
        return round

    def train_on_shared_features(self):
        """Backward through layers that others run at the same time."""
        head = asenpp.ones(8, 1, requires_grad=True)

        def round():
            features = self.shared(self.frozen).mean(dim=(2, 3))
            (features @ head).sum().backward()
            assert head.grad.shape == (8, 1)
            head.grad = None
        return round

    def infer(self):
        def round():
            with asenpp.no_grad():
                assert (self.shared(self.frozen).numpy() == self.expected).all()
        return round

    def infer_recorded(self):
        """Outside no_grad: gradients of shared parameters are added to, read and cleared."""
        parameters = list(self.shared.parameters())

        def round():
            self.shared(self.frozen).sum().backward()
            for parameter in parameters:
                grad = parameter.grad
                assert grad is None or grad.shape == parameter.shape
                parameter.grad = None
        return round

    def save(self):
        def round():
            path = os.path.join(self.folder.name, "written.pt")
            asenpp.save({"model": self.shared.state_dict(), "x": self.frozen}, path)
            assert (asenpp.load(path)["x"] == self.frozen.numpy()).all()
        return round

    def load(self):
        model = network(2)

        def round():
            model.load_state_dict(asenpp.load(self.file))
            model.eval()
            with asenpp.no_grad():
                assert (model(self.frozen).numpy() == self.expected).all()
            model.train()
        return round

    def switch_requires_grad(self):
        def round():
            for on in (True, False):
                self.switched.requires_grad_(on)
                self.switched.grad = None
            assert self.switched.is_leaf
        return round

    def use_what_is_switched(self):
        def round():
            y = (_asen.cat([self.switched, self.leaf] * 4) * 3.0).sum()
            y.backward()
            repr(self.switched), self.switched.requires_grad, self.switched.grad
        return round

    def switch_modes(self):
        """What is the process's (threads, the cache, counters) and what is the thread's (recording)."""
        numbers = iter(range(1 << 60))

        def round():
            number = next(numbers)
            asenpp.set_num_threads(1 + number % 3)
            before = _asen.set_grad_enabled(number % 2 == 0)
            assert asenpp.ones(2, requires_grad=True).sum().requires_grad == (number % 2 == 0)
            _asen.set_grad_enabled(before)
            asenpp.memory_stats(), _asen.dispatch_counts(number % 5 == 0), asenpp.get_num_threads()
            if number % 20 == 0:
                _asen.empty_cache()
                _asen.reset_peak_memory()
        return round

    def one_graph(self):
        """Backward over a graph that another thread runs backward over, with gradients for the leaf."""
        if not hasattr(self, "graph"):
            self.graph = ((self.leaf * 3.0).exp() * 1e-3).sum()

        def round():
            self.graph.backward(retain_graph=True)
        return round

    def write_in_place(self):
        """Tensors that were written in place, with views from before that: handed on when that is done."""
        def round():
            base = self.leaf * 1.0
            rows = [base.reshape(4, 10)[i] for i in range(4)]
            base.copy_(self.leaf * 2.0)
            rows[1].zero_()
            base.reshape(4, 10).t()
            self.written = base, rows
        round()
        return round

    def read_what_was_written(self):
        """The views find out that their base was written when somebody reads them."""
        def round():
            base, rows = self.written
            assert rows[2].tolist() == [2.0] * 10 and rows[1].sum().item() == 0.0
            (rows[0] * rows[1] + rows[3]).sum().backward(retain_graph=True)
            base.sum().backward(retain_graph=True)
            rows[2].requires_grad, rows[2].is_leaf, repr(rows[3])
        return round

    def views(self):
        """Views of shared memory, dropped in whichever thread has them last."""
        def round():
            rows = [self.frozen[i].reshape(3, 90).t() for i in range(4)]
            assert asenpp.stack(rows).shape == (4, 90, 3)
            lent = asenpp.from_numpy(np.ones(40, np.float32))
            (self.leaf * lent).sum().backward()
            self.leaf.grad = None
        return round

    # -- running them

    def run(self, seconds):
        makers = [self.train, self.train_on_shared_features, self.infer, self.infer_recorded, self.save, self.load,
                  self.switch_requires_grad, self.use_what_is_switched, self.switch_modes, self.one_graph, self.one_graph,
                  self.write_in_place, self.read_what_was_written, self.read_what_was_written, self.views]
        rounds = [(f"{maker.__name__}_{i}", maker()) for i, maker in enumerate(makers)]
        # Small enough that the C library keeps all stacks of ended threads: where a thread frees another's, with its
        # thread-local variables, ThreadSanitizer does not see what orders the two.
        threading.stack_size(2 << 20)
        threads = [threading.Thread(target=self._loop, args=entry) for entry in rounds]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self.stop.set()
        for thread in threads:
            thread.join()
        self.folder.cleanup()
        if self.errors:
            raise self.errors[0]
        assert all(self.rounds.values()), self.rounds
        print(self.rounds)

    def _loop(self, name, round):
        self.rounds[name] = 0
        try:
            while not self.stop.is_set():
                round()
                self.rounds[name] += 1
        except BaseException as error:  # noqa: B902: raised by run()
            self.errors.append(error)
            self.stop.set()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=15)
    Threads().run(parser.parse_args().seconds)

"""Training: epochs of triplet steps, an evaluation every EVAL_STEPS epochs, checkpoints.

An epoch: its batches; where due (and after the last epoch) the evaluation on VALID; the schedule's
step; a checkpoint. Checkpoints are also written every few minutes within an epoch and when the run
is stopped, and hold all that the rest of the run depends on: a resumed run ends in the same bits.
"""

from __future__ import annotations

import math
import os
import random
import shlex
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import optim
from .. import random as asen_random
from ..data.checks import check_images, check_meta, skipped_values, usable_values
from ..data.index import load_train
from ..data.samplers import TripletBatch, TripletSampler
from . import memory
from .errors import EngineError, Interrupted
from .evaluation import Evaluation
from .log import MetricsFile, get_logger, progress
from .precision import Precision
from .run import choose_device, make_loader, seed_everything, set_threads
from .state import (Position, RunFolder, changed_keys, python_random_state, read, set_python_random_state,
                    thread_warning)
from .step import TripletStep
from .stop import StopSignals
from .weights import initial_model

__all__ = ["train"]

# Keys that may differ between a run and its continuation without a word.
_FREE = ("LOGGER.", "DATA.NUM_WORKERS", "DEVICE", "SAVE_DIR", "MODEL.PRETRAINED", "NUM_THREADS", "SOLVER.LOG_PERIOD")


class _Trainer:
    """One training run: what it is made of, and where it stands."""

    def __init__(self, cfg: Any, logger: Any, resume: str | None) -> None:
        self.cfg, self.logger = cfg, logger
        self.stop = StopSignals("finishing this step, then saving")
        self.folder = RunFolder(cfg)
        self.device, self.threads = choose_device(cfg, logger), set_threads(cfg)
        seed_everything(cfg.SEED)

        data = load_train(cfg)
        usable = usable_values(data, cfg.DATA.SKIP_UNUSABLE_VALUES)
        for line in (*skipped_values(data, usable), *check_meta(cfg, data.attributes)):
            logger.warning(line)
        check_images(data.dataset, [data.paths[i] for i in np.unique(data.labels.images)])
        self.sampler = TripletSampler(data.table, cfg.DATA.NUM_TRIPLETS, cfg.DATA.TRAIN_BATCHSIZE,
                                      random.Random(cfg.SEED), usable)
        self.evaluation = Evaluation(cfg, "VALID", logger, self.device)

        self.position = Position()
        self.sums: dict[str, float] = {}       # of the loss and its parts since the last line of the log
        self.result: dict[str, Any] | None = None
        state = None if resume is None else read(resume)
        self.exact = state is not None and state.get("name") == cfg.NAME and "optimizer" in state
        self.model, sources = initial_model(cfg, state, resume or "", whole=self.exact)
        for line in sources:
            logger.info(line)
        self.model.to(device=self.device)
        self.model.train()
        self.precision = Precision(cfg, self.device)
        self.step = TripletStep(self.model, cfg, self.device)
        self.optimizer = self._make_optimizer()
        self.schedule = self._make_schedule()
        self.metrics_bytes = 0
        if self.exact:
            assert state is not None
            self._take_up(state)
        self.loader = make_loader(cfg, data.paths, self.device, keep_images=self.step.local)

    def close(self) -> None:
        try:
            self.loader.close()
        finally:
            self.evaluation.loader.close()

    def _make_optimizer(self) -> Any:
        solver = self.cfg.SOLVER
        groups = self.model.parameter_groups(solver.BASE_LR, solver.BASE_LR_SLOW)
        return getattr(optim, solver.OPTIMIZER_NAME)(groups, lr=solver.BASE_LR)

    def _make_schedule(self) -> Any:
        solver = self.cfg.SOLVER
        if solver.TYPE == "CosineAnnealingLR":
            return optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=solver.EPOCHS, eta_min=1e-7)
        return optim.lr_scheduler.StepLR(self.optimizer, solver.STEP_SIZE, solver.DECAY_RATE)

    # -- checkpoints --------------------------------------------------------------------------------

    def _take_up(self, state: dict[str, Any]) -> None:
        """Everything else that a checkpoint of this very run holds."""
        for line in filter(None, [thread_warning(state)]):
            self.logger.warning(line)
        for key, (then, now) in changed_keys(self.cfg, state).items():
            if not key.startswith(_FREE):
                self.logger.warning("%s was %s when the checkpoint was written, and is %s now", key, then, now)
        self.optimizer.load_state_dict(state["optimizer"])
        if "scaler" in state and self.precision.dtype:
            self.precision.scaler.load_state_dict(state["scaler"])
        self.schedule.load_state_dict(state["schedule"])
        self.sampler.load_state_dict(state["sampler"])
        asen_random.set_state(state["random"])
        set_python_random_state(state["python_random"])
        self.position = Position(state["epoch"], state["batch"], state["step"], state["mAP"], state["best_mAP"])
        self.sums = dict(state["sums"])
        self.metrics_bytes = state["metrics_bytes"]

    def _state(self, metrics: MetricsFile) -> dict[str, Any]:
        at = self.position
        return {
            "epoch": at.epoch, "model": self.model.state_dict(), "mAP": at.last_map, "best_mAP": at.best_map,
            "batch": at.batch, "step": at.step, "name": self.cfg.NAME,
            "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
            "sampler": self.sampler.state_dict(None if at.batch in (0, len(self.sampler)) else at.batch),
            "random": asen_random.get_state(), "python_random": python_random_state(),
            "sums": dict(self.sums), "seed": self.cfg.SEED, "threads": self.threads,
            "metrics_bytes": metrics.size(), "config": self.cfg.to_dict(),
            **({"scaler": self.precision.scaler.state_dict()} if self.precision.dtype else {}),
        }

    # -- memory -------------------------------------------------------------------------------------

    def check_memory(self) -> None:
        """Raises EngineError, naming the batch that fits, where the training needs too much memory."""
        moments = {"Adam": 2, "AdamW": 2, "SGD": 0}[self.cfg.SOLVER.OPTIMIZER_NAME]
        weights = sum(4 * p.numel() for p in self.model.parameters())
        need = memory.check_training(self._trial, self.cfg, moments * weights + self.evaluation.feature_bytes(),
                                     self.device)
        self.logger.debug("training takes about %s", memory.gigabytes(need))

    def _trial(self, count: int) -> None:
        """Made-up triplets forwards and backwards; the model and the random numbers stay as they were."""
        before = [buffer.clone() for buffer in self.model.buffers()]
        drawn = asen_random.get_state()
        ones = np.zeros(count, np.int64)
        triplets = TripletBatch(ones, ones, ones, ones, ones, np.minimum(ones + 1, 1))
        size, local = self.cfg.INPUT.GLOBAL_SIZE, self.cfg.INPUT.LOCAL_SIZE
        dtype = self.step.pixel_dtype
        pixels = np.zeros((len(self.step.ids(triplets)), size, size, 3), dtype)
        try:
            with self.precision.autocast():
                loss = self.step(pixels, triplets, lambda maps: np.zeros((len(maps), local, local, 3), dtype))[0]
            loss.backward()
        finally:
            self.optimizer.zero_grad()
            for buffer, values in zip(self.model.buffers(), before):
                buffer.copy_(values)
            asen_random.set_state(drawn)

    # -- the run ------------------------------------------------------------------------------------

    def run(self, metrics: MetricsFile, save_seconds: float) -> None:
        """Trains to the last epoch. Raises Interrupted, with a checkpoint written, where stopped."""
        solver = self.cfg.SOLVER
        while self.position.epoch < solver.EPOCHS:
            self._epoch(metrics, save_seconds)
            done = self.position.epoch + 1
            best = False
            if done % solver.EVAL_STEPS == 0 or done == solver.EPOCHS:
                best = self._evaluate(metrics)
            self.schedule.step()
            self.position = self.position._replace(epoch=done, batch=0)
            self.folder.save(self._state(metrics), best)

    def _epoch(self, metrics: MetricsFile, save_seconds: float) -> None:
        start, total = self.position.batch, len(self.sampler)
        if start == total:      # only the evaluation is left
            return
        triplets = self.sampler.epoch(start)
        batches = self.loader.iterate((self.step.ids(batch), batch) for batch in triplets)
        saved = time.monotonic()
        try:
            for number, batch in enumerate(progress(batches, total, f"epoch {self.position.epoch + 1}", " batches",
                                                    start), start):
                self._train(batch, number, metrics)
                if self.stop.requested:
                    self.folder.save(self._state(metrics), False)
                    raise Interrupted
                if time.monotonic() - saved >= save_seconds and number + 1 < total:
                    self.folder.save(self._state(metrics), False)
                    saved = time.monotonic()
        finally:
            batches.close()

    def _train(self, batch: Any, number: int, metrics: MetricsFile) -> None:
        """One step: forward, backward, and with complete gradients the optimizer."""
        with self.precision.autocast():
            loss, parts = self.step(batch.pixels, batch.extra, batch.local)
        done = self.precision.step(loss, self.optimizer)
        # Read only now: on a GPU this waits, and all of the step was queued before.
        values = {"loss": loss.item(), **{name: part.item() for name, part in parts.items()}}
        if done and not math.isfinite(values["loss"]):
            raise EngineError(
                f"the loss is {values['loss']} in epoch {self.position.epoch + 1}, iteration {number} "
                f"({', '.join(f'{k} {v:.4g}' for k, v in values.items() if k != 'loss')}); nothing was saved over the "
                f"last checkpoint. A smaller SOLVER.BASE_LR may help")
        self.position = self.position._replace(batch=number + 1, step=self.position.step + done)
        if done:
            for name, value in {**values, "count": 1.0}.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
        if number % self.cfg.SOLVER.LOG_PERIOD == 0:
            self._log(number, metrics)

    def _log(self, number: int, metrics: MetricsFile) -> None:
        """Means since the last line, and learning rates."""
        count = self.sums.pop("count", 0.0)
        if not count:       # all steps since then were left out
            self.logger.warning("Epoch %d iteration %d: %d steps left out so far, their gradients were not finite",
                                self.position.epoch + 1, number, self.precision.scaler.skipped)
            return
        means = {name: value / count for name, value in self.sums.items()}
        self.sums = {}
        rates = [group["lr"] for group in self.optimizer.param_groups]
        epoch = self.position.epoch + 1
        parts = ", ".join(f"{name} {value:.4f}" for name, value in means.items() if name != "loss")
        self.logger.info("Epoch %d/%d iteration %d/%d: loss %.4f (%s), learning rate %s", epoch,
                         self.cfg.SOLVER.EPOCHS, number, len(self.sampler), means["loss"], parts,
                         ", ".join(f"{rate:.3g}" for rate in rates))
        scaler = self.precision.scaler
        more = {"skipped": scaler.skipped, "scale": scaler.get_scale()} if self.precision.dtype else {}
        metrics.write(event="train", epoch=epoch, iteration=number, step=self.position.step, loss=means.pop("loss"),
                      parts=means, lr=rates, **more)

    def _evaluate(self, metrics: MetricsFile) -> bool:
        """Evaluates on VALID; True where it is the best so far."""
        try:
            result = self.evaluation.run(self.model, self.stop)
        except Interrupted:
            self.folder.save(self._state(metrics), False)
            raise
        self.result = result
        best = result["mAP"] > self.position.best_map
        self.position = self.position._replace(last_map=result["mAP"],
                                               best_map=max(result["mAP"], self.position.best_map))
        metrics.write(event="eval", epoch=self.position.epoch + 1, step=self.position.step, best=best, **result)
        return best


def _check_folder(folder: RunFolder, resume: str | None, same_run: bool, overwrite: bool) -> None:
    """A run is not overwritten silently; resuming writes into the folder that it reads from."""
    if overwrite or (same_run and resume is not None and folder.holds(resume)):
        return
    folder.refuse_if_taken()


def train(cfg: Any, resume: str | None = None, overwrite: bool = False, save_seconds: float = 600.0,
          command: tuple[Sequence[str], Sequence[str]] | None = None) -> dict[str, Any]:
    """Trains a model as the configuration says; writes SAVE_DIR/NAME.

    cfg: see asenpp.load_config. resume: a checkpoint; of the same NAME, it is gone on with exactly
    where it stopped, of another NAME its weights are the start. overwrite: a run that lies in
    SAVE_DIR/NAME is replaced. save_seconds: a checkpoint within an epoch is written after so long.
    command: how this was called, before and after `--resume`, for the hint of how to go on.

    Returns {"mAP", "best_mAP" (in [0, 1]), "attributes" {name: mAP} of the last evaluation here,
    "epochs", "step", "checkpoint", "best" (paths)}.

    Raises ConfigError, DataError, CheckpointError, EngineError (a run that exists, memory, a loss
    that is not finite), OSError (images, a full disk); Interrupted on Ctrl-C or SIGTERM, after a
    checkpoint was written.
    """
    logger = get_logger(cfg)
    folder = RunFolder(cfg)
    same_run = resume is not None and read(resume).get("name") == cfg.NAME
    _check_folder(folder, resume, same_run, overwrite)
    trainer = _Trainer(cfg, logger, resume)
    try:
        return _run(trainer, folder, resume, overwrite, save_seconds, command)
    finally:
        trainer.close()


def _run(trainer: _Trainer, folder: RunFolder, resume: str | None, overwrite: bool, save_seconds: float,
         command: tuple[Sequence[str], Sequence[str]] | None) -> dict[str, Any]:
    cfg, logger = trainer.cfg, trainer.logger
    trainer.check_memory()
    goes_on = trainer.exact and resume is not None and folder.holds(resume)
    if overwrite and not goes_on:
        folder.clear()
    folder.make()
    at = trainer.position
    logger.info("%s: %d epochs of %d iterations, %d triplets each, on %s with %d threads", cfg.NAME,
                cfg.SOLVER.EPOCHS, len(trainer.sampler), cfg.DATA.TRAIN_BATCHSIZE, trainer.device, trainer.threads)
    if trainer.exact:
        logger.info("going on after epoch %d, iteration %d", at.epoch, at.batch)
    with MetricsFile(folder.metrics) as metrics, trainer.stop:
        metrics.cut(trainer.metrics_bytes if goes_on else 0)
        try:
            if at.epoch >= cfg.SOLVER.EPOCHS:
                logger.info("all %d epochs are done already: a larger SOLVER.EPOCHS goes on", cfg.SOLVER.EPOCHS)
            trainer.run(metrics, save_seconds)
        except Interrupted:
            before, after = command or (["python", "main.py", "--cfg", "..."], [])
            line = shlex.join([*before, "--resume", folder.last, *after])
            raise Interrupted(f"To go on: {line}") from None
    at = trainer.position
    return {"mAP": at.last_map, "best_mAP": at.best_map,
            "attributes": trainer.result["attributes"] if trainer.result else {},
            "epochs": at.epoch, "step": at.step, "checkpoint": folder.last,
            "best": folder.best if os.path.exists(folder.best) else folder.last}

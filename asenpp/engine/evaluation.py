"""Evaluation: features of all queries and candidates, then retrieval metrics by attribute.

The backbone runs once an image; attention (and the local branch) once for each attribute that is
asked of it. A feature is the L2-normalised embedding, with the local branch
[sqrt(BETA) global ; sqrt(1 - BETA) local], so that dot products are BETA-weighted cosines.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import numpy as np

from .. import _asen
from ..basics import no_grad
from ..data.checks import check_eval, check_images
from ..data.index import EvalSet, load_eval
from ..metrics import classification_report, format_metrics, format_report, retrieval_metrics, total_metrics
from ..nn import functional as F
from .errors import EngineError, Interrupted
from .images import Images, as_map, crops_of, take_images
from .log import MetricsFile, duration, get_logger, progress
from .precision import Precision
from .run import choose_device, make_loader, set_threads
from .state import RunFolder, read, thread_warning
from .stop import StopSignals
from .weights import refuse_spoilt, take_weights

__all__ = ["evaluate", "Evaluation"]

_LONG = 60.0            # seconds from which on an evaluation announces itself
_MEASURED = 4           # batches after which it is estimated how long the rest takes


class Evaluation:
    """The evaluation of one split, ready to be run on any state of a model.

    Keeps a loader (threads and a cache of images): close it, or use it as a context manager.
    """

    def __init__(self, cfg: Any, split: str, logger: Any, device: str = "cpu") -> None:
        self.cfg, self.logger, self.split = cfg, logger, split.upper()
        self.precision, self.images = Precision(cfg, device), Images(cfg, device)
        data = load_eval(cfg, split)
        for warning in check_eval(data):
            logger.warning(warning)
        self.data = _first_queries(data, cfg.EVAL.SUBSET)
        self.wanted = self.data.features()
        check_images(data.dataset, [data.paths[i] for i in self.wanted.images])
        self.loader = make_loader(cfg, data.paths, device, keep_images=cfg.MODEL.LOCAL.ENABLE)

    def feature_bytes(self) -> int:
        """Bytes that the features will take."""
        return len(self.wanted.pairs) * self._width() * 4

    def _width(self) -> int:
        return self.cfg.MODEL.EMBED_SIZE * (2 if self.cfg.MODEL.LOCAL.ENABLE else 1)

    def __enter__(self) -> "Evaluation":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.loader.close()

    def run(self, model: Any, stop: StopSignals | None = None) -> dict[str, Any]:
        """Evaluates `model`, which lies on the device, and logs the result. See `evaluate`. Raises Interrupted where
        `stop` asks."""
        stop = stop or StopSignals()
        refuse_spoilt(model, f"evaluation on {self.split}")
        was_training = model.training
        model.eval()
        try:
            with no_grad(), self.precision.autocast():
                features, classes = self._features(model, stop)
        finally:
            model.train(was_training)
        result = self._scores(features, stop)
        if classes is not None and model.has_heads:
            result["heads"] = {name: self._report(classes, attribute)
                               for attribute, name in enumerate(self.data.attributes.names) if name in result["attributes"]}
        elif classes is not None:
            result["style"] = self._report(classes, 0)
        self._log(result)
        return result

    # -- features -----------------------------------------------------------------------------------

    def _features(self, model: Any, stop: StopSignals) -> tuple[np.ndarray, np.ndarray | None]:
        """(pairs, D) float32, and where the model classifies the value predicted for each pair: style models for those
        of attribute 0, heads for all."""
        images, size = self.wanted.images, self.cfg.DATA.TEST_BATCHSIZE
        features = np.empty((len(self.wanted.pairs), self._width()), np.float32)
        classes = np.full(len(features), -1, np.int64) if self._classifies(model) else None
        starts = range(0, len(images), size)
        batches = self.loader.iterate((images[a:a + size].tolist(), a) for a in starts)
        began = time.monotonic()
        try:
            for number, batch in enumerate(progress(batches, len(starts), f"evaluate {self.split}", " batches")):
                stop.check()
                self._batch(model, batch, features, classes)
                if number + 1 == _MEASURED < len(starts):
                    left = (time.monotonic() - began) / _MEASURED * (len(starts) - _MEASURED)
                    if left > _LONG:
                        self.logger.info("evaluating %d images takes about %s (EVAL.SUBSET N evaluates only N "
                                         "queries of each attribute)", len(images), duration(left))
        finally:
            batches.close()
        return features, classes

    def _classifies(self, model: Any) -> bool:
        return self.cfg.MODEL.TYPE != "ASEN" or model.has_heads

    def _batch(self, model: Any, batch: Any, features: np.ndarray, classes: np.ndarray | None) -> None:
        wanted, start, beta = self.wanted, batch.extra, self.cfg.SOLVER.BETA
        begin, end = wanted.first[start], wanted.first[start + len(batch.ids)]
        rows, attributes = wanted.pairs[begin:end, 0] - start, wanted.pairs[begin:end, 1]
        maps, keys = model.backbone(self.images(batch.pixels), "global"), None
        for attribute in np.unique(attributes):
            chosen = np.flatnonzero(attributes == attribute)
            asked = np.full(len(chosen), attribute)
            mine, local = take_images(maps, rows[chosen]), None
            if mine is maps and keys is None:       # all images of the batch, perhaps not for the last time
                keys = model.keys(maps)
            embedding, attention = model.attend(mine, asked, "global", keys if mine is maps else None)
            feature = F.normalize(embedding)
            if model.has_local:
                crops = self.images(crops_of(batch)(as_map(attention), rows[chosen]))
                local = F.normalize(model.forward_branch("local", crops, asked)[0])
                feature = _asen.cat([feature * math.sqrt(beta), local * math.sqrt(1 - beta)], dim=1)
            features[begin + chosen] = feature.to(device="cpu").numpy()
            if classes is not None and (model.has_heads or attribute == 0):
                logits = (model.classify(embedding, int(attribute), local) if model.has_heads
                          else model.logits(embedding, mine))
                classes[begin + chosen] = logits.to(device="cpu").numpy().argmax(axis=1)

    # -- scores -------------------------------------------------------------------------------------

    def _scores(self, features: np.ndarray, stop: StopSignals) -> dict[str, Any]:
        data, wanted = self.data, self.wanted
        metrics: dict[str, dict[str, float]] = {}
        counts: dict[str, int] = {}
        for attribute, queries, candidates in data.by_attribute():
            if not len(queries):
                continue
            name = data.attributes.names[attribute]
            q, c = features[wanted.queries[queries]], features[wanted.candidates[candidates]]
            for what, rows in (("queries", q), ("candidates", c)):
                if not np.isfinite(rows).all():
                    raise EngineError(f"features of {what} of attribute {name} are not finite: the weights are "
                                      "spoilt (NaN or infinite); go back to an earlier checkpoint")
            metrics[name] = retrieval_metrics(
                q, c, data.queries.values[queries], data.candidates.values[candidates],
                progress=lambda done, all_: stop.check())
            counts[name] = len(queries)
        if not metrics:
            raise EngineError(f"data set {data.dataset}, {self.split}: no attribute has queries")
        total = total_metrics(metrics, counts)
        return {"split": self.split, "mAP": total["mAP"],
                "attributes": {name: scores["mAP"] for name, scores in metrics.items()}, "queries": counts,
                "images": len(wanted.images), "subset": self.cfg.EVAL.SUBSET, "metrics": {**metrics, "total": total}}

    def _report(self, classes: np.ndarray, attribute: int) -> dict[str, Any]:
        """Classification of an attribute over queries and candidates together."""
        data, wanted = self.data, self.wanted
        truth, guess = [], []
        for labels, pairs in ((data.queries, wanted.queries), (data.candidates, wanted.candidates)):
            mine = labels.attributes == attribute
            truth.append(labels.values[mine])
            guess.append(classes[pairs[mine]])
        values = self.cfg.DATA.ATTRIBUTES.get("VALUES")
        names = (list(values[attribute]) if values and values[attribute] else
                 [str(i) for i in range(data.attributes.sizes[attribute])])
        return classification_report(np.concatenate(truth), np.concatenate(guess), names)

    def _log(self, result: dict[str, Any]) -> None:
        for line in format_metrics(result["metrics"]).splitlines():
            self.logger.info(line)
        if "style" in result:
            for line in format_report(result["style"]).splitlines():
                self.logger.info(line)
        for name, report in result.get("heads", {}).items():
            self.logger.info("%s, told by its head: accuracy %.4f, macro F1 %.4f", name, report["accuracy"],
                             report["macro"]["f1"])


def _first_queries(data: EvalSet, count: int) -> EvalSet:
    """EVAL.SUBSET: the first `count` queries of each attribute, and all candidates."""
    if count <= 0:
        return data
    rows = np.concatenate([queries[:count] for _, queries, _ in data.by_attribute()])
    return dataclasses.replace(data, queries=data.queries.take(np.sort(rows)))


def evaluate(cfg: Any, split: str = "VALID", checkpoint: str | None = None, model: Any = None) -> dict[str, Any]:
    """Evaluates a model on the queries and candidates of a split, "VALID" or "TEST".

    cfg: see asenpp.load_config. checkpoint: a file with the weights; or model: a model as it stands, on the device
    where it is (DEVICE is not looked at then).

    Returns {"split", "mAP" (mean over attributes weighted by queries), "attributes" {name: mAP},
    "queries" {name: count}, "images", "subset", "metrics" {name: scores, "total": scores}}, for
    style models also "style", and where there are heads "heads" {name: …} (see
    asenpp.metrics.classification_report). The scores of an attribute are those of
    asenpp.metrics.retrieval_metrics; the total (also where an attribute has that name) weights
    attributes by queries. All are in [0, 1]. With a checkpoint the result is also appended to
    SAVE_DIR/NAME/metrics.jsonl.

    Raises DataError, CheckpointError, EngineError, OSError (an image that cannot be read);
    Interrupted on Ctrl-C.
    """
    if (checkpoint is None) == (model is None):
        raise EngineError("evaluate needs a checkpoint or a model, one of them")
    logger = get_logger(cfg)
    device = next(model.parameters()).device if model is not None else choose_device(cfg, logger)
    threads = set_threads(cfg)
    logger.debug("device %s, %d threads", device, threads)
    state = None
    if checkpoint is not None:
        from ..models import build_model

        state = read(checkpoint)
        model = build_model(cfg, pretrained=False)
        logger.info(take_weights(model, state, checkpoint, cfg, whole=True))
        warning = thread_warning(state)
        if warning:
            logger.warning(warning)
        model.to(device=device)
    with StopSignals("stopping after this batch") as stop, Evaluation(cfg, split, logger, device) as evaluation:
        try:
            result = evaluation.run(model, stop)
        except Interrupted:
            raise Interrupted("The evaluation was not finished; nothing was changed.") from None
    if state is not None and cfg.NAME:
        folder = RunFolder(cfg)
        folder.make()
        with MetricsFile(folder.metrics) as metrics:
            metrics.write(event="test", epoch=state.get("epoch"), step=state.get("step"), **result)
    return result

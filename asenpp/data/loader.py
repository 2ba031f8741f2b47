"""Batches of images, decoded and transformed by threads ahead of the one who asks.

Purpose: the C functions run without the GIL, so threads suffice; exceptions, Ctrl-C and shutdown
then work as in any Python program. Invariants:

- Batches come out in order, and what they hold does not depend on the number of threads.
- The iterable of batches is drawn from in the caller's thread only, `prefetch` batches ahead.
- A worker never waits: an image for which the budget of decoded bytes has no room is put aside, and
  taken up again when bytes are returned. The batch that the caller waits for next is always served,
  so nothing can stall.
- An error belongs to its batch: it is raised when the caller reaches it, the first in the batch's
  order if there are several, and names the file.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from numbers import Integral

import numpy as np

from .. import _asen
from ..transforms import GlobalTransform, LocalTransform, decode_bytes, image_size

__all__ = ["Batch", "BatchLoader"]

# Larger images are not cached: a data set of them does not fit, and a cache of a few helps nobody.
CACHED_IMAGE_BYTES = 256 << 10
CACHE_BYTES = 1 << 30
DECODED_BYTES = 1 << 30


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def available_bytes() -> int:
    """Memory that may still be taken: of the machine, or of the control group if that is less."""
    available = [int(line.split()[1]) << 10 for line in _read("/proc/meminfo").splitlines()
                 if line.startswith("MemAvailable:")]
    for folder, limit, used, reclaimable in (
            ("/sys/fs/cgroup/", "memory.max", "memory.current", "inactive_file"),
            ("/sys/fs/cgroup/memory/", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")):
        limit, used = _read(folder + limit).strip(), _read(folder + used).strip()
        if limit.isdigit() and used.isdigit():
            free = [int(line.split()[1]) for line in _read(folder + "memory.stat").splitlines()
                    if line.split()[0] == reclaimable]
            available.append(max(0, int(limit) - int(used) + sum(free)))
    return min(available, default=4 * CACHE_BYTES)


class _Cache:
    """Decoded images by id, the least recently used dropped first, bounded in bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._images: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, image_id: int) -> np.ndarray | None:
        with self._lock:
            image = self._images.get(image_id)
            if image is not None:
                self._images.move_to_end(image_id)
            return image

    def put(self, image_id: int, image: np.ndarray) -> None:
        if image.nbytes > min(self.limit, CACHED_IMAGE_BYTES):
            return
        image.flags.writeable = False  # it is shared from now on
        with self._lock:
            if image_id in self._images:
                return
            self._images[image_id] = image
            self.bytes += image.nbytes
            while self.bytes > self.limit:
                self.bytes -= self._images.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        with self._lock:
            self._images.clear()
            self.bytes = 0


class _Inline:
    """An executor that works at once, in the caller's thread: no workers."""

    def submit(self, function, *args) -> None:
        function(*args)

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
        pass


@dataclass
class Batch:
    """One batch.

    ids: the image ids, as given. pixels: (len(ids), S, S, 3), C-contiguous, the global transform of
    each: float32, or uint8 from a loader that does not normalise. images: the decoded images, uint8
    (height, width, 3), in the order of ids (an image that occurs twice is there twice, as one array); None unless `keep_images`.
    extra: what came with the ids.
    """

    ids: list
    pixels: np.ndarray
    images: list | None
    extra: object
    _loader: "BatchLoader" = field(repr=False)

    def local(self, maps, cfg=None) -> np.ndarray:
        """The local transform of every image with its map: (len(ids), rows, columns) float32.

        Returns (len(ids), L, L, 3) of the dtype of `pixels`, C-contiguous, L = INPUT.LOCAL_SIZE of `cfg` (the
        loader's configuration where it is left out). Runs in the loader's threads.
        """
        if self.images is None:
            raise ValueError("the local transform needs the decoded images: BatchLoader(..., keep_images=True)")
        return self._loader._local(self, maps, cfg)


class _Chunk:
    """Some images of one batch, worked through one after another: the unit of a worker's task."""

    def __init__(self, work: "_Work", items: list[tuple[int, int]]) -> None:
        self.work = work
        self.items = items   # (image id, slot in the batch)
        self.next = 0        # where to go on
        self.data = None     # the file of that image, once read
        self.size = 0        # and its decoded bytes
        self.cached: list[tuple[np.ndarray, int]] = []


class _Work:
    """A batch that is being made."""

    def __init__(self, run: "_Run", number: int, ids: list, extra, size: int, dtype) -> None:
        self.run = run
        self.number = number
        self.ids = ids
        self.extra = extra
        self.pixels = np.empty((len(ids), size, size, 3), dtype)
        self.images: list = [None] * len(ids)
        self.slot: dict[int, int] = {}       # image id -> its first place
        self.left = 0                        # chunks not finished
        self.held = 0                        # decoded bytes kept for the caller
        self.errors: list[tuple[int, BaseException]] = []


class BatchLoader:
    """Iterates over batches of images: `for batch in BatchLoader(...)`; use it as a context manager.

    batches: an iterable of batches; each is a sequence of image ids, or a pair (ids, extra).
        Iterating again starts over, if the iterable can.
    paths: the path of each image id (a sequence, or a callable).
    transform_cfg: what GlobalTransform and LocalTransform take.
    workers: threads; 0 works in the caller's thread.
    prefetch: how many batches are made ahead of the one that the caller has.
    keep_images: keep the decoded images for `Batch.local`.
    max_decoded_bytes: how many bytes of decoded images may exist at once, those of the caller's batch
        included (until the next is asked for); the batch that is due next is made in any case.
    cache_bytes: memory for small decoded images (up to 256 KiB each), kept from epoch to epoch;
        1 GiB or a quarter of the available memory where it is left out, 0 for none.
    normalize: whether pixels are float32, scaled and normalised; else they are 8-bit, as resized.

    An image that occurs several times in a batch is decoded once. A missing or broken file raises
    OSError, naming it, when its batch is reached; the iteration is then over. IndexError: an id
    without a path.
    """

    def __init__(self, batches, paths, transform_cfg, workers: int, prefetch: int = 2,
                 keep_images: bool = False, max_decoded_bytes: int | None = None,
                 cache_bytes: int | None = None, normalize: bool = True) -> None:
        if workers < 0 or prefetch < 0:
            raise ValueError(f"workers and prefetch must not be negative, but are {workers} and {prefetch}")
        self.batches = batches
        self.paths = paths
        self.cfg = transform_cfg
        self.workers = int(workers)
        self.prefetch = int(prefetch) if workers else 0  # without threads nothing is made ahead
        self.keep_images = bool(keep_images)
        self._dtype = np.float32 if normalize else np.uint8
        available = available_bytes()
        self.max_decoded_bytes = (max(64 << 20, min(DECODED_BYTES, available // 4)) if max_decoded_bytes is None
                                  else int(max_decoded_bytes))
        self._transform = GlobalTransform(transform_cfg)
        self._cache = _Cache(min(CACHE_BYTES, available // 4) if cache_bytes is None else int(cache_bytes))
        self._pool = ThreadPoolExecutor(self.workers, "asenpp-loader") if self.workers else _Inline()
        self._changed = threading.Condition()
        self._decoded = 0             # bytes of decoded images, kept or being worked on
        self._peak = 0
        self._parked: deque[_Chunk] = deque()
        self._closed = False
        self._run: _Run | None = None

    # -- what the caller sees

    def __iter__(self) -> "_Run":
        return self.iterate(self.batches)

    def iterate(self, batches) -> "_Run":
        """An iterator over other batches, with the same threads and cache (the next epoch's, say).

        One pass at a time: it ends the one before, if that was left early.
        """
        if self._closed:
            raise RuntimeError("the BatchLoader is closed")
        if self._run is not None:
            self._run.close()
        self._run = _Run(self, batches)
        return self._run

    def __enter__(self) -> "BatchLoader":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Stops the threads, after the image that each is working on. Calling it again does nothing."""
        with self._changed:
            self._closed = True
            self._parked.clear()
            self._changed.notify_all()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._cache.clear()

    def stats(self) -> dict[str, int]:
        """Bytes: decoded now, the most decoded at once, cached."""
        with self._changed:
            return {"decoded_bytes": self._decoded, "decoded_bytes_peak": self._peak,
                    "cached_bytes": self._cache.bytes}

    # -- making batches

    def _path(self, image_id: int) -> str:
        if callable(self.paths):
            return os.fspath(self.paths(image_id))
        if not 0 <= image_id < len(self.paths):
            raise IndexError(f"image id {image_id} is out of range: there are {len(self.paths)} image paths")
        return os.fspath(self.paths[image_id])

    def _start(self, work: _Work) -> None:
        """Splits the batch's images into chunks, and hands them to the threads."""
        for slot, image_id in enumerate(work.ids):
            work.slot.setdefault(image_id, slot)
        items = list(work.slot.items())
        # Few, long chunks when all is cached; short ones otherwise, to keep all threads busy.
        length = max(1, min(16, len(items) // max(1, 4 * self.workers)))
        chunks = [_Chunk(work, items[i:i + length]) for i in range(0, len(items), length)]
        work.left = len(chunks)
        for chunk in chunks:
            self._submit(chunk)

    def _submit(self, chunk: _Chunk) -> None:
        if self._closed:
            return
        try:
            self._pool.submit(self._make, chunk)
        except RuntimeError:  # closed at this moment
            pass

    def _take_bytes(self, chunk: _Chunk) -> bool:
        """Room for the chunk's next image? If not, the chunk is put aside."""
        with self._changed:
            work = chunk.work
            due = work.number <= work.run.due
            if due or self._decoded == 0 or self._decoded + chunk.size <= self.max_decoded_bytes:
                self._decoded += chunk.size
                self._peak = max(self._peak, self._decoded)
                return True
            self._parked.append(chunk)
            return False

    def _return_bytes(self, count: int) -> None:
        with self._changed:
            self._decoded -= count
        if count:
            self._unpark()

    def _unpark(self) -> None:
        """Takes up what was put aside: whatever is due, and what fits, oldest batch first."""
        if not self._parked:
            return
        again = []
        with self._changed:
            room = self.max_decoded_bytes - self._decoded
            keep = deque()
            for chunk in sorted(self._parked, key=lambda c: c.work.number):
                if chunk.work.run.stopped:
                    continue
                if chunk.work.number <= chunk.work.run.due or chunk.size <= room or (
                        self._decoded == 0 and not again):
                    room -= chunk.size
                    again.append(chunk)
                else:
                    keep.append(chunk)
            self._parked = keep
        for chunk in again:
            self._submit(chunk)

    def _make(self, chunk: _Chunk) -> None:
        """A worker's task. Never raises; returns early when the chunk is put aside."""
        work = chunk.work
        try:
            while chunk.next < len(chunk.items) and not (self._closed or work.run.stopped):
                if not self._make_one(chunk, *chunk.items[chunk.next]):
                    return
                chunk.next += 1
                chunk.data = None
            if chunk.cached:
                images, slots = zip(*chunk.cached)
                self._transform_into(work, images, slots)
        except BaseException as error:  # noqa: B902: it is the caller's to see
            slot = chunk.items[min(chunk.next, len(chunk.items) - 1)][1]
            with self._changed:
                work.errors.append((slot, error))
        with self._changed:
            work.left -= 1
            if work.left == 0:
                self._changed.notify_all()

    def _make_one(self, chunk: _Chunk, image_id: int, slot: int) -> bool:
        """Decodes and transforms one image. False: put aside."""
        work = chunk.work
        image = self._cache.get(image_id) if self._cache.limit else None
        if image is not None:
            chunk.cached.append((image, slot))
            work.images[slot] = image if self.keep_images else None
            return True
        path = self._path(image_id)
        if chunk.data is None:
            with open(path, "rb") as file:
                chunk.data = file.read()
            height, width = image_size(chunk.data, path)
            chunk.size = height * width * 3
        if not self._take_bytes(chunk):
            return False
        size, kept = chunk.size, False
        try:
            image = decode_bytes(chunk.data, path, self._transform.exif)
            try:
                self._transform_into(work, [image], [slot])
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            if self._cache.limit:
                self._cache.put(image_id, image)
            if self.keep_images:
                with self._changed:
                    if not work.run.stopped:
                        work.images[slot] = image
                        work.held += size
                        kept = True
        finally:
            if not kept:
                del image
                self._return_bytes(size)
        return True

    def _transform_into(self, work: _Work, images, slots) -> None:
        t = self._transform
        _asen.global_batch(images, slots, work.pixels, t.mean, t.std)

    # -- the local transform

    def _local(self, batch: Batch, maps, cfg) -> np.ndarray:
        t = LocalTransform(self.cfg if cfg is None else cfg)
        maps = np.ascontiguousarray(maps, np.float32)
        count = len(batch.ids)
        if maps.ndim != 3 or len(maps) != count:
            raise ValueError(f"{count} images need maps of shape ({count}, rows, columns), but got {maps.shape}")
        out = np.empty((count, t.size, t.size, 3), self._dtype)

        step = max(1, -(-count // max(1, 4 * self.workers)))
        pieces = deque(range(0, count, step))
        done = threading.Condition()
        left, errors = [len(pieces)], []

        def work() -> None:
            """Takes pieces until there are none. The caller does too: the threads may be busy ahead."""
            while True:
                try:
                    a = pieces.popleft()
                except IndexError:
                    return
                b = min(a + step, count)
                try:
                    _asen.local_batch(batch.images[a:b], maps[a:b], t.global_size, t.threshold, out[a:b],
                                      t.mean, t.std)
                except Exception as error:
                    errors.append((a, error))
                with done:
                    left[0] -= 1
                    done.notify_all()

        for _ in range(min(self.workers, len(pieces) - 1)):
            try:
                self._pool.submit(work)
            except RuntimeError:  # closed: the caller works alone
                break
        work()
        with done:
            while left[0]:
                done.wait()
        if errors:
            raise min(errors, key=lambda e: e[0])[1]
        return out


class _Run:
    """One pass over the batches."""

    def __init__(self, loader: BatchLoader, batches) -> None:
        self.loader = loader
        self.batches = iter(batches)
        self.ahead: deque[_Work] = deque()
        self.drawn = 0          # batches taken from the iterable
        self.due = 0            # the number of the batch that the caller gets next
        self.held = 0           # decoded bytes of the batch that the caller has
        self.stopped = False

    def __iter__(self) -> "_Run":
        return self

    def _draw(self) -> bool:
        try:
            item = next(self.batches)
        except StopIteration:
            self.batches = iter(())
            return False
        extra = None
        if isinstance(item, tuple) and len(item) == 2 and not isinstance(item[0], Integral):
            item, extra = item
        ids = [int(i) for i in item]
        work = _Work(self, self.drawn, ids, extra, self.loader._transform.global_size, self.loader._dtype)
        self.drawn += 1
        self.ahead.append(work)
        self.loader._start(work)
        return True

    def __next__(self) -> Batch:
        loader = self.loader
        if self.stopped:
            raise StopIteration
        if loader._closed:
            raise RuntimeError("the BatchLoader is closed")
        try:
            held, self.held = self.held, 0
            loader._return_bytes(held)
            while len(self.ahead) < 1 + loader.prefetch and self._draw():
                pass
            if not self.ahead:
                self.close()
                raise StopIteration
            loader._unpark()
            work = self.ahead[0]
            with loader._changed:
                while work.left and not loader._closed:
                    loader._changed.wait()
                if work.left:
                    raise RuntimeError("the BatchLoader was closed while a batch was being made")
                self.ahead.popleft()
                self.due += 1
                self.held, work.held = work.held, 0
            loader._unpark()
            if work.errors:
                raise min(work.errors, key=lambda e: e[0])[1]
        except BaseException:
            self.close()
            raise
        for slot, image_id in enumerate(work.ids):
            first = work.slot[image_id]
            if first != slot:
                work.pixels[slot] = work.pixels[first]
                work.images[slot] = work.images[first]
        return Batch(work.ids, work.pixels, work.images if loader.keep_images else None, work.extra, loader)

    def close(self) -> None:
        """Drops what was made ahead. The loader itself stays open for other passes."""
        with self.loader._changed:
            self.stopped = True
            held, self.held = self.held, 0
            for work in self.ahead:
                held += work.held
                work.held = 0
            self.ahead.clear()
        self.loader._return_bytes(held)

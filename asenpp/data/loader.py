"""Batches of images, decoded and transformed by threads ahead of the one who asks.

Purpose: the C functions run without the GIL, so threads suffice. Invariants:

- Batches come out in order, and what they hold does not depend on the number of threads.
- The iterable of batches is drawn from in the caller's thread only, `prefetch` batches ahead.
- A worker never waits: an image for which the budget of decoded bytes has no room is put aside, and
  taken up again when bytes are returned. The batch that the caller waits for next is always served,
  so nothing can stall.
- An error belongs to its batch: it is raised when the caller reaches it, the first in the batch's
  order if there are several, and names the file.
- An exception in the caller's thread, at whatever instruction (Ctrl-C), leaves nobody waiting: that thread
  takes no lock (see asenpp.workers). It writes only which batches are wanted (`_Run.works`, `due`, `stopped`);
  counts of bytes and of images left are the workers'. A pass that was left within `next` is over.
"""

from __future__ import annotations

import _thread
import os
from collections import OrderedDict, deque
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from queue import SimpleQueue

import numpy as np

from .. import _asen
from ..transforms import Augmentation, GlobalTransform, LocalTransform, decode_bytes, image_size
from ..workers import Event, Workers

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
    """Decoded images by id, the least recently used dropped first, bounded in bytes. lock: the workers'."""

    def __init__(self, limit: int, lock) -> None:
        self.limit = limit
        self.bytes = 0
        self._images: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = lock

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
            self.bytes += image.nbytes      # first: cut short here, it holds less than it might, not more
            self._images[image_id] = image
            while self.bytes > self.limit and self._images:
                dropped = self._images.popitem(last=False)[1]
                self.bytes -= dropped.nbytes

    def clear(self) -> None:
        """When no worker is left."""
        self._images = OrderedDict()
        self.bytes = 0


class _Inline:
    """No workers: what is submitted is done at once, in the caller's thread."""

    def submit(self, task) -> None:
        task()

    def close(self) -> None:
        pass


@dataclass
class Batch:
    """One batch.

    ids: the image ids, as given. pixels: (len(ids), S, S, 3), C-contiguous, the global transform of
    each: float32, or uint8 from a loader that does not normalise. images: the decoded images, uint8
    (height, width, 3), in the order of ids (an image that occurs twice is there twice, as one array); None unless `keep_images`.
    extra: what came with the ids. draws: what was drawn where the loader augments, float64 (len(ids), 13), see
    asenpp.transforms.Draw; else None.
    """

    ids: list
    pixels: np.ndarray
    images: list | None
    extra: object
    draws: np.ndarray | None
    _loader: "BatchLoader" = field(repr=False)

    def local(self, maps, cfg=None) -> np.ndarray:
        """The local transform of every image with its map: (len(ids), rows, columns) float32.

        Returns (len(ids), L, L, 3) of the dtype of `pixels`, C-contiguous, L = INPUT.LOCAL_SIZE of `cfg` (the
        loader's configuration where it is left out). Runs in the loader's threads.

        Where the loader augments, the maps are those of the augmented `pixels`: what a map marks is cut out of the
        original image, and mirrored and jittered as the pixels were; nothing is erased. Of a window that is no
        square, a rectangle is resized to L x L.
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

    def __init__(self, run: "_Run", number: int, ids: list, extra, size: int, dtype, augmented: bool) -> None:
        self.run = run
        self.number = number
        self.ids = ids
        self.extra = extra
        self.pixels = np.empty((len(ids), size, size, 3), dtype)
        self.draws = np.zeros((len(ids), Augmentation.FIELDS)) if augmented else None
        self.images: list = [None] * len(ids)
        self.slot: dict[int, int] = {}       # image id -> its first place
        self.left = 0                        # chunks not finished
        self.done = Event()                  # none is left
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
    augment: how images are changed at random, by the epoch given to `iterate` (`for ... in loader` is epoch 0); None:
        not at all. What an image becomes does not depend on its batch, the threads or the cache.

    An image that occurs several times in a batch is decoded once. A missing or broken file raises
    OSError, naming it, when its batch is reached; the iteration is then over. IndexError: an id
    without a path.
    """

    def __init__(self, batches, paths, transform_cfg, workers: int, prefetch: int = 2,
                 keep_images: bool = False, max_decoded_bytes: int | None = None,
                 cache_bytes: int | None = None, normalize: bool = True,
                 augment: Augmentation | None = None) -> None:
        if workers < 0 or prefetch < 0:
            raise ValueError(f"workers and prefetch must not be negative, but are {workers} and {prefetch}")
        self.batches = batches
        self.paths = paths
        self.cfg = transform_cfg
        self.workers = int(workers)
        self.prefetch = int(prefetch) if workers else 0  # without threads nothing is made ahead
        self.keep_images = bool(keep_images)
        self._dtype = np.float32 if normalize else np.uint8
        self._augment = augment or None         # None, too, where it changes nothing
        available = available_bytes()
        self.max_decoded_bytes = (max(64 << 20, min(DECODED_BYTES, available // 4)) if max_decoded_bytes is None
                                  else int(max_decoded_bytes))
        self._transform = GlobalTransform(transform_cfg)
        self._cache_bytes = min(CACHE_BYTES, available // 4) if cache_bytes is None else int(cache_bytes)
        self._closed = False
        self._run: _Run | None = None
        self._renew()

    def _renew(self) -> None:
        """All that threads have a part in."""
        self._process = os.getpid()
        self._pool = Workers(self.workers, self) if self.workers else _Inline()
        # Held by workers only; the caller without workers has nobody to keep out.
        self._lock = _thread.allocate_lock() if self.workers else nullcontext()
        self._cache = _Cache(self._cache_bytes, self._lock)
        self._working = 0             # bytes of images that are being worked on
        self._peak = 0
        self._parked: deque[_Chunk] = deque()

    # -- what the caller sees

    def __iter__(self) -> "_Run":
        return self.iterate(self.batches)

    def iterate(self, batches, epoch: int = 0) -> "_Run":
        """An iterator over other batches, with the same threads and cache (the next epoch's, say).

        epoch: what the augmentation draws by. One pass at a time: it ends the one before, if that was left early.
        """
        if self._closed:
            raise RuntimeError("the BatchLoader is closed")
        if self._run is not None:
            self._run.close()
        if self._process != os.getpid():  # a forked child: threads and what they were at stayed behind
            self._renew()
        if not self.workers:
            self._working = 0             # an exception may have cut the count short
        self._run = _Run(self, batches, int(epoch))
        return self._run

    def __enter__(self) -> "BatchLoader":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Stops the threads, after the image that each is working on. Calling it again does nothing."""
        self._closed = True
        if self._run is not None:
            self._run.wake()
        self._parked.clear()
        self._pool.close()
        self._cache.clear()

    def stats(self) -> dict[str, int]:
        """Bytes: decoded now, the most decoded at once, cached."""
        return {"decoded_bytes": self._decoded(), "decoded_bytes_peak": self._peak,
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
        if not chunks:
            work.done.set()
        for chunk in chunks:
            self._pool.submit(partial(self._make, chunk))

    def _decoded(self) -> int:
        """Bytes of decoded images, kept or being worked on."""
        run = self._run
        kept = () if run is None or run.stopped or self._closed else list(run.works)
        return self._working + sum(work.held for work in kept)

    def _take_bytes(self, chunk: _Chunk) -> bool:
        """Room for the chunk's next image? If not, the chunk is put aside."""
        with self._lock:
            work, decoded = chunk.work, self._decoded()
            due = work.number <= work.run.due
            if due or decoded == 0 or decoded + chunk.size <= self.max_decoded_bytes:
                self._working += chunk.size
                self._peak = max(self._peak, decoded + chunk.size)
                return True
            self._parked.append(chunk)
            return False

    def _return_bytes(self, count: int) -> None:
        with self._lock:
            self._working -= count
        if self._parked:
            self._unpark()

    def _unpark(self) -> None:
        """Takes up what was put aside: whatever is due, and what fits, oldest batch first. A worker's task: the
        caller submits it after each change of what is due or held."""
        again = []
        with self._lock:
            decoded = self._decoded()
            free = self.max_decoded_bytes - decoded
            for chunk in sorted(self._parked.copy(), key=lambda c: c.work.number):
                due, stopped = chunk.work.number <= chunk.work.run.due, chunk.work.run.stopped
                if due or stopped or chunk.size <= free or (decoded == 0 and not again):
                    free -= chunk.size
                    again.append(chunk)
                    try:
                        self._parked.remove(chunk)
                    except ValueError:      # the loader is being closed
                        pass
        for chunk in again:
            self._pool.submit(partial(self._make, chunk))

    def _make(self, chunk: _Chunk) -> None:
        """A worker's task. Never raises; returns early when the chunk is put aside."""
        work = chunk.work
        if self._parked:
            self._unpark()
        try:
            while chunk.next < len(chunk.items) and not (self._closed or work.run.stopped):
                if not self._make_one(chunk, *chunk.items[chunk.next]):
                    return
                chunk.next += 1
                chunk.data = None
            if chunk.cached and not work.run.stopped:
                images, slots = zip(*chunk.cached)
                self._transform_into(work, images, slots)
        except BaseException as error:  # noqa: B902: it is the caller's to see
            if not self.workers and not isinstance(error, Exception):
                raise
            work.errors.append((chunk.items[min(chunk.next, len(chunk.items) - 1)][1], error))
        with self._lock:
            work.left -= 1
            done = work.left == 0
        if done:
            work.done.set()

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
                with self._lock:
                    if not work.run.stopped:
                        work.images[slot] = image
                        work.held += size
                        self._working -= size
                        kept = True
        finally:
            if not kept:
                del image
                self._return_bytes(size)
        return True

    def _transform_into(self, work: _Work, images, slots) -> None:
        t = self._transform
        if work.draws is None or self._augment is None:
            _asen.global_batch(images, slots, work.pixels, t.mean, t.std)
        else:
            ids = [work.ids[slot] for slot in slots]
            self._augment.into(images, ids, slots, work.run.epoch, t, work.pixels, work.draws)

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
        total = len(pieces)
        done: SimpleQueue = SimpleQueue()       # None or (start, error) for each piece

        images = batch.images or []

        def cut(a: int, b: int) -> None:
            settings = t.global_size, t.threshold, out[a:b], t.mean, t.std
            if batch.draws is None:
                _asen.local_batch(images[a:b], maps[a:b], *settings)
            else:
                _asen.augment_local_batch(images[a:b], maps[a:b], batch.draws[a:b], *settings)

        def work() -> None:
            """Takes pieces until there are none. The caller does too: the threads may be busy ahead."""
            while True:
                try:
                    a = pieces.popleft()
                except IndexError:
                    return
                b = min(a + step, count)
                try:
                    cut(a, b)
                except Exception as error:
                    done.put((a, error))
                else:
                    done.put(None)

        try:
            for _ in range(min(self.workers, total - 1)):
                self._pool.submit(work)
            work()
            errors = [e for e in [done.get() for _ in range(total)] if e is not None]
        except BaseException:
            pieces.clear()
            raise
        if errors:
            raise min(errors, key=lambda e: e[0])[1]
        return out


class _Run:
    """One pass over the batches. Workers read `works`, `due` and `stopped`; the caller alone writes them."""

    def __init__(self, loader: BatchLoader, batches, epoch: int) -> None:
        self.loader = loader
        self.epoch = epoch
        self.batches = iter(batches)
        self.works: deque[_Work] = deque()  # the batch that the caller has, and those made ahead
        self.drawn = 0          # batches taken from the iterable
        self.due = 0            # the number of the batch that the caller gets next
        self.stopped = False
        self.within = False     # `next` has begun and not come to its end

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
        work = _Work(self, self.drawn, ids, extra, self.loader._transform.global_size, self.loader._dtype,
                     self.loader._augment is not None)
        self.drawn += 1
        self.works.append(work)
        self.loader._start(work)
        return True

    def __next__(self) -> Batch:
        loader = self.loader
        if self.stopped:
            raise StopIteration
        if loader._closed:
            raise RuntimeError("the BatchLoader is closed")
        if loader._process != os.getpid():
            raise RuntimeError("this pass over the batches was begun before the process was forked: begin another")
        if self.within:         # an exception cut it short, and then close(), too
            self.close()
            raise StopIteration
        self.within = True
        try:
            works = self.works
            while works and works[0].number < self.due:     # the batch that the caller had
                works.popleft()
            while self.drawn < self.due + 1 + loader.prefetch and self._draw():
                pass
            if not works:
                self.close()
                raise StopIteration
            work = works[0]
            loader._pool.submit(loader._unpark)
            if not (loader._closed or self.stopped):        # whoever closes sets that, and wakes us after
                work.done.wait()
            if loader._closed:
                raise RuntimeError("the BatchLoader was closed while a batch was being made")
            if self.stopped:
                raise StopIteration
            self.due += 1
            loader._pool.submit(loader._unpark)
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
                if work.draws is not None:
                    work.draws[slot] = work.draws[first]
        images = work.images if loader.keep_images else None
        batch = Batch(work.ids, work.pixels, images, work.extra, work.draws, loader)
        self.within = False
        return batch

    def close(self) -> None:
        """Drops what was made ahead. The loader itself stays open for other passes."""
        self.stopped = True
        self.wake()
        self.works = deque()

    def wake(self) -> None:
        """Ends the wait of another thread within `next`, which then looks why."""
        for work in list(self.works):
            work.done.set()

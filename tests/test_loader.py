"""The loader: what it yields does not depend on threads, bounds or caches; errors name the file and
come at their batch; it can be closed at any moment."""

import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")

from asenpp.data.loader import BatchLoader  # noqa: E402
from asenpp import _asen  # noqa: E402
from asenpp.transforms import GlobalTransform, LocalTransform, decode, pixel_table  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
CFG = SimpleNamespace(INPUT=SimpleNamespace(
    PIXEL_MEAN=[0.485, 0.456, 0.406], PIXEL_STD=[0.229, 0.224, 0.225], GLOBAL_SIZE=32, LOCAL_SIZE=16,
    THRESHOLD=0.4, EXIF=False))
COUNT = 40


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Images of both kinds, each of its own size, so that a swapped one shows."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(1)
    names = []
    for i in range(COUNT):
        pixels = rng.integers(0, 256, (20 + 3 * i, 90 - i, 3), dtype=np.uint8)
        names.append(folder / f"{i}.{'jpg' if i % 2 else 'png'}")
        Image.fromarray(pixels).save(names[-1])
    return names


@pytest.fixture(scope="module")
def expected(paths):
    return GlobalTransform(CFG).batch(paths)


BATCHES = [[3, 1, 2, 3, 39], [5], [], [7, 7, 7], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [30, 20, 10]] * 3


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("cache", [0, 30_000, None])
@pytest.mark.parametrize("bound", [1, 30_000, None])
def test_batches_come_in_order_whatever_the_threads_bounds_and_caches(paths, expected, workers, cache, bound):
    with BatchLoader(BATCHES, paths, CFG, workers, keep_images=True, max_decoded_bytes=bound,
                     cache_bytes=cache) as loader:
        for _ in range(2):  # the second pass meets a filled cache
            got = list(loader)
            assert [b.ids for b in got] == BATCHES
            for batch in got:
                assert batch.pixels.dtype == np.float32 and batch.pixels.flags.c_contiguous
                assert (batch.pixels == expected[batch.ids]).all()
                assert len(batch.images) == len(batch.ids)
                for image_id, image in zip(batch.ids, batch.images):
                    assert (image == decode(paths[image_id])).all()
        stats = loader.stats()
        assert stats["decoded_bytes"] == 0
        if cache is not None:
            assert stats["cached_bytes"] <= cache


def test_duplicates_are_decoded_once_a_batch(paths, monkeypatch):
    """Counts the calls of the decoder."""
    from asenpp.data import loader as module

    calls = []
    original = module.decode_bytes
    monkeypatch.setattr(module, "decode_bytes", lambda data, name, exif: calls.append(name) or original(data, name, exif))
    with BatchLoader([[4, 4, 5, 4], [4]], paths, CFG, 2, cache_bytes=0) as loader:
        first, _ = loader
    assert sorted(calls) == sorted(str(paths[i]) for i in (4, 5, 4))
    assert (first.pixels[0] == first.pixels[1]).all() and (first.pixels[0] == first.pixels[3]).all()
    calls.clear()
    with BatchLoader([[4, 4, 5, 4], [4]], paths, CFG, 1) as loader:
        list(loader)
        list(loader)
    assert len(calls) == 2, "the cache decodes each image once"


def test_extra_comes_with_its_batch(paths):
    with BatchLoader([([1, 2], "a"), ((3,), {"k": 1}), [4, 5], (6, 7)], paths, CFG, 2) as loader:
        assert [(b.ids, b.extra) for b in loader] == [([1, 2], "a"), ([3], {"k": 1}), ([4, 5], None), ([6, 7], None)]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_local_equals_the_local_transform(paths, workers):
    """Also that it does not wait for batches being made ahead, for which there is no room."""
    rng = np.random.default_rng(2)
    local = LocalTransform(CFG)
    with BatchLoader([[i, i + 1, i, i + 7] for i in range(20)], paths, CFG, workers, prefetch=3, keep_images=True,
                     max_decoded_bytes=20_000, cache_bytes=0) as loader:
        for batch in loader:
            maps = rng.random((4, 5, 5), dtype=np.float32)
            got = batch.local(maps)
            assert got.shape == (4, 16, 16, 3) and got.flags.c_contiguous
            for i, image_id in enumerate(batch.ids):
                assert (got[i].transpose(2, 0, 1) == local(paths[image_id], maps[i])).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_of_8_bits_become_the_same_bits(paths, expected, workers):
    """normalize=False gives the pixels as resized; through pixel_table they are what the float32 path gives, whole
    images and crops, on the core's lookup too."""
    table, rng = pixel_table(CFG), np.random.default_rng(3)
    channels = np.arange(3)
    with BatchLoader([[0, 3, 2], [9, 9]], paths, CFG, workers, keep_images=True, normalize=False) as loader:
        for batch in loader:
            assert batch.pixels.dtype == np.uint8
            assert (table[channels, batch.pixels] == expected[batch.ids]).all()
            x = _asen.from_numpy(batch.pixels).permute(0, 3, 1, 2)
            assert (_asen.normalize_pixels(x, _asen.from_numpy(table)).permute(0, 2, 3, 1).numpy() == expected[batch.ids]).all()
            maps = rng.random((len(batch.ids), 5, 5), dtype=np.float32)
            crops = LocalTransform(CFG).batch([decode(paths[i]) for i in batch.ids], maps)
            assert (table[channels, batch.local(maps)] == crops).all()


def test_local_says_what_it_needs(paths):
    with BatchLoader([[1, 2]], paths, CFG, 1) as loader:
        with pytest.raises(ValueError, match="keep_images"):
            next(iter(loader)).local(np.ones((2, 3, 3), np.float32))
    with BatchLoader([[1, 2]], paths, CFG, 1, keep_images=True) as loader:
        batch = next(iter(loader))
        with pytest.raises(ValueError, match=r"\(2, rows, columns\)"):
            batch.local(np.ones((3, 3, 3), np.float32))
        with pytest.raises(ValueError, match="NaN"):
            batch.local(np.full((2, 3, 3), np.nan, np.float32))


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_an_error_comes_at_its_batch_and_names_the_file(paths, tmp_path, workers):
    broken = tmp_path / "cut.jpg"
    broken.write_bytes(paths[1].read_bytes()[:-200])
    listed = [*paths, tmp_path / "missing.jpg", broken, __file__]
    for image_id, kind, name in ((COUNT, FileNotFoundError, "missing.jpg"), (COUNT + 1, OSError, "cut.jpg"),
                                 (COUNT + 2, OSError, "test_loader.py"), (COUNT + 3, IndexError, str(COUNT + 3))):
        with BatchLoader([[1, 2], [3, 4, image_id, 5], [6]], listed, CFG, workers) as loader:
            run = iter(loader)
            assert next(run).ids == [1, 2]
            with pytest.raises(kind, match=name):
                next(run)
            with pytest.raises(StopIteration):
                next(run)
        assert loader.stats()["decoded_bytes"] == 0, "closed: no thread is working any more"


def test_of_several_errors_the_first_in_the_batch_is_raised(paths, tmp_path):
    listed = [tmp_path / f"no{i}.jpg" for i in range(30)]
    for _ in range(5):
        with BatchLoader([list(range(30))], listed, CFG, 4) as loader:
            with pytest.raises(FileNotFoundError, match="no0.jpg"):
                next(iter(loader))


def test_decoded_bytes_stay_within_the_bound(paths):
    """The bound holds for all that is made ahead; only the batch that is due may go past it."""
    sizes = [decode(p).nbytes for p in paths]
    batches = [[i, i + 1] for i in range(0, COUNT, 2)]
    largest = max(sum(sizes[i] for i in batch) for batch in batches)
    for bound in (1, 2 * largest, 5 * largest):
        with BatchLoader(batches, paths, CFG, 3, prefetch=6, keep_images=True, max_decoded_bytes=bound,
                         cache_bytes=0) as loader:
            list(loader)
            # the caller's batch and the one that is due, or what fits the bound
            assert 0 < loader.stats()["decoded_bytes_peak"] <= max(2 * largest, bound + largest)
    with BatchLoader(batches, paths, CFG, 3, prefetch=6, max_decoded_bytes=1 << 30, cache_bytes=0) as loader:
        list(loader)
        assert loader.stats()["decoded_bytes_peak"] <= 3 * max(sizes), "without keep_images one a thread"


def test_the_iterable_is_drawn_in_the_callers_thread_and_not_far_ahead(paths):
    drawn = []

    def batches():
        for i in range(10):
            assert threading.current_thread() is threading.main_thread()
            drawn.append(i)
            yield [i]

    with BatchLoader(batches(), paths, CFG, 2, prefetch=2) as loader:
        run = iter(loader)
        next(run)
        assert drawn == [0, 1, 2]
        next(run)
        assert drawn == [0, 1, 2, 3]


def test_closing_in_the_middle_and_starting_over(paths, expected):
    threads = threading.active_count()
    loader = BatchLoader([[i] for i in range(COUNT)], paths, CFG, 3, prefetch=8, keep_images=True)
    for _ in range(5):
        for batch in loader:
            if batch.ids == [3]:
                break  # left early; the next pass starts over
    assert (next(iter(loader)).pixels[0] == expected[0]).all()
    run = iter(loader)
    next(run)
    loader.close()
    loader.close()
    assert threading.active_count() == threads
    assert batch.local(np.ones((1, 3, 3), np.float32)).shape == (1, 16, 16, 3), "a batch outlives its loader"
    with pytest.raises(RuntimeError, match="closed"):
        next(run)
    with pytest.raises(RuntimeError, match="closed"):
        iter(loader)


def test_ctrl_c_ends_the_program(paths, tmp_path):
    """A program interrupted while it waits for a batch leaves with KeyboardInterrupt, not by a hang."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(f"""
        import signal, sys, time
        signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where the tests run
        sys.path.insert(0, {str(ROOT)!r})
        from types import SimpleNamespace
        from asenpp.data import loader as module
        slow = module.decode_bytes
        def decode_bytes(*args):
            time.sleep(0.2)
            return slow(*args)
        module.decode_bytes = decode_bytes
        cfg = SimpleNamespace(INPUT=SimpleNamespace({', '.join(f'{k}={v!r}' for k, v in vars(CFG.INPUT).items())}))
        with module.BatchLoader([[0, 1]] * 10000, {[str(p) for p in paths]!r}, cfg, 2, cache_bytes=0) as loader:
            for batch in loader:
                print("ready", flush=True)
        """))
    process = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert "KeyboardInterrupt" in errors and process.returncode in (-signal.SIGINT, 130, 1), errors


def test_bad_arguments(paths):
    with pytest.raises(ValueError, match="workers"):
        BatchLoader([], paths, CFG, -1)


def test_paths_may_be_a_function(paths, expected):
    with BatchLoader([[2, 3]], lambda i: paths[i], CFG, 1) as loader:
        assert (next(iter(loader)).pixels == expected[[2, 3]]).all()



#!/bin/sh
# Builds the C core with ThreadSanitizer into build/tsan, beside the ordinary build, and runs
# tests/tsan_threads.py on it: threads that train, infer, load, save and switch at once. Any report ends the run
# with an error. First a copy without the lock of leaves' gradients is run, whose race has to be reported.
#
#   tests/tsan.sh [SECONDS]     how long the threads run, 15 by default
#
# Built without oneDNN, whose own code is not instrumented: our kernels run instead. One OpenMP thread
# (OMP_THREAD_LIMIT): GCC's OpenMP runtime is not instrumented either, so races are reported in its loops that are
# none. Nothing is suppressed. PYTHON and CC may name another interpreter and compiler (gcc or clang with its runtime
# as a shared library).
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python}
compiler=${CC:-cc}
folder=$root/build/tsan
case $python in /*) ;; */*) python=$(pwd)/$python ;; esac
cd "$root"

build() { # source folder, package folder
    rm -rf "$2"
    # -w: instrumented code draws warnings that are not true of the ordinary build (`make lint`).
    (cd "$1" && ASENPP_ONEDNN=0 ASENPP_CUDA=0 \
        ASENPP_CFLAGS="-w -fsanitize=thread -fno-omit-frame-pointer -g -O1 -UNDEBUG" \
        "$python" setup.py -q build_ext --build-temp "$folder/objects" --build-lib "$2" 2>"$folder/build.txt") ||
        { cat "$folder/build.txt" >&2; exit 1; }
    (cd asenpp && find . -name '*.py' -print) | while read -r file; do
        mkdir -p "$2/asenpp/$(dirname "$file")"
        cp "asenpp/$file" "$2/asenpp/$file"
    done
}

runtime=$($compiler -print-file-name=libtsan.so)
case $runtime in
/*) ;;
*) echo "tsan.sh: $compiler has no libtsan.so: install its sanitizer runtime" >&2; exit 1 ;;
esac

threads() { # package folder, seconds
    # Without randomised addresses: on kernels with many random bits the runtime finds no room for its own maps.
    no_random=$(command -v setarch >/dev/null && setarch -R true 2>/dev/null && echo "setarch -R" || true)
    PYTHONPATH="$1:$root/tests" OMP_THREAD_LIMIT=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
        PYTHONMALLOC=malloc LD_PRELOAD="$runtime" \
        TSAN_OPTIONS="exitcode=66 history_size=4 second_deadlock_stack=1" \
        $no_random "$python" "$root/tests/tsan_threads.py" --seconds "$2"
}

mkdir -p "$folder"
rm -rf "$folder/source"
mkdir "$folder/source"
cp -r csrc setup.py pyproject.toml README.md LICENSE "$folder/source"
sed -i 's/pthread_mutex_\(un\)\?lock(&grad_lock)/(void)0/' "$folder/source/csrc/autograd/tape.c"
if cmp -s csrc/autograd/tape.c "$folder/source/csrc/autograd/tape.c"; then
    echo "tsan.sh: csrc/autograd/tape.c has no lock to take away" >&2
    exit 1
fi
build "$folder/source" "$folder/planted"
status=0
threads "$folder/planted" 2 >"$folder/planted.txt" 2>&1 || status=$?
if [ $status -ne 66 ] || ! grep -q "data race.*tape.c" "$folder/planted.txt"; then
    cat "$folder/planted.txt"
    echo "tsan.sh: the planted race was not reported (status $status)" >&2
    exit 1
fi
echo "the planted race is reported: $(grep -m1 "SUMMARY" "$folder/planted.txt" | sed "s|$folder/source/||")"
build "$root" "$folder/package"
threads "$folder/package" "${1:-15}"

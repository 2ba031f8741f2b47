#!/bin/sh
# Builds the C core with AddressSanitizer and UndefinedBehaviorSanitizer into build/sanitize, beside
# the ordinary build, and runs tests on it: those named as arguments, or the op, tensor and image
# tests. Built without oneDNN, whose own code is not instrumented: our kernels run instead. With ONEDNN=1 it
# is built with it, into build/sanitize-onednn, and the tests are those of our code around it and trainings of
# both stages.
#
#   [ONEDNN=1] tests/sanitize.sh [PYTEST OPTION OR TEST ...]
#
# PYTHON and CC may name another interpreter and compiler (gcc or clang with its runtime as a shared
# library). Any report ends the run with an error. Leaks are not looked for: Python has its own.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python}
compiler=${CC:-cc}
onednn=${ONEDNN:-0}
folder=$root/build/sanitize
[ "$onednn" = 0 ] || folder=$folder-onednn

tests=0
for argument in "$@"; do
    case $argument in -*) ;; *) tests=1 ;; esac
done
if [ $tests -eq 0 ] && [ "$onednn" != 0 ]; then
    run=$root/tests/test_objectives.py::test_same_seed_and_resumed_in_the_same_bits
    set -- "$@" "$root/tests/test_onednn.py" "$root/tests/test_onednn_signals.py" \
        "$run[True-s1-cosine]" "$run[True-s2-dense_triplet]"
elif [ $tests -eq 0 ]; then
    for name in ops tensor autograd inplace fast transforms loader augment; do
        file=$root/tests/test_$name.py
        [ ! -e "$file" ] || set -- "$@" "$file"
    done
fi
i=$#
while [ "$i" -gt 0 ]; do # arguments relative to where the user stands
    case $1 in
    -* | /*) argument=$1 ;;
    *) if [ -e "${1%%::*}" ]; then argument=$(pwd)/$1; else argument=$1; fi ;;
    esac
    shift
    set -- "$@" "$argument"
    i=$((i - 1))
done

case $python in /*) ;; */*) python=$(pwd)/$python ;; esac
cd "$root"
rm -rf "$folder/lib"
# -w: instrumented code draws warnings that are not true of the ordinary build (`make lint`).
ASENPP_ONEDNN=$onednn ASENPP_CUDA=0 ASENPP_CFLAGS="-w -fsanitize=address,undefined -fno-sanitize-recover=undefined
    -fno-omit-frame-pointer -g -O1 -UNDEBUG" \
    "$python" setup.py -q build_ext --build-temp "$folder/objects" --build-lib "$folder/lib"
# The package's other files: modules, stubs, py.typed.
(cd asenpp && find . -name '*.py' -o -name '*.pyi' -o -name py.typed) | while read -r file; do
    mkdir -p "$folder/lib/asenpp/$(dirname "$file")"
    cp "asenpp/$file" "$folder/lib/asenpp/$file"
done

preload=
for library in libasan.so libubsan.so; do
    path=$("$compiler" -print-file-name=$library)
    case $path in
    /*) preload="$preload${preload:+:}$path" ;;
    *) echo "sanitize.sh: $compiler has no $library: install its sanitizer runtime" >&2; exit 1 ;;
    esac
done

cd "$folder/lib" # so that `python -m` finds this asenpp first
export LD_PRELOAD="$preload" ASENPP_TEST_PACKAGE="$folder/lib"
export ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:abort_on_error=1:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
# Python's own pools would hide overruns, and so would our cache: from one tensor into the next, and after its end.
export PYTHONMALLOC=malloc ASENPP_NO_MEMORY_CACHE=1
# The reports go to the process's own stderr, past what pytest captures.
exec "$python" -m pytest -p no:cacheprovider -p no:faulthandler --capture=sys "$@"

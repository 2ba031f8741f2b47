#!/bin/sh
# run.sh COUNT SEED: so many mutations of JPEG, YAML and checkpoint files each. PYTHON names the interpreter.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
case $python in /*) ;; */*) python=$(pwd)/$python ;; esac
cd "$root"
sh tests/fuzz/build.sh build/fuzz
"$python" tests/fuzz/seeds.py build/fuzz/seeds
for name in jpeg yaml; do
    if [ -x build/fuzz/lib-$name ]; then
        build/fuzz/lib-$name -runs="$1" -seed="$2" -timeout=1 -print_final_stats=1 build/fuzz/seeds/$name
    else
        build/fuzz/$name build/fuzz/seeds/$name "$1" "$2"
    fi
done
exec "$python" tests/fuzz/fuzz_checkpoint.py --count "$1" --seed "$2"

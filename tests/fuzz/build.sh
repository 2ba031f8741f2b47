#!/bin/sh
# Builds the fuzz targets into FOLDER: build.sh FOLDER. With clang and its libFuzzer runtime they are
# fuzzers of that kind (lib-jpeg, lib-yaml); with any compiler, driver.c drives them (jpeg, yaml).
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
out=$1
mkdir -p "$out"
flags="-std=gnu11 -g -O1 -fno-omit-frame-pointer -I$root/csrc -ffp-contract=off"
checks="-fsanitize=address,undefined -fno-sanitize-recover=undefined"
jpeg="$root/tests/fuzz/fuzz_jpeg.c $root/csrc/core/status.c"
for name in jpeg map resize transform augment; do jpeg="$jpeg $root/csrc/image/$name.c"; done
yaml="$root/tests/fuzz/fuzz_yaml.c $root/csrc/config/config.c $root/csrc/core/status.c"
${CC:-cc} $flags $checks -o "$out/jpeg" "$root/tests/fuzz/driver.c" $jpeg -ljpeg -lm
${CC:-cc} $flags $checks -o "$out/yaml" "$root/tests/fuzz/driver.c" $yaml -lyaml
if command -v clang >/dev/null && echo 'int LLVMFuzzerTestOneInput(const char *d, long n) { return d && n < 0; }' |
    clang -x c - -fsanitize=fuzzer -o "$out/probe" 2>/dev/null; then
    clang $flags $checks -fsanitize=fuzzer -o "$out/lib-jpeg" $jpeg -ljpeg -lm
    clang $flags $checks -fsanitize=fuzzer -o "$out/lib-yaml" $yaml -lyaml
fi

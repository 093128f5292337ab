#!/usr/bin/env bash
# check.sh BUILD COMMAND [ARGUMENT]: the slower checks of libcsg_edge, each in a build folder of its own below BUILD.
#
#     address            AddressSanitizer and UndefinedBehaviorSanitizer over the stress program (clang)
#     thread             ThreadSanitizer over it, and a race planted in the library must be found (clang)
#     valgrind [TIMES]   open and close TIMES (50): nothing of ours definitely lost
#     fuzz [SECONDS]     libFuzzer on manifests, bundles and jobs, SECONDS (60) each (clang)
#     abi                the ABI against abi/libcsg_edge.abi (libabigail); `abi-renew` writes that file
#     load [IMAGES]      8 threads x IMAGES (1000) on one handle and on eight, as many again under ThreadSanitizer
#     root ARCHIVE       the packed archive in a root that holds the C and C++ libraries and nothing else
#
# BUNDLE is the bundle to run (the shipped one), OPENVINO_DIR where OpenVINO's CMake files are.
set -euo pipefail
build=$1 command=$2 argument=${3:-}
here=$(cd "$(dirname "$0")" && pwd)
BUNDLE=${BUNDLE:-$here/../../csg_edge/models/msk-256}
CSG_EDGE_CACHE=$(mktemp -d)
export CSG_EDGE_CACHE TBB_ENABLE_SANITIZERS=1
trap 'rm -rf "$CSG_EDGE_CACHE"' EXIT

configure() { # NAME OPTION...
    local folder=$build/$1
    shift
    cmake -S "$here" -B "$folder" -G Ninja -DOpenVINO_DIR="${OPENVINO_DIR:-}" "$@" >"$folder.log" 2>&1 || { cat "$folder.log"; exit 1; }
    cmake --build "$folder" >"$folder.log" 2>&1 || { cat "$folder.log"; exit 1; }
}
clang() { configure "$1" -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ "${@:2}"; }
must_fail() { # NAME WHAT STRESS...: a build with planted faults, of which WHAT is found in the library's own code
    if stress "$1" "${@:3}" 2>"$build/$1.txt"; then
        echo "the planted fault of $1 was not found" >&2
        exit 1
    fi
    grep -q "$2" "$build/$1.txt" && grep -q "csg_edge::OpenEngine::make" "$build/$1.txt"
}
stress() { "$build/$1/tests/stress" "$BUNDLE" int8 "${@:2}"; }

mkdir -p "$build"
case $command in
address)
    clang address -DCSG_EDGE_SANITIZE=address,undefined
    for work in "cancel 20" "wrong 40" "reload 5" "threads 1 8 10" "threads 4 2 5"; do
        # shellcheck disable=SC2086
        stress address $work
    done
    clang planted-leak -DCSG_EDGE_SANITIZE=address,undefined -DCMAKE_CXX_FLAGS=-DCSG_EDGE_PLANTED
    must_fail planted-leak "LeakSanitizer" reload 1
    echo "AddressSanitizer, UndefinedBehaviorSanitizer: clean, and the planted leak is found"
    ;;
thread)
    export TSAN_OPTIONS="suppressions=$here/tests/thread.supp"
    clang thread -DCSG_EDGE_SANITIZE=thread
    for work in "cancel 20" "wrong 10" "threads 1 8 10" "threads 4 2 5"; do
        # shellcheck disable=SC2086
        stress thread $work
    done
    clang planted-race -DCSG_EDGE_SANITIZE=thread -DCMAKE_CXX_FLAGS=-DCSG_EDGE_PLANTED
    must_fail planted-race "data race" threads 1 8 30
    echo "ThreadSanitizer: clean, and the planted race is found"
    ;;
valgrind)
    configure valgrind -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS=-DCSG_EDGE_NO_INTERPOSING
    valgrind --quiet --leak-check=full --errors-for-leak-kinds=definite --show-leak-kinds=definite --log-file="$build/valgrind.txt" \
        "$build/valgrind/tests/stress" "$BUNDLE" int8 reload "${argument:-50}"
    python3 "$here/tests/ours_lost.py" "$build/valgrind.txt"
    echo "valgrind: ${argument:-50} times opened and closed, nothing of ours definitely lost"
    ;;
fuzz)
    clang fuzz -DCSG_EDGE_FUZZ=ON -DCSG_EDGE_SANITIZE=address,undefined
    for name in manifest bundle job; do
        mkdir -p "$build/corpus/$name"
        "$build/fuzz/tests/fuzz_$name" -max_total_time="${argument:-60}" -rss_limit_mb=1024 -malloc_limit_mb=256 -timeout=5 \
            -artifact_prefix="$build/fuzz-$name-" -print_final_stats=1 "$build/corpus/$name" "$here/tests/corpus/$name" \
            >"$build/fuzz-$name.txt" 2>&1 || { tail -30 "$build/fuzz-$name.txt"; exit 1; }
        echo "fuzz $name: $(grep -o 'number_of_executed_units: *[0-9]*' "$build/fuzz-$name.txt" | grep -o '[0-9]*') inputs, no crash"
    done
    ;;
abi)
    configure abi
    abidiff "$here/abi/libcsg_edge.abi" "$build/abi/libcsg_edge.so"
    echo "ABI: as committed"
    ;;
abi-renew)
    configure abi
    mkdir -p "$here/abi"
    abidw --no-corpus-path --no-comp-dir-path --no-show-locs --exported-interfaces-only --drop-undefined-syms --drop-private-types --headers-dir "$here/include" --out-file "$here/abi/libcsg_edge.abi" "$build/abi/libcsg_edge.so"
    sed -i "s# path='[^']*/runtimes/native/# path='#" "$here/abi/libcsg_edge.abi" # of this machine
    ;;
root)
    root=$build/root
    rm -rf "$root"
    mkdir -p "$root"/{proc,tmp,lib,lib64,opt}
    tar -xzf "$argument" -C "$root/opt" --strip-components 1
    for name in libc.so.6 libm.so.6 libdl.so.2 librt.so.1 libpthread.so.0 libstdc++.so.6 libgcc_s.so.1; do
        cp -L "/lib/x86_64-linux-gnu/$name" "$root/lib/"
    done
    cp -L /lib64/ld-linux-x86-64.so.2 "$root/lib64/"
    bundle=/opt/share/csg_edge/$(ls "$root/opt/share/csg_edge")
    # In namespaces of its own: of any user where that is allowed, else of root's.
    namespaces=(--user --map-root-user --mount --pid --fork)
    unshare "${namespaces[@]}" true 2>/dev/null || namespaces=(--mount --pid --fork)
    inside() {
        unshare "${namespaces[@]}" sh -c 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"' "$root" "$@"
    }
    inside /opt/bin/verify "$bundle"
    inside /opt/bin/generate "$bundle/golden/muscle.mask.png" "$bundle/golden/muscle.context.png" /tmp/image.png --bundle "$bundle" --seed 3
    cmp "$root/tmp/image.png" <("$root/opt/bin/generate" "$root$bundle/golden/muscle.mask.png" "$root$bundle/golden/muscle.context.png" \
        /dev/stdout --bundle "$root$bundle" --seed 3 2>/dev/null)
    echo "clean root: $(find "$root" -type f | wc -l) files, no Python; the same image as outside"
    ;;
load)
    configure release
    for work in "threads 1 8 ${argument:-1000}" "threads 8 1 ${argument:-1000}"; do
        # shellcheck disable=SC2086
        stress release $work
        echo "$work: every image right"
    done
    ;;
*)
    sed -n '2,14p' "$0"
    exit 2
    ;;
esac

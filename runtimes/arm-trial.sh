#!/usr/bin/env bash
# The shipped bundle on an emulated Arm processor: which engines make their golden images there?
#
#     sudo runtimes/arm-trial.sh [FOLDER]      # x86 Debian; some fifteen minutes, 2 GB in FOLDER (default: arm-root)
#
# An emulator is no Arm machine: what is right here may be slow or wrong there, and the other way round. It runs Debian's
# arm64 userland under qemu and the aarch64 wheels that a user would get. FOLDER is kept for the next run.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$(realpath -m "${1:-arm-root}")
python=${PYTHON:-.venv/dev/bin/python}
packages="numpy opencv-python-headless pillow click openvino onnxruntime"

for tool in qemu-aarch64-static debootstrap; do
    command -v $tool >/dev/null || { echo "$tool is missing; apt-get install qemu-user-static debootstrap" >&2; exit 2; }
done
test "$(id -u)" = 0 || { echo "this makes a root of its own with chroot; run it as root" >&2; exit 2; }

# The kernel hands arm64 programs to qemu. F: opened once, here, so that it is found inside the other root, too.
formats=/proc/sys/fs/binfmt_misc
test -e $formats/register || mount -t binfmt_misc binfmt_misc $formats
test -e $formats/qemu-aarch64 || printf '%s' \
    ':qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-aarch64-static:F' \
    >$formats/register

if ! test -e "$root/.ready"; then
    rm -rf "$root"
    debootstrap --arch=arm64 --variant=minbase --include=python3-minimal,python3 bookworm "$root"
    touch "$root/.ready"
fi
# shellcheck disable=SC2086 - a list of words
"$python" -m pip install --quiet --disable-pip-version-check --upgrade --target "$root/opt/packages" --only-binary=:all: \
    --python-version 3.11 --implementation cp --platform manylinux2014_aarch64 --platform manylinux_2_28_aarch64 \
    --platform manylinux_2_31_aarch64 --platform manylinux_2_35_aarch64 $packages
rm -rf "$root/opt/packages/csg_edge"
cp -r csg_edge "$root/opt/packages/"

mkdir -p "$root/proc" "$root/sys"
mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"
trap 'umount -q "$root/sys" || true; umount -q "$root/proc" || true' EXIT

# Opening an engine by name makes its golden image first and refuses it if that is wrong.
trial='
import sys, time
import csg_edge
runtime, precision = sys.argv[1:]
start = time.monotonic()
try:
    with csg_edge.load(runtime=runtime, device="CPU", precision=precision, cache=False) as generator:
        print(generator.choice, f"({time.monotonic() - start:.0f} s)")
except csg_edge.CsgEdgeError as error:
    print(error)
'
for processor in cortex-a72 neoverse-n1 max; do
    for engine in "onnxruntime fp32" "onnxruntime int8" "openvino fp32" "openvino int8"; do
        # ONNX Runtime reads the host's processor from /sys and dies of it; OpenVINO needs /sys.
        case $engine in
            openvino*) mountpoint -q "$root/sys" || mount -t sysfs sysfs "$root/sys" ;;
            *) umount -q "$root/sys" || true ;;
        esac
        echo -n "$processor, $engine: "
        # shellcheck disable=SC2086 - two words
        QEMU_CPU=$processor PYTHONPATH=/opt/packages timeout 300 chroot "$root" python3 -c "$trial" $engine 2>&1 | tail -1 \
            || echo "ended with status $?"
    done
done

#!/usr/bin/env bash
# gpu.sh OUT STAGE...
#     what CI has no GPU for. Builds into build/gpu and prints what each stage says; rows and long
#     logs go to OUT. Goes on after a stage that fails; status 1 if one did.
#
#     tests      C++ tests, then those of Python that use a GPU
#     sanitize   C++ tests under compute-sanitizer (gpu-sanitize.sh), 3 minutes
#     kernels    fedcomm-bench-kernels, and bench_kernel_peers.py
#     hierarchy  sums over two clouds of a GPU each, and of all GPUs beside as many CPU ranks
#     training   how much of their time two clouds of a GPU or more compute
#     quality    bytes against loss, three runs at a time on one GPU, 3 minutes a point
#
# Takes cmake, ninja, nvcc and mpirun from the PATH, and a python3 with torch, transformers, mpi4py,
# pybind11 and pytest, but without pyfedcomm. PYTHON names another one, ARCHITECTURES what to compile
# for (native), BUDGET the seconds that quality may take (3600).
set -uo pipefail
cd "$(dirname "$0")/.."
(($# >= 2)) || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 2; }
mkdir -p "$1" && out=$(realpath "$1")
shift
python=$(realpath -s "$(command -v "${PYTHON:-python3}")")
root=$PWD
built=$root/build/gpu
n_gpus=$(nvidia-smi --list-gpus 2> /dev/null | wc -l)

build() {
    cmake -S . -B "$built" -G Ninja -DFEDCOMM_TESTS=ON -DFEDCOMM_CUDA=ON \
        -DCMAKE_CUDA_ARCHITECTURES="${ARCHITECTURES:-native}" -DCMAKE_BUILD_TYPE=Release \
        -DPython_EXECUTABLE="$python" \
        -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" &&
        cmake --build "$built" || return
    # The tree's own package has no libraries beside it.
    rm -rf "$built/python" && mkdir "$built/python" && cp -r pyfedcomm "$built/python/" &&
        cp "$built"/_core*.so "$built"/_mpi*.so "$built/libfedcomm.so" "$built/python/pyfedcomm/"
}

ranks() { # ranks N COMMAND...
    local n=$1
    shift
    NCCL_NVLS_ENABLE=0 mpirun -n "$n" --allow-run-as-root --oversubscribe --bind-to none "$@"
}

tests() {
    local status=0
    "$built/fedcomm-tests" > "$out/cpp.log" 2>&1 || status=1
    grep -iE '^(failed|skipped)|passed' "$out/cpp.log"
    "$python" -m pytest -q -p no:cacheprovider -o addopts= "$root"/tests/test_cuda*.py \
        "$root"/tests/test_s{harded,ync_on_host,ync_async_runs}.py || status=1
    return $status
}

sanitize() {
    bash "$root/buildtools/gpu-sanitize.sh" "$built/fedcomm-tests" > "$out/sanitize.log" 2>&1
    local status=$?
    tail -n 40 "$out/sanitize.log"
    return $status
}

kernels() {
    "$built/fedcomm-bench-kernels" --device cuda -b 1G -e 1G -n 21 --json "$out/kernels.jsonl" &&
        "$python" "$root/bench/bench_kernel_peers.py" --device cuda --json "$out/peers.jsonl"
}

hierarchy() {
    ((n_gpus >= 2)) || { echo "two GPUs are needed, there are $n_gpus"; return 1; }
    local bench=("$python" "$root/bench/bench_hierarchy.py" --clouds 2 --json "$out/hierarchy.jsonl")
    local status=0 transport
    for transport in mpi tcp; do
        ranks 2 "${bench[@]}" --transport $transport --rates 10,0 --buckets 1,8 --iters 9 || status=1
    done
    ranks 2 "${bench[@]}" --rates 1,100 --iters 3 || status=1
    ranks $((2 * n_gpus)) "${bench[@]}" --devices cuda,cpu --sizes 64M --rates 10 || status=1
    ((n_gpus < 4)) || ranks "$n_gpus" "${bench[@]}" --rates 10,0 --buckets 1,8 || status=1
    return $status
}

training() {
    ((n_gpus >= 2)) || { echo "two GPUs are needed, there are $n_gpus"; return 1; }
    NCCL_NVLS_ENABLE=0 "$python" "$root/bench/bench_utilization.py" --plain --preset llama --clouds 2 \
        --ranks $((n_gpus / 2)) --rate 1000 --turns 3 --json "$out/training.jsonl"
}

quality() {
    nvidia-cuda-mps-control -d || true # one runs already
    [[ -e $out/corpus/tokenizer ]] ||
        "$python" "$root/bench/quality/corpus.py" "$out/corpus" --vocabulary 4096 || return
    "$python" "$root/bench/bench_quality.py" gpu --corpus "$out/corpus" --work "$out/work" --jobs 3 \
        --budget "${BUDGET:-3600}" --json "$out/quality.jsonl" --plot "$out/quality.svg"
}

build > "$out/build.log" 2>&1 || { tail -n 40 "$out/build.log"; exit 1; }
export PYTHONPATH=$built/python${PYTHONPATH:+:$PYTHONPATH}
cd "$built/python" || exit # where `python -m` looks first
failed=0
for stage in "$@"; do
    printf '\n=== %s\n' "$stage"
    begin=$SECONDS
    case $stage in
        tests | sanitize | kernels | hierarchy | training | quality) "$stage" || failed=1 ;;
        *) echo "no such stage; see the head of $0"; exit 2 ;;
    esac
    printf -- '--- %s: %d s\n' "$stage" $((SECONDS - begin))
done
exit $failed

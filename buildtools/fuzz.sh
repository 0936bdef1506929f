#!/usr/bin/env bash
# fuzz.sh check            exit status 1, with what to install, where there is no clang with libFuzzer
# fuzz.sh run DIRECTORY SECONDS [SEED]
#     builds the targets of tests/fuzz in DIRECTORY and runs each for SECONDS, as many at a time as
#     there are cores, from the inputs in tests/fuzz/corpus. What is new goes to DIRECTORY/corpus and
#     is used the next time; an input that breaks something to DIRECTORY/findings, and the status is
#     1. SEED 0, the default, is another one each time.
# fuzz.sh minimise DIRECTORY
#     replaces tests/fuzz/corpus by the fewest inputs that reach all that the two corpora reach.
set -euo pipefail
cd "$(dirname "$0")/.."

# Longer inputs reach nothing new, but are slow.
limits=(-max_len=512 -timeout=25 -rss_limit_mb=2048 -malloc_limit_mb=1024)

find_clang() { # the newest that can link a libFuzzer program; else names what is missing
    local compiler
    for compiler in ${CLANGXX:-$(compgen -c clang++ | grep -E '^clang\+\+(-[0-9]+)?$' | sort -uVr)}; do
        if echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' |
            "$compiler" -std=c++20 -fsanitize=fuzzer,address,undefined -x c++ - -o /dev/null \
                2> /dev/null; then
            echo "$compiler"
            return
        fi
    done
    echo "error: no clang++ with libFuzzer and sanitizers (Debian: clang, libclang-rt-*-dev)" >&2
    return 1
}

build() {
    local compiler
    compiler=$(find_clang)
    cmake -S . -B "$1" -G Ninja -DFEDCOMM_FUZZ=ON -DFEDCOMM_WERROR=ON -DFEDCOMM_PYTHON=OFF \
        -DFEDCOMM_CUDA=OFF -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_COMPILER="$compiler"
    cmake --build "$1" --target "${targets[@]}"
}

run_one() { # run_one DIRECTORY SECONDS SEED TARGET
    local directory=$1 target=$4 log=$1/logs/$4.log options=()
    [[ -f tests/fuzz/$target.dict ]] && options+=("-dict=tests/fuzz/$target.dict")
    mkdir -p "$directory"/{corpus/"$target",findings,logs}
    if ! "$directory/$target" "${limits[@]}" "${options[@]}" -max_total_time="$2" -seed="$3" \
        -artifact_prefix="$directory/findings/$target-" -print_final_stats=1 \
        "$directory/corpus/$target" "tests/fuzz/corpus/$target" &> "$log"; then
        tail -n 60 "$log"
        echo "FAILED $target; all of it in $log"
        return 1
    fi
    echo "$target: $(sed -n 's/^#[0-9]*\tDONE *//p' "$log") $(tail -n 1 "$log")"
}

targets=()
for source in tests/fuzz/fuzz_*.cpp; do
    targets+=("$(basename "$source" .cpp)")
done
case $1 in
    check) find_clang > /dev/null ;;
    run)
        build "$2"
        export -f run_one
        export UBSAN_OPTIONS=print_stacktrace=1
        # Arrays are not exported.
        # shellcheck disable=SC2016
        printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I TARGET bash -euo pipefail -c \
            "limits=(${limits[*]}); run_one '$2' '$3' '${4:-0}' TARGET"
        ;;
    minimise)
        build "$2"
        for target in "${targets[@]}"; do
            new=$(mktemp -d)
            mkdir -p "$2/corpus/$target" "tests/fuzz/corpus/$target"
            "$2/$target" "${limits[@]}" -set_cover_merge=1 "$new" "tests/fuzz/corpus/$target" \
                "$2/corpus/$target" 2>&1 | tail -n 1
            rm -rf "tests/fuzz/corpus/$target"
            mv "$new" "tests/fuzz/corpus/$target"
            chmod 755 "tests/fuzz/corpus/$target"
        done
        ;;
esac

#!/usr/bin/env bash
# Names the system packages that a build needs and this machine lacks, with the command that
# installs them; exit status 1 if there are any. It installs nothing itself. Python's headers are the
# business of python_headers.sh.
set -euo pipefail

python=${PYTHON:-python3}
missing=()

if ! command -v "$python" > /dev/null; then
    missing+=("$([[ $python == python3.* ]] && echo "$python" || echo python3)")
    missing+=("${missing[0]}-venv")
else
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    case $version in
        3.10 | 3.11 | 3.12 | 3.13) ;;
        *)
            echo "error: $python is Python $version; pyfedcomm needs 3.10 to 3.13." >&2
            echo "Choose another interpreter, for example: make PYTHON=python3.12 ..." >&2
            exit 1
            ;;
    esac
    # Debian names the packages of its default interpreter python3-*, those of others python3.X-*.
    name=python3
    [[ $(basename "$python") == python3.* ]] && name=python$version
    "$python" -c 'import ensurepip, venv' 2> /dev/null || missing+=("$name-venv")
fi

command -v make > /dev/null || missing+=(make)
compiler=${CXX:-g++}
if ! command -v "$compiler" > /dev/null; then
    missing+=(g++)
    [[ -f /usr/include/openssl/evp.h ]] || missing+=(libssl-dev)
elif ! echo '#include <openssl/evp.h>' | "$compiler" -x c++ -E - > /dev/null 2>&1; then
    missing+=(libssl-dev)
fi

if ((${#missing[@]})); then
    sudo=$([[ $(id -u) == 0 ]] || echo "sudo ")
    echo "error: this machine lacks ${missing[*]}. Install with:" >&2
    echo "    ${sudo}apt-get update && ${sudo}apt-get install -y ${missing[*]}" >&2
    exit 1
fi

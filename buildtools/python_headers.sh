#!/usr/bin/env bash
# python_headers.sh PYTHON DIRECTORY: prints the folder of Python.h if it is not where PYTHON says.
#
# Debian and Ubuntu keep Python.h in a package of its own that python3-venv does not bring along.
# Where it is missing, that package is fetched and unpacked below DIRECTORY: nothing is installed,
# and it needs no root. If that fails, too, the package is named, and the exit status is 1.
set -euo pipefail

python=$1
directory=$2

[[ -f $("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]] && exit 0

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
include=$directory/usr/include/python$version
if [[ ! -f $include/Python.h ]]; then
    mkdir -p "$directory"
    if ! (cd "$directory" && apt-get download "libpython$version-dev" && dpkg -x ./*.deb .) \
        > "$directory/log.txt" 2>&1 || [[ ! -f $include/Python.h ]]; then
        sudo=$([[ $(id -u) == 0 ]] || echo "sudo ")
        echo "error: this machine lacks python$version-dev (Python.h). Install with:" >&2
        echo "    ${sudo}apt-get update && ${sudo}apt-get install -y python$version-dev" >&2
        exit 1
    fi
    rm -f "$directory"/*.deb
    # pyconfig.h includes <ARCHITECTURE/python3.X/pyconfig.h>, which is relative to usr/include.
    for folder in "$directory"/usr/include/*/"python$version"; do
        architecture=$(basename "$(dirname "$folder")")
        ln -sfn "../$architecture" "$include/$architecture"
    done
fi
echo "$include"

#!/usr/bin/env bash
# Makes the Python environment of a benchmark's peers: install.sh REQUIREMENTS FOLDER. Packages are installed one by one, so that one
# which cannot be had here costs only itself. A copy of REQUIREMENTS in the folder tells that all are there.
set -euo pipefail
requirements=$1 folder=$2
cd "$(dirname "${BASH_SOURCE[0]}")"

install() {
    case $1 in
        llama-cpp-python==*) ./llama.sh "$1" "$folder" ;;
        *) "$folder/bin/python" -m pip install --quiet --only-binary=:all: "$1" >&2 ;;
    esac
}

echo "bench: installing the peers into $folder" >&2
python3 -m venv "$folder" || {
    echo "bench: python3 cannot make a virtual environment (Debian: apt-get install python3-venv)" >&2
    exit 1
}
complete=true
while read -r package; do
    install "$package" || {
        echo "bench: $package cannot be installed here; its peers are skipped" >&2
        complete=false
    }
done < <(grep -v '^#' "$requirements")
if $complete; then cp "$requirements" "$folder/installed.txt"; fi

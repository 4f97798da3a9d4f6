#!/usr/bin/env bash
# Builds the llama.cpp that llama-cpp-python brings in its source package, with llama-server: llama.sh PACKAGE==VERSION ENVIRONMENT.
# The package's Python part goes into the environment, llama.cpp stays in the folder `llama` beside it. The processor features
# are those that the daemon's own build has, its baseline, so that what differs is not the instructions.
set -euo pipefail
package=$1 python=$2/bin/python folder=$(dirname "$2")/llama

features=(-DGGML_NATIVE=OFF)
case $(uname -m) in
    x86_64) features+=(-DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON) ;;
    aarch64) features+=(-DGGML_CPU_ARM_ARCH="${VADEMECUM_ARM_ARCH:-armv8-a}") ;;
esac

archive=$folder/llama_cpp_python-${package#*==}.tar.gz
if [ ! -f "$archive" ]; then
    rm -rf "$folder"
    mkdir -p "$folder/source"
    "$python" -m pip download --quiet --no-deps --no-binary=llama-cpp-python --dest "$folder" "$package" >&2
    tar -xzf "$archive" -C "$folder/source" --strip-components=1
fi
echo "bench: building llama.cpp for the peers, some minutes" >&2
{
    cmake -S "$folder/source/vendor/llama.cpp" -B "$folder/build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON "${features[@]}" \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
        -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_TOOLS=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF
    cmake --build "$folder/build" --parallel "$(nproc)" --target llama-server llama-bench
} >"$folder/build.log" 2>&1
CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" "$python" -m pip install --quiet "$archive" >&2

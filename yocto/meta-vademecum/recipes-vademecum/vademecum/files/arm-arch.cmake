# Included by llama.cpp's project() (CMAKE_PROJECT_INCLUDE): what llama-cpp-sys-2 has set on the command line gives way to the recipe.
if(DEFINED ENV{VADEMECUM_ARM_ARCH} AND CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set(GGML_CPU_ARM_ARCH "$ENV{VADEMECUM_ARM_ARCH}" CACHE STRING "" FORCE)
endif()

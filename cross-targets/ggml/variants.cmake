# Read by llama.cpp's build after each project() (CMAKE_PROJECT_INCLUDE). Of ggml's many processor variants only those named in
# VADEMECUM_VARIANTS (parted by spaces) are built (ggml has no option for that), each with its threads in the program's team (openmp.c).
#
# Where it takes hold: ggml defines ggml_add_cpu_backend_variant, adds the folder ggml-cpu, and then calls it once per variant.
set(VADEMECUM_GGML "${CMAKE_CURRENT_LIST_DIR}")
set(LLAMA_OPENSSL OFF CACHE BOOL "" FORCE)
string(REPLACE " " ";" VADEMECUM_CHOSEN "$ENV{VADEMECUM_VARIANTS}")

function(vademecum_variant tag)
  if(tag IN_LIST VADEMECUM_CHOSEN)
    _ggml_add_cpu_backend_variant(${ARGV})
    target_compile_definitions(ggml-cpu-${tag} PRIVATE GGML_USE_OPENMP)
    target_compile_options(ggml-cpu-${tag} PRIVATE -fopenmp)
    target_include_directories(ggml-cpu-${tag} PRIVATE "${VADEMECUM_GGML}")
  endif()
  if(tag STREQUAL "armv8.0_1")
    # One that ggml has for Android only: int8 matrices without SVE.
    vademecum_variant(armv8.6_0 DOTPROD FP16_VECTOR_ARITHMETIC MATMUL_INT8)
  endif()
endfunction()

if(PROJECT_NAME STREQUAL "ggml" AND NOT COMMAND _add_subdirectory)
  macro(add_subdirectory)
    _add_subdirectory(${ARGV})
    if("${ARGV0}" STREQUAL "ggml-cpu")
      target_sources(ggml-base PRIVATE "${VADEMECUM_GGML}/openmp.c")
      # In brackets, so that the arguments are the function's and not this macro's.
      cmake_language(EVAL CODE [[
        function(ggml_add_cpu_backend_variant)
          vademecum_variant(${ARGV})
        endfunction()
      ]])
    endif()
  endmacro()
endif()

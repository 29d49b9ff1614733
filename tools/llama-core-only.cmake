# llama.cpp common/ (chat parsers, HTTP client) is half of the build and no part of the Python package.
set(LLAMA_BUILD_COMMON OFF)

# Built for this CPU by GCC before 14, llama.cpp's AMX kernels die of an illegal instruction: of what they set the tiles up
# with, the compiler drops all but the first eight bytes (seen with GCC 12.2).
if (GGML_NATIVE AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU"
        AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 14)
    add_compile_options(-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
endif()

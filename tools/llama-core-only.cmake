# llama.cpp common/ (chat parsers, HTTP client) is half of the build and no part of the Python package.
set(LLAMA_BUILD_COMMON OFF)

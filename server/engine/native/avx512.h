// Everything that is compiled after this may use the instructions that nash_supported() asks for.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define NASH_AVX512 1
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,fma")
#endif
#include <immintrin.h>
#endif
